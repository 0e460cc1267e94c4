"""All traffic in classes that no rule tells apart, what becomes of each, and which rule decides it."""

from __future__ import annotations

from istio_iptables.api.conditions import FIELDS, condition, words
from istio_iptables.api.packets import own_addresses, packet_words, usual_values
from istio_iptables.api.subjects import subject_of
from istio_iptables.api.unseen import not_followed, tied
from istio_iptables.istio.capture import DEPENDS, Verdict, brief, deciding_step, describe, fate_of
from istio_iptables.netfilter.fieldvalues import WHOLE_MARK, address_number, address_text
from istio_iptables.netfilter.model import TABLES, Family, Ruleset, is_built_in
from istio_iptables.netfilter.packet import Packet, Surroundings
from istio_iptables.netfilter.questions import is_many, named
from istio_iptables.netfilter.sets import Bits, Intervals, join, split
from istio_iptables.text import printable
from istio_iptables.trace.cells import everything
from istio_iptables.trace.classes import check_partition, choose, divide
from istio_iptables.trace.hooks import End, trace
from istio_iptables.trace.merging import merge
from istio_iptables.trace.reading import read_from_top
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, TypeAlias

    from istio_iptables.api.capture import Plan
    from istio_iptables.api.conditions import Condition
    from istio_iptables.api.rules import Source
    from istio_iptables.api.subjects import Subject
    from istio_iptables.netfilter.model import Rule
    from istio_iptables.netfilter.sets import Values
    from istio_iptables.trace.cells import Box, Kept
    from istio_iptables.trace.hooks import Outcome, Trace
    from istio_iptables.trace.reading import Line
    from istio_iptables.trace.table import TraceStep

__all__ = ["OPENING", "Fate", "Matrix", "Row", "TrafficClass", "matrix"]


class TrafficClass(NamedTuple):
    """Packets that no rule tells apart."""

    family: Family
    #: ``in`` or ``out``.
    direction: str
    #: What a packet of the class has; together they are true for the packets of no other class.
    conditions: tuple[Condition, ...]
    #: One of them.
    packet: Packet
    #: What ``explain`` says of that packet.
    verdict: str
    #: What is true for all of them: a port that they are handed to, who captures them, and what
    #: becomes of them in words.
    to_port: int | None
    captured: str | None
    fate: str
    #: The place of the rule that decides, such as ``nat ISTIO_OUTPUT 3``; None if none is asked.
    rule: str | None
    #: That rule as iptables-save prints it.
    text: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """The options that ask ``explain`` about the packet."""
        return packet_words(self.packet)


class Fate(NamedTuple):
    """What becomes of packets, for holding it against what becomes of them elsewhere."""

    text: str
    to_port: int | None
    captured: str | None
    #: What it depends on that can't be known: rules, and where a target leads.
    unknown: frozenset[str] = frozenset()
    #: False where a packet has more ways than are followed: then it is like no other.
    complete: bool = True


class Row(NamedTuple):
    """A line of the table, to be read from the top: the first one that fits a packet is its own."""

    family: Family
    direction: str
    traffic: str
    verdict: str
    rules: str


class _Found(NamedTuple):
    """What was found out about the packet chosen for some of a class."""

    outcomes: tuple[Outcome, ...]
    complete: bool
    step: TraceStep | None
    #: The rule that decides stands for these of other values.
    kept: Kept | None
    fate: Verdict


#: What makes packets one class: where the rule that decides stands, and their fate.
_Key: TypeAlias = "tuple[object, ...]"
_Item: TypeAlias = "tuple[_Key, _Found, Box]"


