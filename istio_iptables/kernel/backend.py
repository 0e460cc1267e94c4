"""The two stores of iptables rules in a kernel, behind one interface, and which to use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

from istio_iptables.errors import KernelRefused
from istio_iptables.kernel import netlink
from istio_iptables.netfilter.model import TABLES, Family
from istio_iptables.ours import recognise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_iptables.netfilter.edits import Edit
    from istio_iptables.netfilter.model import Ruleset

__all__ = ["Backend", "Choice", "Transaction", "choose", "legacy_tables", "nft_tables"]

_OUR_TABLES = ("raw", "mangle", "nat")
_NAMES_FILES = {
    Family.IPV4: "/proc/net/ip_tables_names",
    Family.IPV6: "/proc/net/ip6_tables_names",
}


class Transaction(Protocol):
    """The change of one table, prepared; nothing has happened before ``commit``."""

    def commit(self) -> None:
        """Make the change in one step, or none.

        Raises KernelRefused when it was not made, or when that can't be known for sure.
        """

    def close(self) -> None:
        """Let go of what a transaction holds, committed or not."""


class Backend(Protocol):
    """One store of rules. All methods raise KernelRefused with a clear line."""

    name: str

    def holds_rules(self) -> bool:
        """Whether there is a rule in any table; the quick question before ``read``."""

    def read(self, family: Family) -> Ruleset:
        """The tables there are; reading makes none."""

    def prepare(
        self, family: Family, table: str, steps: Sequence[Edit], *, check: bool = True
    ) -> Transaction:
        """The change of one table, tried out as far as that goes without a commit.

        Without *check* the trial may be left to the commit, which is as good where it is the
        only thing to do.
        """

    def forget(self, family: Family, table: str) -> None:
        """Take away a table that we made and that is empty, where the store has a way to."""


class Choice(NamedTuple):
    """The backend to use, and why."""

    backend: Backend
    #: The other one, if it has tables in this namespace that may hold rules of ours.
    other: Backend | None
    reason: str


def legacy_tables(family: Family) -> tuple[str, ...] | None:
    """The legacy tables this namespace has, or None for a kernel without them.

    Reading this file makes no table, unlike any question to iptables-legacy. It is root's: for
    another user these are the tables that rules of ours may be in, and to look makes them.
    """
    try:
        with open(_NAMES_FILES[family], encoding="ascii") as file:
            names = file.read().split()
    except FileNotFoundError:
        return None
    except PermissionError:
        return _OUR_TABLES
    return tuple(name for name in TABLES if name in names)


def _known() -> bool:
    """Whether it can be told which legacy tables there are."""
    return all(
        os.access(file, os.R_OK) or not os.access(file, os.F_OK) for file in _NAMES_FILES.values()
    )


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
    # Where that can't be told, legacy is not opened only to look.
    legacy_used = _known() and any(loaded.values())
    nft_used = any(nft_tables(family) for family in Family)
    name, reason = forced, "asked for by --force-iptables-binary"
    if not name:
        legacy_rules = legacy_used and _make("legacy").holds_rules()
        nft_rules = nft_used and _make("nft").holds_rules()
        if legacy_rules and nft_rules:
            # Both are in use: ours stay where they are.
            in_nft, in_legacy = _holds_ours(_make("nft")), _holds_ours(_make("legacy"))
            name = "nft" if in_nft and not in_legacy else "legacy"
            reason = "both backends hold rules in this namespace" + (
                ", and ours are in this one" if in_nft or in_legacy else ""
            )
        elif legacy_rules or nft_rules:
            name = "legacy" if legacy_rules else "nft"
            reason = "its tables hold rules in this namespace"
        elif has_legacy:
            name, reason = "legacy", "no table holds rules yet, and the kernel has it"
            if not _known():
                reason = "nf_tables hold no rules, and only root may see which legacy tables do"
        else:
            name, reason = "nft", "the kernel has no legacy tables"
    if name == "legacy":
        return Choice(_make("legacy"), _make("nft") if nft_used else None, reason)
    return Choice(_make("nft"), _make("legacy") if legacy_used else None, reason)


def _holds_ours(backend: Backend) -> bool:
    try:
        return any(recognise(table) for family in Family for table in backend.read(family).tables)
    except KernelRefused:
        # What iptables can't show, iptables did not make.
        return False


def _make(name: str) -> Backend:
    # Imported when chosen: legacy loads python-iptables, nft the subprocess module.
    if name == "legacy":
        from istio_iptables.kernel.legacy import Legacy

        return Legacy()
    from istio_iptables.kernel.nft import Nft

    return Nft()
