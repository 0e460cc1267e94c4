"""Rules of ours that are there several times, and other signs of how they came to be there."""

from __future__ import annotations

from collections import Counter
from math import gcd
from typing import TYPE_CHECKING

from istio_iptables.istio.ownership import NATIVE_NAMES, find_owned
from istio_iptables.istio.rules import OUTPUT
from istio_iptables.netfilter.canonical import canonical
from istio_iptables.netfilter.model import each_table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from istio_iptables.netfilter.model import Chain, Ruleset, Table

#: Where the rules of a pod in ambient mode begin.
_AMBIENT = "ISTIO_PRERT"

__all__ = ["copies", "signs", "without_copies"]


def copies(rulesets: Iterable[Ruleset]) -> int:
    """How many times over every rule of ours is there: 1, or 0 where there are none.

    Settings may make a rule twice, but never all of them.
    """
    return gcd(
        *(
            count
            for _, table in each_table(rulesets)
            for chain, numbers in _ours(table)
            for count in Counter(chain.rules[number].text for number in numbers).values()
        )
    )


def without_copies(rulesets: Iterable[Ruleset], times: int) -> tuple[Ruleset, ...]:
    """The same with each rule of ours as often as one copy of them has it: the first of the chain."""
    return tuple(
        each._replace(tables=tuple(_single(table, times) for table in each.tables))
        for each in rulesets
    )


def _ours(table: Table) -> Iterator[tuple[Chain, Collection[int]]]:
    """The chains with rules of ours, and the numbers of these."""
    owned = find_owned(table)
    for chain in table.chains:
        if table.name in NATIVE_NAMES or chain.name in owned.own_chains:
            yield chain, range(len(chain.rules))
        elif chain.name in owned.shared:
            yield chain, owned.shared[chain.name]


def _single(table: Table, times: int) -> Table:
    single = {}
    for chain, numbers in _ours(table):
        left = Counter(chain.rules[number].text for number in numbers)
        left = Counter({text: count // times for text, count in left.items()})
        kept = []
        for number, rule in enumerate(chain.rules):
            if number in numbers:
                left[rule.text] -= 1
                if left[rule.text] < 0:
                    continue
            kept.append(rule)
        single[chain.name] = chain._replace(rules=tuple(kept))
    return table._replace(chains=tuple(single.get(each.name, each) for each in table.chains))


def signs(rulesets: Iterable[Ruleset]) -> Iterator[str]:
    """What the rules tell of how they came to be there, a line each."""
    rulesets = tuple(rulesets)
    times = copies(rulesets)
    if times > 1:
        yield (
            f"every rule of ours is there {times} times: they were installed again over those that"
            " were there"
        )
    tables = tuple(each_table(rulesets))
    if any(table.chain(_AMBIENT) for _, table in tables):
        yield f"{_AMBIENT} is a chain of Istio's ambient mode, whose rules this program does not make"
    for family, table in tables:
        chain = table.chain("OUTPUT")
        if family is None or table.name != "nat" or chain is None:
            continue
        texts = {canonical(rule, family).text for rule in chain.rules if OUTPUT in rule.text}
        if f"-p tcp -j {OUTPUT}" in texts:
            yield (
                f"the jump to {OUTPUT} is for TCP alone: so Istio 1.24 and older have it, whose"
                " other rules differ as well"
            )
            return
