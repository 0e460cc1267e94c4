"""A packet as the rules see it, and what is known about the machine around it."""

from __future__ import annotations

from istio_iptables.netfilter.fieldvalues import WHOLE_MARK, address_number, protocol_name
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.questions import among, has_address, has_bits, named, same
from istio_iptables.netfilter.sets import Intervals, one_number
from istio_iptables.typed import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from istio_iptables.netfilter.plan import PolicyRoute

__all__ = [
    "STATES",
    "WITH_PORTS",
    "Packet",
    "Route",
    "Routing",
    "Surroundings",
    "endpoint",
    "is_link_local",
    "is_loopback",
    "is_multicast",
    "loopback",
]

#: What connection tracking can say about a packet.
STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")


#: The protocols whose packets have ports: tcp, udp, dccp, sctp, udplite.
WITH_PORTS = frozenset({6, 17, 33, 132, 136})
_ICMP = {Family.IPV4: 1, Family.IPV6: 58}
_PORTED = Intervals.of((each, each) for each in WITH_PORTS)
_UNTRACKED = named("INVALID", "UNTRACKED")


#: As first and last numbers: 127.0.0.0/8 and ::1; 169.254.0.0/16 and fe80::/10; 224.0.0.0/4,
#: 255.255.255.255 and ff00::/8.
_LOOPBACK = {
    Family.IPV4: Intervals.of([(0x7F000000, 0x7FFFFFFF)]),
    Family.IPV6: Intervals.of([(1, 1)]),
}
_LINK_LOCAL = {
    Family.IPV4: Intervals.of([(0xA9FE0000, 0xA9FEFFFF)]),
    Family.IPV6: Intervals.of([(0x3FA << 118, (0x3FB << 118) - 1)]),
}
_MULTICAST = {
    Family.IPV4: Intervals.of([(0xE0000000, 0xEFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF)]),
    Family.IPV6: Intervals.of([(0xFF << 120, (1 << 128) - 1)]),
}


class Packet(NamedTuple):
    """One packet; None is what is not known, and a condition on it is then unknown too."""

    family: Family
    #: The protocol's number.
    protocol: int
    source: str | None
    destination: str | None
    source_port: int | None = None
    destination_port: int | None = None
    #: "" where the packet has none: what leaves has come from no interface.
    in_interface: str | None = ""
    out_interface: str | None = ""
    #: The socket's owner; None for a packet of no socket here, as one that arrives.
    uid: int | None = None
    gid: int | None = None
    mark: int | None = 0
    connmark: int | None = 0
    state: str = "NEW"
    #: The zone of connection tracking that raw has put it in.
    zone: int | None = 0
    #: Whether a CT target, or the connection it has, decided about tracking: the first one does.
    settled: bool = False
    #: The state that the rules see while they stand before connection tracking (table raw).
    early_state: str = ""

    @property
    def endpoints(self) -> tuple[str, str]:
        """Source and destination, with their ports, as people write them."""
        return (
            endpoint(self.source, self.source_port),
            endpoint(self.destination, self.destination_port),
        )

    @property
    def protocol_name(self) -> str:
        """The protocol as iptables calls it."""
        return protocol_name(str(self.protocol))

    @property
    def has_ports(self) -> bool:
        """Whether packets of this protocol have ports."""
        return among(self.protocol, _PORTED)

    @property
    def seen_state(self) -> str:
        """The connection's state as the rules see it here."""
        return self.early_state or self.state

    @property
    def tracked(self) -> bool:
        """Whether the packet belongs to a connection, as far as the rules can see here."""
        return not among(self.seen_state, _UNTRACKED)

    @property
    def is_error(self) -> bool:
        """Whether it is an ICMP error about another connection: nat asks no rule about these."""
        is_icmp = among(self.protocol, one_number(_ICMP[self.family]))
        return is_icmp and among(self.state, named("RELATED"))


def endpoint(address: str | None, port: int | None) -> str:
    """Both as one text, such as ``10.0.0.1:80`` or ``[fd00::1]:80``; ``?`` for an unknown address."""
    address = "?" if address is None else address
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Route(NamedTuple):
    """Where the kernel's routing sends a packet."""

    #: Whether it is delivered on this machine.
    local: bool = False
    #: The interface that it leaves by: lo for what is delivered here; "" without a route.
    interface: str = ""
    #: The address that this machine sends it from; "" if that is not told.
    source: str = ""
    #: Why there is no route; "" if there is one.
    refused: str = ""
    #: Whether nothing leads there, as against a route that refuses.
    missing: bool = False


class Routing(Protocol):
    """Where packets go, asked of a kernel."""

    def __call__(self, packet: Packet) -> Route:
        """The route of *packet*, whose destination and mark are known."""

    def is_local(self, address: str, family: Family) -> bool:
        """Whether *address* is one of the machine's, whatever leads there."""


