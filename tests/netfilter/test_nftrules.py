"""Rules and tables of nftables, read from what nft lists and from its JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_iptables.errors import SaveFileError
from istio_iptables.istio.native import build_native
from istio_iptables.istio.plan import build
from istio_iptables.netfilter.documents import rulesets
from istio_iptables.netfilter.model import Base, Counters, Family, Option, Target, Term
from istio_iptables.netfilter.native import text
from istio_iptables.netfilter.nftjson import listing_of
from istio_iptables.netfilter.nftlisting import families, planned_tables, priority, read_listing
from istio_iptables.netfilter.nftrules import NftRule, split_elements, statements
from tests.strategies import configs

if TYPE_CHECKING:
    from istio_iptables.settings.config import Config


@given(configs())
def test_what_is_printed_is_read_as_planned(config: Config) -> None:
    """Chains, rules, their places; with and without reasons beside them."""
    plan = build_native(config, build(config))
    for form in ("save", "annotated"):
        assert read_listing(text(plan, form).splitlines()) == planned_tables(plan)


@given(configs())
def test_everything_of_ours_is_understood(config: Config) -> None:
    """Of no statement of a planned rule nothing is known."""
    for table in planned_tables(build_native(config, build(config))):
        for chain in table.chains:
            for rule in chain.rules:
                assert isinstance(rule, NftRule)
                assert " ".join(each.text for each in rule.statements) == rule.text
                assert all(each.field or each.target or each.harmless for each in rule.statements)


LISTING = """# Warning: table inet f is managed by somebody, do not touch!
table inet f { # handle 1
	flags dormant
	set s {
		type ipv4_addr
		flags interval
		elements = { 10.0.0.0/8,
				192.168.1.1-192.168.1.9 }
	}

	ct helper ftp {
		type "ftp" protocol tcp
	}

	chain a { # handle 1
		comment "what # it is {"
		type filter hook prerouting priority mangle + 5; policy drop;
		ip saddr @s counter packets 5 bytes 300 drop # handle 8
		ip saddr 1.2.3.4 comment "counter packets 1 bytes 2 # }"
	}

	chain b {
	}
}
table ip6 g {
	chain c {
		type nat hook output priority -100; policy accept;
		queue flags bypass to 3
	}
}
"""


def test_a_listing_is_read() -> None:
    """Comments, handles, sets over several lines, counters' numbers, what a comment says."""
    f, g = read_listing(LISTING.splitlines())
    assert (f.name, g.name) == ("inet f", "ip6 g")
    assert f.objects == {
        "flags": "dormant",
        "set s": "type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.1.1-192.168.1.9 }",
        "ct helper ftp": 'type "ftp" protocol tcp',
    }
    a, b = f.chains
    assert (a.base, a.policy) == (Base("filter", "PREROUTING", -145), "DROP")
    assert (b.base, b.policy, b.rules) == (None, None, ())
    assert [rule.text for rule in a.rules] == [
        "ip saddr @s counter drop",
        'ip saddr 1.2.3.4 comment "counter packets 1 bytes 2 # }"',
    ]
    assert [rule.counters for rule in a.rules] == [Counters(5, 300), None]
    assert isinstance(a.rules[0], NftRule)
    assert a.rules[0].objects is f.objects
    assert [(each.family, [table.name for table in each.tables]) for each in families((f, g))] == [
        (Family.IPV4, ["inet f"]),
        (Family.IPV6, ["inet f", "ip6 g"]),
    ]


@pytest.mark.parametrize(
    ("listing", "line", "reason"),
    [
        ("table inet f {\n", 1, "ends within a table"),
        ("table inet f {\n\tchain a {\n\t}\n", 3, "ends within a table"),
        ("table x f {\n}\n", 1, "expected a table"),
        ("table inet f {\n}\ntable inet f {\n}\n", 3, "a second time"),
        ("table inet f {\n\tchain a {\n\t}\n\tchain a {\n\t}\n}\n", 4, "a second time"),
        ("table inet f {\n\tchain a { }\n}\n", 2, "expected a chain or set"),
        ("table inet f {\n\taccept\n}\n", 2, "expected a chain or set"),
        (
            "table inet f {\n\tchain a {\n\t\ttype nat hook x\n\t}\n}\n",
            3,
            "type, hook and priority",
        ),
        ("table inet f {\n\tchain a {\n\t\tip saddr { 1.1.1.1,\n\t}\n}\n", 5, "ends within"),
        ("table inet f {\n}\nadd rule inet f a accept\n", 3, "expected a table"),
    ],
)
def test_what_is_no_listing_is_refused(listing: str, line: int, reason: str) -> None:
    """With the line, and why; nothing is passed over."""
    with pytest.raises(SaveFileError) as caught:
        read_listing(listing.splitlines())
    assert caught.value.line == line
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("dstnat", -100),
        ("mangle + 5", -145),
        ("filter - 10", -10),
        ("raw", -300),
        ("-100", -100),
        ("7", 7),
        ("out", None),
        ("", None),
    ],
)
def test_priorities(text: str, number: int | None) -> None:
    """By name, with a distance, and as numbers."""
    assert priority(text) == number


