"""What the kernel also asks about a packet and explain does not follow: rules of other tables and backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.netfilter.model import (
    BUILT_IN_CHAINS,
    PRIORITIES,
    SOURCE_NAT,
    TABLES,
    Base,
    Family,
)
from istio_iptables.trace.hooks import End

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_iptables.kernel.live import LiveState, UnseenChain
    from istio_iptables.netfilter.model import Ruleset, Table
    from istio_iptables.trace.hooks import Outcome

__all__ = [
    "Unseen",
    "chains_at_devices",
    "chains_on_way",
    "not_followed",
    "tied",
    "unseen_chains",
    "with_other_backend",
]

#: Where an interface hands packets over, before and behind all that is followed.
_DEVICE = frozenset({"INGRESS", "EGRESS"})
_FAMILIES = {"ip": {Family.IPV4}, "ip6": {Family.IPV6}, "inet": set(Family), "netdev": set(Family)}


class Unseen(NamedTuple):
    """A chain that decides about packets and whose rules were not read."""

    families: frozenset[Family]
    #: Such as ``nftables chain inet fw output``.
    name: str
    #: ``nat``, ``filter`` or ``route``.
    kind: str
    hook: str
    priority: int

    @property
    def line(self) -> str:
        """The chain and its place, in one line."""
        return f"{self.name} ({self.kind}, hook {self.hook}, priority {self.priority})"

    @property
    def decides(self) -> bool:
        """Whether captured traffic comes to it, and may be lost or led elsewhere."""
        if self.kind == "nat":
            return self.hook in {"PREROUTING", "OUTPUT"}
        return self.hook != "FORWARD"


def unseen_chains(state: LiveState, *, native: bool = False) -> tuple[Unseen, ...]:
    """All chains of a namespace that are not followed; with *native* those of nftables are."""
    other = "nft" if state.backend == "legacy" else "legacy"
    followed = native and state.native is not None
    found = [_native(each) for each in state.native_chains if not followed or each.hook in _DEVICE]
    for ruleset in state.other_rulesets:
        found += _of_other_backend(ruleset, other)
    for text in state.unreadable:
        found += _unreadable(text)
    return tuple(found)


def chains_at_devices(rulesets: Iterable[Ruleset]) -> tuple[Unseen, ...]:
    """Those that packets come to at an interface, which one it is isn't looked at."""
    found = [
        _of_nftables(table.name.split(" ")[0], f"{table.name} {chain.name}", chain.base)
        for ruleset in rulesets
        for table in ruleset.tables
        for chain in table.chains
        if chain.base
        and chain.base.hook in _DEVICE
        and (chain.rules or chain.policy == "DROP")
        and not table.dormant
    ]
    return tuple(dict.fromkeys(found))


def not_followed(unseen: Iterable[Unseen]) -> list[str]:
    """A line about chains of nftables' own, or none: whatever else is not seen has its warning."""
    lines = sorted({each.line for each in unseen if each.name.startswith("nftables")})
    if not lines:
        return []
    return [f"the kernel asks chains as well that are not followed: {', '.join(lines)}"]


