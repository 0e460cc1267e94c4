"""Rules and tables of nftables, read from what nft lists and from its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_iptables.errors import SaveFileError
from istio_iptables.istio.native import build_native
from istio_iptables.istio.plan import build
from istio_iptables.netfilter.documents import rulesets
from istio_iptables.netfilter.model import Base, Counters, Family, Match, Option, Target, Term
from istio_iptables.netfilter.native import text
from istio_iptables.netfilter.nftjson import listing_of
from istio_iptables.netfilter.nftlisting import families, planned_tables, priority, read_listing
from istio_iptables.netfilter.nftrules import NftRule, Statement, split_elements, statements
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
    assert (f.dormant, g.dormant) == (True, False)
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
        ("table inet f {\n\tchain a b {\n\t}\n}\n", 2, "expected a chain or set"),
        (
            "table inet f {\n\tchain a {\n\t\ttype nat hook x\n\t}\n}\n",
            3,
            "type, hook and priority",
        ),
        (
            "table inet f {\n\tchain a {\n\t\ttype filter hook x priority 0;\n\t}\n}\n",
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


def option(*words: str) -> tuple[Option, ...]:
    """Options, each of a name and a value."""
    return tuple(
        Option(name, (value,)) for name, value in zip(words[::2], words[1::2], strict=True)
    )


@pytest.mark.parametrize(
    ("rule", "target"),
    [
        ("meta mark set 0x1", Target("MARK", option("--set-xmark", "0x1/0xffffffff"))),
        ("meta mark set meta mark | 0x4", Target("MARK", option("--set-xmark", "0x4/0x4"))),
        ("meta mark set mark & 0xf0", Target("MARK", option("--set-xmark", "0x0/0xffffff0f"))),
        ("meta mark set meta mark ^ 0x5", Target("MARK", option("--set-xmark", "0x5/0x0"))),
        ("meta mark set 0x7 & 0x3 ^ 0x1", Target("MARK", option("--set-xmark", "0x2/0xffffffff"))),
        ("ct mark set 0x1", Target("CONNMARK", option("--set-xmark", "0x1/0xffffffff"))),
        ("ct mark set ct mark | 0x4", Target("CONNMARK", option("--set-xmark", "0x4/0x4"))),
        ("meta mark set ct mark", Target("CONNMARK", (Option("--restore-mark"),))),
        (
            "meta mark set ct mark & 0xf",
            Target("CONNMARK", (Option("--restore-mark"), *option("--ctmask", "0xf"))),
        ),
        (
            "ct mark set meta mark & 0xf",
            Target("CONNMARK", (Option("--save-mark"), *option("--nfmask", "0xf"))),
        ),
        ("redirect", Target("REDIRECT")),
        ("redirect to :80-90", Target("REDIRECT", option("--to-ports", "80-90"))),
        (
            "redirect to :80 random,fully-random",
            Target(
                "REDIRECT",
                (*option("--to-ports", "80"), Option("--random"), Option("--random-fully")),
            ),
        ),
        ("masquerade persistent", Target("MASQUERADE", (Option("--persistent"),))),
        ("dnat ip to 1.2.3.4:80", Target("DNAT", option("--to-destination", "1.2.3.4:80"))),
        ("dnat to [fd00::1]:80", Target("DNAT", option("--to-destination", "[fd00::1]:80"))),
        # Which of several addresses, nobody knows.
        ("snat to 1.2.3.4-1.2.3.9", Target("SNAT")),
        ("tproxy to :80", Target("TPROXY", option("--on-port", "80"))),
        (
            "tproxy ip to 127.0.0.1:80",
            Target("TPROXY", option("--on-port", "80", "--on-ip", "127.0.0.1")),
        ),
        (
            "tproxy ip6 to [::1]:80",
            Target("TPROXY", option("--on-port", "80", "--on-ip", "::1")),
        ),
        ("tproxy ip6 to [::1]", Target("TPROXY", option("--on-port", "0", "--on-ip", "::1"))),
        ("notrack", Target("CT", (Option("--notrack"),))),
        ("ct zone set 5", Target("CT", option("--zone", "5"))),
        ("ct reply zone set 5", Target("CT", (Option("--zone"),))),
        ("meta priority set 0:5", Target("CLASSIFY")),
        ("meta nftrace set 1", Target("TRACE")),
        ("ip dscp set cs1", Target("SET-FIELD", option("--field", "ip dscp"))),
        ("goto x", Target("x", goto=True)),
        ("reject with icmp type host-unreachable", Target("REJECT")),
    ],
)
def test_what_is_done(rule: str, target: Target) -> None:
    """In the words of iptables, where it has some; masks as the kernel computes with them."""
    (only,) = statements(rule)
    assert (only.target, NftRule(rule).target) == (target, target)


@pytest.mark.parametrize(
    "rule",
    [
        "meta mark set ct mark | 0x1",
        "meta mark set meta priority",
        "meta mark set x",
        "meta mark set meta mark << 3",
        "ip daddr set ip saddr",
        "dnat ip prefix to 10.0.0.0/8",
        "redirect to tcp dport",
        "tproxy",
        "tproxy to x",
        "limit 5",
        "add x",
        "update @x { ip saddr",
        "counter packets 5",
        "tcp dport { 80, { 81 } }",
        "tcp dport vmap { 80 }",
        "tcp dport |",
        "what",
    ],
)
def test_what_can_be_done_is_not_guessed(rule: str) -> None:
    """Nothing is known of all of it but the verdict."""
    unknown, verdict = statements(f"{rule} drop")
    assert (unknown, verdict.target) == (Statement(rule), Target("DROP"))
    assert [each.target for each in statements(f'{rule} goto x comment "drop"')] == [
        None,
        Target("x", goto=True),
        None,
    ]


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("mark 0x1", Statement("mark 0x1", "meta mark", "==", ("0x1",))),
        ("meta iifname lo", Statement("meta iifname lo", "iifname", "==", ("lo",))),
        ("tcp dport ne 80", Statement("tcp dport ne 80", "tcp dport", "!=", ("80",))),
        (
            "ct mark & 0xf == 0x1",
            Statement("ct mark & 0xf == 0x1", "ct mark", "==", ("0x1",), "0xf"),
        ),
        (
            "tcp flags syn / fin,syn",
            Statement("tcp flags syn / fin,syn", "tcp flags", "==", ("syn",), "fin,syn"),
        ),
        (
            "tcp option maxseg size 1-500",
            Statement("tcp option maxseg size 1-500", "tcp option maxseg size", "==", ("1-500",)),
        ),
        ("tcp dport vmap @x", Statement("tcp dport vmap @x", "tcp dport", "vmap", ("@x",))),
        ("counter packets 5 bytes 7", Statement("counter", harmless=True)),
        ("counter name x", Statement("counter name x", harmless=True)),
        ("limit name x", Statement("limit name x", "limit", "==")),
        ("delete @x { ip saddr }", Statement("delete @x { ip saddr }", "set", "==")),
    ],
)
def test_conditions(rule: str, wanted: Statement) -> None:
    """The field, the operator, the values and the mask; in one spelling."""
    assert statements(rule) == (wanted,)


def test_elements() -> None:
    """Each as its words; a map's with its verdict, a counter left out."""
    assert split_elements("{ a . b, c counter }") == ("a . b", "c counter")
    assert split_elements("{ a, b }}") is None
    assert split_elements("{ a, { b } }") is None
    assert split_elements("{ a") is None
    assert split_elements("") == ()
    (only,) = statements("tcp dport vmap { 80 counter packets 1 bytes 2 : goto x }")
    assert (only.values, only.verdicts) == (("80",), (Target("x", goto=True),))


