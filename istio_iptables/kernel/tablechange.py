"""One table: what of it is ours, how that differs from what is wanted, the change and the way back."""

from __future__ import annotations

from functools import partial

from istio_iptables.errors import KernelRefused
from istio_iptables.kernel.steps import Step
from istio_iptables.netfilter.edits import Action, apply, edits, undo
from istio_iptables.netfilter.model import Table, is_built_in
from istio_iptables.netfilter.ownership import Owned
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack

    from istio_iptables.differences.rulesets import Difference
    from istio_iptables.kernel.backend import Backend, Transaction
    from istio_iptables.netfilter.edits import Edit
    from istio_iptables.netfilter.model import Family, Rule

__all__ = ["TableChange", "compare_table"]


class TableChange(NamedTuple):
    """A table as it is, as it is wanted, and the way from one to the other."""

    backend: Backend
    family: Family
    name: str
    #: None if it is not there.
    live: Table | None
    #: None if nothing of ours is to be in it.
    wanted: Table | None
    find: Callable[[Table], Owned]
    #: Our part of the live table.
    owned: Owned = Owned()
    #: What makes our part as wanted; none where nothing differs.
    edits: tuple[Edit, ...] = ()

    @property
    def title(self) -> str:
        """The table's name for people, without the backend's."""
        return f"{self.family.title} {self.name}"

    def differences(self) -> Iterator[Difference]:
        """What ``diff`` reports of the table, but for rules of others."""
        from istio_iptables.differences.rulesets import (
            ChangeKind,
            diff_tables,
        )  # loaded where something differs

        live = self.live or Table(self.name)
        for difference in diff_tables(self.family, live, self.wanted, self.owned):
            if difference.kind is not ChangeKind.FOREIGN:
                yield difference

    def lost(self) -> Iterator[tuple[str, Rule]]:
        """The rules of foreign chains that the change takes away, with their chains."""
        for step in self.edits:
            own = step.chain in self.owned.own_chains or is_built_in(self.name, step.chain)
            if step.action is Action.DELETE and not own:
                yield step.chain, step.rule

    def prepare(self, stack: ExitStack, *, check: bool) -> Step:
        """The change as a step, its transaction prepared; *stack* closes that."""
        transaction = self.backend.prepare(self.family, self.name, self.edits, check=check)
        stack.callback(transaction.close)
        return Step(
            f"{self.family.title} table {self.name} ({self.backend.name})",
            partial(self._commit, transaction),
            self._put_back,
        )

    def _commit(self, transaction: Transaction) -> None:
        try:
            transaction.commit()
        except KernelRefused as error:
            # libiptc puts the table in place, and then its old counters: whoever changes it between
            # the two makes it say that it failed, although our rules are in.
            if not error.busy or self._steps_from(self._now(), self.wanted):
                raise

    def _put_back(self) -> None:
        """Take the change back, if it was made."""
        back = self._way_back(self._now() or Table(self.name))
        if back:
            transaction = self.backend.prepare(self.family, self.name, back, check=False)
            try:
                transaction.commit()
            finally:
                transaction.close()
        if self.live is None:
            self.backend.forget(self.family, self.name)

    def _way_back(self, now: Table) -> tuple[Edit, ...]:
        """The steps from what is there *now* to what was there before the change."""
        live = self.live
        if live and _rules(now) == _rules(live):
            return ()
        if live and _rules(now) == _rules(apply(live, self.edits)):
            return undo(live, self.edits)
        # Somebody else has changed the table too: only our part of it goes back.
        return self._steps_from(now, self.owned.part_of(live) if live and self.owned else None)

    def _now(self) -> Table | None:
        return self.backend.table(self.family, self.name)

    def _steps_from(self, now: Table | None, wanted: Table | None) -> tuple[Edit, ...]:
        """The steps to *wanted* from what is there *now*."""
        return edits(self.name, now, wanted, self.find(now) if now else Owned())


def _rules(table: Table) -> dict[str, tuple[Rule, ...]]:
    return {chain.name: chain.rules for chain in table.chains}


def _holds_ours_alone(table: Table, owned: Owned) -> bool:
    """Whether each rule of the built-in chains is known to be ours."""
    return all(
        len(chain.rules) == len(owned.shared.get(chain.name, ()))
        for chain in table.chains
        if is_built_in(table.name, chain.name)
    )


def compare_table(table: TableChange) -> TableChange:
    """*table*, which was only read so far, with what of it is ours, and the steps where it differs."""
    live = table.live
    owned = table.find(live) if live else table.owned
    steps = edits(table.name, live, table.wanted, owned)
    # Where all of it is ours and is to go, no spelling has to be told.
    if live and steps and (table.wanted or not _holds_ours_alone(live, owned)):
        # Not word for word as wanted, which may be another spelling; otherwise what compares need
        # not be loaded.
        from istio_iptables.differences.rulesets import find_respelled

        owned = find_respelled(table.family, live, table.find)
        differs = any(True for _ in table._replace(owned=owned).differences())
        steps = edits(table.name, live, table.wanted, owned) if differs else ()
    return table._replace(owned=owned, edits=steps)
