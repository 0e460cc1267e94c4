"""The legacy tables: read with iptables-legacy-save, changed through python-iptables.

One table handle is one transaction. Reading the rules from such a handle would spare the child
process and is slower all the same, because python-iptables has to be imported: 6.8 ms instead of
4.1 for 36 rules in both families, 63 instead of 30 for 10,030 (whole processes, medians of 21,
without the 27 ms that both have in common).
"""

from __future__ import annotations

from istio_iptables.errors import KernelRefused, SaveFileError
from istio_iptables.kernel.backend import Reading, UnusableTable
from istio_iptables.kernel.programs import run, run_all
from istio_iptables.kernel.tablenames import hidden_legacy_tables, legacy_tables
from istio_iptables.netfilter.model import BUILT_IN_CHAINS, Family, Ruleset
from istio_iptables.netfilter.savefile import parse
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_iptables.kernel.backend import Transaction
    from istio_iptables.netfilter.edits import Edit
    from istio_iptables.netfilter.model import Table
    from istio_iptables.netfilter.ownership import Ownership

__all__ = ["Legacy"]


class Legacy:
    """The legacy tables of the network namespace that the process is in."""

    name = "legacy"

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership

    def look(self) -> tuple[Reading, ...]:
        """The tables this namespace has, rules as iptables-legacy-save prints them."""
        names = {family: self._names(family) for family in Family}
        hidden = {family: hidden_legacy_tables(family, self._ownership.tables) for family in Family}
        # All at once it prints none where its file of names is hidden.
        asked = [family for family in Family if names[family] and not hidden[family]]
        printed = dict(zip(asked, run_all([_program(each)] for each in asked), strict=True))
        return tuple(
            self._reading(family, names[family], hidden[family], printed.get(family, ""))
            for family in Family
        )

    def table(self, family: Family, name: str) -> Table | None:
        """One table, which is asked for only if it is there: asking makes it."""
        if name not in self._names(family):
            return None
        try:
            return _save(family, name)
        except KernelRefused as error:
            raise KernelRefused(self._unreadable(family, name, error).reason) from error

    def prepare(
        self, family: Family, table: str, steps: Sequence[Edit], *, check: bool = True
    ) -> Transaction:
        """A table handle with all edits made in it and none committed."""
        # ctypes takes as long as reading the tables.
        from istio_iptables.kernel.libiptc import Handle
        from istio_iptables.kernel.xt_abi import load

        del check  # It costs nothing here: the edits have to be made in any case.
        load()
        handle = Handle(family, table)
        try:
            for step in steps:
                handle.edit(step)
        except BaseException:
            handle.close()
            raise
        return handle

    def forget(self, family: Family, table: str) -> None:
        """Nothing: a legacy table stays in its namespace once it was made."""

    def _names(self, family: Family) -> tuple[str, ...]:
        return legacy_tables(family, self._ownership.tables) or ()

    def _reading(
        self,
        family: Family,
        names: Sequence[str],
        hidden: Sequence[str],
        printed: str | KernelRefused,
    ) -> Reading:
        """What there is of a family; *printed* is what the program says of all its tables at once."""
        tables: list[Table] = []
        faults: list[UnusableTable] = []
        found = _whole(family, printed)
        for name in names:
            try:
                # All at once it fails for one of them.
                tables.append(_if_whole(found.table(name)) or _save(family, name))
            except KernelRefused as error:
                faults.append(self._unreadable(family, name, error))
        faults += (_hidden(family, name) for name in hidden)
        ruleset = Ruleset(family, tuple(tables))
        ours = any(fault.ours for fault in faults) or any(map(self._holds_ours, tables))
        return Reading(ruleset, tuple(faults), bool(faults or ruleset.rule_count), ours)

    def _holds_ours(self, table: Table) -> bool:
        return any(self._ownership.is_own_chain(chain.name) for chain in table.chains)

    def _unreadable(self, family: Family, name: str, error: KernelRefused) -> UnusableTable:
        """The table *name* that can't be read because of *error*, its chains known by name alone."""
        from istio_iptables.kernel.libiptc import Handle  # ctypes, see prepare

        handle = Handle(family, name)
        try:
            ours = any(map(self._ownership.is_own_chain, handle.chain_names()))
        finally:
            handle.close()
        reason = f"the {family.title} table {name} (legacy) can't be read: {'; '.join(error.lines)}"
        return UnusableTable(family, name, self.name, reason, ours, unread=True)


def _hidden(family: Family, name: str) -> UnusableTable:
    reason = (
        f"the {family.title} table {name} (legacy) may be there or not: the kernel tells user"
        " 0 and group 0 alone"
    )
    return UnusableTable(family, name, Legacy.name, reason, ours=False, unread=True)


def _program(family: Family) -> str:
    return "iptables-legacy-save" if family is Family.IPV4 else "ip6tables-legacy-save"


def _whole(family: Family, printed: str | KernelRefused) -> Ruleset:
    """All tables that were *printed*; none if that failed, or can't be understood."""
    try:
        return Ruleset(family) if isinstance(printed, KernelRefused) else parse(printed, family)
    except SaveFileError:
        return Ruleset(family)


def _save(family: Family, name: str) -> Table:
    """One table as iptables-legacy-save prints it."""
    program = _program(family)
    try:
        found = parse(run([program, "-t", name]), family).table(name)
    except SaveFileError as error:
        message = f"can't understand what {program} says: {error}"
        raise KernelRefused(message) from error
    whole = _if_whole(found)
    if whole is None:
        message = f"{program} does not show {'all of it' if found else 'it'}"
        raise KernelRefused(message)
    return whole


def _if_whole(table: Table | None) -> Table | None:
    """*table*, if it has its built-in chains: what could not be written is missing without an error."""
    if table is None or not {*BUILT_IN_CHAINS[table.name]} <= {each.name for each in table.chains}:
        return None
    return table