def tied(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """A line for each group of chains whose order makes a difference to these, and is not known."""
    ties = {
        each.tie: None
        for outcome in outcomes
        for each in outcome.assumptions
        if each.tie is not None
    }
    return tuple(
        f"{' and '.join(each.chains)} have the same priority at hook {each.hook}: the kernel asks the"
        " one first that was registered last, which can't be read; every order is followed"
        for each in ties
    )


def _unreadable(text: str) -> Iterable[Unseen]:
    """The hooks of a table that could not be read, such as ``IPv4 filter (nft)``."""
    families = frozenset(each for each in Family if each.title in text) or frozenset(Family)
    for table in (each for each in TABLES if each in text.split()):
        for hook in BUILT_IN_CHAINS[table]:
            kind = "nat" if table == "nat" else "filter"
            name = f"the unreadable table {text}"
            yield Unseen(families, name, kind, hook, _priority(table, hook))


def _native(chain: UnseenChain) -> Unseen:
    base = Base(chain.kind, chain.hook, chain.priority)
    return _of_nftables(chain.family, f"{chain.family} {chain.table} {chain.chain}", base)


def _of_nftables(family: str, name: str, base: Base) -> Unseen:
    return Unseen(frozenset(_FAMILIES.get(family, ())), f"nftables chain {name}", *base)


def _of_other_backend(ruleset: Ruleset, backend: str) -> Iterable[Unseen]:
    for table in ruleset.tables:
        if table.name not in TABLES:
            continue
        for chain in table.chains:
            if chain.name not in BUILT_IN_CHAINS[table.name]:
                continue
            if chain.rules or chain.policy not in {None, "ACCEPT"}:
                yield Unseen(
                    frozenset({ruleset.family}),
                    f"{backend} chain {table.name} {chain.name}",
                    "nat" if table.name == "nat" else "filter",
                    chain.name,
                    _priority(table.name, chain.name),
                )


def with_other_backend(
    rulesets: Iterable[Ruleset], others: Iterable[Ruleset], backend: str
) -> tuple[Ruleset, ...]:
    """*rulesets*, and beside them the tables of the other *backend*, such as ``nft filter``."""
    tables = {
        each.family: [_with_bases(table, backend) for table in each.tables] for each in others
    }
    return tuple(
        each._replace(tables=(*each.tables, *tables.get(each.family, ()))) for each in rulesets
    )


def _with_bases(table: Table, backend: str) -> Table:
    chains = []
    for chain in table.chains:
        base = None
        if chain.name in BUILT_IN_CHAINS.get(table.name, ()):
            # A packet with another mark is routed anew behind it.
            route = (table.name, chain.name) == ("mangle", "OUTPUT")
            kind = "route" if route else "nat" if table.name == "nat" else "filter"
            base = Base(kind, chain.name, _priority(table.name, chain.name))
        chains.append(chain._replace(base=base))
    return table._replace(name=f"{backend} {table.name}", chains=tuple(chains))


def _priority(table: str, hook: str) -> int:
    if table == "nat" and hook in {"INPUT", "POSTROUTING"}:
        return SOURCE_NAT
    return PRIORITIES[table]


def chains_on_way(outcome: Outcome, chains: Iterable[Unseen]) -> tuple[Unseen, ...]:
    """Those of *chains* that the kernel asks about the packet on this way."""
    packet = outcome.start or outcome.packet
    hooks = list(outcome.hooks)
    if "PREROUTING" in hooks:
        hooks.insert(hooks.index("PREROUTING"), "INGRESS")
    if "POSTROUTING" in hooks:
        hooks.append("EGRESS")
    return tuple(
        chain
        for chain in chains
        if packet.family in chain.families
        and chain.hook in hooks
        and not _behind_the_end(outcome, chain)
        and not (chain.kind == "nat" and _is_settled(outcome, chain))
    )


def _behind_the_end(outcome: Outcome, chain: Unseen) -> bool:
    """Whether the packet was dropped before it could come to the chain."""
    if outcome.end is not End.DROPPED or not outcome.steps:
        return False
    last = outcome.steps[-1]
    return (
        chain.hook == last.hook
        and outcome.hooks.count(last.hook) == 1
        and chain.priority > last.priority
    )


def _is_settled(outcome: Outcome, chain: Unseen) -> bool:
    """Whether nat asks the chain nothing: there is no connection, or it has its mapping already.

    The first chain of a hook that maps a connection is the last one that is asked there.
    """
    if not outcome.packet.tracked or outcome.packet.is_error:
        return True
    return any(
        step.kind == "nat"
        and step.hook == chain.hook
        and step.change
        and chain.priority > step.priority
        for step in outcome.steps
    )
