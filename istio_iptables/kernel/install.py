"""Plan to kernel as one visible step: the namespace has the old rules or the new ones.

What is there is read, compared with the plan, and turned into steps. Everything is prepared and
checked before the first of them is done: whatever has to be read, built, imported or opened.
Whatever goes wrong from there on, be it an interrupt or a lack of memory, what was done goes back.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from istio_iptables.errors import Differs, KernelRefused
from istio_iptables.kernel import routes
from istio_iptables.kernel.backend import in_other_backend, refuse, retrying
from istio_iptables.kernel.detect import detect
from istio_iptables.kernel.lock import locked
from istio_iptables.kernel.namespace import entered
from istio_iptables.kernel.steps import Step, carry_out
from istio_iptables.kernel.tablechange import TableChange, compare_table
from istio_iptables.kernel.tablenames import inet_tables
from istio_iptables.kernel.usernamespace import require_plan_mapped
from istio_iptables.netfilter.model import TABLES, Family
from istio_iptables.netfilter.plan import DesiredState
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from istio_iptables.kernel.backend import Backend, Reading
    from istio_iptables.kernel.detect import Detected
    from istio_iptables.kernel.native import NativeChange
    from istio_iptables.netfilter.model import Ruleset
    from istio_iptables.netfilter.native import NativePlan
    from istio_iptables.netfilter.ownership import Ownership

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
    #: The flag or the variable that *backend* is from.
    backend_from: str = ""


_HERE = InstallOptions()
_EMPTY = DesiredState(())


def install(  # noqa: PLR0913 - what, whose, to whom, where and how
    plan: DesiredState,
    ownership: Ownership,
    tell: Callable[[str], None],
    where: InstallOptions = _HERE,
    *,
    replace: bool = False,
    look: Look | None = None,
    native: NativePlan | None = None,
) -> None:
    """Make a network namespace hold exactly *plan*, as far as our rules go.

    With *native*, its tables take the place of the plan's rules.

    Rules of others, by *ownership*, keep their bytes and places. What is already as planned is left
    alone; if other rules of ours are there, they are replaced with *replace*, and Differs lists
    the differences without it. *look* is shown what is there before anything changes, and may
    raise. Raises KernelRefused when the machine can't or won't, with everything as it was before,
    or with what could not be put back.
    """
    tell = _once(tell)
    wanted = plan if native is None else plan._replace(rulesets=())

    def attempt() -> None:
        require_plan_mapped(plan)
        detected = detect(where.backend, ownership, where.backend_from)
        if native is None:
            tell(f"backend {detected.backend.name}: {detected.reason}")
        difference = _difference(detected, wanted, ownership, native, look)
        if not difference:
            tell("the rules are in place already: nothing to do")
            return
        if difference.replaces and not replace:
            raise Differs(*_refusal(difference))
        _carry_out(
            difference,
            detected,
            wanted,
            ownership,
            tell,
            lambda: _installed(difference, plan, native),
        )

    with entered(where.namespace), locked(tell, pod_only=where.pod_lock):
        retrying(attempt)


def clean(ownership: Ownership, tell: Callable[[str], None], where: InstallOptions = _HERE) -> None:
    """Remove our rules of both backends and families and native ones, the routes and the address.

    It goes by what is there and needs to know nothing of how that was installed. Raises
    KernelRefused when the machine can't or won't, with everything as it was before.
    """
    tell = _once(tell)

    def attempt() -> None:
        detected = detect(where.backend, ownership)
        difference = _difference(detected, _EMPTY, ownership)
        # Also without rules: a run that was killed may have left a table that it had only just made.
        _carry_out(difference, detected, _EMPTY, ownership, tell, lambda: _removed(difference))

    with entered(where.namespace), locked(tell, pod_only=where.pod_lock):
        retrying(attempt)


def _installed(difference: _Difference, plan: DesiredState, native: NativePlan | None) -> str:
    """What was done to install *plan*, or *native* in its place."""
    if not (difference.changes or difference.native):
        what = "replaced" if difference.old.network else "added what was missing of"
        return f"the rules were in place already; {what} the routes and addresses"
    count = sum(ruleset.rule_count for ruleset in plan.rulesets)
    families = " and ".join(ruleset.family.title for ruleset in plan.rulesets)
    if native is not None:
        count, families = native.rule_count, f"native nftables, {families}"
    return f"{'replaced by' if difference.any_owned else 'installed'} {count} rules ({families})"


def _removed(difference: _Difference) -> str:
    """What a clean-up has done."""
    count = len(difference.changes) + difference.native_count
    if not count:
        return "there are no rules of ours: nothing to do"
    return f"removed our rules from {count} table{'' if count == 1 else 's'}"


def _tell_lost(difference: _Difference, tell: Callable[[str], None]) -> None:
    """Name the rules of foreign chains that went because a chain of ours that they lead to did."""
    for table in difference.changes:
        for chain, rule in table.lost():
            tell(
                f"removed a foreign rule, since the chain that it leads to is gone: {table.title}"
                f" -A {chain} {rule.text}"
            )


def _once(tell: Callable[[str], None]) -> Callable[[str], None]:
    """*tell*, each line once: what is tried again says the same again."""
    told: set[str] = set()

    def tell_once(line: str) -> None:
        if line not in told:
            told.add(line)
            tell(line)

    return tell_once


class _Difference(NamedTuple):
    """What a namespace has to become as planned."""

    #: All tables of the chosen backend that are there or planned, in the kernel's order.
    tables: tuple[TableChange, ...]
    #: The tables of backends in which none of ours are wanted.
    elsewhere: tuple[TableChange, ...]
    #: Our native tables; None where they are neither there nor wanted.
    native: NativeChange | None
    #: The routes and addresses of ours that are to go, and those that are to come.
    old: DesiredState
    new: DesiredState

    @property
    def changes(self) -> tuple[TableChange, ...]:
        """The tables that have to change."""
        return tuple(table for table in (*self.tables, *self.elsewhere) if table.edits)

    def __bool__(self) -> bool:
        return bool(self.changes or self.native or self.old.network or self.new.network)

    @property
    def native_count(self) -> int:
        """How many native tables of ours have to go or be replaced."""
        return len(self.native.live) if self.native else 0

    @property
    def any_owned(self) -> bool:
        """Whether there is something of ours in a table that has to change.

        Otherwise it is a first install, or an interrupted one.
        """
        return any(table.owned for table in self.changes) or self.native_count > 0

    @property
    def replaces(self) -> bool:
        """Whether anything of ours has to go."""
        return self.any_owned or bool(self.old.network)


def _difference(
    detected: Detected,
    plan: DesiredState,
    ownership: Ownership,
    wanted_native: NativePlan | None = None,
    look: Look | None = None,
) -> _Difference:
    """How what was *detected* differs from *plan*, shown to *look* first.

    Raises KernelRefused for tables that can't be read or, where *plan* has rules for them, used.
    """
    for (_, readings), wanted in zip(detected.contents, (plan, _EMPTY), strict=False):
        for reading in readings:
            refuse(reading.faults, wanted.table_names(reading.ruleset.family))
    if look:
        look([reading.ruleset for _, readings in detected.contents for reading in readings])
    tables = tuple(_compare_tables(detected.backend, detected.readings, plan, ownership))
    elsewhere = tuple(_compare_tables(*detected.other, _EMPTY, ownership)) if detected.other else ()
    if wanted_native is not None:
        tables, elsewhere = (), (*tables, *elsewhere)
    native = _compare_native(ownership, wanted_native)
    old = _read_our_network((*tables, *elsewhere), native, plan, ownership).network_without(plan)
    new = plan.network_without(_read_planned_network(plan))
    return _Difference(tables, elsewhere, native, old, new)


def _compare_native(ownership: Ownership, wanted: NativePlan | None) -> NativeChange | None:
    """How our native tables differ from those *wanted*; None without any."""
    if wanted is None and not inet_tables(ownership.native.tables):
        return None
    from istio_iptables.kernel.native import compare_native  # few namespaces have any

    return compare_native(ownership.native, wanted)


def _compare_tables(
    backend: Backend, readings: Sequence[Reading], plan: DesiredState, ownership: Ownership
) -> Iterator[TableChange]:
    """Each table that is there or in *plan*, with what has to change in it."""
    planned = {ruleset.family: ruleset for ruleset in plan.rulesets}
    for reading in readings:
        family = reading.ruleset.family
        for name in TABLES:
            live = reading.ruleset.table(name)
            wanted = planned[family].table(name) if family in planned else None
            if live or wanted:
                yield compare_table(
                    TableChange(backend, family, name, live, wanted, ownership.find)
                )


def _read_our_network(
    tables: Sequence[TableChange],
    native: NativeChange | None,
    plan: DesiredState,
    ownership: Ownership,
) -> DesiredState:
    """The routes and addresses that go with our rules in *tables*, as far as they are there."""
    listed = native.live.values() if native is not None else ()
    owned = [(table.family, table.live) for table in tables if table.owned and table.live]
    marks = [mark for _, live in owned for mark in ownership.route_marks(live)]
    marks += [mark for text in listed for mark in ownership.native.route_marks(text)]
    address = ownership.address
    used = any(family is address.family for family, _ in owned)
    used = used or any(f" {address.address} " in text for text in listed)
    left = used and routes.has_address(address)
    emptied = {ownership.route_table, *(route.table for route in plan.routes)}
    return DesiredState((), routes.left_routes(marks, emptied), (address,) if left else ())


def _read_planned_network(plan: DesiredState) -> DesiredState:
    """The routes and addresses of *plan* that are there."""
    return DesiredState(
        (),
        tuple(filter(routes.has_route, plan.routes)),
        tuple(filter(routes.has_address, plan.addresses)),
    )


#: More lines than this are no help; `istio-iptables diff` shows all of them.
_LISTED = 20


def _refusal(difference: _Difference) -> list[str]:
    """What to do, and one line for each difference."""
    from istio_iptables.differences.rulesets import diff_network  # loaded where something differs

    # Where the chosen backend has nothing of ours, all of the plan is missing: no need to list it.
    listed = difference.tables if any(table.owned for table in difference.tables) else ()
    lines = [each.line for table in listed for each in table.differences()]
    lines += (each.line for each in diff_network(difference.old, difference.new))
    elsewhere: dict[str, list[str]] = {}
    for table in difference.elsewhere:
        if table.edits:
            elsewhere.setdefault(table.backend.name, []).append(table.title)
    lines += (in_other_backend(name, titles) for name, titles in elsewhere.items())
    if difference.native is not None:
        lines += difference.native.differences()
    if len(lines) > _LISTED:
        rest = len(lines) - _LISTED
        lines[_LISTED:] = [f"... and {rest} more; 'istio-iptables diff' lists them all"]
    return [
        "other rules of ours are there ('--reconcile' replaces, 'istio-iptables clean' removes them):",
        *lines,
    ]


def _carry_out(  # noqa: PLR0913, PLR0917 - what is told last is made by the caller
    difference: _Difference,
    detected: Detected,
    plan: DesiredState,
    ownership: Ownership,
    tell: Callable[[str], None],
    what_was_done: Callable[[], str],
) -> None:
    """Carry out the difference: everything is prepared before the first step, and nothing after."""

    def tell_done() -> None:
        _tell_lost(difference, tell)
        tell(what_was_done())

    with ExitStack() as stack:
        link = stack.enter_context(routes.Link())
        carry_out(
            [
                *_additions(difference.new, link),
                *_table_steps(difference, plan, link, stack),
                *_empty_table_steps(detected, plan, ownership, tell),
            ],
            tell_done,
        )


def _additions(new: DesiredState, link: routes.Link) -> Iterator[Step]:
    yield from (_network_step(link.add_address(each)) for each in new.addresses)
    yield from (_network_step(link.add_route(each)) for each in new.routes)


def _network_step(change: routes.Change) -> Step:
    return Step(change.what, change.do, change.back)


def _table_steps(
    difference: _Difference, plan: DesiredState, link: routes.Link, stack: ExitStack
) -> Iterator[Step]:
    """A step for each table, each transaction prepared, and for what goes beside them.

    What old routes and addresses are recognised by goes after them, so that a run that was
    killed can be run again.
    """
    removals = {
        "mangle": [_network_step(link.remove_route(each)) for each in difference.old.routes],
        "nat": [_network_step(link.remove_address(each)) for each in difference.old.addresses],
    }
    native = difference.native or None
    native_first = native is not None and bool(native.wanted.tables)
    # A single change that fails leaves nothing to put back, so its commit is its trial.
    check = len(difference.changes) > 1 or any(removals.values()) or native is not None
    # The table with the new inbound capture is committed first.
    nat_first = bool(plan.rulesets) and not plan.routes
    for table in _in_order(difference.tables, nat_first=nat_first):
        yield from removals.pop(table.name, ())
        yield table.prepare(stack, check=check)
    for left in removals.values():
        yield from left
    # What captures is there before what captured goes.
    if native is not None and native_first:
        yield native.prepare()
    for table in _in_order(difference.elsewhere, nat_first=True):
        yield table.prepare(stack, check=check)
    if native is not None and not native_first:
        yield native.prepare()


def _in_order(tables: Sequence[TableChange], *, nat_first: bool) -> list[TableChange]:
    """Those that change, in the order in which they do; others than ours come last."""
    order = ("raw", "nat", "mangle") if nat_first else ("raw", "mangle", "nat")
    return sorted(
        (table for table in tables if table.edits),
        key=lambda table: (*order, table.name).index(table.name),
    )


def _empty_table_steps(
    detected: Detected, plan: DesiredState, ownership: Ownership, tell: Callable[[str], None]
) -> Iterator[Step]:
    """Steps that take away our tables that are left empty, where the backend has a way to."""
    planned = {(family, table) for family in Family for table in plan.table_names(family)}
    for backend, _ in detected.contents:
        for family in Family:
            for table in ownership.tables:
                if backend is not detected.backend or (family, table) not in planned:
                    remove = partial(_remove_empty, backend, family, table, tell)
                    # Rolling back its rules makes the table again.
                    yield Step(f"{family.title} table {table}", remove, _nothing)


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
