"""One spelling for every rule, so that rules which mean the same compare equal.

The spelling is the one of iptables-save 1.8; what iptables has printed or people have written
before it (``--set-mark``, ``--to-port``, netmasks, names of protocols, conditions in another
order, ``-m state``) becomes that. What is not known here stays word for word.
"""

from __future__ import annotations

from istio_iptables.netfilter.extensions import match_extension, target_extension
from istio_iptables.netfilter.fieldvalues import network, protocol_name
from istio_iptables.netfilter.model import Family, Match, Option, Rule, Target, Term
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["canonical"]

_PORTS = {"--dport", "--sport", "--destination-port", "--source-port"}
#: The options that belong to the match of the protocol's name, wherever they were written.
_IMPLICIT = _PORTS | {"--syn", "--tcp-flags", "--tcp-option", "--icmp-type", "--icmpv6-type"}
_PROTOCOL_MATCHES = frozenset(
    {"tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmp6", "icmpv6", "ipv6-icmp"}
)


def canonical(rule: Rule, family: Family) -> Rule:
    """The rule in iptables-save's spelling; equal for two rules that mean the same.

    Its reason and its place (``inserted``) are kept, its counters are not.
    """
    protocol = _protocol(rule.protocol)
    return Rule(
        source=_address(rule.source, family),
        destination=_address(rule.destination, family),
        in_interface=_interface(rule.in_interface),
        out_interface=_interface(rule.out_interface),
        protocol=protocol,
        fragment=rule.fragment,
        matches=_matches(rule.matches, protocol),
        target=None if rule.target is None else _target(rule.target, family),
        reason=rule.reason,
        inserted=rule.inserted,
    )


def _address(term: Term | None, family: Family) -> Term | None:
    """The address with its prefix length; any address at all is no condition."""
    if term is None:
        return None
    # iptables makes one rule of each address in a list; a list here is somebody's own text.
    read = network(term.value, family)
    if read is None:
        return term
    text, prefix = read
    if prefix == 0 and not term.negated:
        return None
    return Term(f"{text}/{prefix}", term.negated)


def _interface(term: Term | None) -> Term | None:
    return None if term == ("+", False) else term


def _protocol(term: Term | None) -> Term | None:
    if term is None:
        return None
    name = protocol_name(term.value)
    return None if name == "all" and not term.negated else Term(name, term.negated)


def _matches(matches: tuple[Match, ...], protocol: Term | None) -> tuple[Match, ...]:
    found = []
    for match in _regroup(_name_ports(matches, protocol), protocol):
        spell = match_extension(match.name).spell
        spelt = spell(match) if spell else match
        if spelt is not None:
            found.append(spelt)
    if len(found) > 1:
        ranks = {match.name: match_extension(match.name).rank for match in found}
        if None not in ranks.values():
            found.sort(key=lambda match: ranks[match.name] or 0)
    return tuple(found)


def _name_ports(matches: tuple[Match, ...], protocol: Term | None) -> tuple[Match, ...]:
    """The matches, the protocol's by its name: ``-p 6 --dport 80`` reads as a match named 6."""
    if protocol is None:
        return matches
    return tuple(
        match._replace(name=protocol.value)
        if protocol_name(match.name) == protocol.value
        else match
        for match in matches
    )


def _regroup(matches: tuple[Match, ...], protocol: Term | None) -> Iterable[Match]:
    """The matches, port options given back to the protocol's match.

    In ``-p tcp -m owner --uid-owner 0 --dport 80`` the port is not the owner match's.
    """
    if protocol is None:
        return matches
    regrouped = []
    for match in matches:
        if match.name in _PROTOCOL_MATCHES or match.name in {"multiport", protocol.value}:
            regrouped.append(match)
            continue
        own: list[Option] = []
        implicit: list[Option] = []
        for option in match.options:
            (implicit if option.name in _IMPLICIT else own).append(option)
        if implicit:
            regrouped += (Match(match.name, tuple(own)), Match(protocol.value, tuple(implicit)))
        else:
            regrouped.append(match)
    return regrouped


def _target(target: Target, family: Family) -> Target:
    spell = None if target.goto else target_extension(target.name).spell
    return spell(target, family) if spell else target