class Matrix:
    """All packets of each address family, divided by what the rules do."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._config = subject.plan.config
        self._conditions: dict[tuple[str, int, bool], tuple[Values, Condition | None]] = {}
        self._items = {each.family: self._divide(each) for each in subject.rulesets}
        #: One line for chains whose order makes a difference to packets and is not known.
        self.ties = tied(
            outcome
            for items in self._items.values()
            for _, found, _ in items
            for outcome in found.outcomes
        )
        #: One line for each thing about the rules that is not seen.
        self.warnings = (
            *subject.warnings,
            *not_followed(subject.unseen_chains),
            *self.ties,
        )

    @property
    def classes(self) -> tuple[TrafficClass, ...]:
        """The classes: disjoint, and all packets together; a rule of a list is one of its own."""
        return tuple(
            each
            for family, items in self._items.items()
            for _, found, box in items
            for each in self._classes(family, found, box)
        )

    def fates(self, family: Family) -> Iterator[tuple[Fate, Box]]:
        """What becomes of which packets: boxes that share none, and all packets together."""
        for _, found, box in self._items.get(family) or self._divide(Ruleset(family)):
            yield _fate(found), box

    def answer(self, family: Family, packet: Packet) -> TrafficClass:
        """One packet alone, as ``explain`` follows it; it has no conditions."""
        ruleset = self._ruleset(family)
        found = trace(ruleset, packet, self._around(packet))
        about = _Found(
            found.outcomes, found.complete, deciding_step(found), None, fate_of(found, self._config)
        )
        box = everything(family, incoming=packet.in_interface != "")
        return self._class(family, about, box, about.step.number if about.step else None)

    def example(self, family: Family, box: Box) -> Packet | None:
        """A packet of *box*, an ordinary one if there is such; None if there is none."""
        usual = usual_values(self._subject.world, family, incoming="in_interface" in box)
        chosen = choose(box, usual, family)
        return None if chosen is None else Packet(family=family, **chosen)  # type: ignore[arg-type]

    @property
    def rows(self) -> tuple[Row, ...]:
        """What opens a connection and has no mark, to be read from the top, in fewer words."""
        return tuple(row for family in self._items for row in self._rows(family, OPENING))

    @property
    def all_rows(self) -> tuple[Row, ...]:
        """The same of all packets."""
        return tuple(row for family in self._items for row in self._rows(family, {}))

    def _ruleset(self, family: Family) -> Ruleset:
        rulesets = self._subject.rulesets
        return next((each for each in rulesets if each.family is family), Ruleset(family))

    def _around(self, packet: Packet) -> Surroundings:
        return Surroundings(None, self._subject.routes, here=own_addresses(packet))

    def _divide(self, ruleset: Ruleset) -> list[_Item]:
        family = ruleset.family
        usual = [
            usual_values(self._subject.world, family, incoming=incoming)
            for incoming in (False, True)
        ]

        asked = _without_zones(ruleset)

        def follow(packet: Packet) -> tuple[Trace, Verdict]:
            found = trace(asked, packet, self._around(packet))
            return found, fate_of(found, self._config)

        items: list[_Item] = []
        impossible: list[Box] = []
        for box, kept, result in divide(family, follow, lambda box: usual["in_interface" in box]):
            if result is None:
                impossible.append(box)
                continue
            found, fate = result
            step = deciding_step(found)
            place = (step.table, step.chain, step.number or 0) if step else ("", "", 0)
            about = _Found(found.outcomes, found.complete, step, kept.get(place), fate)
            items.append((_key(about), about, box))
        merged = merge(items)
        wholes = [everything(family, incoming=incoming) for incoming in (False, True)]
        check_partition(wholes, [*(box for _, _, box in merged), *impossible])
        return merged

    def _classes(self, family: Family, found: _Found, box: Box) -> Iterator[TrafficClass]:
        if found.kept is None or found.step is None:
            number = found.step.number if found.step else None
            yield self._class(family, found, box, number)
            return
        field = found.kept.stretch.field
        for values, number in found.kept.numbers:
            part = split(values, box[field])[0]
            if part:
                yield self._class(family, found, {**box, field: part}, number)

    def _class(self, family: Family, found: _Found, box: Box, number: int | None) -> TrafficClass:
        incoming = "in_interface" in box
        outcomes = found.outcomes
        if found.kept is not None:
            outcomes = tuple(_moved(each, found.kept.stretch.field, box) for each in outcomes)
        verdicts = {describe(outcome, self._config) for outcome in outcomes}
        verdict = verdicts.pop() if len(verdicts) == 1 and found.complete else DEPENDS
        step = found.step
        if step is not None and step.rule is not None and number is not None:
            step = step._replace(number=number, rule=self._rule(family, step, number))
        return TrafficClass(
            family,
            "in" if incoming else "out",
            tuple(self._said(family, box)),
            _plain(outcomes[0].start or outcomes[0].packet),
            verdict.text,
            found.fate.to_port,
            found.fate.captured,
            found.fate.text,
            step.place if step else None,
            step.text if step else "",
        )

    def _said(self, family: Family, box: Box) -> Iterator[Condition]:
        """The conditions of *box*; most of its sets are those of others as well."""
        incoming = "in_interface" in box
        whole = everything(family, incoming=incoming)
        for field in FIELDS:
            if field not in box:
                continue
            # The set is kept, so that its id stays its own.
            key = (field, id(box[field]), incoming)
            if key not in self._conditions:
                said = condition(field, box[field], whole[field], family)
                self._conditions[key] = (box[field], said)
            said = self._conditions[key][1]
            if said is not None:
                yield said

    def _rule(self, family: Family, step: TraceStep, number: int) -> Rule | None:
        table = self._ruleset(family).table(step.table)
        chain = table.chain(step.chain) if table else None
        return step.rule if chain is None else chain.rules[number - 1]

    def _rows(self, family: Family, only: Box) -> Iterator[Row]:
        items = self._items[family]
        for incoming in (False, True):
            whole = {**everything(family, incoming=incoming), **only}
            mine = [
                (key, found, {**box, **only})
                for key, found, box in items
                if ("in_interface" in box) is incoming
                and all(split(values, box[field])[0] for field, values in only.items())
            ]
            keys = sorted(
                {key: found for key, found, _ in mine}.items(), key=lambda each: _order(*each)
            )
            ranks = {key: rank for rank, (key, _) in enumerate(keys)}
            lines = read_from_top([(ranks[key], box) for key, _, box in mine], whole)
            for line in _joined(lines, [found for _, found in keys], whole):
                found = [keys[each][1] for each in line.keys]
                yield Row(
                    family,
                    "in" if incoming else "out",
                    printable(words(line.box, whole, family)),
                    printable(brief(found[0].fate)),
                    _places(found),
                )


def _without_zones(ruleset: Ruleset) -> Ruleset:
    """*ruleset* without a table raw that does no more than choose zones, which decides nothing else.

    Its rules are about users, ports and servers, and would take every class apart by them.
    """
    raw = ruleset.table("raw")
    if raw is None or not all(chain.policy in {None, "ACCEPT"} for chain in raw.chains):
        return ruleset
    own = {chain.name for chain in raw.chains if not is_built_in("raw", chain.name)}
    for chain in raw.chains:
        # Jumps from built-in chains alone: no circle of them, which has no end.
        jumps = set() if chain.name in own else own
        for rule in chain.rules:
            target = rule.target
            if target is None or (target.name == "CT" and target.option("--zone")):
                continue
            if target.name not in jumps:
                return ruleset
    return ruleset._replace(tables=tuple(each for each in ruleset.tables if each is not raw))


def _fate(found: _Found) -> Fate:
    unknown = {
        f"{each.place} {each.text}"
        for outcome in found.outcomes
        for each in outcome.assumptions
        if each.place or each.tie
    }
    unknown |= {
        outcome.steps[-1].text
        for outcome in found.outcomes
        if outcome.end is End.UNKNOWN and outcome.steps
    }
    return Fate(*found.fate, frozenset(unknown), found.complete)


def _key(found: _Found) -> _Key:
    step = found.step
    if step is None:
        return (found.fate,)
    rule = (id(found.kept.group), found.kept.nth) if found.kept else step.number
    return (found.fate, step.table, step.chain, rule)


def _order(key: _Key, found: _Found) -> tuple[object, ...]:
    """Rules in their order, then policies, then what no rule is asked about."""
    step = found.step
    if step is None:
        return (2, 0, "", 0, key[0])
    # Native tables have other names; what the kernel calls first comes first.
    table = TABLES.index(step.table) if step.table in TABLES else len(TABLES) + step.priority
    if step.number is None:
        return (1, table, step.chain, 0, key[0])
    return (0, table, step.chain, step.number, key[0])


def _plain(packet: Packet) -> Packet:
    """The packet itself, that stands for no other."""
    return _with(
        packet,
        {
            name: str(value) if isinstance(value, str) else int(value)
            for name, value in packet._asdict().items()
            if is_many(value)
        },
    )


def _with(packet: Packet, values: Mapping[str, Any]) -> Packet:
    return packet._replace(**values)


def _moved(outcome: Outcome, field: str, box: Box) -> Outcome:
    """*outcome* for a packet whose *field* is one of those of *box*, if it isn't already."""
    start, values = outcome.start, box[field]
    if start is None or not isinstance(values, Intervals):
        return outcome
    old = getattr(start, field)
    number = address_number(old, start.family) if isinstance(old, str) else old
    if number in values:
        return outcome
    other = start.source if field == "destination" else start.destination
    avoided = address_number(other, start.family) if isinstance(old, str) and other else None
    new = next(
        (
            each
            for first, end in values.pairs()
            for each in (int(first), int(end) - 1)
            if each != avoided
        ),
        values.ends[0],
    )
    value = address_text(int(new), start.family) if isinstance(old, str) else int(new)
    packet = outcome.packet
    if is_many(getattr(packet, field)):
        packet = _with(packet, {field: value})
    return outcome._replace(start=_with(start, {field: value}), packet=packet)


