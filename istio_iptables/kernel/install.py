"""Plan to kernel as one visible step: the namespace has the old rules or the new ones.

Each table changes in one transaction. Everything is prepared and checked before the first of
them is committed: whatever has to be read, built, imported or opened. Whatever goes wrong from
there on, be it an interrupt or a lack of memory, what was done goes back.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.errors import Differs, KernelRefused
from istio_iptables.interrupts import held
from istio_iptables.istio.ownership import find_owned, only_owned
from istio_iptables.istio.plan import build_address
from istio_iptables.istio.rules import DIVERT
from istio_iptables.kernel import routes
from istio_iptables.kernel.backend import choose, in_other_backend, retrying
from istio_iptables.kernel.lock import locked
from istio_iptables.kernel.namespace import entered
from istio_iptables.kernel.reserve import Reserve
from istio_iptables.kernel.usernamespace import require_plan_mapped
from istio_iptables.netfilter.edits import apply, edits, undo
from istio_iptables.netfilter.model import Family, Ruleset, Table
from istio_iptables.netfilter.plan import InterfaceAddress, Plan, PolicyRoute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from istio_iptables.kernel.backend import Backend, Choice, Transaction
    from istio_iptables.netfilter.edits import Edit
    from istio_iptables.netfilter.model import Rule

    #: Is shown the rulesets of both backends.
    Look = Callable[[Sequence[Ruleset]], None]

__all__ = ["InstallOptions", "clean", "install"]


class InstallOptions(NamedTuple):
    """The network namespace to work in, and how."""

    #: A name under /run/netns or a path; "" is the current one.
    namespace: str = ""
    #: ``legacy`` or ``nft``; "" lets what is in use decide.
    backend: str = ""
    #: Hold the pod's lock only, not the file that iptables locks (--cni-mode).
    pod_lock: bool = False


_HERE = InstallOptions()
_EMPTY = Plan(())
_TABLES = ("raw", "mangle", "nat")
_NOTHING: Mapping[str, list[_Step]] = MappingProxyType({})


class _Change(NamedTuple):
    """What is to happen to one table."""

    backend: Backend
    family: Family
    table: str
    live: Table | None
    planned: Table | None
    steps: tuple[Edit, ...]


class _Step(NamedTuple):
    """One thing to do, and how to take it back, be it done, half done or not done at all."""

    what: str
    do: Callable[[], None]
    back: Callable[[], None]


class _Prepared(NamedTuple):
    """What is ready to be committed; it holds handles, which *stack* closes."""

    stack: ExitStack
    link: routes.Link

    def beside(self, change: routes.Change) -> _Step:
        """A step for a route or an address."""
        return _Step(change.what, change.do, change.back)

    def table(self, change: _Change, *, check: bool) -> _Step:
        """A step for a table."""
        backend, family, table = change.backend, change.family, change.table
        transaction: Transaction = backend.prepare(family, table, change.steps, check=check)
        self.stack.callback(transaction.close)
        return _Step(
            f"{family.title} table {table} ({backend.name})",
            partial(_commit, change, transaction),
            partial(_put_back, change),
        )


def install(
    plan: Plan,
    tell: Callable[[str], None],
    where: InstallOptions = _HERE,
    *,
    replace: bool = False,
    look: Look | None = None,
) -> None:
    """Make a network namespace hold exactly *plan*, as far as our rules go.

    Rules of others keep their bytes and places. What is already as planned is left alone; if
    other rules of ours are there, they are replaced with *replace*, and Differs lists the
    differences without it. *look* is shown what is there before anything changes, and may raise.
    Raises KernelRefused when the machine can't or won't, with everything as it was before, or with
    what could not be put back.
    """
    tell = _once(tell)
    with entered(where.namespace), locked(tell, pod_only=where.pod_lock):
        retrying(lambda: _install(plan, choose(where.backend), tell, replace=replace, look=look))


def clean(tell: Callable[[str], None], where: InstallOptions = _HERE) -> None:
    """Remove our rules of both backends and families, the routes and the address.

    It goes by what is there and needs to know nothing of how that was installed. Raises
    KernelRefused when the machine can't or won't, with everything as it was before.
    """
    tell = _once(tell)
    with entered(where.namespace), locked(tell, pod_only=where.pod_lock):
        retrying(lambda: _clean(choose(where.backend), tell))


def _once(tell: Callable[[str], None]) -> Callable[[str], None]:
    """*tell*, each line once: what is tried again says the same again."""
    told: set[str] = set()

    def tell_once(line: str) -> None:
        if line not in told:
            told.add(line)
            tell(line)

    return tell_once


def _install(
    plan: Plan,
    choice: Choice,
    tell: Callable[[str], None],
    *,
    replace: bool,
    look: Look | None,
) -> None:
    require_plan_mapped(plan)
    tell(f"backend {choice.backend.name}: {choice.reason}")
    live = _read(choice.backend, plan)
    others = _read_other(choice)
    if look:
        look((*live, *others))
    changes = _changes(choice.backend, live, plan)
    elsewhere = _other_changes(choice, others)
    old_routes = [route for route in _our_routes(live, elsewhere) if not _planned(route, plan)]
    old_addresses = [] if plan.addresses else _our_addresses(live, elsewhere)
    new_routes = [route for route in plan.routes if not routes.has_route(route)]
    new_addresses = [address for address in plan.addresses if not routes.has_address(address)]
    if not (changes or elsewhere or old_routes or old_addresses or new_routes or new_addresses):
        tell("the rules are in place already: nothing to do")
        return
    starts = all(_only_adds(change) for change in changes)
    if not replace and (elsewhere or old_routes or old_addresses or not starts):
        old = Plan((), tuple(old_routes), tuple(old_addresses))
        new = Plan((), tuple(new_routes), tuple(new_addresses))
        raise Differs(*_differences(plan, live, old, new, elsewhere))
    # The table that captures inbound traffic from now on comes before the one that did.
    order = ("raw", "mangle", "nat") if _uses_tproxy(plan) else ("raw", "nat", "mangle")
    with ExitStack() as stack:
        prepared = _Prepared(stack, stack.enter_context(routes.Link()))
        link = prepared.link
        steps = [prepared.beside(link.add_address(address)) for address in new_addresses]
        steps += (prepared.beside(link.add_route(route)) for route in new_routes)
        steps += _table_steps(
            prepared, changes, order, _removals(prepared, old_routes, old_addresses)
        )
        steps += _table_steps(prepared, elsewhere, ("raw", "nat", "mangle"))
        _carry_out([*steps, *_forget(choice, plan, tell)])
    count = sum(ruleset.rule_count for ruleset in plan.rulesets)
    families = " and ".join(ruleset.family.title for ruleset in plan.rulesets)
    tell(f"{'replaced by' if not starts or elsewhere else 'installed'} {count} rules ({families})")


def _clean(choice: Choice, tell: Callable[[str], None]) -> None:
    live = _read(choice.backend)
    changes = _changes(choice.backend, live, _EMPTY)
    elsewhere = _other_changes(choice, _read_other(choice))
    if not (changes or elsewhere):
        # A run that was killed may have left a table that it had only just made.
        _carry_out(_forget(choice, _EMPTY, tell))
        tell("there are no rules of ours: nothing to do")
        return
    with ExitStack() as stack:
        prepared = _Prepared(stack, stack.enter_context(routes.Link()))
        old_routes, old_addresses = _our_routes(live, elsewhere), _our_addresses(live, elsewhere)
        removals = _removals(prepared, old_routes, old_addresses)
        steps = _table_steps(prepared, [*changes, *elsewhere], ("raw", "mangle", "nat"), removals)
        _carry_out([*steps, *_forget(choice, _EMPTY, tell)])
    count = sum(len(only_owned(ruleset).tables) for ruleset in live) + len(elsewhere)
    tell(f"removed our rules from {count} table{'' if count == 1 else 's'}")


def _forget(choice: Choice, plan: Plan, tell: Callable[[str], None]) -> list[_Step]:
    """Steps that take away our tables that are left empty, where the backend has a way to."""
    planned = {
        (ruleset.family, table.name) for ruleset in plan.rulesets for table in ruleset.tables
    }
    steps = []
    for backend in filter(None, (choice.backend, choice.other)):
        for family in Family:
            for table in _TABLES:
                if backend is choice.other or (family, table) not in planned:
                    remove = partial(_remove_empty, backend, family, table, tell)
                    # With its rules' own step comes back the table.
                    steps.append(_Step(f"{family.title} table {table}", remove, _nothing))
    return steps


def _remove_empty(
    backend: Backend, family: Family, table: str, tell: Callable[[str], None]
) -> None:
    """Remove our table if it is empty; one that has to stay is no reason to undo what was done."""
    try:
        backend.forget(family, table)
    except KernelRefused as error:
        for line in error.lines:
            tell(line)


def _nothing() -> None:
    """Nothing to take back."""


def _read(backend: Backend, plan: Plan = _EMPTY) -> tuple[Ruleset, ...]:
    """What is there; the tables that *plan* has rules in must be fit for them."""
    return tuple(backend.read(family, plan.table_names(family)) for family in Family)


def _read_other(choice: Choice) -> tuple[Ruleset, ...]:
    """What the backend that was not chosen holds."""
    return _read(choice.other) if choice.other else ()


def _changes(backend: Backend, live: Sequence[Ruleset], plan: Plan) -> list[_Change]:
    """For each table that has to change, how; tables that are as planned are left out."""
    wanted = {ruleset.family: ruleset for ruleset in plan.rulesets}
    changes = []
    for ruleset in live:
        planned = wanted.get(ruleset.family, Ruleset(ruleset.family))
        names = [table.name for table in (*ruleset.tables, *planned.tables)]
        for name in dict.fromkeys(names):
            there = ruleset.table(name)
            ours = find_owned(there)
            steps = edits(name, there, planned.table(name), ours.shared, ours.own_chains)
            if steps and not _means_the_same(ruleset, planned, name):
                wanted_table = planned.table(name)
                changes.append(_Change(backend, ruleset.family, name, there, wanted_table, steps))
    return changes


def _means_the_same(live: Ruleset, planned: Ruleset, name: str) -> bool:
    """Whether our rules in a table differ in their spelling alone: another iptables, other words."""
    there, wanted = only_owned(live).table(name), planned.table(name)
    if there is None or wanted is None:
        return False
    from istio_iptables.netfilter.canonical import canonical

    rules = {chain.name: chain.rules for chain in there.chains}
    return rules.keys() == {chain.name for chain in wanted.chains} and all(
        len(rules[chain.name]) == len(chain.rules)
        and all(
            canonical(left, live.family) == canonical(right, live.family)
            for left, right in zip(rules[chain.name], chain.rules, strict=True)
        )
        for chain in wanted.chains
    )


def _other_changes(choice: Choice, rulesets: Sequence[Ruleset]) -> list[_Change]:
    """The removal of our rules from the backend that was not chosen, which holds *rulesets*."""
    return _changes(choice.other, rulesets, _EMPTY) if choice.other else []


def _only_adds(change: _Change) -> bool:
    """Whether there was nothing of ours in the table: a first install, or an interrupted one."""
    return not find_owned(change.live)


def _uses_tproxy(plan: Plan) -> bool:
    return any(
        chain.name == DIVERT
        for ruleset in plan.rulesets
        for table in ruleset.tables
        for chain in table.chains
    )


def _our_routes(live: Sequence[Ruleset], elsewhere: Sequence[_Change]) -> tuple[PolicyRoute, ...]:
    """The policy routes that belong to the TPROXY rules that are there."""
    tables = [table for ruleset in live for table in ruleset.tables]
    tables += [change.live for change in elsewhere if change.live]
    marks = []
    for table in tables:
        divert = table.chain(DIVERT)
        for rule in divert.rules if divert else ():
            option = rule.target.option("--set-xmark", "--set-mark") if rule.target else None
            if option and option.values:
                marks.append(int(option.values[0].partition("/")[0], 0))
    return routes.left_routes(marks)


def _planned(route: PolicyRoute, plan: Plan) -> bool:
    return any(
        (each.family, each.mark, each.table) == (route.family, route.mark, route.table)
        for each in plan.routes
    )


def _our_addresses(live: Sequence[Ruleset], elsewhere: Sequence[_Change]) -> list[InterfaceAddress]:
    """The ::6 address, if IPv6 rules of ours are there that go with it."""
    address = build_address()
    found = any(
        find_owned(table)
        for ruleset in live
        for table in ruleset.tables
        if ruleset.family is address.family
    ) or any(change.family is address.family for change in elsewhere)
    return [address] if found and routes.has_address(address) else []


def _removals(
    prepared: _Prepared, old_routes: Iterable[PolicyRoute], addresses: Iterable[InterfaceAddress]
) -> dict[str, list[_Step]]:
    """Steps by the table that they come before.

    What the routes and the address are recognised by goes after them, so that a run that was
    killed can be run again.
    """
    link = prepared.link
    return {
        "mangle": [prepared.beside(link.remove_route(route)) for route in old_routes],
        "nat": [prepared.beside(link.remove_address(address)) for address in addresses],
    }


def _table_steps(
    prepared: _Prepared,
    changes: Sequence[_Change],
    order: Sequence[str],
    before: Mapping[str, list[_Step]] = _NOTHING,
) -> list[_Step]:
    """A step for each change, tables in *order*, each transaction prepared.

    *before* holds steps to take before the first change of a table, or at the end without one.
    """
    waiting = {table: steps for table, steps in before.items() if steps}
    # A single change that fails leaves nothing to put back, so its commit is its trial.
    check = len(changes) > 1 or bool(waiting)
    steps: list[_Step] = []
    ranked = sorted(changes, key=lambda change: (*order, change.table).index(change.table))
    for change in ranked:
        steps += waiting.pop(change.table, ())
        steps.append(prepared.table(change, check=check))
    for left in waiting.values():
        steps += left
    return steps


def _commit(change: _Change, transaction: Transaction) -> None:
    """Make the change of one table."""
    try:
        transaction.commit()
    except KernelRefused as error:
        # libiptc puts the table in place, and then its old counters: whoever changes it between
        # the two makes it say that it failed, although our rules are in.
        if not error.busy or not _is_made(change):
            raise


def _is_made(change: _Change) -> bool:
    now = change.backend.read(change.family).table(change.table)
    ours = find_owned(now)
    return not edits(change.table, now, change.planned, ours.shared, ours.own_chains)


def _put_back(change: _Change) -> None:
    """Take the change of one table back, if it was made."""
    backend, family, table = change.backend, change.family, change.table
    back = _way_back(change, backend.read(family).table(table))
    if back:
        transaction = backend.prepare(family, table, back, check=False)
        try:
            transaction.commit()
        finally:
            transaction.close()
    if change.live is None:
        backend.forget(family, table)


def _way_back(change: _Change, now: Table | None) -> tuple[Edit, ...]:
    """The steps from what is there *now* to what was there before the change."""
    live = change.live
    # A table that was left empty is taken away.
    now = now or Table(change.table)
    if live and _rules(now) == _rules(live):
        return ()
    if live and _rules(now) == _rules(apply(live, change.steps)):
        return undo(live, change.steps)
    # Somebody else has changed the table too: only our part of it goes back.
    ours = find_owned(now)
    before = only_owned(Ruleset(change.family, (live,) if live else ()))
    return edits(change.table, now, before.table(change.table), ours.shared, ours.own_chains)


def _rules(table: Table) -> dict[str, tuple[Rule, ...]]:
    return {chain.name: chain.rules for chain in table.chains}


def _carry_out(steps: Sequence[_Step]) -> None:
    """Do the steps; if something is raised, take back what was done and raise it again.

    Interrupts wait until it is over.
    """
    begun: list[_Step] = []
    with held(), Reserve() as reserve:
        try:
            for step in steps:
                begun.append(step)
                step.do()
        except BaseException as error:
            reserve.release()
            failed = _take_back(begun)
            if isinstance(error, KernelRefused):
                lines = [*error.lines, *failed]
                if len(begun) > 1 and not failed:
                    lines.append("everything that was changed before was put back")
                refused = KernelRefused(*lines)
                # Begun anew, a half that could not be put back would pass for the old state.
                refused.busy = error.busy and not failed
                raise refused from error
            if failed:
                what = f"{type(error).__name__}: {error}".rstrip(": ")
                message = f"the change was broken off: {what}"
                raise KernelRefused(message, *failed) from error
            raise


def _take_back(begun: Sequence[_Step]) -> list[str]:
    """Take back the steps, the last of which may be done or not; what could not be, as lines."""
    failed: list[str] = []
    for step in reversed(begun):
        try:
            retrying(step.back)
        except KernelRefused as error:
            failed += (f"could not put back {step.what}: {line}" for line in error.lines)
        except Exception as error:  # noqa: BLE001 - the other steps have to go back all the same
            failed.append(f"could not put back {step.what}: {type(error).__name__}: {error}")
    return failed


#: More lines than this are no help; `istio-iptables diff` shows all of them.
_LISTED = 20


def _differences(
    plan: Plan,
    live: Sequence[Ruleset],
    old: Plan,
    new: Plan,
    elsewhere: Sequence[_Change],
) -> list[str]:
    """What to do, and one line for each difference between *plan* and what is there of ours.

    *old* and *new* hold the routes and addresses that would go and come.
    """
    from istio_iptables.differences import rulesets as drift

    # Where the chosen backend has nothing of ours, all of the plan is missing: no need to list it.
    lines = [
        difference.line
        for difference in drift.diff_rulesets(live, plan.rulesets, find_owned)
        if difference.kind is not drift.ChangeKind.FOREIGN
        and any(only_owned(ruleset).tables for ruleset in live)
    ]
    lines += (difference.line for difference in drift.diff_network(old, new))
    if elsewhere:
        tables = [f"{change.family.title} {change.table}" for change in elsewhere]
        lines.append(in_other_backend(elsewhere[0].backend.name, tables))
    if len(lines) > _LISTED:
        rest = len(lines) - _LISTED
        lines[_LISTED:] = [f"... and {rest} more; 'istio-iptables diff' lists them all"]
    return [
        "other rules of ours are there ('--reconcile' replaces, 'istio-iptables clean' removes them):",
        *lines,
    ]
