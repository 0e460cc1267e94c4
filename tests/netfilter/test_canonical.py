"""Spellings of the same rule: one canonical form for all of them, and nothing else taken for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from istio_iptables.istio.plan import build
from istio_iptables.netfilter.canonical import canonical
from istio_iptables.netfilter.model import Family, Rule
from istio_iptables.netfilter.savefile import parse_rule
from tests.spellings import DIFFERENT, IPV4_SPELLINGS, IPV6_SPELLINGS
from tests.strategies import configs, rules

if TYPE_CHECKING:
    from istio_iptables.settings.config import Config


def spelt(text: str, family: Family = Family.IPV4) -> str:
    """The canonical text of a rule."""
    return canonical(parse_rule(text), family).text


@pytest.mark.parametrize(("text", "expected"), IPV4_SPELLINGS)
def test_ipv4_rules_become_what_iptables_save_prints(text: str, expected: str) -> None:
    """Older, looser and longer spellings all become the one of today."""
    assert spelt(text) == expected


@pytest.mark.parametrize(("text", "expected"), IPV6_SPELLINGS)
def test_ipv6_rules_become_what_ip6tables_save_prints(text: str, expected: str) -> None:
    """The same for the addresses and defaults of IPv6."""
    assert spelt(text, Family.IPV6) == expected


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_different_rules_stay_different(left: str, right: str) -> None:
    """What means something else is not taken for the same."""
    assert spelt(left) != spelt(right)


@pytest.mark.parametrize(
    "text",
    [
        "-m set --match-set this src -j ACCEPT",
        '-m comment --comment "a b" -m recent --set --name x --mask 255.255.255.255 --rsource',
        "-m mark --mark what -j MARK --set-xmark 0x1/nonsense",
        "-d 10.0.0.0/255.0.255.0 -j ACCEPT",
        "-p tcp -m tcp --dport nobody-knows -j TPROXY --on-port x",
        '-m owner --uid-owner somebody -m limit --limit 5/min -j LOG --log-prefix "a "',
        "-m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-A",
        "-j CONNMARK --set-mark x",
        "-j MARK --unheard-of 5",
        "-j MARK --set-mark 5 --and-mark 6",
        "-m conntrack --ctstate NEW,SLEEPY -j ACCEPT",
        "-m state --ctproto 6 -j ACCEPT",
        "-j CONNMARK --save-mark --mask x",
        "-p tcp -j REDIRECT --to-ports http",
        "-m multiport --dports 1,x",
        "-p tcp -m tcp --tcp-flags SYN,XYZ SYN",
    ],
)
def test_what_is_not_known_is_left_word_for_word(text: str) -> None:
    """A foreign words never change."""
    assert spelt(text) == text


@given(rules)
def test_the_canonical_form_is_a_fixed_point(rule: Rule) -> None:
    """Spelling a rule twice changes nothing more."""
    for family in Family:
        once = canonical(rule, family)
        assert canonical(once, family).text == once.text
        assert canonical(parse_rule(rule.text), family).text == once.text


@given(configs())
def test_planned_rules_are_canonical_already(config: Config) -> None:
    """The plan's rules are in the canonical spelling already.

    But for the range of all ports: iptables-save keeps its ``-m tcp``, which asks for no more than
    ``-p tcp`` does and is no part of what is compared.
    """
    for ruleset in build(config).rulesets:
        for table in ruleset.tables:
            for chain in table.chains:
                for rule in chain.rules:
                    text = re.sub(r" -m (?:tcp|udp)(?= -[mj])", "", rule.text)
                    assert canonical(rule, ruleset.family).text == text


def test_reason_and_place_are_kept() -> None:
    """What is known about a rule stays with it, its counters do not."""
    rule = parse_rule("-j ACCEPT")._replace(reason="because", inserted=True)
    assert canonical(rule, Family.IPV4)[7:] == (rule.target, "because", True, None, "")
