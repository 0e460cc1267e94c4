"""What differs between a plan and the rules of a namespace, or those of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.api.rules import LIVE, Live, is_native, rules_of
from istio_iptables.differences.preceding import (
    preceding,
    preceding_natively,
    preceding_otherwise,
)
from istio_iptables.differences.rulesets import (
    ChangeKind,
    Difference,
    diff_native,
    diff_network,
    diff_rulesets,
)
from istio_iptables.errors import CannotTell, KernelRefused
from istio_iptables.istio.ownership import NATIVE_NAMES, OWNERSHIP, find_owned
from istio_iptables.netfilter.edits import apply, edits
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.plan import DesiredState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from istio_iptables.api.capture import Plan
    from istio_iptables.api.rules import Source
    from istio_iptables.kernel.live import UnseenChain
    from istio_iptables.netfilter.model import Ruleset, Table

__all__ = [
    "Differences",
    "diff",
    "diff_natively",
    "foreign_first",
    "holds_ours",
    "native_elsewhere",
    "native_of_ours",
    "planned_natively",
    "planned_rulesets",
]

#: The tables in which a foreign rule can decide before ours.
_BEFORE = frozenset({"raw", "mangle", "nat"})


class Differences(list[Difference]):
    """The differences, in the order of the rules; empty if there are none."""

    def __init__(
        self,
        found: Iterable[Difference],
        what: str,
        families: Sequence[Family],
        *,
        missing: int = 0,
        warnings: Iterable[str] = (),
    ) -> None:
        super().__init__(found)
        #: What was compared with the plan: ``this namespace (legacy)``, ...
        self.what = what
        #: The address families that were compared.
        self.families = tuple(families)
        #: How many rules are missing where no rule of ours is there at all; else 0.
        self.missing = missing
        #: One line for everything that was not seen or is not in force.
        self.warnings = tuple(warnings)


def diff(
    plan: Plan,
    against: Source = LIVE,
    *,
    family: Family | str | None = None,
    name: str = "the text",
) -> Differences:
    """What differs between *plan* and the rules that it is held *against*.

    These are the text of iptables-save (of one family or both) or of ``nft list ruleset``, rulesets,
    or the rules in the kernel: ``LIVE`` for those where the plan is to be, ``Live(namespace,
    backend)`` for others. *family* is that of a text whose comments and addresses don't tell; *name*
    is what messages call it. Foreign rules count where they decide before ours. Raises CannotTell for
    a text that is none of iptables-save or nft, or is of the one where the plan is of the other,
    and where the kernel's rules can't be read.
    """
    found = rules_of(against, Family(family) if family else None, name)
    if isinstance(found, Live):
        return _with_live(plan, *found.of(plan))
    if plan.config.native_nftables or is_native(found):
        return _natively(plan, found, name)
    families = tuple(each.family for each in found)
    wanted = tuple(each for each in plan.rulesets if each.family in families)
    differences = (
        *diff_rulesets(found, wanted, find_owned),
        *preceding(found, wanted, find_owned, _marks(plan)),
    )
    ours = [each.family for each in found if holds_ours([each])]
    warnings = []
    missing_families = [each.family for each in plan.rulesets if each.family not in families]
    if isinstance(against, str) and missing_families:
        titles = " and ".join(each.title for each in missing_families)
        warnings.append(f"{name} has no {titles} rules: those of the plan are not compared")
    if len(ours) == 1 < len(families) and len(wanted) > 1:
        hint = f"if no others are wanted, give --ip-family {ours[0].value}"
        warnings.append(f"rules of ours are in {name} for {ours[0].title} alone: {hint}")
    count = sum(ruleset.rule_count for ruleset in wanted)
    missing = 0 if holds_ours(found) else count
    return Differences(differences, name, families, missing=missing, warnings=warnings)


def _with_live(plan: Plan, namespace: str, backend: str) -> Differences:
    """The rules, routes and addresses of a namespace."""
    from istio_iptables.kernel import live as kernel

    native = plan.config.native_nftables
    wanted = plan.state._replace(rulesets=()) if native else plan.state
    try:
        state = kernel.read(wanted, OWNERSHIP, namespace=namespace, backend=backend, native=native)
    except KernelRefused as error:
        raise CannotTell(*error.lines) from error
    ours = native_of_ours(state.native or ())
    other = "nft" if state.backend == "legacy" else "legacy"
    if native:
        planned = planned_natively(plan)
        found = [
            *diff_native(ours, planned),
            *preceding_natively(state.native or (), planned, _marks(plan)),
            *preceding_otherwise(state.rulesets, planned, find_owned),
            *preceding_otherwise(state.other_rulesets, planned, find_owned),
        ]
    else:
        foreign = [each for each in state.native or () if each not in ours]
        found = list(diff_rulesets(state.rulesets, plan.rulesets, find_owned))
        found += _preceding_iptables(plan, foreign, state.other_rulesets)
    # In both backends: the kernel asks the tables of the other one at the same hooks.
    for each in (state.rulesets, state.other_rulesets):
        found += preceding(each, plan.rulesets, find_owned, _marks(plan))
    there = DesiredState((), state.routes, state.addresses)
    found += (each for each in diff_network(there, plan.state) if each.text not in state.half_there)
    found += _elsewhere(state.other_rulesets, other)
    if native:
        found += _elsewhere(state.rulesets, state.backend)
    else:
        found += native_elsewhere(state.native_chains)
    warnings = list(state.warnings)
    unread = [each for each in state.unreadable if each.split()[1] in _BEFORE]
    if unread:
        tables = ", ".join(unread)
        warnings.append(f"foreign rules in tables that can't be read are not seen: {tables}")
    of_iptables = holds_ours((*state.rulesets, *state.other_rulesets))
    mine, others = (ours, of_iptables) if native else (of_iptables, ours)
    # Routes and addresses may go with the rules of the other kind.
    nothing = not mine and bool(others or not (state.routes or state.addresses))
    count = sum(each.rule_count for each in (planned_natively(plan) if native else plan.rulesets))
    return Differences(
        found,
        f"{namespace or 'this namespace'} ({'native nftables' if native else state.backend})",
        tuple(Family),
        missing=count if nothing else 0,
        warnings=warnings,
    )


def _preceding_iptables(
    plan: Plan, native: Sequence[Table], others: Sequence[Ruleset]
) -> Iterator[Difference]:
    """The foreign rules in *native* tables and those of the other backend that may decide first."""
    planned = {each.family: each.tables for each in plan.rulesets}
    found: dict[Difference, None] = {}
    if native:
        from istio_iptables.netfilter.nftlisting import families  # few have such tables

        for there in families(native):
            tables = planned.get(there.family, ())
            # A rule of both families is told once.
            found |= dict.fromkeys(preceding_natively(there.tables, tables, _marks(plan)))
    yield from found
    for family, tables in planned.items():
        yield from preceding_otherwise(others, tables, find_owned, family)


def planned_natively(plan: Plan) -> tuple[Table, ...]:
    """The native tables of *plan*."""
    from istio_iptables.istio.native import build_native  # most rules are iptables'
    from istio_iptables.netfilter.nftlisting import planned_tables

    return planned_tables(build_native(plan.config, plan.state))


def native_of_ours(tables: Iterable[Table]) -> tuple[Table, ...]:
    """The native tables of ours among *tables*."""
    return tuple(each for each in tables if each.name in NATIVE_NAMES)


def _tables(found: Iterable[Ruleset]) -> tuple[Table, ...]:
    """All tables, each once: one of the family inet is each family's."""
    return tuple({table.name: table for each in found for table in each.tables}.values())


