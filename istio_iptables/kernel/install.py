"""Plan to kernel as one visible step: the namespace has the old rules or the new ones.

Each table changes in one transaction. Everything is prepared and checked before the first of
them is committed; if a later step fails, the earlier ones go back.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.builder import DIVERT, build_address
from istio_iptables.errors import Differs, KernelRefused
from istio_iptables.kernel import routes
from istio_iptables.kernel.backend import choose
from istio_iptables.kernel.lock import locked
from istio_iptables.kernel.namespace import entered
from istio_iptables.netfilter.edits import edits, undo
from istio_iptables.netfilter.model import Family, Ruleset, Table
from istio_iptables.netfilter.plan import InterfaceAddress, Plan, PolicyRoute
from istio_iptables.ours import extract, recognise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from istio_iptables.kernel.backend import Backend, Choice

    #: Is shown the rulesets of the backend in use, and the other backend.
    Look = Callable[[Sequence[Ruleset], Backend | None], None]

    from istio_iptables.netfilter.edits import Edit

__all__ = ["Where", "clean", "install"]

#: How often a table that others change at the same time is tried again.
_ATTEMPTS = 10


class Where(NamedTuple):
    """The network namespace to work in, and how."""

    #: A name under /run/netns or a path; "" is the current one.
    namespace: str = ""
    #: ``legacy`` or ``nft``; "" lets what is in use decide.
    backend: str = ""
    #: Hold the pod's lock only, not the file that iptables locks (--cni-mode).
    pod_lock: bool = False


_HERE = Where()
_NOTHING: Mapping[str, list[_Step]] = MappingProxyType({})


class _Change(NamedTuple):
    """What is to happen to one table."""

    backend: Backend
    family: Family
    table: str
    live: Table | None
    steps: tuple[Edit, ...]


class _Step(NamedTuple):
    """One thing to do, and how to take it back."""

    what: str
    do: Callable[[], None]
    back: Callable[[], None]


def install(
    plan: Plan,
    tell: Callable[[str], None],
    where: Where = _HERE,
    *,
    replace: bool = False,
    look: Look | None = None,
) -> None:
    """Make a network namespace hold exactly *plan*, as far as our rules go.

    Rules of others keep their bytes and places. What is already as planned is left alone; if
    other rules of ours are there, they are replaced with *replace*, and Differs lists the
    differences without it. *look* is shown what is there before anything changes, and may raise.
    Raises KernelRefused when the machine can't or won't, with
    everything as it was before, or with what could not be put back.
    """
    with entered(where.namespace), locked(tell, pod_only=where.pod_lock):
        _retrying(lambda: _install(plan, choose(where.backend), tell, replace=replace, look=look))


def clean(tell: Callable[[str], None], where: Where = _HERE) -> None:
    """Remove our rules of both backends and families, the routes and the address.

    It goes by what is there and needs to know nothing of how that was installed. Raises
    KernelRefused when the machine can't or won't, with everything as it was before.
    """
    with entered(where.namespace), locked(tell, pod_only=where.pod_lock):
        _retrying(lambda: _clean(choose(where.backend), tell))


def _retrying(work: Callable[[], None]) -> None:
    """Do *work*, anew from reading on when someone changed the tables meanwhile."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return work()
        except KernelRefused as error:
            if not error.busy or attempt == _ATTEMPTS:
                raise
    return None


def _install(
    plan: Plan,
    choice: Choice,
    tell: Callable[[str], None],
    *,
    replace: bool,
    look: Look | None,
) -> None:
    tell(f"backend {choice.backend.name}: {choice.reason}")
    live = _read(choice.backend)
    if look:
        look(live, choice.other)
    changes = _changes(choice.backend, live, plan)
    elsewhere = _other_changes(choice, tell)
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
    steps = [_reversed(_address_removal(address)) for address in new_addresses]
    steps += (_reversed(_route_removal(route)) for route in new_routes)
    # The table that captures inbound traffic from now on comes before the one that did.
    order = ("raw", "mangle", "nat") if _uses_tproxy(plan) else ("raw", "nat", "mangle")
    # As in _clean: what the routes and the address are recognised by goes after them.
    removals = {
        "mangle": list(map(_route_removal, old_routes)),
        "nat": list(map(_address_removal, old_addresses)),
    }
    steps += _table_steps(changes, order, removals)
    steps += _table_steps(elsewhere, ("raw", "nat", "mangle"))
    _carry_out(steps)
    _forget([*changes, *elsewhere], plan)
    count = sum(ruleset.rule_count for ruleset in plan.rulesets)
    families = " and ".join(ruleset.family.title for ruleset in plan.rulesets)
    tell(f"{'replaced by' if not starts or elsewhere else 'installed'} {count} rules ({families})")


def _clean(choice: Choice, tell: Callable[[str], None]) -> None:
    live = _read(choice.backend)
    changes = _changes(choice.backend, live, Plan(()))
    elsewhere = _other_changes(choice, tell)
    if not (changes or elsewhere):
        tell("there are no rules of ours: nothing to do")
        return
    # What the routes and the address are recognised by goes last, so that a clean that was
    # killed can be run again.
    steps = _table_steps(
        [*changes, *elsewhere],
        ("raw", "mangle", "nat"),
        {
            "mangle": list(map(_route_removal, _our_routes(live, elsewhere))),
            "nat": list(map(_address_removal, _our_addresses(live, elsewhere))),
        },
    )
    _carry_out(steps)
    _forget([*changes, *elsewhere], Plan(()))
    count = sum(len(extract(ruleset).tables) for ruleset in live) + len(elsewhere)
    tell(f"removed our rules from {count} table{'' if count == 1 else 's'}")


