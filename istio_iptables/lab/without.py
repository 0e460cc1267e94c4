"""A plan with rules left out, to see what they are there for; native rules in a plan's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.errors import UsageProblems
from istio_iptables.netfilter.nftlisting import families, planned_tables
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_iptables.netfilter.model import Chain, Table
    from istio_iptables.netfilter.native import NativePlan
    from istio_iptables.netfilter.plan import DesiredState

__all__ = ["Left", "left_out", "natively", "without", "without_natively"]

Left = frozenset[tuple[str, str, int]]


#: No chain has more rules than a number of so many digits.
_MOST_DIGITS = 9


def left_out(plan: DesiredState, texts: Sequence[str]) -> Left:
    """The table, chain and number of each rule that *texts* name, as ``nat ISTIO_OUTPUT 3``.

    Native tables have two words: ``inet istio-proxy-nat istio-output 3``.

    Raises UsageProblems for each text that names no rule of *plan*.
    """
    left = set()
    problems = []
    for text in texts:
        words = text.rsplit(maxsplit=2)
        place = (words[0], words[1], int(words[2])) if _well_formed(words) else None
        if place is None or not _is_there(plan, place):
            problems.append(
                f"--without: {excerpt(text)}: the plan has no such rule (write TABLE CHAIN NUMBER)"
            )
        else:
            left.add(place)
    if problems:
        raise UsageProblems(problems)
    return frozenset(left)


def natively(plan: DesiredState, native: NativePlan) -> DesiredState:
    """*plan* with the native tables as its rules, which both families' packets meet."""
    return plan._replace(rulesets=families(planned_tables(native)))


def without_natively(native: NativePlan, left: Left) -> NativePlan:
    """*native* without the rules *left* out."""
    return native._replace(
        tables=tuple(
            table._replace(
                chains=tuple(
                    chain._replace(
                        rules=tuple(
                            rule
                            for number, rule in enumerate(chain.rules, 1)
                            if (f"inet {table.name}", chain.name, number) not in left
                        )
                    )
                    for chain in table.chains
                )
            )
            for table in native.tables
        )
    )


def without(plan: DesiredState, left: Left) -> DesiredState:
    """*plan* without the rules *left* out, in every family; numbers are those of *plan*."""
    return plan._replace(
        rulesets=tuple(
            ruleset._replace(tables=tuple(_table_without(each, left) for each in ruleset.tables))
            for ruleset in plan.rulesets
        )
    )


def _well_formed(words: Sequence[str]) -> bool:
    # Digits of other scripts are digits to Python too, and thousands of them an error.
    return len(words) == len(("table", "chain", "number")) and (
        words[2].isascii() and words[2].isdecimal() and len(words[2]) <= _MOST_DIGITS
    )


def _is_there(plan: DesiredState, place: tuple[str, str, int]) -> bool:
    table_name, chain_name, number = place
    return any(
        table.name == table_name and chain.name == chain_name and 1 <= number <= len(chain.rules)
        for ruleset in plan.rulesets
        for table in ruleset.tables
        for chain in table.chains
    )


def _table_without(table: Table, left: Left) -> Table:
    return table._replace(chains=tuple(_chain_without(table, each, left) for each in table.chains))


def _chain_without(table: Table, chain: Chain, left: Left) -> Chain:
    return chain._replace(
        rules=tuple(
            rule
            for number, rule in enumerate(chain.rules, 1)
            if (table.name, chain.name, number) not in left
        )
    )
