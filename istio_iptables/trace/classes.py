"""All packets divided into classes that get the same answers, whatever they are asked.

One packet of a set is followed for all of it. Each question that is asked on its way splits the set:
those that would be answered otherwise go, and are divided in the same way later. What is left when
it has come to its end is a class: whoever answers, every packet of it is answered the same.
"""

from __future__ import annotations

from istio_iptables.errors import CannotTell
from istio_iptables.netfilter.fieldvalues import address_text
from istio_iptables.netfilter.packet import WITH_PORTS
from istio_iptables.netfilter.sets import Bits, Intervals
from istio_iptables.trace.cells import Cell, Memory, everything
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import TypeVar

    from istio_iptables.netfilter.model import Family
    from istio_iptables.netfilter.packet import Packet
    from istio_iptables.netfilter.sets import Values
    from istio_iptables.trace.cells import Box, Kept

    _R = TypeVar("_R")

__all__ = ["MAX_CLASSES", "NotAPartition", "check_partition", "choose", "divide", "start_boxes"]

#: Rules that ask for many things at once, one by one, divide packets without end.
MAX_CLASSES = 20000

_PORTED = Intervals.of((each, each) for each in WITH_PORTS)


class NotAPartition(AssertionError):
    """Classes that leave a packet out, or share one: a fault of this program."""


def divide(
    family: Family,
    follow: Callable[[Packet], _R],
    prefer: Callable[[Box], Mapping[str, Iterable[int | str]]],
) -> Iterator[tuple[Box, Mapping[tuple[str, str, int], Kept], _R | None]]:
    """All packets of a family in classes, each with what *follow* says of the packet chosen for it.

    With each are the rules in it, by table, chain and number (from 1), that stand for those of
    other values. What is None has no packet that could be. *prefer* says which values are good ones
    for an example. Raises CannotTell for rules that divide into too many classes.
    """
    memory = Memory()
    pending = start_boxes(family)
    for _ in range(MAX_CLASSES):
        if not pending:
            return
        box = pending.pop()
        chosen = choose(box, prefer(box), family)
        if chosen is None:
            yield box, {}, None
            continue
        cell = Cell(family, box, chosen, memory)
        result = follow(cell.packet)
        # A copy, since whoever asks the packets of *result* more would still split the cell.
        yield dict(cell.box), cell.kept, result
        pending += reversed(cell.others)
    message = (
        f"the rules divide packets into more than {MAX_CLASSES} classes: ask about one (explain)"
    )
    raise CannotTell(message)


def start_boxes(family: Family) -> list[Box]:
    """All packets, those of each direction apart, and those that have ports."""
    boxes = []
    for incoming in (True, False):
        box = everything(family, incoming=incoming)
        protocols = box["protocol"]
        if isinstance(protocols, Intervals):
            with_ports, without = protocols.split(_PORTED)
            boxes += [{**box, "protocol": without}, {**box, "protocol": with_ports}]
    return boxes


def choose(
    box: Box, prefer: Mapping[str, Iterable[int | str]], family: Family
) -> dict[str, int | str] | None:
    """A packet of *box*, field by field; None if there is none.

    Its addresses differ from each other if they can.
    """
    found: dict[str, int | str] = {}
    for field, values in box.items():
        value = _value_of(values, (*prefer.get(field, ()), *_hosts(field, values)))
        if value is None:
            return None
        found[field] = value
    if found["protocol"] not in WITH_PORTS:
        del found["source_port"], found["destination_port"]
    if found["source"] == found["destination"] and found.get("out_interface") != "lo":
        # The premise of ``questions``: two fields of the many have two values.
        for field in ("destination", "source"):
            values = box[field]
            one = found[field]
            if isinstance(values, Intervals) and isinstance(one, int):
                rest = values.split(Intervals((one, one + 1)))[1]
                other = _value_of(rest, _hosts(field, rest))
                if other is not None:
                    found[field] = other
                    break
        else:
            return None
    for field in ("source", "destination"):
        found[field] = address_text(int(found[field]), family)
    return found


