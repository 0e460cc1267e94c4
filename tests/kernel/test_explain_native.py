"""explain of native rules in the kernel: ours, and those of others at the same hooks."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from tests.kernel.sandbox import CLI, command, forked, joined, needs, process, run, without_nft

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.program import Result

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("pod"), needs("nft")]

CAPTURE = ("-i", "*", "-b", "*", "-d", "15090,15021,15020", "--ip-family", "dual")
TPROXY = (*CAPTURE, "-m", "TPROXY")
SETS = (*CAPTURE, "-o", "22,3306,5432", "--nft-sets")
OUT = "captured by Envoy's outbound listener on port 15001"
IN = "captured by Envoy's inbound listener on port 15006"


@pytest.fixture
def pod(box: object) -> object:
    """A namespace with an interface and a default route."""
    for line in (
        "link add eth0 type veth peer name peer0",
        "link set peer0 up",
        "link set eth0 up",
        "addr add 10.9.0.2/24 dev eth0",
        "route add default via 10.9.0.1",
    ):
        command("ip", *line.split())
    return box


def native(*arguments: str) -> None:
    """Install native rules."""
    assert run("--native-nftables", *arguments).status == 0


def explain(*arguments: str) -> Result:
    """What explain says about the rules that are there."""
    result = run("explain", "--live", *arguments)
    assert result.status == 0, result.err
    return result


def verdict(*arguments: str) -> str:
    """The last line of it."""
    return explain(*arguments).out.splitlines()[-1]


@pytest.mark.parametrize("arguments", [CAPTURE, SETS], ids=["plain", "sets"])
def test_ours_are_followed_live_and_from_files(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Every form in which nft lists them comes to the same steps and verdict as the plan."""
    native(*arguments)
    questions = (
        (("--dst", "192.0.2.9:443"), OUT),
        (("--dst", "192.0.2.9:443", "--uid", "1337"), "goes out by eth0 untouched"),
        (("--in", "--dst", "10.9.0.2:8080"), IN),
        (("--in", "--dst", "10.9.0.2:15021"), "reaches 10.9.0.2:15021 here untouched"),
        (("--dst", "[2001:db8::9]:443", "--src", "fd00:9::2"), OUT),
    )
    listed = {form: command("nft", *form, "list", "ruleset") for form in ((), ("-a",), ("-j",))}
    for question, wanted in questions:
        planned = run("explain", "--native-nftables", *arguments, *question)
        assert planned.out.splitlines()[-1] == wanted
        steps = [line for line in planned.out.splitlines() if line.startswith("inet")]
        for out in (
            explain("--native-nftables", *arguments, *question).out,
            explain(*question).out,
        ):
            assert [line for line in out.splitlines() if line.startswith("inet")] == steps
        for form, text in listed.items():
            path = tmp_path / f"listed{''.join(form)}"
            path.write_text(text, encoding="utf-8")
            done = run("explain", "--rules", str(path), *question)
            assert (done.status, done.out.splitlines()[-1]) == (0, wanted)
            assert run("diff", "--native-nftables", *arguments, "--against", str(path)).status == 0
    if arguments is SETS:
        assert verdict("--dst", "192.0.2.9:3306") == "goes out by eth0 untouched"
        piped = process(CLI, "explain", "--rules", "-", "--dst", ":3306", stdin=listed[("-j",)])
        assert piped.out.endswith("goes out by eth0 untouched\n")


def test_a_live_rule_has_its_reason() -> None:
    """That of the plan, if the settings are given."""
    native(*CAPTURE)
    out = explain("--native-nftables", *CAPTURE, "--dst", "192.0.2.9:443").out
    assert "    All other outbound TCP connections (-i '*') are captured and go to Envoy." in out
    assert "foreign" not in out


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that is as Envoy's for TPROXY; not bound yet."""
    with socket.socket() as made:
        made.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
        yield made


