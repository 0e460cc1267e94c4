"""The interface of the two backends for iptables rules in a kernel."""

from __future__ import annotations

from istio_iptables.errors import KernelRefused
from istio_iptables.typed import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from typing import TypeVar

    from istio_iptables.netfilter.edits import Edit
    from istio_iptables.netfilter.model import Family, Ruleset, Table

    _Result = TypeVar("_Result")

__all__ = [
    "Backend",
    "Reading",
    "Transaction",
    "UnusableTable",
    "in_other_backend",
    "refuse",
    "retrying",
]

#: How often tables that others change at the same time are tried again.
_ATTEMPTS = 10


class Transaction(Protocol):
    """The change of one table, prepared; nothing has happened before ``commit``."""

    def commit(self) -> None:
        """Make the change in one step, or none.

        Raises KernelRefused when it was not made, or when that can't be known for sure.
        """

    def close(self) -> None:
        """Let go of what a transaction holds, committed or not."""


class UnusableTable(NamedTuple):
    """A table that can't be read, or whose rules can't be put in or have no effect."""

    family: Family
    table: str
    backend: str
    #: One sentence without an end, for people.
    reason: str
    #: Whether chains of ours are in it: their names can be had even where the rules can't.
    ours: bool
    #: Whether its rules are unknown. Otherwise they are read, and it can't take ours.
    unread: bool = False
    #: Whether the kernel passes the table over.
    dormant: bool = False

    @property
    def name(self) -> str:
        """The table's full name: ``IPv4 filter (nft)``."""
        return f"{self.family.title} {self.table} ({self.backend})"


class Reading(NamedTuple):
    """The tables of one family, and what is to be known about those that are not as usual."""

    #: Without the tables that can't be read.
    ruleset: Ruleset
    faults: tuple[UnusableTable, ...] = ()
    #: Whether there are rules in any table, or may be.
    holds_rules: bool = False
    #: Whether there are chains of ours in any table, going by the names alone.
    holds_ours: bool = False

    @property
    def unread(self) -> tuple[UnusableTable, ...]:
        """The tables that can't be read."""
        return tuple(fault for fault in self.faults if fault.unread)

    @property
    def in_force(self) -> Ruleset:
        """The tables whose rules the kernel applies."""
        dormant = {fault.table for fault in self.faults if fault.dormant}
        tables = tuple(table for table in self.ruleset.tables if table.name not in dormant)
        return self.ruleset._replace(tables=tables)


class Backend(Protocol):
    """One backend. All methods raise KernelRefused with a clear line."""

    name: str

    def look(self) -> tuple[Reading, ...]:
        """What there is of each family, as far as it can be read; reading makes no table."""

    def table(self, family: Family, name: str) -> Table | None:
        """One table as it is now, or None without it; refused if it can't be read."""

    def prepare(
        self, family: Family, table: str, steps: Sequence[Edit], *, check: bool = True
    ) -> Transaction:
        """The change of one table, tried out as far as that goes without a commit.

        Without *check* the trial may be left to the commit, which is as good where it is the
        only thing to do.
        """

    def forget(self, family: Family, table: str) -> None:
        """Take away a table that we made and that is empty, where the backend has a way to."""


def refuse(faults: Iterable[UnusableTable], wanted: Collection[str] = ()) -> None:
    """Raise KernelRefused for what is in the way of reading ours and of using the tables *wanted*."""
    lines = [
        fault.reason for fault in faults if (fault.unread and fault.ours) or fault.table in wanted
    ]
    if lines:
        raise KernelRefused(*lines)


def retrying(work: Callable[[], _Result]) -> _Result:
    """What *work* returns; it is begun again when another program changed the tables meanwhile."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return work()
        except KernelRefused as error:
            if not error.busy:
                raise
    return work()


def in_other_backend(backend: str, tables: Iterable[str]) -> str:
    """The difference that rules of ours in the backend that was not chosen make."""
    return (
        f"extra: rules of ours in the {backend} backend, which take effect as well:"
        f" {', '.join(tables)}"
    )
