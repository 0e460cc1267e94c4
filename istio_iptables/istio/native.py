"""Istio's rules as native nftables: the rules of both families in one ruleset, as Istio makes it.

The rules and their reasons are those of ``rules``. What stands here is what Istio does otherwise
with nftables: names, the order of the two families' rules and of conditions, and one condition
more.
"""

from __future__ import annotations

from collections import deque
from itertools import chain, groupby
from operator import attrgetter

from istio_iptables.istio.plan import Common, template
from istio_iptables.istio.rules import NATIVE_TABLE, common_values, rules
from istio_iptables.netfilter.model import Term
from istio_iptables.netfilter.native import (
    Hook,
    NativeChain,
    NativePlan,
    NativeRule,
    NativeTable,
)
from istio_iptables.netfilter.nftspelling import action, conditions
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from istio_iptables.istio.plan import Template
    from istio_iptables.netfilter.model import Family, Rule
    from istio_iptables.netfilter.plan import DesiredState
    from istio_iptables.settings.config import Config

__all__ = [
    "PASS_IPV6",
    "build_native",
    "chain_name",
    "iptables_chain",
    "iptables_table",
    "native_chains",
]

#: The tables in Istio's order, each with the chains that it may have, in the order of nft's list.
_TABLES: dict[str, dict[str, Hook | None]] = {
    "nat": {
        "PREROUTING": Hook("nat", "prerouting", "dstnat"),
        # nft has a name for this priority at prerouting only.
        "OUTPUT": Hook("nat", "output", "-100"),
        "ISTIO_INBOUND": None,
        "ISTIO_REDIRECT": None,
        "ISTIO_IN_REDIRECT": None,
        "ISTIO_OUTPUT": None,
        "ISTIO_OUTPUT_GROUPS": None,
        "ISTIO_OUTPUT_DNS": None,
    },
    "mangle": {
        "PREROUTING": Hook("filter", "prerouting", "mangle"),
        # A packet whose mark changes here is routed again.
        "OUTPUT": Hook("route", "output", "mangle"),
        "ISTIO_DIVERT": None,
        "ISTIO_TPROXY": None,
        "ISTIO_INBOUND": None,
        "ISTIO_DROP": None,
    },
    "raw": {
        "PREROUTING": Hook("filter", "prerouting", "raw"),
        "OUTPUT": Hook("filter", "output", "raw"),
        "ISTIO_INBOUND": None,
        "ISTIO_OUTPUT_DNS": None,
    },
}


#: At the head of each base chain, since the rules behind it are for both families.
PASS_IPV6 = NativeRule(
    "meta nfproto ipv6 counter return",
    "IPv6 is off: its packets are left alone, as they are by rules of iptables.",
)


def build_native(config: Config, state: DesiredState) -> NativePlan:
    """The native rules of *config*, in the address families of *state*, its plan for iptables.

    A rule that names no address is for both families, whichever are meant: Istio's is, too. With
    ``nft_like_iptables`` no packet is treated otherwise than by the rules of iptables.
    """
    wanted = [_wanted(config, ruleset.family) for ruleset in state.rulesets]
    tables = []
    for table, hooks in _TABLES.items():
        chains = []
        for name, hook in hooks.items():
            place = (table, name)
            placed = _placed([each[place] for each in wanted if place in each])
            if placed and hook and config.nft_like_iptables and not config.ipv6:
                placed.insert(0, PASS_IPV6)
            if placed:
                chains.append(NativeChain(chain_name(name), hook, tuple(placed)))
        if chains:
            tables.append(NativeTable(_table_name(table), tuple(chains)))
    return NativePlan(tuple(tables), tuple(map(_table_name, _TABLES)), state)


def native_chains(table: str) -> frozenset[str]:
    """The names of all chains that the native table of this name may have."""
    return frozenset(map(chain_name, _TABLES[iptables_table(table)]))


def _table_name(table: str) -> str:
    return f"{NATIVE_TABLE}{table}"


def chain_name(name: str) -> str:
    """What a chain of iptables is called here."""
    return name.lower().replace("_", "-")


