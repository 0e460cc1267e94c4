"""``istio-iptables compare``: two settings or rulesets, and the traffic treated differently."""

from __future__ import annotations

import json
import shlex
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from istio_iptables import Capture, Side, compare, explain, matrix, plan
from istio_iptables.netfilter.model import Family
from tests.classes import asked, class_of, packet_of, random_packets
from tests.program import Result, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from istio_iptables import Plan

PACKETS = 400
DOCUMENTED = "-i '*' -b '*' -d 15090,15021,15020 --ip-family ipv4"
PAIRS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "a network is excluded": ({}, {"istio_service_exclude_cidr": "10.0.0.0/8"}),
    "another port of Envoy's": ({}, {"envoy_port": "15011"}),
    "another user": ({}, {"proxy_uid": "1338", "proxy_gid": "1338"}),
    "TPROXY": ({}, {"istio_inbound_interception_mode": "TPROXY"}),
    "ports": ({"istio_inbound_ports": "80,443"}, {"istio_inbound_ports": "80,8080:8090"}),
    "networks": (
        {"istio_service_cidr": "10.0.0.0/8"},
        {"istio_service_cidr": "10.1.0.0/16,172.16.0.0/12"},
    ),
}
MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: web, annotations: {traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.1.0.0/16}}
spec:
  containers: [{name: web, image: "web:1", ports: [{containerPort: 8080}]}]
