"""What a network namespace holds now, for readers that change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.errors import KernelRefused
from istio_iptables.kernel import nftables, routes
from istio_iptables.kernel.backend import refuse, retrying
from istio_iptables.kernel.detect import detect
from istio_iptables.kernel.namespace import entered
from istio_iptables.kernel.nftlist import native_tables
from istio_iptables.netfilter.model import TABLES, Family, Ruleset, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from istio_iptables.kernel.backend import UnusableTable
    from istio_iptables.netfilter.ownership import Ownership
    from istio_iptables.netfilter.plan import DesiredState, InterfaceAddress, PolicyRoute

__all__ = ["LiveState", "UnseenChain", "read"]


class UnseenChain(NamedTuple):
    """A base chain of nftables with rules in it, which the kernel asks and iptables does not show."""

    #: ``ip``, ``ip6``, ``inet`` or ``netdev``.
    family: str
    table: str
    chain: str
    #: Its type: ``nat``, ``filter`` or ``route``.
    kind: str
    #: ``PREROUTING``, ``INPUT``, ``FORWARD``, ``OUTPUT``, ``POSTROUTING`` or ``INGRESS``.
    hook: str
    priority: int


class LiveState(NamedTuple):
    """The rules of one backend in a namespace, and what a plan has beside its rules."""

    #: ``legacy`` or ``nft``, and why that one was read.
    backend: str
    reason: str
    rulesets: tuple[Ruleset, ...]
    #: Rules in the other backend, which the kernel applies as well; mostly none.
    other_rulesets: tuple[Ruleset, ...]
    #: The routes and addresses of the plan that was asked about which are there.
    routes: tuple[PolicyRoute, ...]
    addresses: tuple[InterfaceAddress, ...]
    #: The commands of other routes of the plan whose part is there all the same.
    half_there: tuple[str, ...] = ()
    #: Chains at the hooks of our tables that iptables does not show.
    native_chains: tuple[UnseenChain, ...] = ()
    #: The tables of these; None where they could not be listed.
    native: tuple[Table, ...] | None = ()
    #: Tables that could not be read, such as ``IPv4 filter (nft)``.
    unreadable: tuple[str, ...] = ()
    #: Lines about tables that the kernel does not apply (they count as absent), or that are owned.
    warnings: tuple[str, ...] = ()


def read(
    plan: DesiredState,
    ownership: Ownership,
    *,
    namespace: str = "",
    backend: str = "",
    native: bool = False,
) -> LiveState:
    """The state of *namespace* ("" is the current one), without changing or loading anything.

    Raises KernelRefused when what *plan* is about can't be read: a table of ours, or one that the
    plan has rules in; with *native*, native tables.
    """
    with entered(namespace):
        return retrying(lambda: _read(plan, ownership, backend, native=native))


def _read(
    plan: DesiredState, ownership: Ownership, forced: str, *, native: bool = False
) -> LiveState:
    detected = detect(forced, ownership)
    chosen = detected.readings
    _, others = detected.other or (None, ())
    for reading in chosen:
        refuse(reading.unread, plan.table_names(reading.ruleset.family))
    for reading in others:
        refuse(reading.unread)
    faults = [fault for reading in (*chosen, *others) for fault in reading.faults]
    return LiveState(
        detected.backend.name,
        detected.reason,
        tuple(reading.in_force for reading in chosen),
        tuple(reading.in_force for reading in others if reading.in_force.rule_count),
        tuple(filter(routes.has_route, plan.routes)),
        tuple(filter(routes.has_address, plan.addresses)),
        tuple(" ".join(each) for route in plan.routes for each in routes.half_there(route)),
        *_native(native=native),
        tuple(fault.name for fault in faults if fault.unread),
        tuple(_warnings(faults)),
    )


def _warnings(faults: Iterable[UnusableTable]) -> Iterator[str]:
    """What is to be known of tables that were read."""
    for fault in faults:
        if not fault.unread and (fault.dormant or fault.ours):
            yield fault.reason


def _native(*, native: bool) -> tuple[tuple[UnseenChain, ...], tuple[Table, ...] | None]:
    """The chains that iptables does not show, and the tables they are in, if nft lists them."""
    candidates = list(_not_shown())
    if not (candidates or native):
        return (), ()
    chains = _native_chains(candidates)
    try:
        return chains, native_tables()
    except KernelRefused:
        if native:
            raise
        return chains, None


def _native_chains(
    candidates: Sequence[tuple[nftables.NftChain, nftables.NftBase]],
) -> tuple[UnseenChain, ...]:
    """Those of the base chains that iptables does not show that do something."""
    if not candidates:
        return ()
    idle = {(table.family, table.name) for table in nftables.tables() if table.dormant}
    filled = {rule[:3] for rule in nftables.rules()}
    return tuple(
        UnseenChain(
            nftables.FAMILIES[chain.family],
            chain.table,
            chain.name,
            base.kind,
            nftables.hook_name(chain.family, base.hook),
            base.priority,
        )
        for chain, base in candidates
        if chain[:2] not in idle and (chain.drops or chain[:3] in filled)
    )


def _not_shown() -> Iterator[tuple[nftables.NftChain, nftables.NftBase]]:
    """The base chains that see a pod's packets and that iptables does not show."""
    iptables = {family.number for family in Family}
    for chain in nftables.chains():
        if chain.base is None or chain.family not in nftables.FAMILIES:
            continue
        if not (chain.family in iptables and chain.table in TABLES and nftables.is_iptables(chain)):
            yield chain, chain.base
