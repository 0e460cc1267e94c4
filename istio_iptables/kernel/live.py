"""What a network namespace holds now, for those who only look."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.kernel import routes
from istio_iptables.kernel.backend import choose
from istio_iptables.kernel.namespace import entered
from istio_iptables.netfilter.model import Family, Ruleset

if TYPE_CHECKING:
    from istio_iptables.netfilter.plan import InterfaceAddress, Plan, PolicyRoute

__all__ = ["LiveState", "NativeChain", "read"]


class NativeChain(NamedTuple):
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
    #: Rules in the other backend, which the kernel applies as well; mostly empty.
    other_rulesets: tuple[Ruleset, ...]
    #: The routes and addresses of the plan that was asked about which are there.
    routes: tuple[PolicyRoute, ...]
    addresses: tuple[InterfaceAddress, ...]
    #: Chains at the hooks of our tables that iptables does not show.
    native_chains: tuple[NativeChain, ...] = ()
    #: Tables that could not be read, such as ``IPv4 filter (nft)``.
    unreadable: tuple[str, ...] = ()


def read(plan: Plan, *, namespace: str = "", backend: str = "") -> LiveState:
    """The state of *namespace* ("" is the current one), without changing or loading anything.

    Raises KernelRefused when it can't be read.
    """
    with entered(namespace):
        choice = choose(backend)
        return LiveState(
            choice.backend.name,
            choice.reason,
            tuple(choice.backend.read(family) for family in Family),
            tuple(choice.other.read(family) for family in Family) if choice.other else (),
            tuple(route for route in plan.routes if routes.has_route(route)),
            tuple(address for address in plan.addresses if routes.has_address(address)),
        )