class Surroundings(NamedTuple):
    """What decides about packets beside the rules."""

    #: The addresses of each interface in the kernel's order; None if they aren't known.
    addresses: Mapping[str, tuple[str, ...]] | None = None
    #: Packets with these marks are delivered locally, whatever their destination.
    routes: tuple[PolicyRoute, ...] = ()
    #: Addresses that are this machine's, also when not all of them are known.
    here: tuple[str, ...] = ()
    #: The kernel's routing, which knows better than all of these; None if it can't be asked.
    routing: Routing | None = None
    #: Whether a socket takes what is sent to a port of a protocol; None if that can't be asked,
    #: and the listeners that rules lead to are taken to be there.
    listens: Callable[[int, int, Family], bool | None] | None = None

    def route(self, packet: Packet) -> Route | None:
        """The route of *packet*; None if it can't be asked for, or depends on what isn't known."""
        if self.routing is None or packet.destination is None or packet.mark is None:
            return None
        return self.routing(packet)

    def is_local(self, address: str | None, family: Family) -> bool | None:
        """Whether *address* is delivered on this machine; None if that can't be told."""
        if address is not None and is_loopback(address, family):
            return True
        if address is None:
            return None
        if any(same(each, address, family) for each in self.here):
            return True
        wanted = address_number(address, family)
        if self.routing is not None:
            return self.routing.is_local(address, family)
        if self.addresses is None:
            return None
        return any(
            address_number(each, family) == wanted
            for addresses in self.addresses.values()
            for each in addresses
            if (":" in each) is (family is Family.IPV6)
        )

    def interface_of(self, address: str, family: Family) -> str | None:
        """The interface that has an address, if that is known."""
        wanted = address_number(address, family)
        for name, addresses in (self.addresses or {}).items():
            if any(address_number(each, family) == wanted for each in addresses):
                return name
        return None

    def is_routed_home(self, packet: Packet) -> bool | None:
        """Whether a policy route delivers the packet locally because of its mark.

        None if there is such a route and the mark isn't known.
        """
        route = self.route(packet)
        if route is not None:
            return route.local and not self.is_local(packet.destination, packet.family)
        marks = [route.mark for route in self.routes if route.family is packet.family]
        mark = packet.mark
        if not marks or mark is None:
            return None if marks else False
        return any(has_bits(mark, each, WHOLE_MARK) for each in marks)

    def answering(self, packet: Packet) -> str | None:
        """The address of this machine that REDIRECT gives an arriving packet.

        It is the first one of the interface that the packet came by, in IPv6 the first of the
        scope of the address that was asked for; "" if there is none, None if it isn't known.
        """
        family, interface = packet.family, packet.in_interface
        if self.addresses is None or interface is None or interface not in self.addresses:
            return None
        scope = None
        if family is Family.IPV6:
            if packet.destination is None:
                return None
            scope = _scope(packet.destination)
        for each in self.addresses[interface]:
            if (":" in each) is not (family is Family.IPV6):
                continue
            # Any address answers for a global one; an address mapped from IPv4 never does.
            if family is Family.IPV4 or (not _is_mapped(each) and scope in {0, _scope(each)}):
                return each
        return ""


def _scope(address: str) -> int:
    """The scope of an IPv6 address, as the kernel compares them: 0 is global."""
    number = address_number(address, Family.IPV6) or 0
    if number >> 120 == 0xFF:  # noqa: PLR2004 - multicast; its scope is written in it
        scope = number >> 112 & 15
        return scope if scope in _NARROW else 0
    if number == 1:
        return _LOOPBACK_SCOPE
    return {0x3FA: _LINK_SCOPE, 0x3FB: _SITE_SCOPE}.get(number >> 118, 0)


_LOOPBACK_SCOPE, _LINK_SCOPE, _SITE_SCOPE = 1, 2, 5
_NARROW = frozenset({_LOOPBACK_SCOPE, _LINK_SCOPE, _SITE_SCOPE})


def is_link_local(address: str, family: Family) -> bool:
    """Whether *address* is one of a link alone: 169.254.0.0/16 or fe80::/10."""
    return bool(has_address(address, _LINK_LOCAL[family], family))


def _is_mapped(address: str) -> bool:
    return (address_number(address, Family.IPV6) or 0) >> 32 == 0xFFFF  # noqa: PLR2004 - ::ffff:0:0/96


def is_multicast(address: str | None, family: Family) -> bool:
    """Whether *address* is for many at once: multicast, or IPv4's 255.255.255.255."""
    return bool(has_address(address, _MULTICAST[family], family))


def loopback(family: Family) -> str:
    """The address by which a machine speaks of itself."""
    return "127.0.0.1" if family is Family.IPV4 else "::1"


def is_loopback(address: str, family: Family) -> bool:
    """Whether *address* never leaves any machine."""
    return bool(has_address(address, _LOOPBACK[family], family))
