"""Native rules as the rules of iptables that they are made from: ``native`` the other way round.

It is for reading settings off them alone. A rule that ``native`` never makes is left out, and one
that asks for a set is as many rules as the set has elements.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING

from istio_iptables.istio.native import iptables_chain, iptables_table
from istio_iptables.netfilter.model import (
    Chain,
    Family,
    Match,
    Option,
    Rule,
    Ruleset,
    Table,
    Target,
    Term,
)
from istio_iptables.netfilter.nftrules import NftRule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.netfilter.nftrules import Statement

__all__ = ["translated"]

#: By the field of a condition the place in a rule's header.
_HEADER = {
    "ip saddr": "source",
    "ip6 saddr": "source",
    "ip daddr": "destination",
    "ip6 daddr": "destination",
    "iifname": "in_interface",
    "oifname": "out_interface",
    "meta l4proto": "protocol",
}
_PLACES = ("source", "destination", "in_interface", "out_interface", "protocol")
#: By the field the match and its option, in the order in which the rules have them.
_MATCHES = {
    "tcp dport": ("tcp", "--dport"),
    "udp dport": ("udp", "--dport"),
    "udp sport": ("udp", "--sport"),
    "ct state": ("conntrack", "--ctstate"),
    "meta mark": ("mark", "--mark"),
    "ct mark": ("connmark", "--mark"),
    "meta skuid": ("owner", "--uid-owner"),
    "meta skgid": ("owner", "--gid-owner"),
}
_ORDER = {name: place for place, (name, _) in enumerate(_MATCHES.values())}
#: How nft names the family of an address; ``tproxy`` has the word alone.
_OF_FAMILY = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_ANY_ADDRESS = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104 - text of a rule
_WHOLE = "0xffffffff"


def translated(tables: Iterable[Table]) -> tuple[Ruleset, ...]:
    """The rules of native tables of ours, for each address family that they name.

    One that names no address is for IPv4, and for IPv6 if others name that.
    """
    tables = tuple(tables)
    rules = (rule for table in tables for chain in table.chains for rule in chain.rules)
    ipv6 = any("ip6 " in rule.text for rule in rules)
    return tuple(
        Ruleset(family, tuple(_table(each, family) for each in tables))
        for family in (Family if ipv6 else (Family.IPV4,))
    )


def _table(table: Table, family: Family) -> Table:
    chains = []
    for chain in table.chains:
        name = iptables_chain(chain.name)
        rules = tuple(
            made
            for rule in chain.rules
            if isinstance(rule, NftRule)
            for made in _made(rule, family)
        )
        chains.append(Chain(name, None if chain.base is None else "ACCEPT", rules))
    return Table(iptables_table(table.name.rpartition(" ")[2]), tuple(chains))


def _made(rule: NftRule, family: Family) -> list[Rule]:
    """What the rule is made from; nothing where it has a value that ours never have."""
    with suppress(TypeError, ValueError):
        return list(_rules(rule.statements, family))
    return []


def _rules(statements: tuple[Statement, ...], family: Family) -> Iterator[Rule]:
    """The rules of one family that the statements are made from: one, or one for each element."""
    conditions = [each for each in statements if each.target is None and not each.harmless]
    target = _target([each.target for each in statements if each.target is not None], family)
    if sum(len(each.values) > 1 for each in conditions if each.field != "ct state") > 1:
        # No rule of ours asks for two sets, whose elements would all be put together.
        return
    others = _OF_FAMILY[Family.IPV6 if family is Family.IPV4 else Family.IPV4]
    if target is None or not all(map(_is_known, conditions)):
        return
    if any(each.field.startswith(f"{others} ") or others in each.values for each in statements):
        return
    header: dict[str, list[Term]] = {}
    matches: list[list[Match]] = []
    for each in conditions:
        if each.field in _HEADER:
            header[_HEADER[each.field]] = list(_terms(each, family))
            continue
        matches.append(list(_alternatives(each)))
        protocol = each.field.partition(" ")[0]
        if protocol in {"tcp", "udp"}:
            header["protocol"] = [Term(protocol)]
    if any(each.field == "ct state" and each.values == ("invalid",) for each in conditions):
        # Istio's native rule is for TCP, iptables' for every protocol.
        header.pop("protocol", None)
    matches.sort(key=lambda each: _ORDER.get(each[0].name, 0))
    for terms in product(*header.values()):
        found = dict(zip(header, terms, strict=True))
        for chosen in product(*matches):
            header_terms = (found.get(place) for place in _PLACES)
            yield Rule._make((*header_terms, None, chosen, target, "", False, None, ""))


def _is_known(condition: Statement) -> bool:
    known = condition.field in _HEADER or condition.field in _MATCHES
    return known and not condition.mask and condition.operator in {"==", "!="}


def _terms(condition: Statement, family: Family) -> Iterator[Term]:
    for word in condition.values:
        for value in _spelled(condition.field, word, family):
            yield Term(value, condition.operator == "!=")


def _spelled(field: str, word: str, family: Family) -> Iterator[str]:
    """The values that iptables has for one of nft's: networks for a range of addresses."""
    if field.endswith("name"):
        name = word.strip('"')
        escaped = name.endswith("\\*")
        yield f"{name[:-2]}*" if escaped else f"{name[:-1]}+" if name.endswith("*") else name
    elif not field.endswith("addr") or "/" in word:
        yield word
    elif "-" in word:
        from ipaddress import ip_address, summarize_address_range  # only sets have ranges

        first, last = map(ip_address, word.split("-"))
        yield from map(str, summarize_address_range(first, last))
    else:
        yield f"{word}/{family.bits}"


def _alternatives(condition: Statement) -> Iterator[Match]:
    """The match, one for each of several values of which one is enough."""
    name, option = _MATCHES[condition.field]
    negated = condition.operator == "!="
    values = [each.replace("-", ":") if "port" in option else each for each in condition.values]
    if name in {"tcp", "udp"}:
        if negated and len(values) > 1:
            # The rules name the port of DNS first, nft the lower one.
            values.sort(key=lambda each: each != "53")
            yield Match("multiport", (Option(f"{option}s", (",".join(values),), negated),))
            return
    elif name == "conntrack":
        values = [",".join(values[::-1]).upper()]
    elif name in {"mark", "connmark"}:
        values = [hex(int(each, 16)) for each in values]
    for value in values:
        yield Match(name, (Option(option, (value,), negated),))


def _target(done: list[Target], family: Family) -> Target | None:
    """What is done, as one target."""
    match done:
        case [Target("TPROXY", options), Target("MARK", marks), Target("ACCEPT")]:
            port = next((each for each in options if each.name == "--on-port"), Option(""))
            where = Option("--on-ip", (_ANY_ADDRESS[family],))
            mark = Option("--tproxy-mark", marks[0].values)
            return Target("TPROXY", (port, where, mark))
        case [Target("CONNMARK", [Option() as option])]:
            masks = Option("--nfmask", (_WHOLE,)), Option("--ctmask", (_WHOLE,))
            return Target("CONNMARK", (option, *masks))
        case [Target() as target]:
            return target._replace(name=iptables_chain(target.name))
    return None
