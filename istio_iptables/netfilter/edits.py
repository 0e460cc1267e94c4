"""The steps that turn one table into another inside a single transaction.

Edits are what is printed for iptables-restore, what is printed as commands, and what the
backends carry out: one list, so that these can't differ.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum

from istio_iptables.netfilter.model import Chain, Rule, Table, is_built_in
from istio_iptables.netfilter.ownership import Owned, Position
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    _Chains = Mapping[str, tuple[Rule, ...]]

__all__ = ["Action", "Edit", "apply", "edits", "restore_lines", "undo"]

_NOTHING = Owned()


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
    #: For DELETE: whether the rule's text alone says which one is meant.
    by_text: bool = False


def edits(
    name: str, live: Table | None, wanted: Table | None, ours: Owned = _NOTHING
) -> tuple[Edit, ...]:
    """The steps that take our part of the table *name* from *live* to *wanted*.

    *ours* tells which part of *live* that is. Every other rule keeps its text and its place among
    the others. None for *wanted* removes ours.
    """
    there, asked = _rules_by_chain(live), _rules_by_chain(wanted)
    shared = dict.fromkeys(chain for chain in asked if is_built_in(name, chain))
    shared |= dict.fromkeys(ours.shared)
    changed = _changed_chains(there, asked, {*shared}, {*ours.own_chains})
    steps = [Edit(Action.RESET, chain) for chain in changed]
    for chain in shared:
        steps += _shared_chain(
            chain, there.get(chain, ()), asked.get(chain, ()), ours.shared.get(chain, {})
        )
    for chain in changed:
        steps += (Edit(Action.APPEND, chain, rule) for rule in asked[chain])
    removed = [chain for chain in there if chain in ours.own_chains and chain not in asked]
    return (*steps, *_removal(there, removed, {*shared, *asked, *removed}))


def _rules_by_chain(table: Table | None) -> dict[str, tuple[Rule, ...]]:
    return {chain.name: chain.rules for chain in table.chains} if table else {}


def _changed_chains(there: _Chains, asked: _Chains, shared: set[str], own: set[str]) -> list[str]:
    """The chains of ours that are to be made or filled again."""
    return [
        chain
        for chain, rules in asked.items()
        if chain not in shared and not (chain in own and _same(there[chain], rules))
    ]


def _removal(there: _Chains, removed: list[str], known: set[str]) -> list[Edit]:
    """Take chains of ours away, and the rules of foreign ones (all but the *known*) that jump to them."""
    # All of them are emptied before the first goes: they may jump to each other.
    steps = [Edit(Action.RESET, chain) for chain in removed]
    steps += (
        Edit(Action.DELETE, chain, rule, number)
        for chain, rules in (there.items() if removed else ())
        if chain not in known
        for number, rule in reversed(tuple(enumerate(rules, start=1)))
        if rule.target is not None and rule.target.name in removed
    )
    steps += (Edit(Action.DELETE_CHAIN, chain) for chain in removed)
    return steps


def _same(left: tuple[Rule, ...], right: tuple[Rule, ...]) -> bool:
    return len(left) == len(right) and all(map(Rule.__eq__, left, right))


def _shared_chain(
    chain: str, live: tuple[Rule, ...], wanted: tuple[Rule, ...], ours: Mapping[int, Position]
) -> list[Edit]:
    """The steps for a chain that others use too: only our rules come and go."""
    if _same(tuple(live[number] for number in sorted(ours)), wanted):
        return []
    head = [rule for rule in wanted if rule.inserted]
    tail = [rule for rule in wanted if not rule.inserted]
    steps = _deletions(chain, live, ours)
    steps += (Edit(Action.INSERT, chain, rule, place) for place, rule in enumerate(head, start=1))
    before = _before_tail(len(live), ours)
    if before == len(live) - len(ours):
        steps += (Edit(Action.APPEND, chain, rule) for rule in tail)
    else:
        first = len(head) + before + 1
        steps += (Edit(Action.INSERT, chain, rule, place) for place, rule in enumerate(tail, first))
    return steps


def _deletions(chain: str, live: tuple[Rule, ...], ours: Mapping[int, Position]) -> list[Edit]:
    others = {rule.text for number, rule in enumerate(live) if number not in ours}
    return [
        Edit(Action.DELETE, chain, live[number], number + 1, live[number].text not in others)
        for number in sorted(ours, reverse=True)
    ]


def _before_tail(count: int, ours: Mapping[int, Position]) -> int:
    """How many foreign rules of *count* rules in all stand before where our last ones go.

    New rules take the place of the old ones; without old ones they go to the end.
    """
    tails = [number for number, place in ours.items() if place is Position.TAIL]
    return sum(1 for number in range(tails[-1] if tails else count) if number not in ours)


def apply(live: Table, steps: Iterable[Edit]) -> Table:
    """The table that *steps* make of *live*.

    Raises ValueError where the kernel would refuse a step: no such chain or rule.
    """
    chains = {chain.name: list(chain.rules) for chain in live.chains}
    for step in steps:
        _perform(chains, step)
    heads = {chain.name: chain for chain in live.chains}
    return live._replace(
        chains=tuple(
            heads.get(name, Chain(name))._replace(rules=tuple(rules))
            for name, rules in chains.items()
        )
    )


def undo(live: Table, steps: Iterable[Edit]) -> tuple[Edit, ...]:
    """The steps that lead back to *live* from what *steps* make of it, rule by rule."""
    chains = {chain.name: list(chain.rules) for chain in live.chains}
    ever = Counter((chain.name, rule.text) for chain in live.chains for rule in chain.rules)
    reverse = []
    for step in steps:
        reverse.append(_perform(chains, step))
        if step.action in {Action.APPEND, Action.INSERT}:
            ever[step.chain, step.rule.text] += 1
    return tuple(
        # Whatever else is in the chain by then: the text of a rule that came once is enough.
        step._replace(by_text=step.action is Action.DELETE and ever[step.chain, step.rule.text] < 2)  # noqa: PLR2004 - once
        for group in reversed(reverse)
        for step in group
    )


def _perform(chains: dict[str, list[Rule]], step: Edit) -> list[Edit]:
    """Carry out one step on *chains*, and return the steps that take it back."""
    action, name = step.action, step.chain
    if action is Action.RESET and name not in chains:
        chains[name] = []
        return [Edit(Action.DELETE_CHAIN, name)]
    if name not in chains:
        message = f"there is no chain {name}"
        raise ValueError(message)
    rules = chains[name]
    if action is Action.RESET:
        reverse = [Edit(Action.APPEND, name, rule) for rule in rules]
        rules.clear()
        return reverse
    if action is Action.DELETE_CHAIN:
        if rules:
            message = f"chain {name} is not empty"
            raise ValueError(message)
        del chains[name]
        return [Edit(Action.RESET, name)]
    if action is Action.APPEND:
        rules.append(step.rule)
        return [Edit(Action.DELETE, name, step.rule, len(rules))]
    if not 1 <= step.position <= len(rules) + (action is Action.INSERT):
        message = f"chain {name} has no rule number {step.position}"
        raise ValueError(message)
    if action is Action.INSERT:
        rules.insert(step.position - 1, step.rule)
        return [Edit(Action.DELETE, name, step.rule, step.position)]
    removed = rules.pop(step.position - 1)
    return [Edit(Action.INSERT, name, removed, step.position)]


def restore_lines(table: str, steps: Iterable[Edit]) -> list[str]:
    """The steps as one table of ``iptables-restore --noflush``, from ``*nat`` to ``COMMIT``.

    A rule is deleted by its text where that is enough: a program that adds rules at the same
    time would turn a number into another rule's.
    """
    lines = [f"*{table}"]
    for step in steps:
        if step.action is Action.RESET:
            lines.append(f":{step.chain} - [0:0]")
        elif step.action is Action.DELETE_CHAIN:
            lines.append(f"-X {step.chain}")
        elif step.action is Action.APPEND:
            lines.append(f"-A {step.chain} {_one_line(step.rule)}")
        elif step.action is Action.INSERT:
            lines.append(f"-I {step.chain} {step.position} {_one_line(step.rule)}")
        elif step.by_text and "\n" not in step.rule.text:
            lines.append(f"-D {step.chain} {step.rule.text}")
        else:
            lines.append(f"-D {step.chain} {step.position}")
    lines.append("COMMIT")
    return lines


def _one_line(rule: Rule) -> str:
    """The text of a rule on one line: a comment's line ends become blanks.

    iptables takes a line end in a comment and iptables-save prints it, but iptables-restore reads
    each line by itself, and what follows would be a command of its own. Only a rule that somebody
    else put into a chain of ours has one, and only to put it back is it written.
    """
    return rule.text.replace("\n", " ")
