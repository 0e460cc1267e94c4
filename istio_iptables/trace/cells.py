"""A set of packets that get the same answers: one is followed, and the others that would leave it go."""

from __future__ import annotations

from functools import lru_cache

from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.packet import STATES, Packet
from istio_iptables.netfilter.questions import ManyMarks, ManyNumbers, ManyTexts, Part, named
from istio_iptables.netfilter.sets import Bits, Intervals, names_from, split
from istio_iptables.trace.stretches import stretches
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, TypeAlias

    from istio_iptables.netfilter.model import Chain
    from istio_iptables.netfilter.sets import Values
    from istio_iptables.trace.stretches import Stretch, ValueGroup

__all__ = ["Box", "Cell", "Kept", "Memory", "everything"]

#: A product: what values each field may have. Fields that are not there are not those of any packet.
Box: TypeAlias = "dict[str, Values]"

_MARKS = ("mark", "connmark")
_NUMBERS = ("protocol", "source_port", "destination_port", "uid", "gid")
_LAST_ID = 2**32 - 2
#: How many splits are remembered, at a fifth of a kilobyte each.
_MOST_SPLITS = 500_000


@lru_cache(maxsize=4)
def everything(family: Family, *, incoming: bool) -> Box:
    """All packets of one direction that ``explain`` can be asked about.

    What an IPv6 socket sends to ::ffff:0:0/96 is IPv4, and what is sent to 0.0.0.0 or :: goes to
    loopback: there are no such packets.
    """
    if family is Family.IPV4:
        addresses = Intervals((0, 1 << 32))
    else:
        addresses = Intervals((0, 0xFFFF << 32, 0x10000 << 32, 1 << 128))
    ports = Intervals((0, 1 << 16))
    box: Box = {
        "protocol": Intervals((1, 256)),
        "source": addresses,
        "destination": addresses if incoming else Intervals((1, *addresses.ends[1:])),
        "source_port": ports,
        "destination_port": ports,
        "in_interface" if incoming else "out_interface": names_from(""),
        "mark": Bits(),
        "connmark": Bits(),
        "state": named(*STATES),
    }
    if not incoming:
        box["uid"] = box["gid"] = Intervals((0, _LAST_ID + 1))
    return box


class Kept(NamedTuple):
    """A rule of a stretch that matched: it stands for those of all values that are alike."""

    stretch: Stretch
    group: ValueGroup
    #: Which of the rules of each member it is, from 0.
    nth: int

    @property
    def numbers(self) -> Iterator[tuple[Values, int]]:
        """What values the rules that are meant are for, and their numbers (from 1)."""
        return ((member.values, member.places[self.nth] + 1) for member in self.group.members)


class Memory:
    """What the cells of one division have worked out already."""

    def __init__(self) -> None:
        # What an id is of has to stay, so that the id stays its own.
        self._splits: dict[tuple[int, int], tuple[Values, Values, Values, Values]] = {}
        self._stretches: dict[int, tuple[Chain, dict[int, Stretch]]] = {}

    def split(self, values: Values, wanted: Values) -> tuple[Values, Values]:
        """What of *values* is among *wanted*, and what is not."""
        key = (id(values), id(wanted))
        known = self._splits.get(key)
        if known is None:
            inside, outside = split(values, wanted)
            # The same object as before where nothing goes, for the sake of the next question.
            known = (
                inside if outside else values,
                outside if inside else values,
                values,
                wanted,
            )
            if len(self._splits) >= _MOST_SPLITS:
                # Forgetting costs time; rules without end would cost the machine its memory.
                self._splits.clear()
            self._splits[key] = known
        return known[0], known[1]

    def stretches(self, chain: Chain, family: Family) -> Mapping[int, Stretch]:
        """The stretches of a chain."""
        known = self._stretches.get(id(chain))
        if known is None:
            known = self._stretches[id(chain)] = (chain, stretches(chain.rules, family))
        return known[1]


class Cell:
    """The packets of *box* that get the same answers as one of them, *chosen*, while it is followed."""

    def __init__(
        self, family: Family, box: Box, chosen: Mapping[str, int | str], memory: Memory
    ) -> None:
        self.family = family
        self.box = dict(box)
        self.memory = memory
        #: What went: boxes that have nothing in common with each other nor with this one.
        self.others: list[Box] = []
        #: By table, chain and number (from 1): rules that stand for those of other values.
        self.kept: dict[tuple[str, str, int], Kept] = {}
        fields: dict[str, Any] = {
            name: ManyTexts(value, self, name)
            if isinstance(value, str)
            else ManyNumbers(value, self, name)
            for name, value in chosen.items()
            if name not in _MARKS
        }
        fields |= {
            name: ManyMarks(self, (Part(name, int(chosen[name]), 0xFFFFFFFF),)) for name in _MARKS
        }
        #: The chosen packet, which stands for all.
        self.packet = Packet(family=family, **fields)

    def keep(self, field: str, wanted: Values, answer: bool) -> None:  # noqa: FBT001 - it is data
        """Let those go whose *field* has another answer to whether it is among *wanted*."""
        inside, outside = self.memory.split(self.box[field], wanted)
        mine, others = (inside, outside) if answer else (outside, inside)
        if mine is not self.box[field]:
            self.others.append({**self.box, field: others})
            self.box[field] = mine

    def is_one(self, field: str) -> bool:
        """Whether all have the same value of *field*, a mark."""
        values = self.box[field]
        patterns = list(values.patterns()) if isinstance(values, Bits) else []
        return len(patterns) == 1 and patterns[0][1] == 0xFFFFFFFF  # noqa: PLR2004 - the whole mark