def test_a_rule_is_a_rule_of_the_model() -> None:
    """Its parts one after the other; another of its parts makes another rule."""
    rule = NftRule("ip protocol 89 meta skgid != 5 counter accept", "why")
    assert tuple(rule) == (
        None,
        None,
        None,
        None,
        Term("89"),
        None,
        (Match("owner", (Option("--gid-owner", ("5",), negated=True),)),),
        Target("ACCEPT"),
        "why",
        False,
        None,
    )
    assert repr(rule) == "NftRule('ip protocol 89 meta skgid != 5 counter accept')"
    assert rule._replace(reason="x").reason == "x"
    assert NftRule("udp dport { 53, 54 }").protocol == Term("udp")
    assert (NftRule("counter").protocol, NftRule("counter").target) == (None, None)
    assert NftRule("udp dport { 53, 54 }").matches == ()


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


FIXTURES = Path(__file__).parent.parent / "fixtures"
#: What is not understood of ruleset.nft, by how it begins.
NOT_UNDERSTOOD = {
    "ct state != established | related",
    "ct status != snat | dnat",
    '-"12:00"',
    "quota 10 mbytes",
    "numgen inc mod 2 vmap { 0 : accept, 1 : drop }",
    "meta mark set jhash ip saddr mod 2",
    "meta mark set ip saddr map { 1.2.3.4 : 0x00000001 }",
    "dnat to ip saddr map { 1.2.3.4 : 5.6.7.8 }",
    "dnat ip prefix to ip daddr map { 10.0.0.0/8 : 11.0.0.0/8 }",
}
#: What is written otherwise in JSON, or not at all, and is no part of a decision here.
OTHER_IN_JSON = {
    "tcp flags != 0x12 accept": "tcp flags != 18 accept",
    'meta hour "10:00"-"12:00" accept': "meta hour 10:00-12:00 accept",
    "socket mark 0x00000001 accept": "socket mark 1 accept",
    "limit rate over 10 kbytes/minute burst 5 kbytes drop": "limit rate over 10 kbytes/minute drop",
    "log flags tcp sequence,options flags ip options flags skuid": (
        "log flags tcp sequence,tcp options,ip options,skuid"
    ),
    "update @recent { ip saddr timeout 1m limit rate 5/second } accept": (
        "update @recent { ip saddr } accept"
    ),
}