def diff_natively(plan: Plan, found: Iterable[Ruleset]) -> tuple[Difference, ...]:
    """What differs between the native tables of *plan* and those of ours that were *found*."""
    return diff_native(native_of_ours(_tables(found)), planned_natively(plan))


def planned_rulesets(plan: Plan) -> tuple[Ruleset, ...]:
    """The rules of *plan*, of iptables or native, as those of a text are read."""
    if plan.config.native_nftables:
        from istio_iptables.netfilter.nftlisting import families  # most rules are iptables'

        return families(planned_natively(plan))
    return plan.rulesets


def _natively(plan: Plan, found: Sequence[Ruleset], name: str) -> Differences:
    """The native rules of a text."""
    if not plan.config.native_nftables:
        message = f"{name}: holds native nftables rules: give --native-nftables as well"
        raise CannotTell(message)
    if not is_native(found):
        message = f"{name}: holds no native nftables rules, which --native-nftables is about"
        raise CannotTell(message)
    tables = _tables(found)
    ours = native_of_ours(tables)
    wanted = planned_natively(plan)
    differences = (
        *diff_native(ours, wanted),
        *preceding_natively(tables, wanted, _marks(plan)),
    )
    missing = 0 if ours else sum(table.rule_count for table in wanted)
    return Differences(differences, name, tuple(Family), missing=missing)


