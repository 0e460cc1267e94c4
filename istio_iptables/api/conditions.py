"""The conditions of a class of packets, in words and for programs."""

from __future__ import annotations

from istio_iptables.netfilter.fieldvalues import address_text, protocol_name
from istio_iptables.netfilter.sets import Bits, Intervals, split
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.netfilter.model import Family
    from istio_iptables.netfilter.sets import Values
    from istio_iptables.trace.cells import Box

__all__ = ["FIELDS", "Condition", "condition", "in_words", "words"]

#: The fields in the order in which they are told, and what is said of each.
FIELDS = {
    "in_interface": "in by",
    "out_interface": "out of",
    "protocol": "",
    "source": "from",
    "source_port": "from port",
    "destination": "to",
    "destination_port": "port",
    "uid": "uid",
    "gid": "gid",
    "mark": "mark",
    "connmark": "connection mark",
    "state": "",
}
#: How many items of a list are worth reading.
_MOST = 4


class Condition(NamedTuple):
    """What values a field may have: one of *among*, if there are any, and none of *but*."""

    field: str
    among: tuple[str, ...] = ()
    but: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The condition as people say it."""
        what = f"{FIELDS[self.field]} " if FIELDS[self.field] else ""
        if not self.among:
            return f"not {what}{_listed(self.but)}"
        but = f" but not {_listed(self.but)}" if self.but else ""
        return f"{what}{_listed(self.among)}{but}"


def _listed(items: tuple[str, ...]) -> str:
    if len(items) > _MOST:
        return f"{', '.join(items[:_MOST])} or one of {len(items) - _MOST} more"
    return " or ".join(filter(None, (", ".join(items[:-1]), items[-1])))


def words(box: Box, whole: Box, family: Family) -> str:
    """What tells the packets of *box* from those of *whole*, in one line."""
    found = (condition(field, box[field], whole[field], family) for field in FIELDS if field in box)
    return in_words(each for each in found if each)


def in_words(conditions: Iterable[Condition]) -> str:
    """Conditions that all hold, in one line."""
    return ", ".join(each.text for each in conditions) or "everything"


def condition(field: str, values: Values, every: Values, family: Family) -> Condition | None:
    """What tells *values* from *every* value of a field; None if that is what they are."""
    if values == every:
        return None
    others = split(every, values)[1]
    is_name = field.endswith("_interface")
    if is_name and isinstance(values, Intervals) and isinstance(others, Intervals):
        return _names(field, values, others)
    # Where the kernel has no packet to 0.0.0.0, that is no reason to tell a network otherwise.
    spared = isinstance(every, Intervals) and every.ends[:1] == (1,)
    among, but = (
        tuple(_items(field, each, family, first=0 if spared else 1)) for each in (values, others)
    )
    return Condition(field, among) if _length(among) <= _length(but) else Condition(field, but=but)


def _length(items: tuple[str, ...]) -> int:
    """How much there is to read: a range of addresses is twice as long."""
    return len(items) + sum("." in each and "-" in each for each in items)


def _items(field: str, values: Values, family: Family, *, first: int) -> Iterator[str]:
    """The values one by one; a network may begin at *first* where they begin at 1."""
    if isinstance(values, Bits):
        for value, mask in values.patterns():
            yield f"{value:#x}" if mask == 0xFFFFFFFF else f"{value:#x}/{mask:#x}"  # noqa: PLR2004 - whole
    elif field == "state":
        yield from (str(low) for low, _ in values.pairs())
    elif field in {"source", "destination"}:
        for low, end in values.pairs():
            yield _network(low, end, family) or (
                _network(first if low == 1 else low, end, family)
                or f"{address_text(low, family)}-{address_text(end - 1, family)}"
            )
    elif field == "protocol":
        for low, end in values.pairs():
            yield protocol_name(str(low)) if low == end - 1 else f"{low}-{end - 1}"
    else:
        for low, end in values.pairs():
            yield f"{low}" if low == end - 1 else f"{low}-{end - 1}"


def _network(first: int, end: int, family: Family) -> str | None:
    """The addresses from *first* to before *end* as one network; None if they are none."""
    size = end - first
    if size & (size - 1) or first & (size - 1):
        return None
    prefix = family.bits - size.bit_length() + 1
    text = address_text(first, family)
    return text if prefix == family.bits else f"{text}/{prefix}"


def _names(field: str, values: Intervals, others: Intervals) -> Condition:
    """Names and beginnings of names; both lists where one lies inside the other."""
    but = [_name(str(low), str(high)) for low, high in others.pairs()]
    if None not in but:
        return Condition(field, but=tuple(filter(None, but)))
    among = []
    holes = []
    pairs = list(values.pairs())
    at = 0
    while at < len(pairs):
        # The longest run of intervals that one name's beginning has, but for holes that are names.
        last = at
        for end in range(at, len(pairs)):
            if _name(str(pairs[at][0]), str(pairs[end][1])) is not None:
                last = end
        low, high = str(pairs[at][0]), str(pairs[last][1])
        among.append(_name(low, high) or f"{low!r} to before {high!r}")
        holes += [
            _name(str(one[1]), str(other[0])) or f"{one[1]!r} to before {other[0]!r}"
            for one, other in zip(pairs[at:last], pairs[at + 1 : last + 1], strict=True)
        ]
        at = last + 1
    return Condition(field, tuple(among), tuple(holes))


def _name(low: str, high: str) -> str | None:
    """The name that an interval is of, or the beginning with a ``+`` behind it; None for others."""
    if high == f"{low}\0":
        return low
    if low and high == f"{low[:-1]}{chr(ord(low[-1]) + 1)}":
        return f"{low}+"
    return None
