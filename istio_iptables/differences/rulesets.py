"""Two rulesets to what differs between them, in the order of the rules.

Order is part of a ruleset: a rule in another place is reported as moved. Rules are compared by
their meaning (``canonical``), so a text from another backend or an older iptables is no change.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum

from istio_iptables.differences.rules import diff_rules, resemble
from istio_iptables.differences.sequence import align
from istio_iptables.netfilter.canonical import canonical
from istio_iptables.netfilter.model import TABLES, Chain, Family, Rule, Ruleset, Table, is_built_in
from istio_iptables.netfilter.ownership import Owned, Position
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from istio_iptables.netfilter.plan import DesiredState, InterfaceAddress, PolicyRoute

__all__ = [
    "ChangeKind",
    "Difference",
    "diff_native",
    "diff_network",
    "diff_rulesets",
    "diff_tables",
    "everything",
    "find_respelled",
]


#: How rules end that are nobody's jump or mark, however they are spelt.
_VERDICTS = ("-j ACCEPT", "-j DROP")


class ChangeKind(Enum):
    """What is different about a rule; the value is the word for it in text and JSON."""

    MISSING = "missing"
    EXTRA = "extra"
    MOVED = "moved"
    CHANGED = "changed"
    #: Not ours, but it decides before our rules are asked.
    FOREIGN = "foreign"


class Difference(NamedTuple):
    """One difference; *text* is the rule (or chain, route, address) that it is about."""

    kind: ChangeKind
    #: None for nftables' own rules, and for rules of ours in another backend, told as one.
    family: Family | None
    #: "" for a route or an address.
    table: str
    chain: str
    text: str
    #: Where the rule stands in the chain as it is; None if it is not there.
    live_number: int | None = None
    #: Where the rule is to stand among the wanted rules of the chain; None for none.
    wanted_number: int | None = None
    #: What is different inside the rule, or what makes a foreign rule matter.
    details: tuple[str, ...] = ()
    #: Why the wanted rule is wanted; "" if nobody said.
    reason: str = ""

    @property
    def line(self) -> str:
        """The difference in one line."""
        where = " ".join(filter(None, (self.table, self.chain)))
        if self.kind is ChangeKind.MOVED:
            number = f" rule {self.live_number} (should be {self.wanted_number})"
        else:
            at = self.wanted_number if self.live_number is None else self.live_number
            number = "" if at is None else f" rule {at}"
        family = self.family.title if self.family else ""
        head = " ".join(filter(None, (family, f"{where}{number}")))
        return (
            f"{self.kind.value}: {head}: {self.text}" if head else f"{self.kind.value}: {self.text}"
        )

    @property
    def lines(self) -> tuple[str, ...]:
        """The line, what differs inside, and the reason of what is missing, each on its own."""
        more = [*self.details]
        if self.reason and self.kind is not ChangeKind.EXTRA:
            more.append(self.reason)
        return (self.line, *(f"    {text}" for text in more))


def everything(table: Table) -> Owned:
    """All of a table as ours: to compare two whole rulesets."""
    return Owned(
        tuple(chain.name for chain in table.chains if not is_built_in(table.name, chain.name)),
        {
            chain.name: dict.fromkeys(range(len(chain.rules)), Position.TAIL)
            for chain in table.chains
            if is_built_in(table.name, chain.name)
        },
    )


def diff_rulesets(
    live: Iterable[Ruleset],
    wanted: Iterable[Ruleset],
    ours: Callable[[Table], Owned] = everything,
) -> tuple[Difference, ...]:
    """What has to happen to *live* to become *wanted*, in the order of the rules.

    *ours* tells which part of a live table counts; a rule that *wanted* has in the same chain
    counts in any case. Foreign rules are only told where they stand before ours.
    """
    live, wanted = tuple(live), tuple(wanted)
    found: list[Difference] = []
    for family in Family:
        left = _tables(live, family)
        right = _tables(wanted, family)
        for name in (*TABLES, *sorted({*left, *right} - {*TABLES})):
            if name in left or name in right:
                table = left.get(name) or Table(name)
                owned = find_respelled(family, table, ours)
                found += diff_tables(family, table, right.get(name), owned)
    return tuple(found)


def _tables(rulesets: Iterable[Ruleset], family: Family) -> dict[str, Table]:
    return {
        table.name: table
        for ruleset in rulesets
        if ruleset.family is family
        for table in ruleset.tables
    }


def diff_tables(
    family: Family, live: Table, wanted: Table | None, owned: Owned
) -> Iterator[Difference]:
    """The same for one table, of which *owned* is ours; found as they are asked for."""
    return _Comparison(family, live, wanted, owned).found()


def diff_native(live: Iterable[Table], wanted: Iterable[Table]) -> tuple[Difference, ...]:
    """The same for native tables, all of which are ours, in the order of those *wanted*."""
    there, asked = ({table.name: table for table in tables} for tables in (live, wanted))
    found: list[Difference] = []
    for name in dict.fromkeys((*asked, *there)):
        old, new = there.get(name, Table(name)), asked.get(name, Table(name))
        found += _diff_objects(old, new)
        found += _Comparison(None, old, new, everything(old)).found()
    return tuple(found)


def _diff_objects(live: Table, wanted: Table) -> Iterator[Difference]:
    """What a table has beside its chains: sets, and flags."""
    for name in dict.fromkeys((*wanted.objects, *live.objects)):
        old, new = live.objects.get(name), wanted.objects.get(name)
        if old == new:
            continue
        details: tuple[str, ...] = ()
        kind = ChangeKind.MISSING if old is None else ChangeKind.EXTRA
        if old is not None and new is not None:
            kind, details = ChangeKind.CHANGED, (f"should be {new}",)
        text = f"{name}: {new if old is None else old}"
        yield Difference(kind, None, live.name, "", text, details=details)


def find_respelled(family: Family, table: Table, ours: Callable[[Table], Owned]) -> Owned:
    """Our part of *table* as *ours* tells it, which is spared the older spellings of our rules."""
    return ours(
        table._replace(
            chains=tuple(
                chain._replace(rules=tuple(_plainly_spelt(rule, family) for rule in chain.rules))
                if is_built_in(table.name, chain.name)
                else chain
                for chain in table.chains
            )
        )
    )


def _plainly_spelt(rule: Rule, family: Family) -> Rule:
    """The rule in its one spelling; the very same one if it is in it already.

    A ruleset may have a million rules, so that none is held twice, and those that end at a
    verdict, which are no jumps and set no marks, are not read at all.
    """
    text = rule.text
    if text.endswith(_VERDICTS):
        return rule
    spelt = canonical(rule, family)
    return rule if spelt.text == text else spelt


class _Comparison:
    """Compares one table with what it should be."""

    def __init__(
        self, family: Family | None, live: Table, wanted: Table | None, owned: Owned
    ) -> None:
        # None for native tables, whose rules are compared as nft lists them.
        self._family = family
        self._table = live.name
        self._live = {chain.name: chain for chain in live.chains}
        self._wanted = {chain.name: chain for chain in wanted.chains} if wanted else {}
        self._owned = owned

    def found(self) -> Iterator[Difference]:
        """The differences of all chains: built-in ones first, as iptables-save has them."""
        own = set(self._owned.own_chains)
        names = [*self._wanted, *(name for name in self._live if name not in self._wanted)]
        names.sort(key=lambda name: not is_built_in(self._table, name))
        for name in names:
            if is_built_in(self._table, name):
                yield from self._shared_chain(name)
            elif name not in self._live or (name not in own and name in self._wanted):
                # A chain of the wanted name counts, whoever made it.
                yield from self._own_chain(name)
            elif name in own:
                yield from self._own_chain(name)

    def _own_chain(self, name: str) -> Iterator[Difference]:
        live, wanted = self._live.get(name), self._wanted.get(name)
        if live is None or wanted is None:
            kind = ChangeKind.MISSING if live is None else ChangeKind.EXTRA
            text = f"-N {name}" if self._family else _chain_text(live or wanted or Chain(name))
            yield Difference(kind, self._family, self._table, name, text)
        elif self._family is None and (live.base, live.policy) != (wanted.base, wanted.policy):
            yield Difference(
                ChangeKind.CHANGED,
                None,
                self._table,
                name,
                _chain_text(live),
                details=(f"should be {_chain_text(wanted)}",),
            )
        rules = live.rules if live else ()
        yield from self._rules(name, rules, range(len(rules)), wanted.rules if wanted else ())

    def _shared_chain(self, name: str) -> Iterator[Difference]:
        live, wanted = self._live.get(name), self._wanted.get(name)
        rules = live.rules if live else ()
        wanted_rules = wanted.rules if wanted else ()
        owned = self._owned.shared.get(name, ())
        numbers = {*owned, *self._as_wanted(rules, wanted_rules, owned)}
        yield from self._rules(name, rules, sorted(numbers), wanted_rules)
        if live is not None and wanted is not None and wanted_rules and numbers:
            yield from self._before_ours(live, wanted, sorted(numbers))

    def _as_wanted(
        self, rules: tuple[Rule, ...], wanted: tuple[Rule, ...], owned: Collection[int]
    ) -> Iterator[int]:
        """The numbers of others' rules that are wanted ones, as far as ours are not there."""
        lacking = Counter(map(self._key, wanted))
        lacking -= Counter(self._key(rules[number]) for number in (owned if wanted else ()))
        # Only rules with the same target can be the same: the others need not be read.
        targets = {rule.target.name if rule.target else "" for rule in wanted}
        for number, rule in enumerate(rules if lacking else ()):
            if number in owned or not any(name in rule.text for name in targets):
                continue
            key = self._key(rule)
            if lacking[key] > 0:
                lacking[key] -= 1
                yield number

    def _before_ours(self, live: Chain, wanted: Chain, numbers: list[int]) -> Iterator[Difference]:
        """The policy that others changed, and their rules before those of ours, at *numbers*."""
        name, rules = live.name, live.rules
        if None not in {wanted.policy, live.policy} and live.policy != wanted.policy:
            detail = f"the policy was {wanted.policy}"
            yield self._foreign(name, f":{name} {live.policy}", None, detail)
        start = 0
        for after in numbers:
            detail = f"is evaluated before our rule {after + 1}: {_text(name, rules[after])}"
            for number in range(start, after):
                yield self._foreign(name, _text(name, rules[number]), number + 1, detail)
            start = after + 1

    def _foreign(self, chain: str, text: str, number: int | None, detail: str) -> Difference:
        return Difference(
            ChangeKind.FOREIGN,
            self._family,
            self._table,
            chain,
            text,
            live_number=number,
            details=(detail,),
        )

    def _key(self, rule: Rule) -> str:
        return self._canonical(rule).text

    def _canonical(self, rule: Rule) -> Rule:
        return canonical(rule, self._family) if self._family else rule

    def _rules(
        self, chain: str, live: tuple[Rule, ...], numbers: Iterable[int], wanted: tuple[Rule, ...]
    ) -> Iterator[Difference]:
        """The differences of one chain's rules, in the order in which they are wanted."""
        numbers = tuple(numbers)
        there = tuple(live[number] for number in numbers)
        for left, right, kept in align(there, wanted, self._key, resemble):
            if kept:
                continue
            found = self._difference(
                chain,
                None if left is None else there[left],
                None if right is None else wanted[right],
            )
            yield found._replace(
                live_number=None if left is None else numbers[left] + 1,
                wanted_number=None if right is None else right + 1,
            )

    def _difference(self, chain: str, old: Rule | None, new: Rule | None) -> Difference:
        """What became of a wanted rule, or was too much; *old* is what is there for *new*."""
        details: tuple[str, ...] = ()
        if new is None:
            kind = ChangeKind.EXTRA
        elif old is None:
            kind = ChangeKind.MISSING
        elif self._key(old) == self._key(new):
            kind = ChangeKind.MOVED
        else:
            kind = ChangeKind.CHANGED
            changes = diff_rules(self._canonical(old), self._canonical(new))
            details = (*changes, f"should be {_text(chain, new)}")
        return Difference(
            kind,
            self._family,
            self._table,
            chain,
            _text(chain, new if old is None else old),
            details=details,
            reason=new.reason if new else "",
        )


def _text(chain: str, rule: Rule | None) -> str:
    return rule.line(chain) if rule else ""


def _chain_text(chain: Chain) -> str:
    """A chain without its rules, as a command of nft makes it."""
    if chain.base is None:
        return f"chain {chain.name}"
    policy = (chain.policy or "ACCEPT").lower()
    return f"chain {chain.name} {{ {chain.base}; policy {policy}; }}"


def diff_network(live: DesiredState, wanted: DesiredState) -> tuple[Difference, ...]:
    """The differences of routes and addresses: what stands beside the rules."""
    return tuple(
        difference
        for kind, items in (
            (ChangeKind.MISSING, wanted.network_without(live)),
            (ChangeKind.EXTRA, live.network_without(wanted)),
        )
        for item in items.network
        for difference in _network(kind, item)
    )


def _network(kind: ChangeKind, item: PolicyRoute | InterfaceAddress) -> Iterator[Difference]:
    for command in item.commands:
        yield Difference(kind, item.family, "", "", " ".join(command), reason=item.reason)
