"""Rules as a picture shows them: a box for each chain, a line for each rule, and where it leads."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.netfilter.model import each_table
from istio_iptables.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from istio_iptables.netfilter.model import Chain, Family, Ruleset, Table, Target

__all__ = ["Box", "Flow", "Note", "Place", "RuleLine", "chart"]

#: Of a longer run of rules that lead to the same place, the first and the last are drawn.
_LONGEST_RUN = 8
_SHOWN_OF_A_RUN = 3
#: The options that tell where a target sends a packet.
_SENDS_TO = {"REDIRECT": "--to-ports", "TPROXY": "--on-port", "DNAT": "--to-destination"}
_ENDS = {"DROP": "dropped", "REJECT": "rejected"}


class Place(NamedTuple):
    """Where a rule stands."""

    #: None for a table of nftables, which is several families'.
    family: Family | None
    table: str
    chain: str
    #: From 1.
    number: int


class Note(NamedTuple):
    """What is known about a rule beside its text."""

    #: Why it is there; "" for a rule that nothing explains.
    reason: str = ""
    #: How often it has matched, in words; "" where that isn't known.
    counted: str = ""
    foreign: bool = False
    #: Whether the packet that the picture is about matches it.
    passed: bool = False


class RuleLine(NamedTuple):
    """A rule in its box, or a run of rules that are left out."""

    #: The rule's number; "" for what is left out.
    number: str
    text: str
    note: Note
    #: The boxes that it leads to.
    to: tuple[str, ...] = ()


class Box(NamedTuple):
    """A chain with its rules, or an end of the packet's way, which has none."""

    #: Unique in the picture: letters, digits and ``_``.
    name: str
    title: str
    #: How many boxes a packet has passed before, at most.
    column: int
    lines: tuple[RuleLine, ...] = ()
    passed: bool = False

    @property
    def is_end(self) -> bool:
        """Whether the packet leaves the rules here."""
        return not self.lines


class Flow(NamedTuple):
    """The chains of one table that have rules, and where these lead."""

    title: str
    boxes: tuple[Box, ...]


def chart(
    rulesets: Iterable[Ruleset],
    notes: Mapping[Place, Note],
    listeners: Mapping[str, str],
) -> tuple[Flow, ...]:
    """The tables of *rulesets* that have rules, each as a Flow.

    *notes* are about rules by their places; *listeners* name who has a port: ``{"15001": "Envoy,
    outbound"}``.
    """
    tables = [(family, table) for family, table in each_table(rulesets) if table.rule_count]
    return tuple(
        Flow(
            f"{family.title} {table.name}" if family else table.name,
            _boxes(number, family, table, notes, listeners),
        )
        for number, (family, table) in enumerate(tables)
    )


def _boxes(
    number: int,
    family: Family | None,
    table: Table,
    notes: Mapping[Place, Note],
    listeners: Mapping[str, str],
) -> tuple[Box, ...]:
    chains = [chain for chain in table.chains if chain.rules]
    names = {chain.name: f"t{number}c{at}" for at, chain in enumerate(chains)}
    ends: dict[str, str] = {}

    def leads_to(target: Target) -> str | None:
        if target.name in names:
            return names[target.name]
        title = _end(target, listeners)
        return ends.setdefault(title, f"t{number}e{len(ends)}") if title else None

    def line(chain: Chain, nth: int) -> RuleLine:
        rule = chain.rules[nth - 1]
        to = tuple(dict.fromkeys(filter(None, map(leads_to, rule.targets))))
        note = notes.get(Place(family, table.name, chain.name, nth), Note())
        return RuleLine(str(nth), printable(rule.text), note, to)

    lines = {
        names[chain.name]: [line(chain, nth) for nth in range(1, len(chain.rules) + 1)]
        for chain in chains
    }
    columns = _columns(lines)
    entered = {to for each in lines.values() for one in each if one.note.passed for to in one.to}
    found = [
        Box(
            names[chain.name],
            printable(chain.name),
            columns[names[chain.name]],
            tuple(_folded(lines[names[chain.name]])),
            any(each.note.passed for each in lines[names[chain.name]]),
        )
        for chain in chains
    ]
    last = 1 + max(columns.values())
    found += (Box(name, title, last, passed=name in entered) for title, name in ends.items())
    return tuple(sorted(found, key=lambda box: box.column))


def _end(target: Target, listeners: Mapping[str, str]) -> str:
    """The words for where *target* sends a packet; "" if it stays among the rules."""
    if target.name not in _SENDS_TO:
        return _ENDS.get(target.name, "")
    option = target.option(_SENDS_TO[target.name], "--to-port")
    where = option.value if option else ""
    port = where.rpartition(":")[2]
    who = listeners.get(port)
    return f"{who}, port {port}" if who else printable(f"{target.name} {where}".rstrip())


def _columns(boxes: Mapping[str, list[RuleLine]]) -> dict[str, int]:
    """How far each chain stands from those that nothing leads to; a circle stops where it closes."""
    columns = dict.fromkeys(boxes, 0)
    # Without a circle no way is longer than there are chains.
    for _ in boxes:
        moved = False
        for name, lines in boxes.items():
            for to in {to for line in lines for to in line.to if to in boxes}:
                if to != name and columns[name] + 1 > columns[to] and columns[name] < len(boxes):
                    columns[to] = columns[name] + 1
                    moved = True
        if not moved:
            break
    return columns


def _folded(lines: list[RuleLine]) -> Iterator[RuleLine]:
    """The lines, long runs of alike rules shortened."""

    def kind(line: RuleLine) -> tuple[object, ...]:
        return line.to, line.text.rpartition(" -j ")[2], line.note.foreign, line.note.passed

    for _, group in groupby(lines, kind):
        run = list(group)
        if len(run) <= _LONGEST_RUN:
            yield from run
            continue
        left_out = run[_SHOWN_OF_A_RUN:-1]
        yield from run[:_SHOWN_OF_A_RUN]
        text = f"... {len(left_out)} more like these"
        yield RuleLine("", text, Note(foreign=run[0].note.foreign))
        yield run[-1]
