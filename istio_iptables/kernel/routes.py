"""Policy routes and the ::6 address: what is there, and changing it.

A change is prepared before anything is done: pyroute2, which writes the messages to the kernel,
takes 150 ms to import, and may be missing. What is done then is sending one after the other, each
with the one that takes it back. They are sent without pyroute2: short of memory, its event loop
waits for ever for an answer that it has dropped.
"""

from __future__ import annotations

import errno
import os
import struct
import sys

from istio_iptables import sockets
from istio_iptables.errors import KernelRefused
from istio_iptables.kernel import netlink
from istio_iptables.kernel.capabilities import missing
from istio_iptables.kernel.reserve import require_space
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.plan import InterfaceAddress, PolicyRoute
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Any, Self, TypeGuard

__all__ = [
    "Change",
    "Link",
    "delivering_routes",
    "delivers",
    "half_there",
    "has_address",
    "has_route",
    "left_routes",
]

#: Of the rule that leads to the main table.
_MAIN_PRIORITY = 32766
_RTPROT_BOOT = 3
_SCOPE_HOST = 254
_RTN_LOCAL = 2
_FR_ACT_TO_TBL = 1
#: RTM_NEWADDR, RTM_NEWROUTE and RTM_NEWRULE; the deletion of each has the next number.
_ADDRESS, _ROUTE, _RULE = 20, 24, 32
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
#: What loading pyroute2 takes (measured: 23 MB), and some more.
_PYROUTE2_BYTES = 28 << 20
#: Of struct nlmsghdr.
_HEADER_SIZE = 16
_ONE_BYTE = 256
#: The errors that say that there is nothing to do, for an addition and a deletion.
_THERE = frozenset({errno.EEXIST})
_GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL})
#: An address that no host has, to ask what becomes of a packet with a mark.
_ELSEWHERE = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8::1"}
#: Tables of the kernel's own, which hold more than a route of ours whatever they look like.
_KERNEL_TABLES = frozenset({0, 253, 254, 255})


def has_route(route: PolicyRoute) -> bool:
    """Whether the policy rule and its route are there, and the kernel goes by them.

    A rule behind that of the main table is never asked, nor one behind a rule for all packets.
    """
    there = netlink.is_local_default(route.family.number, route.table)
    return bool(there) and not _lacks_rule(route)


def half_there(route: PolicyRoute) -> tuple[tuple[str, ...], ...]:
    """The command of the policy rule or of its route, if one of them is there and the other not."""
    rule, local = route.commands
    has_local = bool(netlink.is_local_default(route.family.number, route.table))
    has_rule = not _lacks_rule(route)
    return () if has_rule == has_local else (rule if has_rule else local,)


def _lacks_rule(route: PolicyRoute) -> bool:
    """Whether there is no policy rule that the kernel goes by, be its table empty still."""
    if not any(number < _MAIN_PRIORITY for number in _priorities(route)):
        return True
    there = netlink.is_local_default(route.family.number, route.table)
    return bool(there) and not delivers(route)


def delivers(route: PolicyRoute) -> bool:
    """Whether the kernel delivers a packet with the mark that is sent to another machine."""
    # 2 ms; few plans have policy routes
    from istio_iptables.kernel.routing import KernelRouting
    from istio_iptables.netfilter.packet import Packet

    with KernelRouting() as routing:
        elsewhere = _ELSEWHERE[route.family]
        return routing(Packet(route.family, 0, None, elsewhere, mark=route.mark)).local


def _priorities(route: PolicyRoute) -> list[int]:
    """The priorities at which the policy rule of *route* is there; mostly one or none."""
    wanted = netlink.MarkRule(route.mark, route.table)
    return [number for rule, number in netlink.policy_rules(route.family.number) if rule == wanted]


def _is_like_ours(rule: netlink.MarkRule | None) -> TypeGuard[netlink.MarkRule]:
    """Whether a policy rule goes by a mark and by nothing else."""
    return rule is not None and rule.alone