def test_tproxy_without_a_listener_lets_the_packet_pass(listener: socket.socket) -> None:
    """It comes to the application, as long as nothing listens."""
    native(*TPROXY)
    asked = ("--in", "--dst", "10.9.0.2:8080", "--src", "10.9.0.7:999")
    assert verdict(*asked) == "reaches 10.9.0.2:8080 here untouched"
    near = explain(*asked, "-v").out
    assert "because of tproxy ip to :15006: no listener, or not its family" in near
    listener.bind(("0.0.0.0", 15006))  # noqa: S104 - in a namespace of the test's own
    listener.listen()
    assert verdict(*asked) == f"{IN} with both addresses kept (TPROXY)"


@pytest.mark.parametrize(
    ("chain", "packet", "wanted"),
    [
        ("filter hook output priority -150; tcp dport 25 drop", "--dst :25", "dropped by inet fw x 1"),
        ("filter hook output priority 5; tcp dport 15001 drop", "--dst :25", "dropped by inet fw x 1"),
        ("filter hook output priority 5; tcp dport 25 drop", "--dst :25", OUT),
        ("nat hook output priority -105; tcp dport 25 accept", "--dst :25", OUT),
        (
            "nat hook output priority -105; tcp dport 25 redirect to :26",
            "--dst :25",
            "is redirected to port 26, which is not a listener of Envoy or the agent",
        ),
        ("filter hook prerouting priority -310; tcp dport 25 notrack", "--in --dst :25", "reaches 10.9.0.2:25 here untouched"),
        ("filter hook input priority 0; policy drop;", "--in", "dropped by inet fw x policy"),
        ("filter hook input priority 0; tcp dport { 15000-15010 } reject", "--in", "dropped by inet fw x 1"),
    ],
)  # fmt: skip
def test_tables_of_others_at_the_same_hooks(chain: str, packet: str, wanted: str) -> None:
    """In the order of their priorities, with those of ours; also beside rules of iptables."""
    command("nft", f"table inet fw {{ chain x {{ type {chain}; }}; }}")
    native(*CAPTURE)
    assert verdict(*packet.split()) == wanted
    command("nft", "add table inet fw { flags dormant; }")
    assert "fw" not in explain(*packet.split()).out
    command("nft", "add table inet fw")
    command("nft", "delete table inet istio-proxy-nat")
    assert run(*CAPTURE, "--force-iptables-binary", "legacy").status == 0
    assert verdict(*packet.split()) == wanted


def test_what_is_unknown_is_followed_both_ways() -> None:
    """A statement of nft that nobody here knows, and a set that packets change."""
    native(*CAPTURE)
    command(
        "nft",
        "table inet fw { set s { type ipv4_addr; flags dynamic; size 9; };"
        " chain x { type filter hook output priority -200; ip daddr @s drop;"
        " quota over 10 mbytes drop; }; }",
    )
    out = explain("--dst", "192.0.2.9:443").out
    assert "if in inet fw x 1 ip daddr @s holds" in out
    # Behind it nft lists how much was used, and "holds".
    assert "if in inet fw x 2 quota over 10 mbytes" in out
    assert out.splitlines()[-1] == "depends on what can't be known from here"


@pytest.mark.parametrize(
    ("table", "packet", "asked"),
    [
        ('inet fw { chain x { type filter hook ingress device "eth0"', "--in", True),
        ('netdev fw { chain x { type filter hook ingress device "eth0"', "--in", True),
        ('netdev fw { chain x { type filter hook ingress device "eth0"', "--dst :25", False),
        ('netdev fw { chain x { type filter hook egress device "eth0"', "--dst :25", True),
        ('netdev fw { flags dormant; chain x { type filter hook egress device "eth0"', "--dst :25", False),
    ],
)  # fmt: skip
def test_chains_at_an_interface_are_named(
    table: str,
    packet: str,
    asked: bool,  # noqa: FBT001 - a case
    tmp_path: Path,
) -> None:
    """They are not followed, live or from a file, and the verdict says so."""
    command("nft", f"table {table} priority 0; tcp dport 25 drop; }}; }}")
    name = "nftables chain inet fw x" if table.startswith("inet") else "nftables chain netdev fw x"
    path = tmp_path / "listed"
    path.write_text(command("nft", "list", "ruleset"), encoding="utf-8")
    for words in (("--live",), ("--rules", str(path))):
        done = run("explain", *words, *packet.split())
        last = done.out.splitlines()[-1]
        assert last.endswith(f"unless {name} decides otherwise") == asked, (last, done.err)


