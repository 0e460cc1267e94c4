"""Which part of a table is ours: what the code that knows our rules tells the code that compares and changes them."""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType

from istio_iptables.netfilter.model import Table, is_built_in
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from istio_iptables.netfilter.plan import InterfaceAddress

__all__ = ["NativeOwnership", "Owned", "Ownership", "Position"]


class Position(Enum):
    """Where a rule of ours stands in a chain that others use too."""

    HEAD = "head"
    TAIL = "tail"


class Owned(NamedTuple):
    """Our part of one table; by default nothing."""

    #: The chains that are ours altogether.
    own_chains: tuple[str, ...] = ()
    #: In each built-in chain: the numbers (from 0) of our rules, and their places.
    shared: Mapping[str, Mapping[int, Position]] = MappingProxyType({})

    def __bool__(self) -> bool:
        return bool(self.own_chains or self.shared)

    def part_of(self, table: Table) -> Table:
        """*table* without what is not ours, to be compared with a plan's; built-in chains stay."""
        return table._replace(
            chains=tuple(
                chain
                if chain.name in self.own_chains
                else chain._replace(
                    rules=tuple(chain.rules[n] for n in self.shared.get(chain.name, ()))
                )
                for chain in table.chains
                if chain.name in self.own_chains or is_built_in(table.name, chain.name)
            ),
            comments=(),
        )


class NativeOwnership(NamedTuple):
    """How our native nftables rules are told from those of others: by the tables that they are in."""

    #: The tables of the family inet that are ours altogether.
    tables: tuple[str, ...]
    #: The chains that the table of this name may have; a table with others is not ours alone.
    chains: Callable[[str], Collection[str]]
    #: As of Ownership, told from nft's listing of a table.
    route_marks: Callable[[str], tuple[int, ...]]


class Ownership(NamedTuple):
    """How our rules are told from those of others."""

    find: Callable[[Table], Owned]
    #: The marks that our rules in a table set for policy routes, which are known by them.
    route_marks: Callable[[Table], tuple[int, ...]]
    #: Whether a chain of this name is ours; the names can be had where the rules can't be read.
    is_own_chain: Callable[[str], bool]
    #: The tables that rules of ours may be in, in the order in which a packet meets them.
    tables: tuple[str, ...]
    #: What goes with our rules of its family.
    address: InterfaceAddress
    #: The routing table of our policy routes, unless a plan has another one.
    route_table: int
    native: NativeOwnership
