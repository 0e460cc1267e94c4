"""Long lists in a chain, such as a rule for each of 5,000 networks: asked about all at once.

A stretch is a run of rules that each ask the same field for a set of values of their own. The
sets are the same or have nothing in common, so that a value is asked for by few of the rules; and
values that the same rules ask for, but for the value, have the same fate.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from istio_iptables.netfilter.fieldvalues import address_number, port_range, protocol_number
from istio_iptables.netfilter.nftrules import NftRule
from istio_iptables.netfilter.questions import among, has_address, is_many
from istio_iptables.netfilter.sets import Intervals, network, numbers, one_number
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from istio_iptables.netfilter.model import Family, Match, Rule
    from istio_iptables.netfilter.packet import Packet

__all__ = ["Member", "Stretch", "ValueGroup", "stretches"]

#: Fewer rules are asked one by one.
_LEAST = 4
_PORTS = {"--dport": "destination_port", "--sport": "source_port"}


class Member(NamedTuple):
    """The values that some rules of a stretch ask for, and the places (from 0) of these rules."""

    values: Intervals
    places: tuple[int, ...]


class ValueGroup(NamedTuple):
    """The members whose rules are the same but for the values."""

    values: Intervals
    members: tuple[Member, ...]


class Stretch(NamedTuple):
    """Rules from *first* to before *last*, and what they ask for."""

    first: int
    last: int
    field: str
    groups: tuple[ValueGroup, ...]
    #: The rules without what they ask of the field.
    rules: tuple[Rule, ...]
    #: The protocols that they are for, if all name one.
    protocols: Intervals | None
    #: Where the interval of a value begins, and the places of the rules for it.
    firsts: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]

    def asked(self, packet: Packet) -> tuple[Sequence[int], ValueGroup | None]:
        """The places of the rules that may match *packet*, and the group that they are of."""
        if self.protocols is not None and not among(packet.protocol, self.protocols):
            return (), None
        value = getattr(packet, self.field)
        if value is None:
            return range(self.first, self.last), None
        for group in self.groups:
            if self._has(value, group.values, packet.family):
                number = address_number(value, packet.family) if isinstance(value, str) else value
                at = bisect_right(self.firsts, number or 0) - 1
                return self.places[at], group if is_many(value) else None
        return (), None

    def _has(self, value: str | int, wanted: Intervals, family: Family) -> bool:
        if isinstance(value, str):
            return bool(has_address(value, wanted, family))
        return among(value, wanted)


def stretches(rules: Sequence[Rule], family: Family) -> dict[int, Stretch]:
    """The stretches of a chain by the place (from 0) of each of their rules."""
    found: dict[int, Stretch] = {}
    asked = [_values(rule, family) for rule in rules]
    at = 0
    while at < len(rules):
        runs = [(_run(asked, at, field), field) for field in asked[at]]
        last, field = max(runs, default=(at + 1, ""))
        if last - at >= _LEAST:
            found.update(dict.fromkeys(range(at, last), _stretch(rules, asked, at, last, field)))
        at = last if last - at >= _LEAST else at + 1
    return found


def _values(rule: Rule, family: Family) -> dict[str, Intervals]:
    """The fields that *rule* asks for values of, plainly and once; none of a native rule."""
    if isinstance(rule, NftRule):
        return {}
    found = list(_plain_values(rule, family))
    names = [field for field, _ in found]
    return {field: values for field, values in found if names.count(field) == 1}


def _plain_values(rule: Rule, family: Family) -> Iterator[tuple[str, Intervals]]:
    for field in ("destination", "source"):
        term = getattr(rule, field)
        values = None if term is None or term.negated else network(term.value, family)
        if isinstance(values, Intervals) and values:
            yield field, values
    for match in rule.matches:
        if match.name not in {"tcp", "udp"}:
            continue
        for option in match.options:
            ports = port_range(option.value)
            if option.name in _PORTS and ports is not None and not option.negated:
                yield _PORTS[option.name], numbers(ports)


def _run(asked: Sequence[dict[str, Intervals]], at: int, field: str) -> int:
    """How far the rules from *at* on ask for values that are the same or have nothing in common."""
    taken: set[Intervals] = set()
    ends: list[int] = []
    for place in range(at, len(asked)):
        values = asked[place].get(field)
        if values is None:
            return place
        if values in taken:
            continue
        for first, last in values.pairs():
            before = bisect_right(ends, first)
            if before & 1 or bisect_left(ends, last) != before:
                return place
        for end in values.ends:
            insort(ends, end)
        taken.add(values)
    return len(asked)


def _stretch(
    rules: Sequence[Rule], asked: Sequence[dict[str, Intervals]], at: int, last: int, field: str
) -> Stretch:
    by_values: dict[Intervals, list[int]] = {}
    for place in range(at, last):
        by_values.setdefault(asked[place][field], []).append(place)
    without = tuple(_without(rule, field) for rule in rules[at:last])
    alike: dict[tuple[object, ...], list[Member]] = {}
    for values, places in by_values.items():
        kind = tuple(tuple(without[place - at][:8]) for place in places)
        alike.setdefault(kind, []).append(Member(values, tuple(places)))
    pieces = sorted(
        (first, tuple(places))
        for values, places in by_values.items()
        for first, _ in values.pairs()
    )
    return Stretch(
        at,
        last,
        field,
        tuple(
            ValueGroup(_union(each.values for each in members), tuple(members))
            for members in alike.values()
        ),
        without,
        _protocols(without),
        tuple(first for first, _ in pieces),
        tuple(places for _, places in pieces),
    )


def _union(sets: Iterable[Intervals]) -> Intervals:
    return Intervals.of((first, last - 1) for each in sets for first, last in each.pairs())


def _protocols(rules: Iterable[Rule]) -> Intervals | None:
    terms = {rule.protocol for rule in rules}
    found = {
        None if term is None or term.negated else protocol_number(term.value) for term in terms
    }
    if None in found or 0 in found:
        return None
    return _union(one_number(each) for each in found if each)


def _without(rule: Rule, field: str) -> Rule:
    """*rule* without what it asks of *field*, and what does not decide."""
    rule = rule._replace(reason="", inserted=False, counters=None, verbatim="")
    if field in {"destination", "source"}:
        return rule._replace(
            source=None if field == "source" else rule.source,
            destination=None if field == "destination" else rule.destination,
        )
    return rule._replace(matches=tuple(_match_without(match, field) for match in rule.matches))


def _match_without(match: Match, field: str) -> Match:
    if match.name not in {"tcp", "udp"}:
        return match
    kept = tuple(option for option in match.options if _PORTS.get(option.name) != field)
    return match._replace(options=kept)