def test_two_tables_at_one_place_are_told() -> None:
    """Which of two chains of one priority was made first, the listing does not say."""
    for name in ("a", "b"):
        chain = "type filter hook output priority 0; counter"
        command("nft", f"table inet {name} {{ chain x {{ {chain}; }}; }}")
    (warning,) = (each for each in explain("--dst", ":80").warnings if "priority" in each)
    assert "inet b and inet a have chains of the priority 0 at hook OUTPUT" in warning


IN_IPTABLES = "iptables-legacy -t nat -A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 9999"
IN_NFT = (
    'nft "table ip aaa { chain b { type nat hook output priority -100;'
    ' tcp dport 80 redirect to :9999; }; }"'
)
NATIVE = ("--native-nftables", "--nft-like-iptables")


@pytest.mark.parametrize(
    ("other", "arguments", "chains"),
    [
        (IN_IPTABLES, NATIVE, ("inet istio-proxy-nat output", "nat OUTPUT")),
        (IN_NFT, NATIVE, ("inet istio-proxy-nat output", "ip aaa b")),
        (IN_NFT, ("--force-iptables-binary", "nft"), ("ip aaa b", "nat OUTPUT")),
        (IN_NFT, ("--force-iptables-binary", "legacy"), ("ip aaa b", "nat OUTPUT")),
    ],
)
def test_chains_of_one_priority_are_asked_in_both_orders(
    other: str, arguments: tuple[str, ...], chains: tuple[str, str]
) -> None:
    """Where that decides, no flat answer is given: the kernel goes by what was registered last."""
    command("sh", "-c", other)
    assert run(*arguments, *CAPTURE).status == 0
    result = explain("--dst", "192.0.2.9:80")
    one, two = chains
    assert result.out.splitlines()[-1] == "depends on what can't be known from here"
    assert f"if the kernel asks {one} before {two}" in result.out
    assert f"if the kernel asks {two} before {one}" in result.out
    assert f"then: {OUT}" in result.out
    assert "is redirected to port 9999" in result.out
    assert any(f"{one} and {two} have the same priority" in each for each in result.warnings)
    # Where either comes to the same, the answer is flat.
    assert verdict("--dst", "192.0.2.9:81") == OUT
    table = run("matrix", "--live")
    assert "can't be known from here" in table.out
    assert any("have the same priority" in each for each in table.warnings)


def test_a_filter_chain_at_the_priority_of_nat() -> None:
    """Whether it sees the connection before nat is as little known."""
    native(*CAPTURE)
    chain = "type filter hook output priority -100; tcp dport 80 drop"
    command("nft", f"table inet fw {{ chain x {{ {chain}; }}; }}")
    out = explain("--dst", "192.0.2.9:80").out
    assert "if the kernel asks inet fw x before inet istio-proxy-nat output" in out
    assert "then: dropped by inet fw x 1" in out
    assert f"then: {OUT}" in out


def test_chains_of_one_table_have_an_order() -> None:
    """The one that was made last is asked first."""
    chain = "type nat hook output priority -100; tcp dport 80 redirect to"
    command("nft", f"table ip a {{ chain x {{ {chain} :7; }}; chain y {{ {chain} :8; }}; }}")
    assert verdict("--dst", "192.0.2.9:80").startswith("is redirected to port 8,")


def test_without_nft() -> None:
    """Native rules were asked for: refused. They were not: the verdict is conditional."""
    native(*CAPTURE)
    without_nft()
    done = run("explain", "--live", "--native-nftables", *CAPTURE)
    assert (done.status, done.out) == (2, "")
    assert done.errors[0].startswith("can't run nft")
    assert "unless nftables chain inet istio-proxy-nat output" in verdict()


def test_without_privilege() -> None:
    """Exit status 2, and what is missing."""
    native(*CAPTURE)

    def ask() -> int:
        os.setgroups([])
        os.setgid(1000)
        os.setuid(1000)
        done = run("explain", "--live", "--native-nftables", *CAPTURE)
        return done.status if done.out == "" and "CAP_NET_ADMIN" in done.err else 99

    assert joined(forked(ask)) == 2
