"""The two backends for iptables rules in a kernel, behind one interface, and which to use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from istio_iptables.errors import KernelRefused
from istio_iptables.istio.rules import CHAIN_PREFIX
from istio_iptables.kernel import netlink
from istio_iptables.netfilter.model import TABLES, Family, Ruleset

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from istio_iptables.netfilter.edits import Edit

__all__ = [
    "Backend",
    "Choice",
    "Reading",
    "Transaction",
    "UnusableTable",
    "choose",
    "has_our_chains",
    "hidden_legacy_tables",
    "in_other_backend",
    "legacy_tables",
    "nft_tables",
    "refuse",
    "retrying",
]

_Result = TypeVar("_Result")

#: How often tables that others change at the same time are tried again.
_ATTEMPTS = 10

#: The legacy tables that rules of ours may be in.
_OUR_TABLES = ("raw", "mangle", "nat")

# Not /proc/net: a /proc mounted with subset=pid has no such link.
_NETWORK = "/proc/self/net"
_NAMES_FILES = {
    Family.IPV4: f"{_NETWORK}/ip_tables_names",
    Family.IPV6: f"{_NETWORK}/ip6_tables_names",
}


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

    def holds_rules(self) -> bool:
        """Whether there is a rule in any table; the quick question before ``read``."""

    def holds_ours(self) -> bool:
        """Whether there is a chain of ours in any table, going by the names alone."""

    def look(self, family: Family) -> Reading:
        """The tables there are, as far as they can be read; reading makes none."""

    def read(self, family: Family, wanted: Collection[str] = ()) -> Ruleset:
        """The tables there are, but for those that can't be read and hold nothing of ours.

        Refused are tables of ours that can't be read, and tables of *wanted*, which rules are
        to go into, that can't be read, changed or have no effect. Reading makes no table.
        """

    def prepare(
        self, family: Family, table: str, steps: Sequence[Edit], *, check: bool = True
    ) -> Transaction:
        """The change of one table, tried out as far as that goes without a commit.

        Without *check* the trial may be left to the commit, which is as good where it is the
        only thing to do.
        """

    def forget(self, family: Family, table: str) -> None:
        """Take away a table that we made and that is empty, where the backend has a way to."""


class Choice(NamedTuple):
    """The backend to use, and why."""

    backend: Backend
    #: The other one, if it has tables in this namespace that may hold rules of ours.
    other: Backend | None
    reason: str


def has_our_chains(names: Iterable[str]) -> bool:
    """Whether one of these is the name of a chain of ours."""
    return any(name.startswith(CHAIN_PREFIX) for name in names)


def refuse(faults: Iterable[UnusableTable], wanted: Collection[str] = ()) -> None:
    """Raise KernelRefused for what is in the way of reading ours and of using the tables *wanted*."""
    lines = [
        fault.reason for fault in faults if (fault.unread and fault.ours) or fault.table in wanted
    ]
    if lines:
        raise KernelRefused(*lines)


def retrying(work: Callable[[], _Result]) -> _Result:
    """What *work* returns; it is begun anew when someone changed the tables meanwhile."""
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


def legacy_tables(family: Family) -> tuple[str, ...] | None:
    """The legacy tables this namespace has, or None for a kernel without them.

    Reading this file makes no table, unlike any question to iptables-legacy. Only user 0 and group
    0 may read it: for others these are the tables that rules of ours may be in, and whoever opens
    them to look makes them. Raises KernelRefused where it can't be told.
    """
    path = _NAMES_FILES[family]
    try:
        with open(path, encoding="ascii") as file:
            names = file.read().split()
    except FileNotFoundError as error:
        if not os.path.isdir(_NETWORK):  # noqa: PTH112 - pathlib costs 5 ms
            message = f"can't tell which legacy tables there are: no {_NETWORK}: is /proc mounted?"
            raise KernelRefused(message) from error
        return None
    except PermissionError:
        return _OUR_TABLES
    except OSError as error:
        message = f"can't tell which legacy tables there are: {path}: {error.strerror or error}"
        raise KernelRefused(message) from error
    return tuple(name for name in TABLES if name in names)


def hidden_legacy_tables(family: Family) -> tuple[str, ...]:
    """The legacy tables that may be there or not as far as this user can tell; see above."""
    path = _NAMES_FILES[family]
    if os.access(path, os.R_OK) or not os.access(path, os.F_OK):
        return ()
    return tuple(name for name in TABLES if name not in _OUR_TABLES)


def nft_tables(family: Family) -> tuple[str, ...]:
    """The nftables tables of this namespace that iptables-nft uses."""
    names = [name for number, name in netlink.nft_tables() if number == family.number]
    return tuple(name for name in TABLES if name in names)


def choose(forced: str) -> Choice:
    """The backend for this namespace: the *forced* one, else the one whose tables hold rules.

    Without rules anywhere it is legacy, where the kernel has it. Looks and loads nothing.
    """
    loaded = {family: legacy_tables(family) for family in Family}
    has_legacy = loaded[Family.IPV4] is not None
    legacy_used = any(loaded.values())
    nft_used = any(nft_tables(family) for family in Family)
    name, reason = forced, "asked for by --force-iptables-binary"
    if not name:
        legacy_rules = legacy_used and _make("legacy").holds_rules()
        nft_rules = nft_used and _make("nft").holds_rules()
        if legacy_rules and nft_rules:
            # Both are in use: ours stay where they are.
            in_nft, in_legacy = _make("nft").holds_ours(), _make("legacy").holds_ours()
            name = "nft" if in_nft and not in_legacy else "legacy"
            reason = "both backends hold rules in this namespace" + (
                ", and ours are in this one" if in_nft or in_legacy else ""
            )
        elif legacy_rules or nft_rules:
            name = "legacy" if legacy_rules else "nft"
            reason = "its tables hold rules in this namespace"
        elif has_legacy:
            name, reason = "legacy", "no table holds rules yet, and the kernel has it"
        else:
            name, reason = "nft", "the kernel has no legacy tables"
    if name == "legacy":
        return Choice(_make("legacy"), _make("nft") if nft_used else None, reason)
    return Choice(_make("nft"), _make("legacy") if legacy_used else None, reason)


def _make(name: str) -> Backend:
    # Imported when chosen: legacy loads python-iptables, nft the subprocess module.
    if name == "legacy":
        from istio_iptables.kernel.legacy import Legacy

        return Legacy()
    from istio_iptables.kernel.nft import Nft

    return Nft()
