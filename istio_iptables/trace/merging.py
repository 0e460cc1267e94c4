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
    seen: dict[int, tuple[Values, int]] = {}

    def number(values: Values) -> int:
        known = seen.get(id(values))
        if known is None:
            known = seen[id(values)] = (values, numbers.setdefault(values, len(numbers)))
        return known[1]

    found = list(items)
    before = len(found) + 1
    while len(found) < before:
        before = len(found)
        for field in _FIELDS:
            alike: dict[tuple[object, ...], tuple[_K, _V, Box]] = {}
            for key, value, box in found:
                rest = (key, *((name, number(box[name])) for name in box if name != field))
                if rest in alike and field in box:
                    _, first, other = alike[rest]
                    joined = join(box[field], other[field])
                    alike[rest] = (key, first, {**box, field: joined})
                else:
                    alike[rest] = (key, value, box)
            found = list(alike.values())
    return found
