"""diff and explain of the rules in the kernel, in both backends."""

from __future__ import annotations

import json

import pytest

from istio_iptables.netfilter.model import Family
from tests.kernel.sandbox import command, install, load, run, state
from tests.namespaces import BACKENDS

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

DOCUMENTED = ("-i", "*", "-b", "*", "-d", "15090,15021,15020", "--ip-family", "dual")
TPROXY = (*DOCUMENTED, "-m", "TPROXY", "--redirect-dns", "--capture-all-dns")


@pytest.mark.parametrize("flags", [DOCUMENTED, TPROXY])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_installed_is_as_planned(backend: str, flags: tuple[str, ...]) -> None:
    """Rules, routes and addresses; and looking changes nothing."""
    assert install(backend, *flags).status == 0
    before = state(everything=True)
    result = run("diff", *flags)
    assert (result.status, result.errors) == (0, [])
    assert result.out == f"this namespace ({backend}) is as planned (IPv4 and IPv6)\n"
    assert state(everything=True) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_somebody_changed_is_told(backend: str) -> None:
    """A rule gone, a rule of somebody else before ours, a route and an address gone."""
    install(backend, *TPROXY)
    iptables = f"iptables-{backend}"
    command(iptables, "-t", "mangle", "-D", "ISTIO_INBOUND", "4")
    command(iptables, "-t", "nat", "-I", "OUTPUT", "-d", "192.0.2.1", "-j", "ACCEPT")
    command("ip", "rule", "del", "fwmark", "1337", "lookup", "133")
    command("ip", "-6", "addr", "del", "::6/128", "dev", "lo")
    result = run("diff", *TPROXY, "--json")
    found = json.loads(result.out)["differences"]
    assert result.status == 1
    assert [(each["kind"], each["table"], each["chain"]) for each in found] == [
        ("missing", "mangle", "ISTIO_INBOUND"),
        ("stranger", "nat", "OUTPUT"),
        ("missing", None, None),
        ("missing", None, None),
    ]
    texts = [each["text"] for each in found[2:]]
    assert texts[0] == "ip -6 addr add ::6/128 dev lo"
    assert texts[1] == "ip -4 rule add fwmark 0x539 lookup 133"


def test_nothing_installed_is_everything_missing() -> None:
    """Exit status 1 and one line; each rule with its reason is for programs."""
    result = run("diff", *DOCUMENTED)
    assert result.status == 1
    count = len(run(*DOCUMENTED, "--dry-run").out.split("\n-A ")) - 1
    assert (
        result.out
        == f"no rules of ours are in this namespace (legacy) ({count} rules are missing)\n"
    )
    document = json.loads(run("diff", *DOCUMENTED, "--json").out)
    assert document["differences"]
    assert {each["kind"] for each in document["differences"]} == {"missing"}


def test_nothing_of_ours_beside_rules_of_others() -> None:
    """A foreign rule that would decide first is still told."""
    command("iptables-legacy", "-t", "raw", "-A", "OUTPUT", "-j", "NOTRACK")
    lines = run("diff", *DOCUMENTED).out.splitlines()
    assert len(lines) == 3
    assert lines[0] == "foreign: IPv4 raw OUTPUT rule 1: -A OUTPUT -j NOTRACK"
    assert lines[2].startswith("no rules of ours are in this namespace (legacy) (")


@pytest.mark.parametrize("backend", BACKENDS)
def test_live_rules_explain_packets(backend: str) -> None:
    """With the reasons of the plan, and what a foreign rule does first."""
    install(backend, *DOCUMENTED)
    load(backend, Family.IPV4, "*nat\n-I OUTPUT 1 -d 192.0.2.9/32 -j ACCEPT\nCOMMIT\n")
    captured = run("explain", "--live", *DOCUMENTED, "--dst", "192.0.2.1:80")
    assert captured.status == 0
    assert "nat OUTPUT 2 -A OUTPUT -j ISTIO_OUTPUT\n    Everything that" in captured.out
    assert captured.out.endswith("captured by Envoy's outbound listener on port 15001\n")
    spared = run("explain", "--live", *DOCUMENTED, "--dst", "192.0.2.9:80")
    assert spared.out.endswith("goes out by eth0 untouched\n")