def iptables_table(name: str) -> str:
    """The name that iptables has for a native table of ours."""
    return name.removeprefix(NATIVE_TABLE)


def iptables_chain(name: str) -> str:
    """The name that iptables has for a native chain of ours; another name stays."""
    return _IPTABLES_CHAINS.get(name, name)


_IPTABLES_CHAINS = {chain_name(name): name for hooks in _TABLES.values() for name in hooks}


class _Wanted(NamedTuple):
    """A rule of one family: what it was made from, its native form, and where it goes."""

    #: The text of ``rules`` and the values in it: the same for both families' forms of a rule.
    source: str
    values: Mapping[str, str]
    rule: NativeRule
    position: int | None


def _wanted(config: Config, family: Family) -> dict[tuple[str, str], list[_Wanted]]:
    """The rules of one family by table and chain, in the order in which they are added."""
    common = Common(common_values(config, family))
    templates: dict[str, Template] = {}
    found: dict[tuple[str, str], list[_Wanted]] = {}
    for text, reason, values in rules(config, family):
        known = templates.get(text)
        if known is None:
            known = templates[text] = template(text.format_map(common), {})
        rule = known.rule(reason, values)
        network = values.get("outbound_cidrs") or values.get("outbound_cidrs_exclude")
        if network and rule.destination is None:
            # 0.0.0.0/0 is no condition to iptables, but here it says which family is meant.
            rule = rule._replace(destination=Term(network))
        _, table, _, name, _ = text.split(" ", 4)
        found.setdefault((table, name), []).append(
            _Wanted(text, values, _native(rule, family, table, config), known.position)
        )
    return found


def _placed(families: Sequence[Iterable[_Wanted]]) -> list[NativeRule]:
    """The rules of a chain, each where it goes among those before it."""
    placed: list[NativeRule] = []
    for each in _merged(*families) if len(families) > 1 else chain(*families):
        if each.position is None:
            placed.append(each.rule)
        else:
            placed.insert(each.position, each.rule)
    return placed


def _merged(ipv4: Iterable[_Wanted], ipv6: Iterable[_Wanted]) -> Iterator[_Wanted]:
    """The rules of both families in Istio's order.

    The two forms of one rule follow each other, and are one where nothing in it is of a family.
    Of lists that differ (servers, networks), IPv4's stands before IPv6's.
    """
    ones, others = _runs(ipv4), _runs(ipv6)
    while ones and others:
        one, other = ones[0], others[0]
        if one[0].source != other[0].source:
            # A list that has no items in one of the families.
            absent = all(one[0].source != each[0].source for each in others)
            yield from (ones if absent else others).popleft()
            continue
        ones.popleft()
        others.popleft()
        if [each.values for each in one] == [each.values for each in other]:
            for first, second in zip(one, other, strict=True):
                yield first
                if first.rule.text != second.rule.text:
                    yield second
        else:
            yield from chain(one, other)
    yield from chain(*ones, *others)


def _runs(wanted: Iterable[_Wanted]) -> deque[list[_Wanted]]:
    """Rules of one source that follow each other, together."""
    return deque(list(run) for _, run in groupby(wanted, key=attrgetter("source")))


def _native(rule: Rule, family: Family, table: str, config: Config) -> NativeRule:
    """The rule as nft lists it after Istio wrote it."""
    found = conditions(rule, family)
    if found.get("state") == "ct state invalid" and not config.nft_like_iptables:
        # Istio's native rule is for TCP, iptables' for every protocol.
        found["protocol"] = "meta l4proto tcp"
    # nft lists conditions as they were written, which Istio does in more than one order.
    if table == "nat":
        order = ("interface", "address", "protocol", "state", "others")
    elif "dport" in found.get("protocol", ""):
        order = ("interface", "state", "protocol", "address", "others")
    else:
        order = ("interface", "protocol", "state", "address", "others")
    words = [found[kind] for kind in order if kind in found]
    return NativeRule(" ".join([*words, action(rule, family, chain_name)]), rule.reason)
