"""Two settings or rulesets: what differs rule by rule, and which packets they treat differently."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.api.conditions import FIELDS, condition
from istio_iptables.api.matrix import OPENING, Matrix
from istio_iptables.api.rules import is_native
from istio_iptables.api.subjects import subject_of
from istio_iptables.api.unseen import chains_at_devices, not_followed
from istio_iptables.differences.rulesets import diff_native, diff_network, diff_rulesets
from istio_iptables.netfilter.model import Family, Ruleset
from istio_iptables.netfilter.plan import DesiredState
from istio_iptables.trace.cells import Memory, everything
from istio_iptables.trace.classes import NotAPartition
from istio_iptables.trace.hooks import has_ties
from istio_iptables.trace.merging import merge

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from istio_iptables.api.capture import Plan
    from istio_iptables.api.conditions import Condition
    from istio_iptables.api.matrix import Fate, TrafficClass
    from istio_iptables.api.rules import Source
    from istio_iptables.api.subjects import Subject
    from istio_iptables.differences.rulesets import Difference
    from istio_iptables.netfilter.model import Table
    from istio_iptables.netfilter.packet import Packet
    from istio_iptables.trace.cells import Box

__all__ = ["Comparison", "Divergence", "Side", "compare"]


class Side(NamedTuple):
    """One of the two that are compared, as ``matrix`` takes it."""

    plan: Plan | None
    rules: Source | None = None
    family: Family | None = None
    #: What messages call it.
    name: str = "the text"


class Divergence(NamedTuple):
    """Packets treated differently on one side than on the other."""

    family: Family
    #: ``in`` or ``out``.
    direction: str
    conditions: tuple[Condition, ...]
    #: Whether some of them open a connection and have no mark.
    opening: bool
    #: The first of them, as ``explain`` follows it on each side.
    one: TrafficClass
    other: TrafficClass

    @property
    def packet(self) -> Packet:
        """The first of the packets."""
        return self.one.packet


class Comparison(NamedTuple):
    """What differs between two sides."""

    #: What the second side has otherwise than the first, rule by rule, and routes where both tell.
    differences: tuple[Difference, ...]
    #: The packets treated differently; none where every packet is treated the same.
    divergences: tuple[Divergence, ...]
    #: The families that were compared.
    families: tuple[Family, ...]
    warnings: tuple[str, ...]
    #: What decides about packets as well and is not known: where there is such and no packet is
    #: treated differently, it can't be told whether all are treated the same.
    unknown: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.differences or self.divergences)


def compare(one: Side | Plan, other: Side | Plan) -> Comparison:
    """What *other* has otherwise than *one*, and what that does to packets.

    All rules count, foreign ones too. A family that a text says nothing of is not compared. Raises
    CannotTell for rules that can't be read, or that divide packets without end.
    """
    sides = [each if isinstance(each, Side) else Side(each) for each in (one, other)]
    subjects = [
        subject_of(side.plan, side.rules, family=side.family, name=side.name) for side in sides
    ]
    told = [_told(side, subject) for side, subject in zip(sides, subjects, strict=True)]
    families = tuple(
        family
        for family in Family
        if all(family in each for each in told)
        and any(family is each.family for subject in subjects for each in subject.rulesets)
    )
    warnings = [
        line
        for subject in subjects
        for line in (*subject.warnings, *not_followed(subject.unseen_chains))
    ]
    for side, mine, others in zip(sides, told, reversed(subjects), strict=True):
        warnings += (
            f"{side.name} has no {each.family.title} rules: those of the other side are not compared"
            for each in others.rulesets
            if each.family not in mine
        )
    rules = [[each for each in subject.rulesets if each.family in families] for subject in subjects]
    differences = (
        *diff_rulesets(map(_of_iptables, rules[1]), map(_of_iptables, rules[0])),
        *diff_native(_native(rules[1]), _native(rules[0])),
        *_network(sides, subjects),
    )
    divergences: list[Divergence] = []
    unknown: list[str] = []
    if not _are_one_namespace(subjects):
        unknown += _not_followed(sides, subjects, families)
        is_other = rules[0] != rules[1] or subjects[0].routes != subjects[1].routes
        if is_other or any(map(has_ties, rules[0])):
            matrices = Matrix(subjects[0]), Matrix(subjects[1])
            for family in families:
                divergences += _diverging(family, *matrices)
            unknown += (line for each in matrices for line in each.ties)
    return Comparison(
        differences,
        tuple(divergences),
        families,
        tuple(dict.fromkeys((*warnings, *unknown))),
        tuple(dict.fromkeys(unknown)),
    )


def _are_one_namespace(subjects: Sequence[Subject]) -> bool:
    """Whether both sides are the rules that are in one place in the kernel."""
    one, other = subjects
    return (
        one.state is not None
        and other.state is not None
        and one.namespace == other.namespace
        and one.rulesets == other.rulesets
    )


def _not_followed(
    sides: Iterable[Side], subjects: Sequence[Subject], families: Iterable[Family]
) -> Iterator[str]:
    """A line for each side with chains whose rules are not known, or not those of the other side."""
    asked = frozenset(families)
    devices = [chains_at_devices(each.rulesets) for each in subjects]
    tables = [_at_devices(each.rulesets) for each in subjects]
    for side, subject, mine in zip(sides, subjects, devices, strict=True):
        names = dict.fromkeys(
            each.name
            for each in subject.unseen_chains
            if each.families & asked and not (each in mine and tables[0] == tables[1])
        )
        if names:
            yield f"what {' and '.join(names)} of {side.name} makes of packets is not followed"


def _at_devices(rulesets: Iterable[Ruleset]) -> list[Table]:
    """The tables with chains that packets come to at an interface."""
    return [
        table
        for ruleset in rulesets
        for table in ruleset.tables
        if chains_at_devices([Ruleset(ruleset.family, (table,))])
    ]


def _of_iptables(ruleset: Ruleset) -> Ruleset:
    return ruleset._replace(
        tables=tuple(
            each for each in ruleset.tables if not is_native([Ruleset(Family.IPV4, (each,))])
        )
    )


def _native(rulesets: Iterable[Ruleset]) -> list[Table]:
    """The native tables, each once: one of the family inet is each family's."""
    tables = {each.name: each for ruleset in rulesets for each in ruleset.tables}
    return [each for each in tables.values() if is_native([Ruleset(Family.IPV4, (each,))])]


