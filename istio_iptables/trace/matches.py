"""Whether a rule matches a packet: yes, no, or not to be known from here.

Only what can be decided from the packet is; every other match is unknown (None), and unknown
is never taken for yes or no.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.differences.rules import option_text
from istio_iptables.netfilter.extensions import match_extension
from istio_iptables.netfilter.fieldvalues import protocol_number
from istio_iptables.netfilter.model import HEADER_OPTIONS
from istio_iptables.netfilter.questions import among, has_address, named
from istio_iptables.netfilter.sets import names_from, network, one_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from istio_iptables.netfilter.extensions import Situation
    from istio_iptables.netfilter.model import Family, Match, Rule, Term
    from istio_iptables.netfilter.packet import Packet

__all__ = ["MatchResult", "conditions", "matches"]


class MatchResult(NamedTuple):
    """One condition of a rule, whether it holds, and what the packet has instead."""

    text: str
    holds: bool | None
    has: str


def matches(rule: Rule, situation: Situation) -> bool | None:
    """Whether *rule* matches: False as soon as one condition fails, None if that depends."""
    packet = situation.packet
    answer: bool | None = True
    for term, ask in zip(rule.header, _HOLDS, strict=True):
        if term is not None:
            holds = ask(term, packet)
            if holds is False:
                return False
            answer = answer if holds else None
    for match in rule.matches:
        for _, holds in _match(match, situation):
            if holds is False:
                return False
            answer = answer if holds else None
    return answer


def conditions(rule: Rule, situation: Situation) -> list[MatchResult]:
    """Each condition of *rule*, for saying why it did not match."""
    packet = situation.packet
    found = [
        MatchResult(
            f"{'! ' if term.negated else ''}{flag} {term.value}".rstrip(),
            ask(term, packet),
            has(packet),
        )
        for flag, term, ask, has in zip(HEADER_OPTIONS, rule.header, _HOLDS, _HAS, strict=True)
        if term is not None
    ]
    for match in rule.matches:
        about = match_extension(match.name).has
        has = "it can't be known from here" if about is None else about(packet)
        found += (MatchResult(text, holds, has) for text, holds in _match(match, situation))
    return found


def _in_network(term: Term, address: str | None, family: Family) -> bool | None:
    wanted = network(term.value, family)
    answer = None if wanted is None else has_address(address, wanted, family)
    return None if answer is None else answer is not term.negated


def _is_interface(term: Term, name: str | None) -> bool | None:
    if name is None:
        return None
    wanted = term.value
    names = names_from(wanted[:-1]) if wanted.endswith("+") else named(wanted)
    return among(name, names) is not term.negated


def _is_protocol(term: Term, packet: Packet) -> bool | None:
    wanted = protocol_number(term.value)
    if wanted is None:
        return None
    return (wanted == 0 or among(packet.protocol, one_number(wanted))) is not term.negated


#: Whether the conditions of HEADER_OPTIONS hold, and what a packet has of each.
_HOLDS: tuple[Callable[[Term, Packet], bool | None], ...] = (
    lambda term, packet: _in_network(term, packet.source, packet.family),
    lambda term, packet: _in_network(term, packet.destination, packet.family),
    lambda term, packet: _is_interface(term, packet.in_interface),
    lambda term, packet: _is_interface(term, packet.out_interface),
    _is_protocol,
    # Connection tracking has put fragments together before any rule that we know sees them.
    lambda term, _: term.negated,
)
_HAS: tuple[Callable[[Packet], str], ...] = (
    lambda packet: f"source {packet.endpoints[0]}",
    lambda packet: f"destination {packet.endpoints[1]}",
    lambda packet: f"in by {packet.in_interface or 'no interface'}",
    lambda packet: f"out by {packet.out_interface or 'no interface'}",
    lambda packet: f"protocol {packet.protocol_name}",
    lambda _: "not a fragment",
)


def _match(match: Match, situation: Situation) -> Iterator[tuple[str, bool | None]]:
    """Each option of a match as text, and whether it holds; all have to."""
    extension = match_extension(match.name)
    protocol = extension.protocol
    if protocol is not None and not among(situation.packet.protocol, one_number(protocol)):
        yield f"-m {match.name}", False
    elif not match.options:
        yield f"-m {match.name}", True if protocol else None
    else:
        ask = extension.holds
        for option in match.options:
            holds = ask(option, situation, match) if ask else None
            yield f"-m {match.name} {option_text(option)}", holds
