"""Where our rules are, whichever kind they are of: iptables' or native, whose names are others."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.istio.native import chain_name
from istio_iptables.istio.ownership import find_owned
from istio_iptables.istio.rules import CHAIN_PREFIX, NATIVE_TABLE
from istio_iptables.netfilter.ownership import Owned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_iptables.netfilter.model import Ruleset, Table

__all__ = ["NAT_TABLES", "NatTable", "find_ours", "is_native_table", "nat_tables"]

_NATIVE = f"inet {NATIVE_TABLE}"
_NATIVE_NAT = f"{_NATIVE}nat"
#: The names of the tables that redirect, of both kinds.
NAT_TABLES = frozenset({"nat", _NATIVE_NAT})


class NatTable(NamedTuple):
    """A table whose rules redirect, or may."""

    table: Table
    native: bool

    @property
    def prefix(self) -> str:
        """How the names of our chains in it begin."""
        return self.name(CHAIN_PREFIX)

    def name(self, chain: str) -> str:
        """What *chain*, a name of iptables', is called in it."""
        return chain_name(chain) if self.native else chain


def nat_tables(ruleset: Ruleset) -> Iterator[NatTable]:
    """Those of *ruleset* that our rules are in, or would be."""
    for table in ruleset.tables:
        if table.name in NAT_TABLES:
            yield NatTable(table, table.name == _NATIVE_NAT)


def is_native_table(table: Table) -> bool:
    """Whether a table is one of nft's, whose name begins with its family."""
    return " " in table.name


def find_ours(table: Table) -> Owned:
    """Our part of *table*: a native one is ours altogether, or not at all."""
    if not is_native_table(table):
        return find_owned(table)
    if table.name.startswith(_NATIVE):
        return Owned(tuple(chain.name for chain in table.chains))
    return Owned()