def _told(side: Side, subject: Subject) -> set[Family]:
    """The families that a side says something of: a text says nothing of one that it lacks."""
    if side.rules is None or subject.state is not None:
        return set(Family)
    return {each.family for each in subject.rulesets}


def _network(sides: Iterable[Side], subjects: Sequence[Subject]) -> tuple[Difference, ...]:
    """The routes and addresses, where both sides tell them; of live ones those that a plan has."""
    if any(
        side.rules is not None and subject.state is None
        for side, subject in zip(sides, subjects, strict=True)
    ):
        return ()
    asked = [each for subject in subjects if not subject.state for each in subject.plan.addresses]
    one, other = (
        subject.plan.state
        if subject.addresses is None
        else DesiredState(
            (),
            subject.routes,
            tuple(
                each for each in asked if each.address in subject.addresses.get(each.interface, ())
            ),
        )
        for subject in subjects
    )
    return diff_network(other, one)


def _diverging(family: Family, one: Matrix, other: Matrix) -> Iterator[Divergence]:
    found = merge(_apart(family, one, other))
    wholes = {each: everything(family, incoming=each) for each in (False, True)}
    found.sort(key=lambda each: ("in_interface" in each[2], not _opens(each[2])))
    for fates, _, box in found:
        incoming = "in_interface" in box
        packet = one.example(family, box)
        if packet is None:
            continue
        answers = one.answer(family, packet), other.answer(family, packet)
        if [each.fate for each in answers] != [each.text for each in fates]:
            message = f"a packet is not of its class: {packet}"
            raise NotAPartition(message)
        said = (
            condition(field, box[field], wholes[incoming][field], family)
            for field in FIELDS
            if field in box
        )
        yield Divergence(
            family,
            "in" if incoming else "out",
            tuple(each for each in said if each is not None),
            _opens(box),
            *answers,
        )


def _opens(box: Box) -> bool:
    memory = Memory()
    return all(memory.split(box[field], values)[0] for field, values in OPENING.items())


def _apart(
    family: Family, one: Matrix, other: Matrix
) -> Iterator[tuple[tuple[Fate, Fate], None, Box]]:
    """What both sides' boxes have in common, where the fates differ."""
    memory = Memory()
    others = list(other.fates(family))
    for fate, box in one.fates(family):
        for second, beside in others:
            if (fate == second and fate.complete) or box.keys() != beside.keys():
                continue
            shared = {}
            for field, values in box.items():
                shared[field] = memory.split(values, beside[field])[0]
                if not shared[field]:
                    break
            else:
                yield (fate, second), None, shared
