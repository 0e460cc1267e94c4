"""Classes as a table to read from the top: the first line that fits a packet is its own.

A class of several boxes is told in one line with the smallest box around them, once what lies
between them has come before; and a line does not say what follows from those before it.
"""

from __future__ import annotations

from istio_iptables.netfilter.sets import join, split
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from istio_iptables.netfilter.sets import Values
    from istio_iptables.trace.cells import Box

__all__ = ["Line", "read_from_top"]


class Line(NamedTuple):
    """One line: the key of the class, and what to ask of a packet that no line before fits."""

    key: int
    box: Box


def read_from_top(keyed: Sequence[tuple[int, Box]], whole: Box) -> list[Line]:
    """The lines for *keyed* boxes of *whole*, which share no packet; low keys come first if they can."""
    reader = _Reader([box for _, box in keyed], whole)
    rows: dict[int, list[int]] = {}
    for number, (key, _) in enumerate(keyed):
        rows.setdefault(key, []).append(number)
    pending = [(key, tuple(rows[key])) for key in sorted(rows)]
    left = set(range(len(keyed)))
    lines = []
    while pending:
        at = _next(pending, reader, left)
        if at is not None:
            key, row = pending.pop(at)
            left.difference_update(row)
            lines.append(Line(key, reader.shortened(row, left)))
    return lines


_Pending: TypeAlias = "list[tuple[int, tuple[int, ...]]]"


def _next(pending: _Pending, reader: _Reader, left: set[int]) -> int | None:
    """The first row, or else one that it waits for; None if one had to be taken apart for it."""
    places = {number: at for at, (_, row) in enumerate(pending) for number in row}
    at = 0
    #: The rows that wait, and what of the next one each waits for.
    waiting: dict[int, tuple[int, set[int]]] = {}
    while True:
        blocking = reader.blocking(pending[at][1], left)
        if not blocking:
            return at
        following = min(places[number] for number in blocking)
        waiting[at] = following, {number for number in blocking if places[number] == following}
        if following in waiting:
            break
        at = following
    # Rows that wait for each other: what is in the way of the last one that can be spared comes
    # alone, and a box alone waits for none.
    for following, alone in sorted(waiting.values(), reverse=True, key=lambda each: each[0]):
        key, row = pending[following]
        rest = tuple(number for number in row if number not in alone)
        if rest:
            pending[following] = (key, rest)
            pending[:0] = [(key, (number,)) for number in sorted(alone)]
            return None
    key, row = pending[at]
    pending[at] = (key, row[1:])
    pending[:0] = [(key, row[:1])]
    return None


class _Reader:
    """What tells the boxes of a table apart."""

    def __init__(self, boxes: list[Box], whole: Box) -> None:
        self._boxes, self._whole = boxes, whole
        # What is to be left out first comes first.
        self._fields = sorted(whole, key=_LEAST_TELLING.index)
        self._around: dict[tuple[int, ...], Box] = {}
        #: By row and box: a bit for each field in which the box around the row has nothing of the box.
        self._apart: dict[tuple[tuple[int, ...], int], int] = {}
        self._shares: dict[tuple[int, int], bool] = {}

    def around(self, row: tuple[int, ...]) -> Box:
        """The smallest box that the boxes of a row are in."""
        found = self._around.get(row)
        if found is None:
            first, *others = (self._boxes[number] for number in row)
            found = dict(first)
            for field in self._fields:
                for box in others:
                    if box[field] is not found[field] and found[field] is not self._whole[field]:
                        found[field] = join(found[field], box[field])
            self._around[row] = found
        return found

    def blocking(self, row: tuple[int, ...], left: Iterable[int]) -> frozenset[int]:
        """Those that are *left* and have something of the box around *row*."""
        return frozenset(each for each in left if each not in row and not self._bits(row, each))

    def shortened(self, row: tuple[int, ...], left: Iterable[int]) -> Box:
        """The box around *row*, grown in each field that what is *left* can do without."""
        found = dict(self.around(row))
        apart = {self._bits(row, number) for number in left}
        for bit, field in enumerate(self._fields):
            without = {bits & ~(1 << bit) for bits in apart}
            if 0 not in without:
                apart = without
                found[field] = self._whole[field]
        return found

    def _bits(self, row: tuple[int, ...], number: int) -> int:
        known = self._apart.get((row, number))
        if known is None:
            around, box = self.around(row), self._boxes[number]
            known = 0
            for bit, field in enumerate(self._fields):
                if not self._have_common(around[field], box[field]):
                    known |= 1 << bit
            self._apart[row, number] = known
        return known

    def _have_common(self, one: Values, other: Values) -> bool:
        if one is other:
            return True
        key = (id(one), id(other))
        known = self._shares.get(key)
        if known is None:
            # Both are those of a box that is kept here, so that an id stays what it is.
            known = self._shares[key] = bool(split(one, other)[0])
        return known


_LEAST_TELLING = (
    *("connmark", "mark", "state", "gid", "uid", "source_port", "source"),
    *("destination_port", "destination", "protocol", "in_interface", "out_interface"),
)
