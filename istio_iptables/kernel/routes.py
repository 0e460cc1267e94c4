"""Policy routes and the ::6 address: what is there, and changing it through pyroute2.

A change is prepared before anything is done: pyroute2 takes 150 ms to import, and may be missing.
What is done then is one message after the other, each with the one that takes it back.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from istio_iptables.errors import KernelRefused
from istio_iptables.kernel import netlink
from istio_iptables.kernel.capabilities import missing
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.plan import InterfaceAddress, PolicyRoute

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Change", "Link", "delivering_routes", "has_address", "has_route", "left_routes"]

#: Of the rule that leads to the main table.
_MAIN_PRIORITY = 32766
_RTPROT_BOOT = 3
_SCOPE_HOST = 254
#: The errors that say that there is nothing to do.
_NOTHING_TO_DO = {
    "add": frozenset({errno.EEXIST}),
    "del": frozenset({errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL}),
}
_OPPOSITE = {"add": "del", "del": "add"}
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


class _Message(NamedTuple):
    """One message of pyroute2: ``rule``, ``route`` or ``addr``, ``add`` or ``del``, and its words."""

    about: str
    action: str
    words: dict[str, Any]

    @property
    def opposite(self) -> _Message:
        """What takes it back."""
        return self._replace(action=_OPPOSITE[self.action])


class Change:
    """The adding or removal of a policy route or an address, ready to be done and taken back."""

    def __init__(self, link: Link, what: str, verb: str, messages: tuple[_Message, ...]) -> None:
        self.what = what
        self._link = link
        self._verb = verb
        self._messages = messages
        self._back: list[_Message] = []

    def do(self) -> None:
        """Do it; what is there already, or is gone already, is left so."""
        for message in self._messages:
            # Noted first: whatever is raised from here on, the kernel may have done it.
            self._back.append(message.opposite)
            if not self._send(message, self._verb):
                self._back.pop()

    def back(self) -> None:
        """Take back what was done of it."""
        while self._back:
            self._send(self._back.pop(), "put back")

    def _send(self, message: _Message, verb: str) -> bool:
        """Whether there was anything to do for the message."""
        try:
            self._link.send(message)
        except self._link.errors as error:
            number = getattr(error, "code", 0) or getattr(error, "errno", 0) or 0
            if number in _NOTHING_TO_DO[message.action]:
                return False
            reason = os.strerror(number) if number else str(error)
            refused = f"can't {verb} {self.what}: {reason}{missing()}"
            raise KernelRefused(refused) from error
        return True


class Link:
    """pyroute2's connection to the kernel, in the namespace the process is in.

    It is opened when the first change is prepared. Raises KernelRefused if it can't be.
    """

    def __init__(self) -> None:
        self._ip: Any = None
        #: What sending raises when the kernel refuses.
        self.errors: tuple[type[Exception], ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ip is not None:
            self._ip.close()

    def send(self, message: _Message) -> None:
        """Send one message of a change."""
        getattr(self._ip, message.about)(message.action, **message.words)

    def _open(self) -> None:
        if self._ip is not None:
            return
        import logging  # pyroute2 needs it in any case

        disabled = logging.root.manager.disable
        try:
            # Short of memory, hashlib logs tracebacks and goes on.
            logging.disable()
            from pyroute2 import IPRoute, NetlinkError
        except MemoryError:
            raise
        except Exception as error:
            # Loading runs its modules, which may raise anything.
            message = f"pyroute2, which changes routes and addresses, can't be loaded: {error}"
            raise KernelRefused(message) from error
        finally:
            logging.disable(disabled)
        self.errors = (NetlinkError, OSError)
        try:
            self._ip = IPRoute()
        except self.errors as error:
            message = f"can't open pyroute2's connection to the kernel: {error}"
            raise KernelRefused(message) from error

    def add_route(self, route: PolicyRoute) -> Change:
        """Adds the route and then the rule that leads to it; what is there already stays as it is."""
        messages = [_Message("route", "add", _route_words(route))]
        if not _priorities(route):
            words = _rule_words(route, _free_priority(route.family))
            messages.append(_Message("rule", "add", words))
        return self._change(f"the route '{' '.join(route.commands[1])}'", "add", messages)

    def remove_route(self, route: PolicyRoute) -> Change:
        """Removes the route, and then every copy of the rule, by which the route is found."""
        messages = [_Message("route", "del", _route_words(route))]
        # Each by its priority: pyroute2 looks for the rule at 32000 when it is not told where.
        messages += (
            _Message("rule", "del", _rule_words(route, number)) for number in _priorities(route)
        )
        return self._change(f"the rule '{' '.join(route.commands[0])}'", "remove", messages)

    def add_address(self, address: InterfaceAddress) -> Change:
        """Adds the address to its interface, if it is not there."""
        what = f"the address {address.address} to {address.interface}"
        return self._change(what, "add", [_Message("addr", "add", _address_words(address))])

    def remove_address(self, address: InterfaceAddress) -> Change:
        """Removes the address from its interface, if it is there."""
        what = f"the address {address.address} from {address.interface}"
        return self._change(what, "remove", [_Message("addr", "del", _address_words(address))])

    def _change(self, what: str, verb: str, messages: Iterable[_Message]) -> Change:
        self._open()
        return Change(self, what, verb, tuple(messages))


def _route_words(route: PolicyRoute) -> dict[str, Any]:
    # The protocol and scope that `ip route add local default dev lo` gives it.
    return {
        "family": route.family.number,
        "dst": "default",
        "type": "local",
        "oif": netlink.interface_index("lo"),
        "table": route.table,
        "proto": _RTPROT_BOOT,
        "scope": _SCOPE_HOST,
    }


def _rule_words(route: PolicyRoute, priority: int) -> dict[str, Any]:
    number = route.family.number
    return {"family": number, "fwmark": route.mark, "table": route.table, "priority": priority}


def _address_words(address: InterfaceAddress) -> dict[str, Any]:
    return {
        "family": address.family.number,
        "index": netlink.interface_index(address.interface),
        "address": address.address,
        "prefixlen": address.prefix,
    }