def _forget(changes: Iterable[_Change], plan: Plan) -> None:
    """Take away the tables that are left empty, where the backend has a way to."""
    planned = {
        (ruleset.family, table.name) for ruleset in plan.rulesets for table in ruleset.tables
    }
    for change in changes:
        if (change.family, change.table) not in planned:
            change.backend.forget(change.family, change.table)


def _read(backend: Backend) -> tuple[Ruleset, ...]:
    return tuple(backend.read(family) for family in Family)


def _changes(backend: Backend, live: Sequence[Ruleset], plan: Plan) -> list[_Change]:
    """For each table that has to change, how; tables that are as planned are left out."""
    wanted = {ruleset.family: ruleset for ruleset in plan.rulesets}
    changes = []
    for ruleset in live:
        planned = wanted.get(ruleset.family, Ruleset(ruleset.family))
        names = [table.name for table in (*ruleset.tables, *planned.tables)]
        for name in dict.fromkeys(names):
            there = ruleset.table(name)
            ours = recognise(there)
            steps = edits(name, there, planned.table(name), ours.shared, ours.own_chains)
            if steps and not _means_the_same(ruleset, planned, name):
                changes.append(_Change(backend, ruleset.family, name, there, steps))
    return changes


def _means_the_same(live: Ruleset, planned: Ruleset, name: str) -> bool:
    """Whether our rules in a table differ in their spelling alone: another iptables, other words."""
    there, wanted = extract(live).table(name), planned.table(name)
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


def _other_changes(choice: Choice, tell: Callable[[str], None]) -> list[_Change]:
    """The removal of our rules from the backend that was not chosen, if it can be read."""
    if choice.other is None:
        return []
    try:
        return _changes(choice.other, _read(choice.other), Plan(()))
    except KernelRefused as error:
        # Its rules are nobody's but a stranger's as long as it was never chosen.
        tell(f"the {choice.other.name} backend was not looked at: {error}")
        return []


def _only_adds(change: _Change) -> bool:
    """Whether there was nothing of ours in the table: a first install, or an interrupted one."""
    return not recognise(change.live)


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
        recognise(table)
        for ruleset in live
        for table in ruleset.tables
        if ruleset.family is address.family
    ) or any(change.family is address.family for change in elsewhere)
    return [address] if found and routes.has_address(address) else []


def _route_removal(route: PolicyRoute) -> _Step:
    return _Step(
        f"the route for mark {route.mark}",
        lambda: routes.remove_route(route),
        lambda: routes.add_route(route),
    )


def _address_removal(address: InterfaceAddress) -> _Step:
    return _Step(
        f"the address {address.address}",
        lambda: routes.remove_address(address),
        lambda: routes.add_address(address),
    )


def _reversed(step: _Step) -> _Step:
    return _Step(step.what, step.back, step.do)


def _table_steps(
    changes: Sequence[_Change], order: Sequence[str], before: Mapping[str, list[_Step]] = _NOTHING
) -> list[_Step]:
    """A step for each change, tables in *order*, each transaction prepared beforehand.

    *before* holds steps to take before the first change of a table, or at the end without one.
    """
    waiting = {table: steps for table, steps in before.items() if steps}
    # A single change that fails leaves nothing to put back, so its commit is its trial.
    check = len(changes) > 1 or bool(waiting)
    steps: list[_Step] = []
    ranked = sorted(changes, key=lambda change: (*order, change.table).index(change.table))
    for change in ranked:
        steps += waiting.pop(change.table, ())
        transaction = change.backend.prepare(change.family, change.table, change.steps, check=check)
        steps.append(
            _Step(
                f"{change.family.title} table {change.table} ({change.backend.name})",
                transaction.commit,
                partial(_put_back, change),
            )
        )
    for left in waiting.values():
        steps += left
    return steps


def _put_back(change: _Change) -> None:
    """Take the change of one table back."""
    live = change.live or Table(change.table)
    if change.live is None:
        live = change.backend.read(change.family).table(change.table) or live
        ours = recognise(live)
        back = edits(change.table, live, None, ours.shared, ours.own_chains)
    else:
        back = undo(live, change.steps)
    change.backend.prepare(change.family, change.table, back, check=False).commit()
    if change.live is None:
        change.backend.forget(change.family, change.table)


def _carry_out(steps: Sequence[_Step]) -> None:
    """Do the steps; if one fails, take back those before it and raise what happened."""
    done: list[_Step] = []
    for step in steps:
        try:
            step.do()
        except KernelRefused as error:
            lines = list(error.lines)
            for earlier in reversed(done):
                try:
                    earlier.back()
                except KernelRefused as failed:
                    lines += (f"could not put back {earlier.what}: {line}" for line in failed.lines)
            if done and len(lines) == len(error.lines):
                lines.append("everything that was changed before was put back")
            refused = KernelRefused(*lines)
            refused.busy = error.busy
            raise refused from error
        done.append(step)


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
    from istio_iptables.netfilter import drift

    # Where the chosen backend has nothing of ours, all of the plan is missing: no need to list it.
    lines = [
        difference.line
        for difference in drift.differences(live, plan.rulesets, recognise)
        if difference.kind is not drift.Kind.STRANGER
        and any(extract(ruleset).tables for ruleset in live)
    ]
    lines += (difference.line for difference in drift.beside(old, new))
    lines += (
        f"extra: {change.family.title} {change.table}: rules of ours in the"
        f" {change.backend.name} backend"
        for change in elsewhere
    )
    if len(lines) > _LISTED:
        rest = len(lines) - _LISTED
        lines[_LISTED:] = [f"... and {rest} more; 'istio-iptables diff' lists them all"]
    return [
        "other rules of ours are there ('--reconcile' replaces, 'istio-iptables clean' removes them):",
        *lines,
    ]