def compare_json(listed: str, document: str) -> None:
    """Hold nft's JSON to its text: what the one says of a rule, the other says, or it isn't known."""
    tables, others = read_listing(listed.splitlines()), read_listing(listing_of(document))
    assert [table.name for table in tables] == [table.name for table in others]
    for table, other in zip(tables, others, strict=True):
        for chain, same in zip(table.chains, other.chains, strict=True):
            assert chain._replace(rules=()) == same._replace(rules=())
            for rule, of_json in zip(chain.rules, same.rules, strict=True):
                wanted = OTHER_IN_JSON.get(rule.text, rule.text)
                assert of_json.text == wanted or of_json.text.startswith("json "), rule


def test_json_says_what_the_text_says() -> None:
    """Of each statement that nft has, and of each kind of set."""
    listed = (FIXTURES / "ruleset.nft").read_text(encoding="utf-8")
    compare_json(listed, (FIXTURES / "ruleset.json").read_text(encoding="utf-8"))
    unknown = {
        each.text
        for table in read_listing(listed.splitlines())
        for chain in table.chains
        for rule in chain.rules
        if isinstance(rule, NftRule)
        for each in rule.statements
        if not (each.field or each.target or each.harmless)
    }
    assert unknown == NOT_UNDERSTOOD


def test_sets_of_json() -> None:
    """Their elements as the text has them; one that packets are added to is told by its size."""
    document = (FIXTURES / "ruleset.json").read_text(encoding="utf-8")
    objects = read_listing(listing_of(document))[0].objects
    assert objects["set networks"].endswith("elements = { 10.0.0.0/8, 192.168.1.1-192.168.1.9 }")
    assert objects["set pairs"].endswith("elements = { 1.2.3.4 . 80, 1.2.3.5 . 443 }")
    assert objects["set names"].endswith('elements = { "lo", "eth0" }')
    assert objects["set marks"].endswith("elements = { 0x00000001, 0x00000537 }")
    assert objects["set recent"] == "type ipv4_addr; flags timeout,dynamic; timeout 10s"
    assert objects["set counted"] == "type inet_service; elements = { 80, 443 }"
    assert objects["map verdicts"] == (
        "type inet_service : verdict; elements = { 80 : accept, 443 : jump other, 8080 : drop }"
    )
    assert objects["map places"].endswith("elements = { 80 : 10.0.0.1 }")


@pytest.mark.parametrize(("flags", "right"), [("dormant", True), (["owner"], True), ("f", False)])
def test_flags_of_a_table_of_json(flags: str | list[str], right: bool) -> None:  # noqa: FBT001 - a case
    """Nft 1.0.6 prints the name of the table instead: whether it is dormant is not known."""
    document = json.dumps({"nftables": [{"table": {"family": "ip", "name": "f", "flags": flags}}]})
    if right:
        (table,) = read_listing(listing_of(document))
        assert table.objects == {"flags": "".join(flags)}
    else:
        with pytest.raises(SaveFileError, match="does not tell the flags of table ip f"):
            listing_of(document)


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
        f'{{"nftables": [{{"x": {"1" * 5000}}}]}}',
    ],
)
def test_other_json_is_refused(document: str) -> None:
    """In one line, and in words."""
    with pytest.raises(SaveFileError) as caught:
        read_listing(listing_of(document))
    assert "Error(" not in str(caught.value)