"""
TEXT = "*nat\n:OUTPUT ACCEPT [0:0]\n{}COMMIT\n"


def told(*arguments: str, folder: Path | str = ".") -> Result:
    """What the program says of two sides."""
    return run(("compare", *arguments), folder=folder)


def document(*arguments: str, folder: Path | str = ".") -> dict[str, Any]:
    """The same for programs."""
    found: dict[str, Any] = json.loads(told(*arguments, "--json", folder=folder).out)
    return found


def _plan(settings: dict[str, str]) -> Plan:
    usual = {"istio_service_cidr": "*", "istio_inbound_ports": "*", "ip_family": "ipv4"}
    return plan(Capture(**{**usual, **settings}))


def rules(tmp_path: Path, name: str, text: str) -> str:
    """A file with a table of rules."""
    path = tmp_path / name
    path.write_text(TEXT.format(text), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", PAIRS)
def test_the_packets_of_its_classes_fare_otherwise_and_no_others(name: str) -> None:
    """What ``explain`` says of random packets with both settings differs where compare says so."""
    one, other = map(_plan, PAIRS[name])
    found = compare(one, other)
    assert found.differences
    assert found.divergences
    where = class_of(found.divergences)
    matrices = matrix(one), matrix(other)
    differing = 0
    random = Random(4)  # noqa: S311 - packets, not secrets
    packets = random_packets(found.divergences, Family.IPV4, random, PACKETS)
    for number, (direction, fields) in enumerate(packets):
        mine = where(Family.IPV4, direction, fields)
        question: Any = asked(Family.IPV4, direction, fields)
        packet = packet_of(Family.IPV4, fields)
        answers = [each.answer(Family.IPV4, packet).fate for each in matrices]
        assert len(mine) == (answers[0] != answers[1]), question
        if number % 20 == 0:
            # What explain asks, and what it looks for besides.
            assert answers == [explain(each, **question).fate for each in (one, other)]
        if mine:
            assert answers == [mine[0].one.fate, mine[0].other.fate]
            differing += 1
    assert differing


def test_the_same() -> None:
    """However it is written; and nothing is said to differ."""
    done = told(DOCUMENTED, "--ip-family=ipv4 -d 15090,15021,15020 -b '*' -i '*'")
    assert (done.status, done.err) == (0, "")
    assert done.out == "A and B have the same rules; the same for every packet (IPv4)\n"
    found = document(DOCUMENTED, DOCUMENTED)
    assert found["same"]
    assert found["same_for_every_packet"]
    assert found["differences"] == found["classes"] == []


def test_what_differs_and_what_it_means() -> None:
    """The rule, the traffic, what becomes of it on both sides, and the first packet of it."""
    done = told(DOCUMENTED, f"{DOCUMENTED} -x 10.0.0.0/8")
    assert done.status == 1
    for line in (
        "extra: IPv4 nat ISTIO_OUTPUT rule 9: -A ISTIO_OUTPUT -d 10.0.0.0/8 -j RETURN",
        "B differs from A: 1 difference of rules; traffic treated differently (IPv4):",
        (
            "new connections from the pod (IPv4): not out of lo, tcp, to 10.0.0.0/8, not uid 1337,"
            " not gid 1337"
        ),
        "    A: captured by Envoy's outbound listener on port 15001 (nat ISTIO_OUTPUT 9)",
        "    B: goes out by eth0 untouched (nat ISTIO_OUTPUT 9)",
        "    first: --out --proto tcp --src 10.244.0.2:40000 --dst 10.0.0.1:80 --iface eth0",
    ):
        assert line in done.out.splitlines()


def test_other_rules_may_mean_the_same(tmp_path: Path) -> None:
    """Rules in another order, or one that never matches: told, and no packet is treated differently."""
    one = rules(tmp_path, "one", "-A OUTPUT -p tcp -j ACCEPT\n-A OUTPUT -p udp -j DROP\n")
    other = rules(
        tmp_path,
        "other",
        "-A OUTPUT -p udp -j DROP\n-A OUTPUT -p tcp -j ACCEPT\n-A OUTPUT -p udp -j ACCEPT\n",
    )
    done = told(f"--rules {one} --family ipv4", f"--rules {other} --family ipv4")
    assert done.status == 1
    assert done.out.splitlines()[-1] == (
        "B differs from A: 2 differences of rules; the same for every packet (IPv4)"
    )


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "-m TPROXY",
        "--redirect-dns --capture-all-dns",
        "-x 10.0.0.0/8,fd00::/8 -o 22,80 -d 15020 -k br0 -c eth1",
        "-i 10.0.0.0/8 -b 80,443 -u 1337,1338 -q 8080",
    ],
)
def test_native_rules_like_those_of_iptables(flags: str) -> None:
    """Not a rule in common, and every packet is treated the same, as ``--nft-like-iptables`` promises.

    Only what others' rules have left untracked may not: nft's ``ct zone`` has it tracked again.
    """
    settings = f"-i '*' -b '*' --ip-family dual {flags}"
    found = document(settings, f"{settings} --native-nftables --nft-like-iptables")
    assert found["differences"]
    states = [
        each["among"]
        for differing in found["classes"]
        for each in differing["conditions"]
        if each["field"] == "state"
    ]
    assert len(states) == len(found["classes"])
    assert all(each == ["UNTRACKED"] for each in states)
    assert found["same_for_every_packet"] is ("--redirect-dns" not in flags)


def test_strict_holds_for_what_is_not_compared(tmp_path: Path) -> None:
    """The warning of a family that one side lacks is a refusal, whichever side is strict."""
    (tmp_path / "saved").write_text(TEXT.format("-A OUTPUT -j ACCEPT\n"), encoding="utf-8")
    sides = ["--rules saved --family ipv4", "-i '*' --ip-family dual"]
    done = told(*sides, folder=tmp_path)
    assert (done.status, len(done.warnings)) == (1, 1)
    for strict in ([f"{sides[0]} --strict", sides[1]], [sides[0], f"{sides[1]} --strict"]):
        done = told(*strict, folder=tmp_path)
        assert (done.status, done.out) == (2, "")
        assert done.errors[-1].endswith("(--strict)")


def test_istios_native_rules_do_otherwise() -> None:
    """Where the families differ, for one: Istio's name no address of IPv6."""
    settings = "-i '*' -b '*' --ip-family ipv4"
    found = document(settings, f"{settings} --native-nftables")
    assert {each["family"] for each in found["classes"]} == {"ipv6"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "-A OUTPUT -m statistic --mode random --probability 0.5 -j DROP\n",
            "-A OUTPUT -m statistic --mode random --probability 0.6 -j DROP\n",
        ),
        ("-A OUTPUT -j SOMEWHERE --fast\n", "-A OUTPUT -j SOMEWHERE --slow\n"),
    ],
)
def test_what_is_not_known_is_not_the_same(tmp_path: Path, one: str, other: str) -> None:
    """Matches and targets that can't be decided are the same only if they are written so."""
    words = [
        f"--rules {rules(tmp_path, name, text)} --family ipv4"
        for name, text in (("one", one), ("other", other))
    ]
    assert not document(*words)["same_for_every_packet"]
    assert document(words[0], words[0])["same"]


