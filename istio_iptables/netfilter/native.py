"""Native nftables: tables as nft lists them, a transaction for it, commands, plain data.

One table of the family inet holds the rules of both address families. A rule is its text here: what
is in it is a Rule of the model, which ``nftspelling`` translates.
"""

from __future__ import annotations

from istio_iptables.netfilter.formats import network, network_json
from istio_iptables.netfilter.model import Family
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.netfilter.plan import DesiredState

__all__ = [
    "Hook",
    "NativeChain",
    "NativePlan",
    "NativeRule",
    "NativeTable",
    "as_json",
    "listing",
    "text",
    "transaction",
]


class Hook(NamedTuple):
    """Where the kernel calls a base chain; the priority as nft lists it."""

    type: str
    hook: str
    priority: str

    def __str__(self) -> str:
        return f"type {self.type} hook {self.hook} priority {self.priority}; policy accept;"


class NativeRule(NamedTuple):
    """One rule as nft lists it, and its reason."""

    text: str
    reason: str


class NativeChain(NamedTuple):
    """A chain and its rules in order; *hook* is None for a chain that is only jumped to."""

    name: str
    hook: Hook | None
    rules: tuple[NativeRule, ...]


class NativeTable(NamedTuple):
    """A table of the family inet."""

    name: str
    chains: tuple[NativeChain, ...]


class NativePlan(NamedTuple):
    """What is to be in a network namespace, with native rules."""

    tables: tuple[NativeTable, ...]
    #: The names of all tables that are ours, with rules or without.
    names: tuple[str, ...]
    #: The routes and addresses that go with the rules.
    beside: DesiredState

    @property
    def rule_count(self) -> int:
        """How many rules there are in all tables."""
        return sum(len(chain.rules) for table in self.tables for chain in table.chains)


def text(plan: NativePlan, format: str) -> str:  # noqa: A002 - as the flag
    """The text of *plan* in one of the formats of a dry run, ``json`` left out."""
    return "".join(f"{line}\n" for line in _FORMATS[format](plan))


def _save(plan: NativePlan) -> Iterator[str]:
    """What ``nft -s list ruleset`` says once the rules are installed, the rest as comments."""
    yield from _listing(plan.tables)
    yield from _beside(plan)


def _annotate(plan: NativePlan) -> Iterator[str]:
    """The same with each rule's reason as a comment above it."""
    yield from _listing(plan.tables, reasons=True)
    yield from _beside(plan, reasons=True)


def _restore(plan: NativePlan) -> Iterator[str]:
    """A transaction for ``nft -f -`` that replaces all tables of ours, whatever they hold."""
    yield from _removal(plan.names)
    yield from _save(plan)


def listing(table: NativeTable) -> str:
    """What ``nft -s list table`` says of one table once it is installed."""
    return "".join(f"{line}\n" for line in _listing([table]))


def transaction(names: Iterable[str], content: str) -> str:
    """A transaction for ``nft -f -`` that puts *content* in place of the tables of these names."""
    return "".join(f"{line}\n" for line in _removal(names)) + content


def _removal(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        # Adding a table that is there changes nothing; deleting one that is not there fails.
        yield f"add table inet {name}"
        yield f"delete table inet {name}"


def _commands(plan: NativePlan) -> Iterator[str]:
    """The nft and ip commands that make the plan, for a shell."""
    yield "nft -f - <<'END'"
    yield from _restore(plan._replace(beside=plan.beside._replace(routes=(), addresses=())))
    yield "END"
    for item in plan.beside.network:
        yield from map(" ".join, item.commands)


_FORMATS = {"save": _save, "restore": _restore, "commands": _commands, "annotated": _annotate}


def as_json(plan: NativePlan) -> dict[str, object]:
    """The plan as plain data; there is no ruleset of iptables, so ``families`` is empty."""
    return {
        "families": [],
        "nftables": [
            {
                "family": "inet",
                "table": table.name,
                "chains": [_chain_json(chain) for chain in table.chains],
            }
            for table in plan.tables
        ],
        **network_json(plan.beside),
    }


def _chain_json(chain: NativeChain) -> dict[str, object]:
    return {
        "chain": chain.name,
        "hook": None if chain.hook is None else {**chain.hook._asdict(), "policy": "accept"},
        "rules": [
            {"number": number, "text": rule.text, "reason": rule.reason}
            for number, rule in enumerate(chain.rules, start=1)
        ],
    }


def _listing(tables: Iterable[NativeTable], *, reasons: bool = False) -> Iterator[str]:
    for table in tables:
        yield f"table inet {table.name} {{"
        for number, chain in enumerate(table.chains):
            if number:
                yield ""
            yield f"\tchain {chain.name} {{"
            if chain.hook is not None:
                yield f"\t\t{chain.hook}"
            for rule in chain.rules:
                if reasons:
                    yield f"\t\t# {rule.reason}"
                yield f"\t\t{rule.text}"
            yield "\t}"
        yield "}"


def _beside(plan: NativePlan, *, reasons: bool = False) -> Iterator[str]:
    for family in Family:
        yield from network(plan.beside, family, reasons=reasons).splitlines()
