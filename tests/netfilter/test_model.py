"""Rules, chains and rulesets as values."""

from __future__ import annotations

import pytest
from hypothesis import given

from istio_iptables.netfilter.model import (
    Chain,
    Counters,
    Family,
    Match,
    Option,
    Rule,
    Ruleset,
    Table,
    Target,
    Term,
    is_built_in,
    quote,
)
from istio_iptables.netfilter.plan import DesiredState, PolicyRoute
from istio_iptables.netfilter.savefile import parse_rule
from tests.strategies import rules

TEXTS: list[tuple[Rule, str]] = [
    (Rule(), ""),
    (
        Rule(
            target=Target("RETURN"),
            protocol=Term("tcp"),
            out_interface=Term("lo"),
            in_interface=Term("eth0", negated=True),
            destination=Term("10.0.0.0/8", negated=True),
            source=Term("127.0.0.6/32"),
        ),
        "-s 127.0.0.6/32 ! -d 10.0.0.0/8 ! -i eth0 -o lo -p tcp -j RETURN",
    ),
    (Rule(fragment=Term("", negated=True), target=Target("DROP")), "! -f -j DROP"),
    (Rule(target=Target("MINE", goto=True)), "-g MINE"),
    (
        Rule(
            matches=(Match("tcp", (Option("--dport", ("80",), negated=True),)),),
            target=Target("REDIRECT", (Option("--to-ports", ("15001",)),)),
        ),
        "-m tcp ! --dport 80 -j REDIRECT --to-ports 15001",
    ),
    (Rule(matches=(Match("tcp"), Match("mark"))), "-m tcp -m mark"),
    (
        Rule(target=Target("CONNMARK", (Option("--save-mark"), Option("--ctmask", ("0x1",))))),
        "-j CONNMARK --save-mark --ctmask 0x1",
    ),
    (
        Rule(matches=(Match("comment", (Option("--comment", ('say "hi"',)),)),)),
        '-m comment --comment "say \\"hi\\""',
    ),
]


@pytest.mark.parametrize(("rule", "text"), TEXTS)
def test_text(rule: Rule, text: str) -> None:
    """A rule's text is in the order and spelling of iptables-save."""
    assert rule.text == text


class TestEquality:
    """Rules are equal when their text is."""

    @given(rules)
    def test_what_is_no_part_of_a_rule(self, rule: Rule) -> None:
        """Reason, counters and the way it is put in are known about a rule, not part of it."""
        other = rule._replace(reason="why", counters=Counters(1, 2), inserted=True)
        assert other == rule
        assert hash(other) == hash(rule)
        assert not other != rule  # noqa: SIM202 - the operator is what is tested

    @given(rules)
    def test_a_read_rule_and_a_made_one(self, rule: Rule) -> None:
        """A rule read from text equals the one made of parts."""
        assert parse_rule(rule.text) == rule
        assert len({rule, parse_rule(rule.text)}) == 1

    def test_others(self) -> None:
        """Another text, or something that is no rule, is not equal."""
        assert Rule(target=Target("DROP")) != Rule(target=Target("ACCEPT"))
        assert Rule() != ""
        assert Rule() != tuple(Rule())


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("80", "80"),
        ("RELATED,ESTABLISHED", "RELATED,ESTABLISHED"),
        ("0x1/0xff", "0x1/0xff"),
        ("", '""'),
        ("a b", '"a b"'),
        ("it's", '"it\\\'s"'),
        ('"', '"\\""'),
        ("\\", '"\\\\"'),
        ("-j", '"-j"'),
        ("!", '"!"'),
        ("a\u00a0b", '"a\u00a0b"'),
    ],
)
def test_quoted(word: str, text: str) -> None:
    """A word is in double quotes where it could be read as something else without."""
    assert quote(word) == text


def test_lookups() -> None:
    """Tables, chains and options are found by name; what is not there is None."""
    chain = Chain("MINE", rules=(parse_rule("-j REDIRECT --to-ports 1"),))
    ruleset = Ruleset(Family.IPV4, (Table("nat", (chain, chain._replace(name="B"))),))
    assert ruleset.table("raw") is None
    table = ruleset.table("nat")
    assert table is not None
    assert table.chain("MINE") == chain
    assert table.chain("YOURS") is None
    assert ruleset.rule_count == 2
    target = chain.rules[0].target
    assert target is not None
    assert target.option("--to-ports", "--to-port") == Option("--to-ports", ("1",))
    assert target.option("--random") is None
    match = Match("tcp", (Option("--sport", ("1",)), Option("--dport", ("2",))))
    assert match.option("--dport") == Option("--dport", ("2",))
    assert match.option("--sports") is None


def test_families() -> None:
    """A family knows its name in prose, its length in bits and the kernel's number."""
    assert [(each.title, each.bits, each.number) for each in Family] == [
        ("IPv4", 32, 2),
        ("IPv6", 128, 10),
    ]


def test_built_in_chains() -> None:
    """A chain is built in by table and name."""
    assert is_built_in("nat", "OUTPUT")
    assert not is_built_in("raw", "INPUT")
    assert not is_built_in("nat", "ISTIO_OUTPUT")
    assert not is_built_in("nonsense", "OUTPUT")


def test_one_family_of_a_plan() -> None:
    """A plan's part for a family has its rules and routes only."""
    rulesets = tuple(map(Ruleset, Family))
    routes = tuple(PolicyRoute(family, 1337, 133) for family in Family)
    part = DesiredState(rulesets, routes).only(Family.IPV4)
    assert part == DesiredState(rulesets[:1], routes[:1])
    assert part.routes[0].commands == (
        ("ip", "-4", "rule", "add", "fwmark", "0x539", "lookup", "133"),
        ("ip", "-4", "route", "add", "local", "default", "dev", "lo", "table", "133"),
    )
