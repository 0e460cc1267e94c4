"""The native tables of the network namespace that the process is in, as nft lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.errors import KernelRefused, SaveFileError
from istio_iptables.kernel import nftables
from istio_iptables.kernel.programs import run
from istio_iptables.netfilter.model import TABLES, Chain, Family
from istio_iptables.netfilter.nftlisting import read_listing

if TYPE_CHECKING:
    from istio_iptables.netfilter.model import Table

__all__ = ["native_tables"]

_IPTABLES = {f"{nftables.FAMILIES[family.number]} {name}" for family in Family for name in TABLES}


def native_tables() -> tuple[Table, ...]:
    """All tables but those that iptables shows, with the numbers of their counters.

    Of a table that iptables shows in part, the base chains are those that it does not show. Raises
    KernelRefused where nft can't list them.
    """
    if not nftables.tables():
        return ()
    try:
        found = read_listing(run(["nft", "list", "ruleset"]).splitlines())
    except SaveFileError as error:
        message = f"can't understand what nft lists: {error.lines[0]}"
        raise KernelRefused(message) from error
    shown = {
        (f"{nftables.FAMILIES[each.family]} {each.table}", each.name)
        for each in nftables.chains()
        if each.family in nftables.FAMILIES and nftables.is_iptables(each)
    }
    return tuple(
        table
        for table in (_without(each, shown) if each.name in _IPTABLES else each for each in found)
        if table.name not in _IPTABLES or any(chain.base for chain in table.chains)
    )


def _without(table: Table, shown: set[tuple[str, str]]) -> Table:
    def hidden(chain: Chain) -> Chain:
        return chain._replace(base=None) if (table.name, chain.name) in shown else chain

    return table._replace(chains=tuple(map(hidden, table.chains)))