def known(text: str) -> list[str]:
    """The statements of a rule that are understood: the field and the target's name of each."""
    return [
        f"{each.field}{'->' if each.target else ''}{each.target.name if each.target else ''}"
        for each in statements(text)
        if each.field or each.target
    ]


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("meta l4proto tcp counter jump x", ["meta l4proto", "->x"]),
        (
            "ip daddr != { 1.2.3.4, 5.0.0.0/8 } tcp dport 80-90 drop",
            ["ip daddr", "tcp dport", "->DROP"],
        ),
        (
            "ct state established,related ct status dnat accept",
            ["ct state", "ct status", "->ACCEPT"],
        ),
        ("fib saddr . iif oif missing drop", ["fib saddr . iif oif", "->DROP"]),
        ("ct original ip daddr 1.2.3.4 accept", ["ct original ip daddr", "->ACCEPT"]),
        ("tcp flags syn / fin,syn accept", ["tcp flags", "->ACCEPT"]),
        (
            'log prefix "accept" level info limit rate 10/second return',
            ["->LOG", "limit", "->RETURN"],
        ),
        ("meta mark set meta mark & 0xffffff37 | 0x00000037", ["->MARK"]),
        ("meta mark set ct mark counter accept", ["ct mark->CONNMARK", "->ACCEPT"]),
        (
            "tproxy ip to :15006 meta mark set 0x1 counter accept",
            ["tproxy->TPROXY", "->MARK", "->ACCEPT"],
        ),
        ("dnat ip6 to [fd00::1]:80 random,persistent", ["family->DNAT"]),
        ("ip daddr . tcp dport { 1.2.3.4 . 80 } accept", [".", "->ACCEPT"]),
        ("update @seen { ip saddr timeout 10s } accept", ["set", "->ACCEPT"]),
        ("queue flags bypass to 3", ["->NFQUEUE"]),
        ("reject with icmp port-unreachable", ["->REJECT"]),
        # What is not known reaches to the verdict.
        ("quota 10 mbytes drop", ["->DROP"]),
        ("ip ttl 3 numgen inc mod 2 vmap { 0 : accept } jump x", ["ip ttl", "->x"]),
        ('xt target "TEE" comment "drop"', []),
        ("meta mark set jhash ip saddr mod 2", []),
    ],
)
def test_statements(rule: str, found: list[str]) -> None:
    """Each is known for what it is, and the text is all there."""
    assert known(rule) == found
    assert " ".join(each.text for each in statements(rule)) == rule


def test_the_parts_that_iptables_has_words_for() -> None:
    """As those ask for them who know the rules of iptables."""
    rule = NftRule('oifname "lo" ip daddr != 127.0.0.1 tcp dport 80-90 meta skuid 5 counter jump x')
    assert rule.out_interface == Term("lo")
    assert rule.destination == Term("127.0.0.1", negated=True)
    assert rule.protocol == Term("tcp")
    assert [(each.name, each.options) for each in rule.matches] == [
        ("tcp", (Option("--dport", ("80:90",)),)),
        ("owner", (Option("--uid-owner", ("5",)),)),
    ]
    assert rule.target == Target("x")


def test_a_verdict_map_holds_its_verdicts() -> None:
    """And is a target each."""
    rule = NftRule("tcp dport vmap { 12 : drop, 443-450 : jump x }")
    (only,) = rule.statements
    assert (only.values, only.verdicts) == (("12", "443-450"), (Target("DROP"), Target("x")))
    assert rule.targets == (Target("DROP"), Target("x"))


@given(st.text(st.sampled_from('abip saddr{},"@.:-/!=<> set12\\#\n'), max_size=60))
def test_any_text_is_read_as_some_statements(rule: str) -> None:
    """Nothing raises, and no word is lost."""
    words = " ".join(each.text for each in statements(rule))
    assert "".join(words.split()) == "".join(rule.split()) or "counter" in rule
    split_elements(rule)
    _ = NftRule.read(rule).matches


JSON = {
    "nftables": [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "inet", "name": "f", "handle": 1}},
        {
            "chain": {
                "family": "inet",
                "table": "f",
                "name": "a",
                "type": "nat",
                "hook": "output",
                "prio": -100,
                "policy": "accept",
            }
        },
        {
            "rule": {
                "family": "inet",
                "table": "f",
                "chain": "a",
                "expr": [
                    {
                        "match": {
                            "op": "!=",
                            "left": {"payload": {"protocol": "ip", "field": "daddr"}},
                            "right": {"prefix": {"addr": "10.0.0.0", "len": 8}},
                        }
                    },
                    {"counter": {"packets": 2, "bytes": 9}},
                    {"xt": {"type": "match", "name": "x"}},
                    {"redirect": {"port": 15001}},
                ],
            }
        },
    ]
}


def test_json_is_read_as_its_text() -> None:
    """What is not known stays as JSON."""
    ipv4, ipv6 = rulesets(json.dumps(JSON))
    assert ipv4.tables == ipv6.tables
    (rule,) = ipv4.tables[0].chains[0].rules
    json_text = "json \"{'xt': {'type': 'match', 'name': 'x'}}\""
    assert rule.text == f"ip daddr != 10.0.0.0/8 counter {json_text} redirect to :15001"
    assert rule.counters == Counters(2, 9)


@pytest.mark.parametrize(
    "document",
    [
        "{",
        "{}",
        '{"nftables": 3}',
        '{"nftables": [3]}',
        '{"nftables": [{"rule": {}}]}',
        '{"nftables": [{"rule": {"family": "inet", "table": "f", "chain": "a"}}]}',
        '{"nftables": [{"table": {"family": "x y", "name": "f"}}]}',
        "[" * 100000,
    ],
)
def test_other_json_is_refused(document: str) -> None:
    """In one line."""
    with pytest.raises(SaveFileError):
        read_listing(listing_of(document))
