"""Rules as pictures: those of a description with their counters, and one packet's way through them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.istio.capture import listeners
from istio_iptables.pictures.flow import Note, Place, chart

if TYPE_CHECKING:
    from istio_iptables.api.describing import Description
    from istio_iptables.api.explanation import Explanation
    from istio_iptables.pictures.flow import Flow

__all__ = ["draw_description", "draw_way"]


def draw_description(found: Description) -> tuple[Flow, ...]:
    """All tables that have rules, each rule with its reason and its counter."""
    notes = {
        Place(each.family, each.table, each.chain, each.number): Note(
            each.reason, each.counted, each.foreign
        )
        for each in found.rules
    }
    return chart(found.rulesets, notes, listeners(found.plan.config))


def draw_way(found: Explanation) -> tuple[Flow, ...]:
    """The tables that the packet meets, with the rules that it matches on any way it can take."""
    family = found.packet.family
    passed = {
        (step.table, step.chain, step.number)
        for outcome in found.outcomes
        for step in outcome.steps
        if step.number is not None
    }
    tables = {table for table, _, _ in passed}
    ruleset = found.ruleset._replace(
        tables=tuple(each for each in found.ruleset.tables if each.name in tables)
    )
    notes = {
        Place(family, table.name, chain.name, number): Note(
            found.reason(table.name, chain.name, rule),
            passed=(table.name, chain.name, number) in passed,
        )
        for table in ruleset.tables
        for chain in table.chains
        for number, rule in enumerate(chain.rules, 1)
    }
    return chart((ruleset,), notes, listeners(found.config))