class _Joined(NamedTuple):
    keys: tuple[int, ...]
    box: Box


def _joined(lines: list[Line], found: list[_Found], whole: Box) -> list[_Joined]:
    """Lines that follow each other, with one fate and rules of one chain, as one if that is a box."""
    joined: list[_Joined] = []
    for line in lines:
        last = joined[-1] if joined else None
        if last is not None and _alike(found[last.keys[-1]], found[line.key]):
            differ = [field for field in whole if last.box[field] != line.box[field]]
            if len(differ) <= 1:
                box = dict(last.box)
                for field in differ:
                    box[field] = join(box[field], line.box[field])
                keys = tuple(dict.fromkeys((*last.keys, line.key)))
                joined[-1] = _Joined(keys, box)
                continue
        joined.append(_Joined((line.key,), line.box))
    return joined


def _alike(one: _Found, other: _Found) -> bool:
    places = [each.step and (each.step.table, each.step.chain) for each in (one, other)]
    return one.fate == other.fate and places[0] == places[1]


def _places(found: list[_Found]) -> str:
    """The rules of a line: ``nat ISTIO_OUTPUT 3, 5-7``."""
    step = found[0].step
    if step is None:
        return "none"
    numbers: set[int] = set()
    for each in found:
        if each.kept is not None:
            numbers.update(number for _, number in each.kept.numbers)
        elif each.step is not None and each.step.number is not None:
            numbers.add(each.step.number)
    ends: list[list[int]] = []
    for number in sorted(numbers):
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in ends]
    listed = ", ".join(shown[:_MOST_RANGES]) + (", ..." if shown[_MOST_RANGES:] else "")
    return f"{step.table} {step.chain} {listed or 'policy'}"


#: What the first packet of a connection has, before a rule gives it a mark.
OPENING: Box = {
    "state": named("NEW"),
    "mark": Bits.masked(0, WHOLE_MARK),
    "connmark": Bits.masked(0, WHOLE_MARK),
}
#: How many ranges of rules a line names.
_MOST_RANGES = 4


def matrix(
    plan: Plan | None,
    rules: Source | None = None,
    *,
    family: Family | str | None = None,
    name: str = "the text",
) -> Matrix:
    """All traffic, divided into classes that no rule tells apart: ``.classes``, ``.rows``.

    *plan*, *rules*, *family* and *name* are as for ``explain``. Of live rules it is the rules that
    are asked, and neither the addresses nor the routes of the namespace.

    Raises CannotTell for rules that can't be read, or that divide packets without end.
    """
    wanted = Family(family) if family else None
    return Matrix(subject_of(plan, rules, family=wanted, name=name))
