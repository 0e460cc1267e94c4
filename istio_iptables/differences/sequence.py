"""Which items of one sequence are which of another: kept, moved, changed, gone or new.

The cost is that of sorting, however long the sequences and whatever differs: rules are mostly
unlike each other, so the longest common part is a longest increasing run of positions.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

__all__ = ["Pair", "align"]

_Item = TypeVar("_Item")

#: How many of the items that went are looked at for one that came in the same place.
_NEIGHBOURS = 8


class Pair(NamedTuple):
    """An item of each side, by its number from 0; None where the other side has none."""

    left: int | None
    right: int | None
    #: Whether the item stands where it stood, the others left out of account.
    kept: bool = False


def align(
    left: Sequence[_Item],
    right: Sequence[_Item],
    key: Callable[[_Item], Hashable],
    resemble: Callable[[_Item, _Item], bool],
) -> list[Pair]:
    """Every item of both sides in one Pair, in the order of *right*.

    Equal items are paired, at their place or moved; unequal ones at the same place are paired
    when they *resemble* each other. Items that only *left* has come where they stand in it.
    """
    return list(_Alignment(left, right, resemble).pairs(key))


def _numbered(keys: list[Hashable]) -> list[Hashable]:
    """The keys, told apart where they repeat: the second of two equal ones is another."""
    seen: dict[Hashable, int] = {}
    numbered: list[Hashable] = []
    for each in keys:
        count = seen.get(each, 0)
        seen[each] = count + 1
        numbered.append((each, count))
    return numbered


class _Alignment(Generic[_Item]):
    """Two sequences, their equal beginnings and ends left out of the search."""

    def __init__(
        self,
        left: Sequence[_Item],
        right: Sequence[_Item],
        resemble: Callable[[_Item, _Item], bool],
    ) -> None:
        self._left, self._right = left, right
        self._resemble = resemble
        start = rest = 0
        end = min(len(left), len(right))
        while start < end and left[start] == right[start]:
            start += 1
        while rest < end - start and left[-1 - rest] == right[-1 - rest]:
            rest += 1
        self._start, self._rest = start, rest

    def pairs(self, key: Callable[[_Item], Hashable]) -> Iterator[Pair]:
        """Every item in a Pair; *key* is asked only for those in the middle."""
        left, right, start, rest = self._left, self._right, self._start, self._rest
        for number in range(start):
            yield Pair(number, number, kept=True)
        yield from self._middle(
            _numbered([key(item) for item in left[start : len(left) - rest]]),
            _numbered([key(item) for item in right[start : len(right) - rest]]),
        )
        for number in range(rest, 0, -1):
            yield Pair(len(left) - number, len(right) - number, kept=True)

    def _middle(self, left_keys: list[Hashable], right_keys: list[Hashable]) -> Iterator[Pair]:
        """The pairs between the equal beginnings and ends."""
        start = self._start
        place = {each: number for number, each in enumerate(left_keys)}
        partners = [place.get(each) for each in right_keys]
        stay = _longest_increasing([number for number in partners if number is not None])
        moved = {number for number in partners if number is not None and number not in stay}
        taken = 0
        waiting: list[tuple[int, int | None]] = []
        for number, partner in enumerate(partners):
            if partner is None or partner in moved:
                waiting.append((number, partner))
                continue
            yield from self._gap(
                [each for each in range(taken, partner) if each not in moved], waiting
            )
            yield Pair(start + partner, start + number, kept=True)
            taken, waiting = partner + 1, []
        gone = [each for each in range(taken, len(left_keys)) if each not in moved]
        yield from self._gap(gone, waiting)

    def _gap(self, gone: list[int], come: list[tuple[int, int | None]]) -> Iterator[Pair]:
        """The pairs between two items that were kept."""
        start = self._start
        first = 0
        for number, partner in come:
            if partner is not None:
                yield Pair(start + partner, start + number)
                continue
            found = next(
                (
                    at
                    for at in range(first, min(first + _NEIGHBOURS, len(gone)))
                    if self._resemble(self._left[start + gone[at]], self._right[start + number])
                ),
                None,
            )
            if found is None:
                yield Pair(None, start + number)
                continue
            for each in gone[first:found]:
                yield Pair(start + each, None)
            yield Pair(start + gone[found], start + number)
            first = found + 1
        for each in gone[first:]:
            yield Pair(start + each, None)


def _longest_increasing(numbers: list[int]) -> set[int]:
    """The numbers of a longest increasing subsequence; no number repeats."""
    smallest: list[int] = []
    before: dict[int, int | None] = {}
    for number in numbers:
        length = bisect_left(smallest, number)
        before[number] = smallest[length - 1] if length else None
        smallest[length : length + 1] = [number]
    found = set()
    each = smallest[-1] if smallest else None
    while each is not None:
        found.add(each)
        each = before[each]
    return found
