"""Foreign rules in tables that come before the one that captures."""

from __future__ import annotations

import pytest

from istio_iptables.differences.preceding import preceding, preceding_natively
from istio_iptables.differences.rulesets import ChangeKind
from istio_iptables.istio.ownership import find_owned
from istio_iptables.netfilter import savefile
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.nftlisting import read_listing
from tests.program import run

PLAN = ["-n", "-u", "1337", "-i", "*", "-b", "*", "--ip-family", "ipv4"]
DNS = ["--redirect-dns", "--capture-all-dns"]


def found(arguments: list[str], *more: str) -> list[tuple[str, str, int | None, str]]:
    """What is told when lines of iptables-save stand beside the plan, each ``TABLE LINE``."""
    text = run([*PLAN, *arguments]).out
    wanted = savefile.parse(text, Family.IPV4)
    for line in more:
        table, _, rule = line.partition(" ")
        if f"*{table}\n" not in text:
            chains = ":PREROUTING ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n"
            text += f"*{table}\n{chains}COMMIT\n"
        before, start, after = text.partition(f"*{table}\n")
        rules, commit, rest = after.partition("COMMIT\n")
        if rule.startswith(":"):
            name = rule.split()[0]
            kept = [each for each in rules.splitlines() if not each.startswith(f"{name} ")]
            rules = "".join(f"{each}\n" for each in (rule, *kept))
        else:
            rules += f"{rule}\n"
        text = before + start + rules + commit + rest
    live = savefile.parse(text, Family.IPV4)
    differences = preceding([live], [wanted], find_owned)
    assert all(each.kind is ChangeKind.FOREIGN for each in differences)
    return [(each.table, each.chain, each.live_number, each.text) for each in differences]


@pytest.mark.parametrize(
    ("arguments", "line", "number"),
    [
        ([], "raw -A OUTPUT -j NOTRACK", 1),
        ([], "raw -A PREROUTING -p tcp -j CT --notrack", 1),
        ([], "mangle -A OUTPUT -p tcp -j DROP", 1),
        ([], "mangle -A PREROUTING -j NFQUEUE --queue-num 1", 1),
        # Behind our rules in the same chain: these only look at DNS, and what follows decides.
        (DNS, "raw -A OUTPUT -p tcp -j NOTRACK", 2),
        (["--drop-invalid"], "mangle -A PREROUTING -p tcp -j DROP", 2),
        (["-m", "TPROXY"], "raw -A PREROUTING -j DROP", 1),
    ],
)
def test_what_may_decide_first(arguments: list[str], line: str, number: int) -> None:
    """What is not tracked never meets nat, and what is dropped meets nobody."""
    table, _, rule = line.partition(" ")
    assert found(arguments, line) == [(table, rule.split()[1], number, rule)]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "mangle -A OUTPUT -j MARK --set-xmark 0x1/0x1"),
        ([], "mangle -A OUTPUT -p tcp -j ACCEPT"),
        ([], "raw -A OUTPUT -j CT --zone 5"),
        ([], "raw -A OUTPUT"),
        ([], "filter -A OUTPUT -j DROP"),
        ([], "mangle -A POSTROUTING -j DROP"),
        # Behind the rules that capture, in the table that does.
        (["-m", "TPROXY"], "mangle -A PREROUTING -p tcp -j DROP"),
    ],
)
def test_what_decides_nothing(arguments: list[str], line: str) -> None:
    """Other targets, and tables that come after."""
    assert found(arguments, line) == []


def test_what_stands_before_ours_is_told_once() -> None:
    """That is told by the rulesets' differences: here it is what comes behind."""
    wanted = savefile.parse(run([*PLAN, *DNS]).out, Family.IPV4)
    text = run([*PLAN, *DNS]).out.replace(
        "-A OUTPUT -j ISTIO_OUTPUT_DNS\n", "-A OUTPUT -j NOTRACK\n-A OUTPUT -j ISTIO_OUTPUT_DNS\n"
    )
    assert preceding([savefile.parse(text, Family.IPV4)], [wanted], find_owned) == ()


