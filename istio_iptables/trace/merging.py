"""Boxes put together again where that makes a box: for reading, after the questions have cut them."""

from __future__ import annotations

from istio_iptables.netfilter.sets import join
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable
    from typing import TypeVar

    from istio_iptables.netfilter.sets import Values
    from istio_iptables.trace.cells import Box

    _K = TypeVar("_K", bound=Hashable)
    _V = TypeVar("_V")

__all__ = ["merge"]

#: In which order boxes are put together that differ in one field alone: what is read last first.
_FIELDS = (
    *("connmark", "mark", "source", "source_port", "state", "gid", "uid"),
    *("destination", "in_interface", "out_interface", "destination_port", "protocol"),
)


def merge(items: Iterable[tuple[_K, _V, Box]]) -> list[tuple[_K, _V, Box]]:
    """The same packets in fewer boxes; those of different keys stay apart.

    Two boxes of a key that differ in one field become one, which keeps the first one's value.
    """
    numbers: dict[Values, int] = {}
    sets: list[Values] = []
    seen: dict[int, tuple[Values, int]] = {}

    def number(values: Values) -> int:
        known = seen.get(id(values))
        if known is None:
            # The set is kept, so that its id stays its own.
            known = seen[id(values)] = (values, numbers.setdefault(values, len(sets)))
            if known[1] == len(sets):
                sets.append(values)
        return known[1]

    # The values of a box by their numbers; -1 for a field that it lacks.
    found = [
        (key, value, tuple(number(box[name]) if name in box else -1 for name in _FIELDS))
        for key, value, box in items
    ]
    before = len(found) + 1
    while len(found) < before:
        before = len(found)
        for at in range(len(_FIELDS)):
            alike: dict[tuple[object, ...], tuple[_K, _V, tuple[int, ...]]] = {}
            for key, value, box in found:
                rest = (key, box[:at], box[at + 1 :])
                first = alike.get(rest)
                if first is not None and box[at] >= 0:
                    joined = number(join(sets[box[at]], sets[first[2][at]]))
                    alike[rest] = (key, first[1], (*box[:at], joined, *box[at + 1 :]))
                else:
                    alike[rest] = (key, value, box)
            found = list(alike.values())
    return [
        (
            key,
            value,
            {name: sets[each] for name, each in zip(_FIELDS, box, strict=True) if each >= 0},
        )
        for key, value, box in found
    ]