def native_elsewhere(chains: Iterable[UnseenChain]) -> Iterator[Difference]:
    """Native rules of ours where those of iptables are wanted: one difference, or none."""
    tables = dict.fromkeys(f"{each.family} {each.table}" for each in chains)
    ours = [name for name in tables if name in NATIVE_NAMES]
    if ours:
        text = f"native nftables rules of ours, which take effect as well: {', '.join(ours)}"
        yield Difference(ChangeKind.EXTRA, None, "", "", text)


#: More lines of a warning are no help: ``diff`` lists them all.
_MOST_FOREIGN = 3


def foreign_first(plan: Plan, live: Iterable[Ruleset]) -> list[str]:
    """Lines about the foreign rules in *live* that would decide before those of *plan*."""
    planned = {ruleset.family: ruleset for ruleset in plan.rulesets}
    installed = [
        ruleset._replace(
            tables=tuple(_with_ours(table, planned[ruleset.family]) for table in ruleset.tables)
        )
        for ruleset in live
        if ruleset.family in planned
    ]
    found = (
        *diff_rulesets(installed, plan.rulesets, find_owned),
        *preceding(installed, plan.rulesets, find_owned, _marks(plan)),
    )
    lines = [each.line for each in found if each.kind is ChangeKind.FOREIGN]
    if len(lines) > _MOST_FOREIGN:
        rest = len(lines) - _MOST_FOREIGN
        lines[_MOST_FOREIGN:] = [f"and {rest} more: 'istio-iptables diff' lists them all"]
    return [
        line.replace("foreign: ", "a foreign rule is evaluated before ours: ") for line in lines
    ]


def _with_ours(table: Table, planned: Ruleset) -> Table:
    """*table* as it will be with the plan's rules in it."""
    wanted = planned.table(table.name)
    return apply(table, edits(table.name, table, wanted, find_owned(table)))


def _marks(plan: Plan) -> frozenset[int]:
    return frozenset(route.mark for route in plan.routes)


def holds_ours(rulesets: Iterable[Ruleset]) -> bool:
    """Whether a rule or chain of ours is in one of *rulesets*."""
    return any(
        table.name in NATIVE_NAMES or find_owned(table)
        for ruleset in rulesets
        for table in ruleset.tables
    )


def _elsewhere(rulesets: tuple[Ruleset, ...], backend: str) -> list[Difference]:
    """Rules of ours in the backend that was not chosen: one difference, or none."""
    tables = [
        f"{ruleset.family.title} {table.name}"
        for ruleset in rulesets
        for table in ruleset.tables
        if find_owned(table)
    ]
    if not tables:
        return []
    text = f"rules of ours in the {backend} backend, which take effect as well: {', '.join(tables)}"
    return [Difference(ChangeKind.EXTRA, None, "", "", text)]
