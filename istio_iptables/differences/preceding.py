"""Foreign rules that decide before a chain of the plan is asked: in a table that comes earlier.

Order inside a chain is the business of ``rulesets``. Here it is the order of the tables at one
hook: what raw leaves untracked never meets nat, what mangle drops meets nobody, and what has the
mark of a policy route is delivered past TPROXY.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from istio_iptables.differences.rulesets import ChangeKind, Difference
from istio_iptables.netfilter.fieldvalues import read_masked
from istio_iptables.netfilter.model import Base, Ruleset, Target, is_built_in
from istio_iptables.netfilter.ownership import Owned

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from istio_iptables.netfilter.model import Chain, Family, Rule, Table
    from istio_iptables.netfilter.nftrules import NftRule

__all__ = ["preceding", "preceding_natively", "preceding_otherwise"]

#: The tables that see a packet before nat, in the order in which they do.
_BEFORE_NAT = ("raw", "mangle")
_HOOKS = ("PREROUTING", "OUTPUT")
#: Targets that end a packet's way, or keep it from connection tracking and so from nat.
_DECIDE = frozenset({"DROP", "NOTRACK", "QUEUE", "NFQUEUE", "TPROXY"})
#: Targets behind which no other chain of nat is asked.
_MAP = frozenset({"DNAT", "REDIRECT"})
#: What is done where a map says to which address or port; it is not read.
_COMPUTED = {"dnat": "DNAT", "redirect": "REDIRECT", "tproxy": "TPROXY"}
#: Where the kernel calls the chains of iptables that a packet meets before it is captured.
_BASES = {
    (table, hook): Base(kind, hook, priority)
    for table, kind, priority in (
        ("raw", "filter", -300),
        ("mangle", "filter", -150),
        ("nat", "nat", -100),
    )
    for hook in _HOOKS
}


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
    """The same of native rules in *live*, the tables of others, before those of the *wanted* ones.

    These may be tables of iptables, too.
    """
    wanted = tuple(wanted)
    ours = {table.name for table in wanted}
    others = [table for table in live if table.name not in ours]
    return _called_first(others, wanted, marks, None, lambda _: Owned())


def preceding_otherwise(
    live: Iterable[Ruleset],
    wanted: Iterable[Table],
    ours: Callable[[Table], Owned],
    family: Family | None = None,
) -> Iterator[Difference]:
    """The rules of others in the tables nat of *live* that may map a connection before *wanted* ones do.

    These are native, or of the other backend and of *family*.
    """
    wanted = tuple(wanted)
    for ruleset in live:
        if family in {None, ruleset.family}:
            others = [table for table in ruleset.tables if table.name == "nat"]
            yield from _called_first(others, wanted, (), ruleset.family, ours)


def _bases(tables: Iterable[Table]) -> Iterator[tuple[Table, Chain, Base]]:
    """The chains that the kernel calls, and where; those of iptables where there are rules in them."""
    for table in tables:
        for chain in table.chains:
            base = chain.base or (_BASES.get((table.name, chain.name)) if chain.rules else None)
            if base is not None and not table.dormant:
                yield table, chain, base


def _called_first(
    live: Iterable[Table],
    wanted: Iterable[Table],
    marks: Collection[int],
    family: Family | None,
    ours: Callable[[Table], Owned],
) -> Iterator[Difference]:
    """What may decide in chains that are called before the last of the *wanted* ones at their hook."""
    capturing: dict[str, tuple[Table, Chain, Base]] = {}
    for each in _bases(wanted):
        hook = each[2].hook
        if hook not in capturing or each[2].priority > capturing[hook][2].priority:
            capturing[hook] = each
    for table, chain, base in _bases(live):
        if base.hook not in capturing:
            continue
        last, called, capture = capturing[base.hook]
        both_nat = capture.kind == base.kind == "nat"
        # Of one priority, that of the chain which was registered last is called first.
        if base.priority > capture.priority:
            continue
        why = (
            f"a foreign rule that may decide first: its chain has priority {base.priority},"
            f" {last.name} {called.name} has {capture.priority}"
        )
        decide = _DECIDE | {"REJECT"} | (_MAP if both_nat else frozenset())
        for text, at in _deciding(table, chain, ours(table), marks, decide, planned=False):
            yield Difference(
                ChangeKind.FOREIGN, family, table.name, chain.name, text, at, details=(why,)
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
        for target in _all_targets(waiting.pop(), table):
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


def _all_targets(rule: Rule, table: Table) -> Iterator[Target]:
    """All that *rule* may do: by a named map, or to what a map says, as well."""
    yield from rule.targets
    if " " in table.name:
        yield from _by_maps(cast("NftRule", rule), table)


def _by_maps(rule: NftRule, table: Table) -> Iterator[Target]:
    # Every install looks at rules of iptables, and few at these.
    from istio_iptables.netfilter.nftrules import split_elements, split_verdicts

    for each in rule.statements:
        if each.operator == "vmap" and each.values[0].startswith("@"):
            listed = table.objects.get(f"map {each.values[0][1:]}", "").partition("elements = ")[2]
            found = split_verdicts(split_elements(listed) or ())
            yield from found[1] if found else ()
        elif not each.field and each.target is None and not each.harmless:
            word, _, rest = each.text.partition(" ")
            if word in _COMPUTED:
                yield Target(_COMPUTED[word])
            elif word == "meta" and rest.startswith("mark set "):
                yield Target("MARK")


def _may_mark(target: Target, marks: Collection[int]) -> bool:
    """Whether *target* may give a packet one of *marks*."""
    option = target.option("--set-xmark", "--set-mark") if target.name == "MARK" else None
    if option is None and target.name == "MARK":
        # Which one can't be known.
        return bool(marks)
    read = read_masked(option.values[0]) if option and option.values else None
    return read is not None and any(mark & read[1] == read[0] for mark in marks)
