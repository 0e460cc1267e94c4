"""Policy routes and the ::6 address: what is there, and changing it through pyroute2."""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from istio_iptables.errors import KernelRefused
from istio_iptables.kernel import netlink
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.plan import InterfaceAddress, PolicyRoute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyroute2 import IPRoute

__all__ = [
    "add_address",
    "add_route",
    "delivering_routes",
    "has_address",
    "has_route",
    "left_routes",
    "remove_address",
    "remove_route",
]

#: Of the rule that leads to the main table.
_MAIN_PRIORITY = 32766
_RTPROT_BOOT = 3
_SCOPE_HOST = 254
_EXISTS = 17
_GONE = frozenset({2, 3, 99})  # ENOENT, ESRCH, EADDRNOTAVAIL
#: Tables of the kernel's own, which hold more than a route of ours whatever they look like.
_KERNEL_TABLES = frozenset({0, 253, 254, 255})


def has_route(route: PolicyRoute) -> bool:
    """Whether both the policy rule and its route are there."""
    there = netlink.is_local_default(route.family.number, route.table)
    return bool(there and _priorities(route))


def _priorities(route: PolicyRoute) -> list[int]:
    """The priorities at which the policy rule of *route* is there; mostly one or none."""
    wanted = netlink.MarkRule(route.mark, route.table)
    return [number for rule, number in netlink.policy_rules(route.family.number) if rule == wanted]


def _free_priority(family: Family) -> int:
    """Before every other rule but the first, as `ip rule add` puts it (pyroute2: at 32000).

    Rules like ours do not count, so that a replace ends where a first install does.
    """
    others = [
        number
        for rule, number in netlink.policy_rules(family.number)
        if number and not (rule and netlink.is_local_default(family.number, rule.table))
    ]
    return max(min(others, default=_MAIN_PRIORITY) - 1, 1)


def has_address(address: InterfaceAddress) -> bool:
    """Whether lo has the address."""
    return netlink.has_loopback_address(address.address)


def left_routes(marks: Iterable[int]) -> tuple[PolicyRoute, ...]:
    """The policy routes of ours that are there, by the marks our rules use.

    A route is ours when its rule goes by one of *marks* and leads to a table that holds
    ``local default dev lo`` and nothing else (or nothing at all any more).
    """
    wanted = set(marks)
    if not wanted:
        return ()
    found = []
    for family in Family:
        for rule in dict.fromkeys(rule for rule, _ in netlink.policy_rules(family.number)):
            if rule and rule.mark in wanted and rule.table not in _KERNEL_TABLES:
                ours = netlink.is_local_default(family.number, rule.table)
                if ours is None or ours:
                    found.append(PolicyRoute(family, rule.mark, rule.table))
    return tuple(found)


def delivering_routes() -> tuple[PolicyRoute, ...]:
    """Every policy rule that delivers packets here for their mark, whoever made it."""
    return tuple(
        PolicyRoute(family, rule.mark, rule.table)
        for family in Family
        for rule, priority in netlink.policy_rules(family.number)
        # Behind the main table's, a rule is mostly never asked.
        if rule
        and priority < _MAIN_PRIORITY
        and netlink.is_local_default(family.number, rule.table)
    )


def _change(what: str, *steps: Callable[[Any], object], fine: frozenset[int] = frozenset()) -> None:
    """Carry out *steps* with pyroute2; an error number in *fine* means there was nothing to do."""
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as ip:
            for step in steps:
                try:
                    step(ip)
                except NetlinkError as error:
                    if error.code not in fine:
                        raise
    except NetlinkError as error:
        from istio_iptables.kernel.capabilities import missing

        message = f"can't {what}: {os.strerror(error.code)}{missing()}"
        raise KernelRefused(message) from error
    except OSError as error:
        message = f"can't {what}: {error.strerror or error}"
        raise KernelRefused(message) from error


def _route_words(route: PolicyRoute) -> dict[str, Any]:
    # The protocol and scope that `ip route add local default dev lo` gives it.
    return {
        "family": route.family.number,
        "dst": "default",
        "type": "local",
        "oif": socket.if_nametoindex("lo"),
        "table": route.table,
        "proto": _RTPROT_BOOT,
        "scope": _SCOPE_HOST,
    }


def add_route(route: PolicyRoute) -> None:
    """Add the route and then the rule that leads to it; what is there already stays as it is."""
    steps: list[Callable[[Any], object]] = [lambda ip: ip.route("add", **_route_words(route))]
    if not _priorities(route):
        words = _rule_words(route, _free_priority(route.family))
        steps.append(lambda ip: ip.rule("add", **words))
    _change(f"add the route '{' '.join(route.commands[1])}'", *steps, fine=frozenset({_EXISTS}))


def remove_route(route: PolicyRoute) -> None:
    """Remove the route, and then every copy of the rule, by which the route is found."""
    steps: list[Callable[[Any], object]] = [lambda ip: ip.route("del", **_route_words(route))]
    # Each by its priority: pyroute2 looks for the rule at 32000 when it is not told where.
    steps += (partial(_delete_rule, _rule_words(route, number)) for number in _priorities(route))
    _change(f"remove the rule '{' '.join(route.commands[0])}'", *steps, fine=_GONE)


def _delete_rule(words: dict[str, Any], ip: IPRoute) -> None:
    ip.rule("del", **words)


def _rule_words(route: PolicyRoute, priority: int) -> dict[str, Any]:
    number = route.family.number
    return {"family": number, "fwmark": route.mark, "table": route.table, "priority": priority}


def add_address(address: InterfaceAddress) -> None:
    """Add the address to its interface, if it is not there."""
    words = _address_words(address)
    _change(
        f"add the address {address.address} to {address.interface}",
        lambda ip: ip.addr("add", **words),
        fine=frozenset({_EXISTS}),
    )


def remove_address(address: InterfaceAddress) -> None:
    """Remove the address from its interface, if it is there."""
    words = _address_words(address)
    _change(
        f"remove the address {address.address} from {address.interface}",
        lambda ip: ip.addr("del", **words),
        fine=_GONE,
    )


def _address_words(address: InterfaceAddress) -> dict[str, Any]:
    return {
        "family": address.family.number,
        "index": socket.if_nametoindex(address.interface),
        "address": address.address,
        "prefixlen": address.prefix,
    }