def _arguments(folder: Path) -> None:
    (folder / "side").write_text(f"# ours\n{DOCUMENTED}\n  -x 10.1.0.0/16", encoding="utf-8")


def _saved(folder: Path) -> None:
    text = run(["-n", *shlex.split(DOCUMENTED), "-x", "10.1.0.0/16"]).out
    (folder / "side").write_text(text, encoding="utf-8")


def _manifest(folder: Path) -> None:
    (folder / "side").write_text(MANIFEST, encoding="utf-8")


@pytest.mark.parametrize("write", [_arguments, _saved, _manifest])
def test_a_file_is_what_it_holds(write: Callable[[Path], None], tmp_path: Path) -> None:
    """Arguments, rules or a manifest."""
    write(tmp_path)
    found = document(DOCUMENTED, "side", folder=tmp_path)
    assert [each["text"] for each in found["differences"]] == [
        "-A ISTIO_OUTPUT -d 10.1.0.0/16 -j RETURN"
    ]
    (first,) = (each for each in found["classes"] if each["opening"])
    assert first["a"]["captured"] == "outbound"
    assert first["b"]["captured"] is None
    assert not document("side", "side", folder=tmp_path)["differences"]


def test_a_family_that_a_text_does_not_have_is_not_compared(tmp_path: Path) -> None:
    """It is not known, and not taken for empty; a plan without it has no rules for it."""
    _saved(tmp_path)
    done = told("-i '*' -b '*' --ip-family dual", "side", folder=tmp_path)
    assert "B (side) has no IPv6 rules: those of the other side are not compared" in done.warnings
    assert "IPv6" not in done.out
    found = document("-i '*' -b '*' --ip-family ipv4", "-i '*' -b '*' --ip-family dual")
    assert {each["family"] for each in found["classes"]} == {"ipv6"}


def test_routes_count() -> None:
    """TPROXY's policy route is of the plan, and decides about packets."""
    tproxy = f"{DOCUMENTED} -m TPROXY"
    found = document(tproxy, f"{tproxy} -r 134")
    assert [each["table"] for each in found["differences"]] == [None] * len(found["differences"])
    assert found["differences"]


@pytest.mark.parametrize(
    ("sides", "error"),
    [
        ((), "compare takes two sides, not 0"),
        (("--", "-i '*'"), "compare takes two sides, not 1"),
        (("", "-i '*'"), "A: is empty"),
        (("-i", "*", "-b", "*"), "compare takes two sides, not 4"),
        (("-i 'x", "--live"), "A: No closing quotation"),
        (("-i '*'", "-q"), "B: --istio-outbound-ports (-q): the value is missing"),
        (("-i '*'", "-b 80x"), "B: --istio-inbound-ports (-b), item 1: '80x' is not a port"),
        (("-i '*'", "none"), "B: can't read none: No such file"),
        (("empty", "-i '*'"), "A: empty: holds no table"),
        (("words", "-i '*'"), "A: words: "),
        (("zeros", "-i '*'"), "A: zeros: holds a NUL byte"),
        (("-", "--rules -"), "A, B: stdin holds one file: give - once"),
        (
            ("-i '*' --rulse x", "--live"),
            "A: --rulse: there is no such option: did you mean --rules?",
        ),
    ],
)
def test_bad_sides_are_refused(sides: tuple[str, ...], error: str, tmp_path: Path) -> None:
    """One line a problem, with the side that has it."""
    for name, content in (("empty", b""), ("words", b"some words\n"), ("zeros", b"*nat\n\0\n")):
        (tmp_path / name).write_bytes(content)
    done = told(*sides, folder=tmp_path)
    assert done.status == 2
    assert done.out == ""
    assert len(done.errors) == len(done.err.splitlines()) == 1
    assert done.errors[0].startswith(error)


def test_sides_of_the_api() -> None:
    """Plans, texts, or both mixed; a comparison is true where something differs."""
    own = _plan({})
    assert not compare(own, own)
    found = compare(Side(own), Side(None, TEXT.format(""), Family.IPV4))
    assert found
    assert all(each.packet is each.one.packet for each in found.divergences)
