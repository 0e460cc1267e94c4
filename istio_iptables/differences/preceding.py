"""Foreign rules that decide before a chain of the plan is asked: in a table that comes earlier.

Order inside a chain is the business of ``rulesets``. Here it is the order of the tables at one
hook: what raw leaves untracked never meets nat, what mangle drops meets nobody, and what has the
mark of a policy route is delivered past TPROXY.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.differences.rulesets import ChangeKind, Difference
from istio_iptables.netfilter.fieldvalues import read_masked
from istio_iptables.netfilter.model import Ruleset, is_built_in
from istio_iptables.netfilter.ownership import Owned

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from istio_iptables.netfilter.model import Chain, Rule, Table, Target

__all__ = ["preceding", "preceding_natively"]

#: The tables that see a packet before nat, in the order in which they do.
_BEFORE_NAT = ("raw", "mangle")
_HOOKS = ("PREROUTING", "OUTPUT")
#: Targets that end a packet's way, or keep it from connection tracking and so from nat.
_DECIDE = frozenset({"DROP", "NOTRACK", "QUEUE", "NFQUEUE", "TPROXY"})
#: Targets behind which no other chain of nat is asked.
_MAP = frozenset({"DNAT", "REDIRECT"})


def preceding(
    live: Iterable[Ruleset],
    wanted: Iterable[Ruleset],
    ours: Callable[[Table], Owned],
    marks: Collection[int] = (),
) -> tuple[Difference, ...]:
    """The rules of others that may decide before the first chain that captures is asked.

    *marks* are those that the policy routes of the plan go by.
    """
    found: list[Difference] = []
    planned = {ruleset.family: ruleset for ruleset in wanted}
    for ruleset in live:
        plan = planned.get(ruleset.family)
        if plan is not None:
            for hook in _HOOKS:
                found += _at(hook, ruleset, plan, ours, marks)
    return tuple(found)


def _at(
    hook: str,
    live: Ruleset,
    plan: Ruleset,
    ours: Callable[[Table], Owned],
    marks: Collection[int],
) -> Iterator[Difference]:
    captures = next((name for name in ("nat", "mangle") if _has_rules(plan, name, hook)), None)
    for name in _BEFORE_NAT:
        if captures is None or name == captures:
            return
        table = live.table(name)
        chain = table.chain(hook) if table else None
        if table is None or chain is None:
            continue
        why = f"a foreign rule that may decide first: {name} comes before {captures}"
        planned = _has_rules(plan, name, hook)
        for text, at in _deciding(table, chain, ours(table), marks, planned=planned):
            yield Difference(
                ChangeKind.FOREIGN, live.family, name, hook, text, live_number=at, details=(why,)
            )


def preceding_natively(
    live: Iterable[Table], wanted: Iterable[Table], marks: Collection[int] = ()
) -> Iterator[Difference]:
    """The same of native rules in *live*, the tables of others, before those of the *wanted* ones."""
    bases = [
        (table.name, chain.name, chain.base)
        for table in wanted
        for chain in table.chains
        if chain.base is not None
    ]
    capturing = {
        hook: max(
            (each for each in bases if each[2].hook == hook), key=lambda each: each[2].priority
        )
        for hook in {base.hook for _, _, base in bases}
    }
    ours = {table.name for table in wanted}
    for table in live:
        for chain in table.chains:
            first = capturing.get(chain.base.hook) if chain.base else None
            if table.name in ours or chain.base is None or first is None:
                continue
            name, called, base = first
            both_nat = base.kind == chain.base.kind == "nat"
            if chain.base.priority > base.priority - (not both_nat):
                continue
            why = (
                "a foreign rule that may decide first: its chain has priority"
                f" {chain.base.priority}, {name} {called} has {base.priority}"
            )
            decide = _DECIDE | {"REJECT"} | (_MAP if both_nat else frozenset())
            for text, at in _deciding(table, chain, Owned(), marks, decide, planned=False):
                yield Difference(
                    ChangeKind.FOREIGN, None, table.name, chain.name, text, at, details=(why,)
                )


def _deciding(  # noqa: PLR0913 - whose rules, and which of them
    table: Table,
    chain: Chain,
    own: Owned,
    marks: Collection[int],
    decide: Collection[str] = _DECIDE,
    *,
    planned: bool,
) -> list[tuple[str, int | None]]:
    """What of others in *chain* may end a packet's way, as text and number from 1; the policy last."""
    numbers = own.shared.get(chain.name, {})
    # What stands before a rule of ours in the same chain is told already.
    after = max(numbers, default=-1) if planned else -1
    told: list[tuple[str, int | None]] = [
        (rule.line(chain.name), number + 1)
        for number, rule in enumerate(chain.rules)
        if number > after and number not in numbers and _decides(rule, table, own, marks, decide)
    ]
    if chain.policy == "DROP" and not planned:
        told.append(("policy drop" if chain.base else f":{chain.name} DROP", None))
    return told


def _has_rules(ruleset: Ruleset, table: str, chain: str) -> bool:
    found = ruleset.table(table)
    there = found.chain(chain) if found else None
    return bool(there and there.rules)


def _decides(
    rule: Rule, table: Table, own: Owned, marks: Collection[int], decide: Collection[str]
) -> bool:
    """Whether *rule*, or a chain that it leads to, may end a packet's way."""
    waiting, seen = [rule], set(own.own_chains)
    while waiting:
        for target in waiting.pop().targets:
            if (
                target.name in decide
                or (target.name == "CT" and target.option("--notrack"))
                or _may_mark(target, marks)
            ):
                return True
            chain = None if is_built_in(table.name, target.name) else table.chain(target.name)
            if chain is not None and chain.name not in seen:
                seen.add(chain.name)
                waiting += chain.rules
    return False


def _may_mark(target: Target, marks: Collection[int]) -> bool:
    """Whether *target* may give a packet one of *marks*."""
    option = target.option("--set-xmark", "--set-mark") if target.name == "MARK" else None
    read = read_masked(option.values[0]) if option and option.values else None
    return read is not None and any(mark & read[1] == read[0] for mark in marks)
