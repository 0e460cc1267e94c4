"""The steps that turn one table into another inside a single transaction.

Edits are what is printed for iptables-restore, what is printed as commands, and what the
backends carry out: one list, so that these can't differ.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.netfilter.model import Chain, Rule, Table, is_built_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Action", "Edit", "Place", "apply", "edits", "restore_lines"]


class Action(Enum):
    """What one edit does to a chain."""

    #: Make the chain, or empty it if it is there.
    RESET = "reset"
    DELETE_CHAIN = "delete chain"
    APPEND = "append"
    INSERT = "insert"
    DELETE = "delete"


class Edit(NamedTuple):
    """One step; *position* counts rules from 1 and holds for the moment of this step."""

    action: Action
    chain: str
    rule: Rule = Rule()
    position: int = 0


class Place(Enum):
    """Where a rule of ours stands in a chain that others use too."""

    HEAD = "head"
    TAIL = "tail"


def edits(
    name: str,
    live: Table | None,
    wanted: Table | None,
    ours: Mapping[str, Mapping[int, Place]],
    own_chains: Iterable[str],
) -> tuple[Edit, ...]:
    """The steps that take our part of the table *name* from *live* to *wanted*.

    *ours* tells for each chain of *live* that others use too the numbers (from 0) of our rules
    in it; *own_chains* are the chains of *live* that are ours altogether. Every other rule
    keeps its text and its place among the others. None for *wanted* removes ours.
    """
    live_chains = {chain.name: chain.rules for chain in live.chains} if live else {}
    wanted_chains = {chain.name: chain.rules for chain in wanted.chains} if wanted else {}
    shared = [chain for chain in wanted_chains if is_built_in(name, chain)]
    shared += [chain for chain in ours if chain not in shared]
    own = [chain for chain in wanted_chains if chain not in shared]
    old = set(own_chains)
    changed = [
        chain
        for chain in own
        if chain not in old or not _same(live_chains[chain], wanted_chains[chain])
    ]
    steps = [Edit(Action.RESET, chain) for chain in changed]
    removed = [chain for chain in live_chains if chain in old and chain not in own]
    for chain in shared:
        steps += _shared_chain(
            chain, live_chains.get(chain, ()), wanted_chains.get(chain, ()), ours.get(chain, {})
        )
    for chain in changed:
        steps += (Edit(Action.APPEND, chain, rule) for rule in wanted_chains[chain])
    # All of them are emptied before the first goes: they may jump to each other.
    steps += (Edit(Action.RESET, chain) for chain in removed)
    steps += (Edit(Action.DELETE_CHAIN, chain) for chain in removed)
    return tuple(steps)


def _same(left: tuple[Rule, ...], right: tuple[Rule, ...]) -> bool:
    return len(left) == len(right) and all(map(Rule.__eq__, left, right))


def _shared_chain(
    chain: str, live: tuple[Rule, ...], wanted: tuple[Rule, ...], ours: Mapping[int, Place]
) -> list[Edit]:
    """The steps for a chain that others use too: only our rules come and go."""
    if _same(tuple(live[number] for number in sorted(ours)), wanted):
        return []
    steps = [
        Edit(Action.DELETE, chain, live[number], number + 1)
        for number in sorted(ours, reverse=True)
    ]
    head = [rule for rule in wanted if rule.inserted]
    tail = [rule for rule in wanted if not rule.inserted]
    strangers = len(live) - len(ours)
    tails = [number for number, place in ours.items() if place is Place.TAIL]
    # New rules take the place of the old ones; without old ones they go to the end.
    before = sum(1 for number in range(tails[-1]) if number not in ours) if tails else strangers
    steps += (Edit(Action.INSERT, chain, rule, place) for place, rule in enumerate(head, start=1))
    if before == strangers:
        steps += (Edit(Action.APPEND, chain, rule) for rule in tail)
    else:
        first = len(head) + before + 1
        steps += (Edit(Action.INSERT, chain, rule, place) for place, rule in enumerate(tail, first))
    return steps


def apply(live: Table, steps: Iterable[Edit]) -> Table:
    """The table that *steps* make of *live*.

    Raises ValueError where the kernel would refuse a step: no such chain or rule.
    """
    chains = {chain.name: (chain, list(chain.rules)) for chain in live.chains}
    for step in steps:
        if step.action is Action.RESET:
            chains.setdefault(step.chain, (Chain(step.chain), []))[1].clear()
            continue
        if step.chain not in chains:
            message = f"no chain {step.chain} in table {live.name}"
            raise ValueError(message)
        rules = chains[step.chain][1]
        if step.action is Action.DELETE_CHAIN:
            if rules:
                message = f"chain {step.chain} is not empty"
                raise ValueError(message)
            del chains[step.chain]
        elif step.action is Action.APPEND:
            rules.append(step.rule)
        elif not 1 <= step.position <= len(rules) + (step.action is Action.INSERT):
            message = f"chain {step.chain} has no rule number {step.position}"
            raise ValueError(message)
        elif step.action is Action.INSERT:
            rules.insert(step.position - 1, step.rule)
        else:
            del rules[step.position - 1]
    return live._replace(
        chains=tuple(chain._replace(rules=tuple(rules)) for chain, rules in chains.values())
    )


def restore_lines(table: str, steps: Iterable[Edit]) -> list[str]:
    """The steps as one table of ``iptables-restore --noflush``, from ``*nat`` to ``COMMIT``.

    Rules are deleted by number, so the text belongs to the table it was made from.
    """
    lines = [f"*{table}"]
    for step in steps:
        if step.action is Action.RESET:
            lines.append(f":{step.chain} - [0:0]")
        elif step.action is Action.DELETE_CHAIN:
            lines.append(f"-X {step.chain}")
        elif step.action is Action.APPEND:
            lines.append(f"-A {step.chain} {step.rule.text}")
        elif step.action is Action.INSERT:
            lines.append(f"-I {step.chain} {step.position} {step.rule.text}")
        else:
            lines.append(f"-D {step.chain} {step.position}")
    lines.append("COMMIT")
    return lines