def test_chains_are_followed() -> None:
    """A rule decides if the chain that it leads to does, however far down; rings end."""
    chains = ("mangle :A -", "mangle :B -", "mangle -A A -j B", "mangle -A B -j A")
    assert found([], *chains, "mangle -A OUTPUT -j A") == []
    assert found([], *chains, "mangle -A OUTPUT -j A", "mangle -A B -j DROP") == [
        ("mangle", "OUTPUT", 1, "-A OUTPUT -j A")
    ]


def test_policies_decide_last() -> None:
    """A policy that drops, in a chain that the plan has nothing in."""
    assert found([], "mangle :OUTPUT DROP") == [("mangle", "OUTPUT", None, ":OUTPUT DROP")]


@pytest.mark.parametrize(
    ("rule", "decides"),
    [
        ("MARK --set-xmark 0x539/0xffffffff", True),
        ("MARK --set-xmark 0x500/0xf00", True),
        ("MARK --set-xmark 0x53a/0xffffffff", False),
        ("MARK --set-xmark 0x200/0xf00", False),
    ],
)
def test_a_mark_of_a_policy_route_decides(rule: str, decides: bool) -> None:  # noqa: FBT001 - a case
    """What has it is delivered past TPROXY."""
    text = run([*PLAN, "-m", "TPROXY"]).out
    wanted = savefile.parse(text, Family.IPV4)
    live = savefile.parse(
        f"{text}*raw\n:PREROUTING ACCEPT\n-A PREROUTING -j {rule}\nCOMMIT\n", Family.IPV4
    )
    assert bool(preceding([live], [wanted], find_owned, {0x539})) is decides
    assert not preceding([live], [wanted], find_owned)


NATIVE = """table inet x {{
	map drops {{
		type inet_service : verdict
		elements = {{ 80 : drop, 81 : accept }}
	}}
	map lets {{
		type inet_service : verdict
		elements = {{ 80 : accept counter packets 0 bytes 0, 81 : jump y }}
	}}
	map marks {{
		type inet_service : mark
	}}
	chain y {{
		counter packets 0 bytes 0
	}}
	chain c {{
		type {kind} hook output priority {priority}; policy accept;
		{rule}
	}}
}}
"""


@pytest.mark.parametrize(
    ("kind", "priority", "rule", "decides"),
    [
        ("filter", -150, "tcp dport vmap @drops", True),
        ("filter", -150, "tcp dport vmap @lets", False),
        ("filter", -150, "tcp dport vmap @gone", False),
        ("filter", -100, "tcp dport vmap @drops", True),
        ("filter", -99, "tcp dport vmap @drops", False),
        ("nat", -100, "dnat ip to ip daddr map { 10.9.0.9 : 10.9.0.1 }", True),
        ("nat", -100, "tcp dport 80 redirect to :tcp dport map { 80 : 9999 }", True),
        ("nat", -99, "tcp dport 80 redirect to :9999", False),
        ("route", -150, "meta mark set tcp dport map @marks", False),
        ("filter", -150, "tcp option maxseg size set rt mtu", False),
    ],
)
def test_native_rules_before_those_of_iptables(
    kind: str,
    priority: int,
    rule: str,
    decides: bool,  # noqa: FBT001 - a case
) -> None:
    """They decide by what they, or the maps that they name, say; nat first of all at the same place."""
    wanted = savefile.parse(run(PLAN).out, Family.IPV4)
    live = read_listing(NATIVE.format(kind=kind, priority=priority, rule=rule).splitlines())
    found = list(preceding_natively(live, wanted.tables))
    assert [(each.table, each.chain, each.text) for each in found] == (
        [("inet x", "c", rule)] if decides else []
    )


def test_a_mark_by_a_map_may_be_any() -> None:
    """Where a mark leads past TPROXY."""
    wanted = savefile.parse(run([*PLAN, "-m", "TPROXY"]).out, Family.IPV4)
    rule = "meta mark set tcp dport map @marks"
    text = NATIVE.format(kind="filter", priority=-200, rule=rule).replace("output", "prerouting")
    live = read_listing(text.splitlines())
    assert list(preceding_natively(live, wanted.tables, {0x539}))
    assert not list(preceding_natively(live, wanted.tables))
