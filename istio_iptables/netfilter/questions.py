"""What is asked of a packet's fields, so that one packet can be followed for many.

A packet that stands for a set has values of the types here. Whatever decides about it asks through
the functions below, which answer for the one packet, and tell its ``Class`` to keep only those
that get the same answer. Of plain values they are ordinary comparisons.

Two values of the many are taken to differ (a source and a destination, a mark and a connection's).
"""

from __future__ import annotations

from functools import lru_cache

from istio_iptables.errors import CannotTell
from istio_iptables.netfilter.fieldvalues import WHOLE_MARK, address_number
from istio_iptables.netfilter.sets import Bits, Intervals, Masked, name, one_number
from istio_iptables.typed import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from typing import Self

    from istio_iptables.netfilter.model import Family
    from istio_iptables.netfilter.sets import Values

__all__ = [
    "Class",
    "ManyMarks",
    "ManyNumbers",
    "ManyTexts",
    "among",
    "has_address",
    "has_bits",
    "is_many",
    "mix",
    "named",
    "plain_address",
    "same",
]


class Class(Protocol):
    """The packets that get the same answers as the one that is followed for them."""

    def keep(self, field: str, wanted: Values, answer: bool) -> None:  # noqa: FBT001 - it is data
        """Let those go whose *field* has another answer to whether it is among *wanted*."""

    def is_one(self, field: str) -> bool:
        """Whether all have the same value of *field*, a mark."""


class ManyTexts(str):
    """An address, an interface or a state that stands for many."""

    __slots__ = ("about", "field")
    about: Class
    field: str

    def __new__(cls, value: str, about: Class, field: str) -> Self:  # noqa: D102 - as in str
        self = super().__new__(cls, value)
        self.about, self.field = about, field
        return self


class ManyNumbers(int):
    """A protocol, a port or an id that stands for many."""

    about: Class
    field: str

    def __new__(cls, value: int, about: Class, field: str) -> Self:  # noqa: D102 - as in int
        self = super().__new__(cls, value)
        self.about, self.field = about, field
        return self


class Part(NamedTuple):
    """Bits of a mark that are those of a field as the packet had it first."""

    field: str
    value: int
    mask: int


class ManyMarks(int):
    """A mark that stands for many: bits of the first marks, and *fixed* ones."""

    about: Class
    parts: tuple[Part, ...]
    fixed: int

    def __new__(cls, about: Class, parts: tuple[Part, ...], fixed: int = 0) -> Self:  # noqa: D102 - as in int
        value = fixed
        for part in parts:
            value ^= part.value & part.mask
        self = super().__new__(cls, value)
        self.about, self.parts, self.fixed = about, parts, fixed
        return self

    def settled(self) -> int:
        """The mark as a plain number, if all of the packets have it by now; else itself."""
        return int(self) if all(self.about.is_one(each.field) for each in self.parts) else self


_MANY = (ManyTexts, ManyNumbers, ManyMarks)


def is_many(value: object) -> bool:
    """Whether *value* stands for others as well."""
    return isinstance(value, _MANY)


@lru_cache(maxsize=256)
def named(*names: str) -> Intervals:
    """The set of these names."""
    found = Intervals()
    for each in names:
        found = found.join(name(each))
    return found


def among(value: int | str, wanted: Intervals) -> bool:
    """Whether *value*, no address and no mark, is among *wanted*."""
    answer = value in wanted
    if isinstance(value, (ManyNumbers, ManyTexts)):
        value.about.keep(value.field, wanted, answer)
    return answer


def has_address(text: str | None, wanted: Intervals | Masked, family: Family) -> bool | None:
    """Whether the address *text* is among *wanted*; None if it isn't known."""
    number = None if text is None else address_number(text, family)
    if number is None:
        return None
    answer = number in wanted
    if isinstance(text, ManyTexts):
        if isinstance(wanted, Masked):
            message = "an address mask with more than 16 holes: packets can't be told apart by it"
            raise CannotTell(message)
        text.about.keep(text.field, wanted, answer)
    return answer


def has_bits(mark: int, value: int, mask: int) -> bool:
    """Whether the bits of *mark* in *mask* are *value*."""
    if not isinstance(mark, ManyMarks):
        return mark & mask == value
    wanted = value ^ (mark.fixed & mask)
    for field, first, kept in mark.parts:
        asked = mask & kept
        answer = first & asked == wanted & asked
        mark.about.keep(field, Bits.masked(wanted & asked, asked), answer)
        if not answer:
            return False
        wanted &= ~asked
    return wanted == 0


def mix(old: int, mask: int, value: int) -> int:
    """What is left of a mark behind *mask*, with the bits of *value*, which may be a mark, turned."""
    old, value = _settled(old), _settled(value)
    if not isinstance(old, ManyMarks) and not isinstance(value, ManyMarks):
        return (old & mask) ^ value
    parts: list[Part] = []
    fixed = 0
    about = None
    for mark, kept in ((old, mask), (value, WHOLE_MARK)):
        if not isinstance(mark, ManyMarks):
            fixed ^= mark & kept
            continue
        about = mark.about
        fixed ^= mark.fixed & kept
        parts += (each._replace(mask=each.mask & kept) for each in mark.parts)
    parts = [each for each in parts if each.mask]
    if about is None or not parts:
        return fixed
    seen = 0
    for each in parts:
        if each.mask & seen:
            message = (
                "a mark and a connection's mark are mixed, which can't be told apart by classes"
            )
            raise CannotTell(message)
        seen |= each.mask
    return ManyMarks(about, tuple(parts), fixed)


def _settled(mark: int) -> int:
    return mark.settled() if isinstance(mark, ManyMarks) else mark


def plain_address(text: str | None, what: str) -> str | None:
    """The address *text*, if it is the packet's own; CannotTell if *what* changes it for many."""
    if isinstance(text, ManyTexts):
        message = f"{what} makes another address of each: there are no classes of packets behind it"
        raise CannotTell(message)
    return text


def same(one: object, other: object, family: Family | None = None) -> bool:
    """Whether two values of the same field are the same one; addresses have a *family*."""
    if isinstance(one, ManyMarks) and isinstance(other, ManyMarks):
        one, other = one.settled(), other.settled()
    if is_many(other):
        one, other = other, one
    if one is other or not is_many(one):
        return one == other
    if isinstance(one, ManyMarks) and isinstance(other, ManyMarks):
        return _are_same_bits(one, other)
    return not is_many(other) and _is(one, other, family)


def _are_same_bits(one: ManyMarks, other: ManyMarks) -> bool:
    """Whether two marks are the same, one of which may be what is left of the other."""
    masks: dict[str, Part] = {}
    for each in (*one.parts, *other.parts):
        before = masks.get(each.field)
        masks[each.field] = each._replace(mask=each.mask ^ before.mask) if before else each
    parts = tuple(each for each in masks.values() if each.mask)
    seen = 0
    for each in parts:
        if each.mask & seen:
            return False
        seen |= each.mask
    differing = ManyMarks(one.about, parts, one.fixed ^ other.fixed)
    return has_bits(differing, 0, WHOLE_MARK)


def _is(one: object, other: object, family: Family | None) -> bool:
    """Whether what stands for many is the plain value *other*."""
    if isinstance(one, ManyTexts) and isinstance(other, str):
        if family is None:
            return among(one, named(other))
        number = address_number(other, family)
        return number is not None and bool(has_address(one, one_number(number), family))
    if isinstance(one, ManyMarks) and isinstance(other, int):
        return has_bits(one, other, WHOLE_MARK)
    return isinstance(one, ManyNumbers) and isinstance(other, int) and among(one, one_number(other))