def _free_priority(family: Family) -> int:
    """Before every other rule but the first, as `ip rule add` puts it (pyroute2: at 32000).

    Rules like ours do not count, so that a replace ends where a first install does.
    """
    others = [
        number
        for rule, number in netlink.policy_rules(family.number)
        if number
        and not (_is_like_ours(rule) and netlink.is_local_default(family.number, rule.table))
    ]
    return max(min(others, default=_MAIN_PRIORITY) - 1, 1)


def has_address(address: InterfaceAddress) -> bool:
    """Whether lo has the address."""
    return netlink.has_loopback_address(address.address)


def left_routes(marks: Iterable[int], tables: Collection[int]) -> tuple[PolicyRoute, ...]:
    """The policy routes of ours that are there, by the marks our rules use.

    A route is ours when its rule goes by one of *marks* and leads to a table that holds
    ``local default dev lo`` and nothing else, or to one of *tables* that holds nothing: there a
    removal that was killed may have taken the route away, and not yet the rule.
    """
    wanted = set(marks)
    if not wanted:
        return ()
    found = []
    for family in Family:
        for rule in dict.fromkeys(rule for rule, _ in netlink.policy_rules(family.number)):
            if _is_like_ours(rule) and rule.mark in wanted and rule.table not in _KERNEL_TABLES:
                ours = netlink.is_local_default(family.number, rule.table)
                if ours or (ours is None and rule.table in tables):
                    found.append(PolicyRoute(family, rule.mark, rule.table))
        found += _without_rule(family, min(wanted), tables)
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


def _without_rule(family: Family, mark: int, tables: Collection[int]) -> list[PolicyRoute]:
    """Our tables that hold our route and that no policy rule leads to any more."""
    led_to = {rule.table for rule, _ in netlink.policy_rules(family.number) if rule}
    return [
        PolicyRoute(family, mark, table)
        for table in tables
        if table not in led_to and netlink.is_local_default(family.number, table)
    ]


class _Message(NamedTuple):
    """One message, the errors that mean that there was nothing to do, and the way back."""

    data: bytes
    fine: frozenset[int]
    back: bytes
    back_fine: frozenset[int]

    @property
    def opposite(self) -> _Message:
        """What takes it back."""
        return _Message(self.back, self.back_fine, self.data, self.fine)


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
            self._send(self._back[-1], "put back")
            self._back.pop()

    def _send(self, message: _Message, verb: str) -> bool:
        """Whether there was anything to do for the message."""
        try:
            number = self._link.send(message.data)
        except OSError as error:
            number = error.errno or errno.EIO
        if number and number not in message.fine:
            refused = f"can't {verb} {self.what}: {os.strerror(number)}{missing()}"
            raise KernelRefused(refused)
        return not number


