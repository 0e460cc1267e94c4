"""How often the rules of a namespace have matched, as iptables-save tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.errors import KernelRefused, SaveFileError
from istio_iptables.kernel.programs import run_all
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.savefile import parse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_iptables.netfilter.model import Ruleset, Table

__all__ = ["with_counters"]


def with_counters(rulesets: Iterable[Ruleset], backend: str) -> tuple[Ruleset, ...]:
    """The *rulesets* that were read from *backend*, with the counters of their rules now.

    A table that has other rules by now, or that can't be read any more, stays without counters.
    """
    rulesets = tuple(rulesets)
    wanted = [(ruleset.family, table) for ruleset in rulesets for table in ruleset.tables]
    printed = run_all(
        [f"{_tool(family)}-{backend}-save", "-c", "-t", table.name] for family, table in wanted
    )
    counted = iter(
        [
            _counted(family, table, text)
            for (family, table), text in zip(wanted, printed, strict=True)
        ]
    )
    return tuple(
        ruleset._replace(tables=tuple(next(counted) for _ in ruleset.tables))
        for ruleset in rulesets
    )


def _tool(family: Family) -> str:
    return "iptables" if family is Family.IPV4 else "ip6tables"


def _counted(family: Family, table: Table, printed: str | KernelRefused) -> Table:
    try:
        found = None if isinstance(printed, KernelRefused) else parse(printed, family)
    except SaveFileError:
        return table
    now = found.table(table.name) if found else None
    same = now is not None and [(each.name, each.rules) for each in now.chains] == [
        (each.name, each.rules) for each in table.chains
    ]
    return now if now is not None and same else table
