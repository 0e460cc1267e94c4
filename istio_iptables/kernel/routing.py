"""Where the kernel would send a packet: its own answer, policy rules, marks and all.

What decides about a route (rules by mark, address, user or port, shadowed ones, networks that are
delivered here, whether forwarding is on, which sources an interface takes) is the kernel's to know.
``ip route get`` asks the same question.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from contextlib import ExitStack, closing
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Self

from istio_iptables import sockets
from istio_iptables.errors import KernelRefused
from istio_iptables.kernel import netlink
from istio_iptables.kernel.namespace import entered
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.packet import Route

if TYPE_CHECKING:
    from istio_iptables.netfilter.packet import Packet

__all__ = ["KernelRouting"]

_RTM_GETROUTE = 26
_RTA_TABLE = 15
#: The tables that every packet is routed by: default, main and local.
_USUAL_TABLES = frozenset({253, 254, 255})
_NLM_F_REQUEST = 0x1
_NLMSG_ERROR = 2
_RTA_DST, _RTA_SRC, _RTA_IIF, _RTA_OIF, _RTA_PREFSRC = 1, 2, 3, 4, 7
_RTA_MARK, _RTA_UID, _RTA_IP_PROTO, _RTA_SPORT, _RTA_DPORT = 16, 25, 27, 28, 29
_LOCAL, _BROADCAST, _ANYCAST, _MULTICAST = 2, 3, 4, 5
_HEADER_SIZE = 16
_TCP, _UDP = 6, 17
#: The protocols of which the kernel takes ports in such a question: TCP, UDP.
_WITH_PORTS = frozenset({_TCP, _UDP})
_WHY = {
    errno.ENETUNREACH: "no route leads to {}",
    errno.EHOSTUNREACH: "no route leads to {}, or forwarding is off",
    errno.EACCES: "a route prohibits {}",
    errno.EINVAL: "the kernel refuses {} there: a blackhole, or an address that can't be",
    errno.EXDEV: "the kernel takes no packet for {} from that source there (rp_filter)",
}


class _Question(NamedTuple):
    """What a route depends on."""

    family: Family
    protocol: int
    source: str | None
    destination: str
    ports: tuple[int, int] | None
    in_interface: str
    mark: int
    uid: int | None


class KernelRouting:
    """Asks the kernel for routes in *namespace* ("" is the current one), within a ``with`` block.

    To enter it raises KernelRefused if there is no connection to the kernel.
    """

    def __init__(self, namespace: str = "") -> None:
        self._namespace = namespace

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            with entered(self._namespace):
                try:
                    self._link = opened.enter_context(
                        closing(sockets.netlink(sockets.NETLINK_ROUTE))
                    )
                    self._numbers = {name: number for number, name in sockets.if_nameindex()}
                except OSError as error:
                    raise _refused(error) from error
                self._delivered = {family: _delivered_networks(family) for family in Family}
            opened.pop_all()
        self._names = {number: name for name, number in self._numbers.items()}
        self._ask = cache(self._ask_kernel)
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    @property
    def interfaces(self) -> frozenset[str]:
        """The names of the namespace's interfaces."""
        return frozenset(self._numbers)

    def __call__(self, packet: Packet) -> Route:
        """The route of *packet*, whose destination and mark are known; raises KernelRefused."""
        ports = None
        if packet.protocol in _WITH_PORTS and packet.source_port and packet.destination_port:
            ports = (packet.source_port, packet.destination_port)
        question = _Question(
            packet.family,
            packet.protocol,
            packet.source,
            packet.destination or "",
            ports,
            packet.in_interface or "",
            packet.mark or 0,
            packet.uid,
        )
        route = self._ask(question)
        source = question.source
        sent = not question.in_interface and source is not None
        if route.refused and sent and not self.is_local(source or "", question.family):
            # What can't be sent from here may have been given that source by a rule.
            return self._ask(question._replace(source=None))
        return route

    def is_local(self, address: str, family: Family) -> bool:
        """Whether *address* is one of the machine's, or of a network that is delivered here."""
        value = int.from_bytes(sockets.inet_pton(family.number, address), "big")
        return any(value >> beside == first >> beside for first, beside in self._delivered[family])

    def _ask_kernel(self, question: _Question) -> Route:
        body, number = self._body(question), 0
        try:
            self._link.send(
                struct.pack("=IHHII", _HEADER_SIZE + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0)
                + body
            )
            answer = self._link.recv(1 << 16)
        except OSError as error:
            raise _refused(error) from error
        content = answer[_HEADER_SIZE:]
        if struct.unpack_from("=H", answer, 4)[0] == _NLMSG_ERROR:
            number = -int(struct.unpack_from("=i", content)[0])
            why = _WHY.get(number, f"{os.strerror(number)}: {{}}")
            reason = why.format(question.destination)
            return Route(refused=reason, missing=number == errno.ENETUNREACH)
        parts = dict(netlink.attributes(content, 12))
        kind = content[7]
        if kind in {_BROADCAST, _MULTICAST} and question.protocol == _TCP:
            return Route(refused=f"{question.destination} is for many: there is no TCP with it")
        here = {_LOCAL, _ANYCAST}
        if question.in_interface:
            here |= {_BROADCAST, _MULTICAST}
        interface = self._names.get(int.from_bytes(parts.get(_RTA_OIF, b""), sys.byteorder), "")
        source = parts.get(_RTA_PREFSRC)
        return Route(
            kind in here,
            "lo" if kind in here else interface,
            sockets.inet_ntop(question.family.number, source) if source else "",
        )

    def _body(self, question: _Question) -> bytes:
        number, bits = question.family.number, question.family.bits
        parts = [(_RTA_DST, sockets.inet_pton(number, question.destination))]
        source_bits = 0
        if question.source is not None:
            parts.append((_RTA_SRC, sockets.inet_pton(number, question.source)))
            source_bits = bits
        if question.in_interface:
            parts.append((_RTA_IIF, struct.pack("=I", self._number(question.in_interface))))
        if question.mark:
            parts.append((_RTA_MARK, struct.pack("=I", question.mark)))
        if question.uid is not None and not question.in_interface:
            parts.append((_RTA_UID, struct.pack("=I", question.uid)))
        if question.ports:
            parts.append((_RTA_IP_PROTO, bytes((question.protocol,))))
            parts += zip(
                (_RTA_SPORT, _RTA_DPORT),
                (struct.pack("!H", port) for port in question.ports),
                strict=True,
            )
        # struct rtmsg: family, destination and source lengths, tos, table, ..., flags.
        header = struct.pack("=12B", number, bits, source_bits, *(0,) * 9)
        return header + b"".join(netlink.as_attribute(*each) for each in parts)

    def _number(self, interface: str) -> int:
        # One that is not there: the kernel says so.
        return self._numbers.get(interface, (1 << 31) - 1)


def _delivered_networks(family: Family) -> tuple[tuple[int, int], ...]:
    """The first address of each network that is delivered here, and its number of host bits."""
    found = []
    for content in netlink.routes(family.number):
        parts = dict(netlink.attributes(content, 12))
        table = int.from_bytes(parts.get(_RTA_TABLE, b""), sys.byteorder) or content[4]
        if content[7] in {_LOCAL, _ANYCAST} and table in _USUAL_TABLES:
            first = int.from_bytes(parts.get(_RTA_DST, b""), "big")
            found.append((first, family.bits - content[1]))
    return tuple(found)


def _refused(error: OSError) -> KernelRefused:
    return KernelRefused(f"can't ask the kernel for routes: {error.strerror}")