class Link:
    """A connection to the kernel, in the namespace the process is in.

    It is opened when the first change is prepared. Raises KernelRefused if it can't be.
    """

    def __init__(self) -> None:
        self._socket: sockets.socket | None = None
        self._encode: Callable[[int, int, dict[str, int], dict[str, Any]], bytes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()

    def send(self, data: bytes) -> int:
        """Send a message; the error number that the kernel answers, 0 for none."""
        if self._socket is None:
            return errno.ENOTCONN
        self._socket.send(data)
        # The kernel has answered when it has taken it.
        answer = self._socket.recv(1 << 12, sockets.MSG_DONTWAIT)
        return -int(struct.unpack_from("=i", answer, _HEADER_SIZE)[0])

    def _open(self) -> None:
        if self._socket is not None:
            return
        self._encode = _encoder()
        try:
            self._socket = sockets.netlink(sockets.NETLINK_ROUTE)
        except OSError as error:
            message = f"can't open a connection to the kernel's routes: {error.strerror}"
            raise KernelRefused(message) from error

    def add_route(self, route: PolicyRoute) -> Change:
        """Adds the route and then the rule that leads to it; what is there already stays as it is."""
        messages = [self._route(route)]
        if _lacks_rule(route):
            messages.append(self._rule(route, _free_priority(route.family)))
        return Change(self, f"the route '{' '.join(route.commands[1])}'", "add", tuple(messages))

    def remove_route(self, route: PolicyRoute) -> Change:
        """Removes the route, and then every copy of the rule, by which the route is found."""
        # The kernel takes away the first one that it finds, so each is named by its priority.
        rules = [self._rule(route, number).opposite for number in _priorities(route)]
        messages = (self._route(route).opposite, *rules)
        return Change(self, f"the rule '{' '.join(route.commands[0])}'", "remove", messages)

    def add_address(self, address: InterfaceAddress) -> Change:
        """Adds the address to its interface, if it is not there."""
        what = f"the address {address.address} to {address.interface}"
        return Change(self, what, "add", (self._address(address),))

    def remove_address(self, address: InterfaceAddress) -> Change:
        """Removes the address from its interface, if it is there."""
        what = f"the address {address.address} from {address.interface}"
        return Change(self, what, "remove", (self._address(address).opposite,))

    def _route(self, route: PolicyRoute) -> _Message:
        # The protocol and scope that `ip route add local default dev lo` gives it.
        fields = {
            "family": route.family.number,
            "proto": _RTPROT_BOOT,
            "scope": _SCOPE_HOST,
            "type": _RTN_LOCAL,
        }
        attributes = {"RTA_TABLE": route.table, "RTA_OIF": netlink.interface_index("lo")}
        return self._addition(_ROUTE, _with_table(fields, route.table), attributes)

    def _rule(self, route: PolicyRoute, priority: int) -> _Message:
        fields = {"family": route.family.number, "action": _FR_ACT_TO_TBL}
        attributes = {"FRA_TABLE": route.table, "FRA_FWMARK": route.mark, "FRA_PRIORITY": priority}
        return self._addition(_RULE, _with_table(fields, route.table), attributes)

    def _address(self, address: InterfaceAddress) -> _Message:
        fields = {
            "family": address.family.number,
            "prefixlen": address.prefix,
            "index": netlink.interface_index(address.interface),
        }
        attributes = {"IFA_LOCAL": address.address, "IFA_ADDRESS": address.address}
        return self._addition(_ADDRESS, fields, attributes)

    def _addition(self, kind: int, fields: dict[str, int], attributes: dict[str, Any]) -> _Message:
        self._open()
        add = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_EXCL
        delete = _NLM_F_REQUEST | _NLM_F_ACK
        return _Message(
            self._encode(kind, add, fields, attributes),
            _THERE,
            self._encode(kind + 1, delete, fields, attributes),
            _GONE,
        )


def _with_table(fields: dict[str, int], table: int) -> dict[str, int]:
    # There is one byte for it in the header; the attribute holds any.
    return {**fields, "table": table if table < _ONE_BYTE else 0}


def _encoder() -> Callable[[int, int, dict[str, int], dict[str, Any]], bytes]:
    """What makes a message from its type, flags, header fields and attributes."""
    import logging  # pyroute2 needs it in any case

    if "pyroute2" not in sys.modules:
        require_space(_PYROUTE2_BYTES)
    disabled = logging.root.manager.disable
    try:
        # Short of memory, hashlib logs tracebacks and goes on.
        logging.disable()
        from pyroute2.netlink.rtnl.fibmsg import fibmsg
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
        from pyroute2.netlink.rtnl.rtmsg import rtmsg
    except MemoryError:
        raise
    except Exception as error:
        # Loading runs its modules, which may raise anything.
        message = f"pyroute2, which changes routes and addresses, can't be loaded: {error}"
        raise KernelRefused(message) from error
    finally:
        logging.disable(disabled)
    makers = {_ROUTE: rtmsg, _RULE: fibmsg, _ADDRESS: ifaddrmsg}

    def encode(kind: int, flags: int, fields: dict[str, int], attributes: dict[str, Any]) -> bytes:
        message = makers[kind & ~1]()
        for name, value in fields.items():
            message[name] = value
        message["attrs"] = list(attributes.items())
        message["header"] = {"type": kind, "flags": flags, "sequence_number": 1, "pid": 0}
        message.encode()
        return bytes(message.data)

    return encode