@pytest.mark.parametrize(
    "rule", [("raw", "OUTPUT", "-j", "NOTRACK"), ("mangle", "OUTPUT", "-p", "tcp", "-j", "DROP")]
)
@pytest.mark.parametrize("theirs", BACKENDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_foreign_rules_that_switch_capture_off_are_told(
    backend: str, theirs: str, rule: tuple[str, ...]
) -> None:
    """In a table before ours, where the plan has no rule; in either backend."""
    install(backend, *DOCUMENTED)
    table, *words = rule
    command(f"iptables-{theirs}", "-t", table, "-A", *words)
    result = run("diff", *DOCUMENTED, "--force-iptables-binary", backend)
    assert result.status == 1
    told, why, last = result.out.splitlines()
    assert told.startswith(f"foreign: IPv4 {table} OUTPUT rule 1: -A OUTPUT")
    assert why == f"    a foreign rule that may decide first: {table} comes before nat"
    assert last == f"this namespace ({backend}) differs from the plan: 1 difference"


@pytest.mark.parametrize(
    "words",
    [
        ("del fwmark 1337 lookup 133", "add fwmark 1337 tos 0x10 lookup 133"),
        ("del fwmark 1337 lookup 133", "add fwmark 1337 lookup 133 suppress_prefixlength 0"),
        ("del fwmark 1337 lookup 133", "add fwmark 1337 lookup 133 prio 40000"),
        ("add from all lookup main prio 10",),
    ],
)
def test_a_policy_rule_that_the_kernel_does_not_go_by(words: tuple[str, ...]) -> None:
    """It is missing, a second install puts it right, and a clean takes away all of ours."""
    command("ip", "link", "set", "lo", "up")
    command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
    for name in ("eth0", "peer0"):
        command("ip", "link", "set", name, "up")
    command("ip", "addr", "add", "10.9.0.2/24", "dev", "eth0")
    command("ip", "route", "add", "default", "dev", "eth0")
    before = state().rules
    tproxy = ("-m", "TPROXY", "-i", "*", "-b", "*", "--ip-family", "ipv4")
    install("legacy", *tproxy)
    assert run("diff", *tproxy).status == 0
    for each in words:
        command("ip", "rule", *each.split())
    assert run("diff", *tproxy).status == 1
    assert install("legacy", *tproxy).status == 0
    assert run("diff", *tproxy).status == 0
    assert run("clean").status == 0
    foreign = [each for each in words if each.startswith("add") and " prio 40000" not in each]
    for each in foreign:
        command("ip", "rule", *each.replace("add", "del", 1).split())
    assert state().rules == before


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ("rule del fwmark 1337 lookup 133", "rule add fwmark 0x539 lookup 133"),
        ("route flush table 133", "route add local default dev lo table 133"),
    ],
)
def test_half_a_policy_route_is_one_difference(gone: str, missing: str) -> None:
    """What is still there is not called missing."""
    tproxy = ("-m", "TPROXY", "-i", "*", "-b", "*", "--ip-family", "ipv4")
    install("legacy", *tproxy)
    command("ip", *gone.split())
    lines = run("diff", *tproxy).out.splitlines()
    assert lines[0] == f"missing: IPv4: ip -4 {missing}"
    assert lines[-1].endswith("1 difference")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_foreign_rule_with_our_words_is_foreign(backend: str) -> None:
    """It is no second one of ours: an install has nothing to do, and diff calls it foreign."""
    words = ("-i", "*", "-b", "*", "-c", "eth9", "--ip-family", "ipv4")
    load(backend, Family.IPV4, "*nat\n-A OUTPUT -o eth9 -j RETURN\n-A OUTPUT -j ACCEPT\nCOMMIT\n")
    install(backend, *words)
    found = json.loads(run("diff", *words, "--json").out)["differences"]
    assert {each["kind"] for each in found} == {"stranger"}
    assert "nothing to do" in install(backend, *words).err


def test_a_plan_of_one_family_is_said_to_be_one(box: object) -> None:  # noqa: ARG001 - a namespace
    """IPv6 is not called planned where it is not captured."""
    flags = ("-i", "*", "-b", "*", "--ip-family", "ipv4")
    assert run(*flags).status == 0
    line = run("diff", *flags).out
    assert line.endswith("is as planned (IPv4; no IPv6 rules, as planned)\n")
