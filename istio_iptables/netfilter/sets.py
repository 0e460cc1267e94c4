"""Sets of values of one field of a packet: intervals of numbers or names, and patterns of bits.

Both are canonical: two sets are equal when they hold the same values.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import lru_cache

from istio_iptables.netfilter.fieldvalues import address_number, number
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, TypeAlias

    from istio_iptables.netfilter.fieldvalues import Range
    from istio_iptables.netfilter.model import Family

__all__ = [
    "Bits",
    "Intervals",
    "Masked",
    "Node",
    "Values",
    "join",
    "name",
    "names_from",
    "network",
    "numbers",
    "one_number",
    "split",
]

#: What comes after every name.
_LAST = "\U0010ffff"


class Intervals:
    """Numbers, or names in the order of their letters, as half-open intervals in order.

    *ends* are the values at which the set begins and ends, by turns: 80, 81, 443, 444 is the set of
    80 and 443. The set of one name ends at the name with a NUL behind it, which no name has.
    """

    __slots__ = ("ends",)

    def __init__(self, ends: tuple[Any, ...] = ()) -> None:
        self.ends = ends

    @classmethod
    def of(cls, intervals: Iterable[tuple[int, int]]) -> Intervals:
        """The numbers of *intervals*, in any order, whose ends are both included."""
        ends: list[int] = []
        for first, last in sorted(intervals):
            if ends and first <= ends[-1]:
                ends[-1] = max(ends[-1], last + 1)
            else:
                ends += (first, last + 1)
        return cls(tuple(ends))

    def __contains__(self, value: object) -> bool:
        return bisect_right(self.ends, value) & 1 == 1

    def __bool__(self) -> bool:
        return bool(self.ends)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervals) and self.ends == other.ends

    def __hash__(self) -> int:
        return hash(self.ends)

    def __repr__(self) -> str:
        return f"Intervals({self.ends})"

    def split(self, other: Intervals) -> tuple[Intervals, Intervals]:
        """The part that is in *other*, and the part that is not."""
        if len(other.ends) > len(self.ends):
            inside, _ = other._cut(self)
            return inside, self._cut(inside)[1] if inside.ends else self
        return self._cut(other)

    def _cut(self, other: Intervals) -> tuple[Intervals, Intervals]:
        """As ``split``; it takes as many steps as *other* has intervals."""
        ends = self.ends
        inside: list[Any] = []
        outside: list[Any] = []
        done = 0
        for first, last in other.pairs():
            # Which ends of ours lie before the interval, and which before its end.
            low, high = bisect_left(ends, first, done), bisect_left(ends, last, done)
            outside += ends[done:low]
            if low & 1 and outside and outside[-1] == first:
                outside.pop()
            elif low & 1:
                outside.append(first)
            if low & 1:
                inside.append(first)
            inside += ends[low:high]
            if high & 1:
                if inside and inside[-1] == last:
                    inside.pop()
                else:
                    inside.append(last)
                outside.append(last)
            done = high
        outside += ends[done:]
        return _tidy(inside), _tidy(outside)

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """Where each interval begins, and where it has ended."""
        return zip(self.ends[::2], self.ends[1::2], strict=True)

    def join(self, other: Intervals) -> Intervals:
        """What is in one of both."""
        ends: list[Any] = []
        for first, last in sorted((*self.pairs(), *other.pairs())):
            if ends and first <= ends[-1]:
                ends[-1] = max(ends[-1], last)
            else:
                ends += (first, last)
        return Intervals(tuple(ends))


def _tidy(ends: list[Any]) -> Intervals:
    """The set of *ends*, without intervals of nothing or without a gap between them."""
    found: list[Any] = []
    for each in ends:
        if found and found[-1] == each:
            found.pop()
        else:
            found.append(each)
    return Intervals(tuple(found))


def name(text: str) -> Intervals:
    """The set of one name."""
    return Intervals((text, f"{text}\0"))


def names_from(prefix: str) -> Intervals:
    """The names that begin with *prefix*; all that there are if it is empty."""
    if not prefix:
        return Intervals(("\0", _LAST))
    return Intervals((prefix, f"{prefix[:-1]}{chr(ord(prefix[-1]) + 1)}"))


@lru_cache(maxsize=1024)
def one_number(value: int) -> Intervals:
    """The set of one number."""
    return Intervals((value, value + 1))


@lru_cache(maxsize=1024)
def numbers(range_: Range) -> Intervals:
    """The numbers of a range; none if it ends before it begins."""
    first, last = range_
    return Intervals((first, last + 1) if first <= last else ())


#: The most intervals that a mask with holes is taken apart into.
_MOST_HOLES = 16


@lru_cache(maxsize=16384)
def network(text: str, family: Family) -> Intervals | Masked | None:
    """The addresses of a network as a rule has it: an address, a prefix length, a mask; else None."""
    base, slash, length = text.partition("/")
    value = address_number(base, family)
    if value is None:
        return None
    bits, every = family.bits, (1 << family.bits) - 1
    prefix = number(length) if length == "0" or not length.startswith("0") else None
    if not slash:
        mask: int | None = every
    elif prefix is not None:
        if prefix > bits:
            return Intervals()
        mask = every >> (bits - prefix) << (bits - prefix)
    else:
        mask = address_number(length, family)
    return None if mask is None else _masked(value & mask, mask, bits)


class Masked(NamedTuple):
    """Addresses told by bits that are too many and too far apart for intervals."""

    value: int
    mask: int

    def __contains__(self, other: object) -> bool:
        return isinstance(other, int) and other & self.mask == self.value


def _masked(value: int, mask: int, bits: int) -> Intervals | Masked:
    """The numbers that have the bits of *value* where *mask* has ones."""
    low = (mask & -mask).bit_length() - 1 if mask else bits
    holes = [1 << bit for bit in range(low, bits) if not mask >> bit & 1]
    if len(holes) > _MOST_HOLES:
        return Masked(value, mask)
    firsts = [value]
    for hole in holes:
        firsts += [first | hole for first in firsts]
    return Intervals.of((first, first + (1 << low) - 1) for first in firsts)


#: A decision about one bit: its value, and the nodes for 0 and for 1; True and False end it.
Node: TypeAlias = "bool | tuple[int, Node, Node]"


class Bits:
    """Numbers of 32 bits told apart by single bits, as a decision for each, the highest first."""

    __slots__ = ("node",)

    def __init__(self, node: Node = True) -> None:  # noqa: FBT002 - True is everything
        self.node = node

    @classmethod
    def masked(cls, value: int, mask: int) -> Bits:
        """The numbers whose bits in *mask* are those of *value*."""
        node: Node = not value & ~mask
        bit = 1
        while node and bit <= mask:
            if mask & bit:
                node = (bit, False, node) if value & bit else (bit, node, False)
            bit <<= 1
        return cls(node)

    def __contains__(self, value: object) -> bool:
        node = self.node
        while not isinstance(node, bool):
            node = node[2] if isinstance(value, int) and value & node[0] else node[1]
        return node

    def __bool__(self) -> bool:
        return self.node is not False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bits) and self.node == other.node

    def __hash__(self) -> int:
        return hash(self.node)

    def __repr__(self) -> str:
        return f"Bits({self.node})"

    def split(self, other: Bits) -> tuple[Bits, Bits]:
        """The part that is in *other*, and the part that is not."""
        return Bits(_both(self.node, other.node)), Bits(_without(self.node, other.node))

    def join(self, other: Bits) -> Bits:
        """What is in one of both."""
        return Bits(_without(True, _both(_without(True, self.node), _without(True, other.node))))  # noqa: FBT003 - True is everything

    def patterns(self) -> Iterator[tuple[int, int]]:
        """Values and masks that together say which numbers there are; no number fits two."""
        pending: list[tuple[Node, int, int]] = [(self.node, 0, 0)]
        while pending:
            node, value, mask = pending.pop()
            if node is True:
                yield value, mask
            elif node is not False:
                bit, low, high = node
                pending += ((high, value | bit, mask | bit), (low, value, mask | bit))


@lru_cache(maxsize=4096)
def _both(one: Node, other: Node) -> Node:
    if isinstance(one, bool):
        return other if one else False
    if isinstance(other, bool):
        return one if other else False
    bit = max(one[0], other[0])
    zero, first = _halves(one, bit)
    null, second = _halves(other, bit)
    low, high = _both(zero, null), _both(first, second)
    return low if low == high else (bit, low, high)


@lru_cache(maxsize=4096)
def _without(one: Node, other: Node) -> Node:
    if one is False or other is True:
        return False
    if other is False:
        return one
    bit = max(node[0] for node in (one, other) if not isinstance(node, bool))
    zero, first = _halves(one, bit)
    null, second = _halves(other, bit)
    low, high = _without(zero, null), _without(first, second)
    return low if low == high else (bit, low, high)


def _halves(node: Node, bit: int) -> tuple[Node, Node]:
    """*node* where *bit* is 0, and where it is 1."""
    return (node[1], node[2]) if not isinstance(node, bool) and node[0] == bit else (node, node)


Values: TypeAlias = Intervals | Bits


def split(values: Values, other: Values) -> tuple[Values, Values]:
    """The part of *values* that is in *other*, which is of the same kind, and the part that is not."""
    return values.split(other)  # type: ignore[arg-type]


def join(values: Values, other: Values) -> Values:
    """What is in one of both, which are of the same kind."""
    return values.join(other)  # type: ignore[arg-type]