def _hosts(field: str, values: Values) -> Iterable[int]:
    """An address that may be a host's, where the first one is its network's."""
    if field in {"source", "destination"} and isinstance(values, Intervals):
        return tuple(first + 1 for first in values.ends[:1])
    return ()


def _value_of(values: Values, prefer: Iterable[int | str]) -> int | str | None:
    """One of *values*, the first of *prefer* that is one if there is such; None if none can be."""
    for each in prefer:
        if each in values:
            return each
    if isinstance(values, Bits):
        return next((value for value, _ in values.patterns()), None)
    if not values.ends:
        return None
    first: int | str = values.ends[0]
    if isinstance(first, int):
        return first
    return next(
        (each for low, _ in values.pairs() for each in _names(str(low)) if each in values), None
    )


#: The longest name of an interface.
_LONGEST = 15


def _names(low: str) -> Iterator[str]:
    """Names at the beginning of an interval that begins with *low*."""
    base = low.rstrip("\0")
    if base and base == low:
        yield base
    for letter in "0a~":
        if len(base) < _LONGEST:
            yield f"{base}{letter}"


def check_partition(whole: Sequence[Box], boxes: Sequence[Box]) -> None:
    """Raise NotAPartition unless every packet of *whole* is in exactly one of *boxes*.

    It goes through the values of one field after the other, and knows nothing of how the boxes
    were made: where *whole* has a value, exactly one box is to be left at the last field.
    """
    for one in whole:
        mine = [box for box in boxes if box.keys() == one.keys()]
        fields = sorted(one, key=lambda field: -len({id(box[field]) for box in mine}))
        _check([one, *mine], fields)


def _check(boxes: list[Box], fields: list[str]) -> None:
    """The same, where the first of *boxes* is the whole."""
    known: dict[tuple[int, tuple[int, ...]], bool] = {}
    # Boxes that are alike in all fields from one on have one number there.
    numbers: list[dict[tuple[object, ...], int]] = [{} for _ in range(len(fields) + 1)]

    def tail(box: Box, at: int) -> int:
        key = tuple(box[field] for field in fields[at:])
        return numbers[at].setdefault(key, len(numbers[at]))

    tails = [[tail(box, at) for at in range(len(fields) + 1)] for box in boxes]

    def is_whole(members: tuple[int, ...], at: int) -> bool:
        if members[:1] != (0,):
            # Beyond the whole no box may be.
            return not members
        if at == len(fields):
            return len(members) == 2  # noqa: PLR2004 - the whole, and one box
        key = (at, tuple(tails[each][at] for each in members))
        answer = known.get(key)
        if answer is None:
            field = fields[at]
            atoms = _atoms([boxes[each][field] for each in members])
            answer = known[key] = all(
                is_whole(tuple(members[each] for each in atom), at + 1) for atom in atoms
            )
        return answer

    if not is_whole(tuple(range(len(boxes))), 0):
        message = "the classes are no partition: they share a packet, or leave one out"
        raise NotAPartition(message)


def _atoms(sets: list[Values]) -> set[tuple[int, ...]]:
    """Which of *sets* have a value in common that no other one has: their numbers, for each value."""
    if isinstance(sets[0], Bits):
        return _atoms_of_bits(sets)
    starts: dict[int | str, list[int]] = {}
    for number, values in enumerate(sets):
        if isinstance(values, Intervals):
            for end in values.ends:
                starts.setdefault(end, []).append(number)
    active: set[int] = set()
    found = set()
    for _, changed in sorted(starts.items()):
        active.symmetric_difference_update(changed)
        found.add(tuple(sorted(active)))
    return found


def _atoms_of_bits(sets: list[Values]) -> set[tuple[int, ...]]:
    pieces: list[tuple[Bits, tuple[int, ...]]] = [(Bits(), ())]
    for number, values in enumerate(sets):
        if not isinstance(values, Bits):
            continue
        after = []
        for piece, members in pieces:
            inside, outside = piece.split(values)
            after += [(inside, (*members, number))] if inside else []
            after += [(outside, members)] if outside else []
        pieces = after
    return {members for _, members in pieces}
