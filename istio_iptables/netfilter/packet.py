"""A packet as the rules see it, and what is known about the machine around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.numbers import address_number, protocol_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_iptables.netfilter.plan import PolicyRoute

__all__ = ["STATES", "Packet", "World", "is_loopback", "loopback"]

#: What connection tracking can say about a packet.
STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")


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
    zone: int = 0
    #: Whether a CT target, or the connection it has, decided about tracking: the first one does.
    settled: bool = False

    @property
    def endpoints(self) -> tuple[str, str]:
        """Source and destination, with their ports, as people write them."""
        return (
            _endpoint(self.source, self.source_port),
            _endpoint(self.destination, self.destination_port),
        )

    @property
    def protocol_name(self) -> str:
        """The protocol as iptables calls it."""
        return protocol_name(str(self.protocol))

    @property
    def tracked(self) -> bool:
        """Whether the packet belongs to a connection."""
        return self.state not in {"INVALID", "UNTRACKED"}


def _endpoint(address: str | None, port: int | None) -> str:
    address = "?" if address is None else address
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class World(NamedTuple):
    """What decides about packets beside the rules."""

    #: The addresses of each interface, "" for those of which it isn't known; None if none are.
    addresses: Mapping[str, tuple[str, ...]] | None = None
    #: Packets with these marks are delivered locally, whatever their destination.
    routes: tuple[PolicyRoute, ...] = ()
    #: Addresses that are this machine's, also when not all of them are known.
    here: tuple[str, ...] = ()

    def is_local(self, address: str | None, family: Family) -> bool | None:
        """Whether *address* is delivered on this machine; None if that can't be told."""
        if address is not None and is_loopback(address, family):
            return True
        if address is None:
            return None
        wanted = address_number(address, family)
        if any(address_number(each, family) == wanted for each in self.here):
            return True
        if self.addresses is None:
            return None
        return any(
            address_number(each, family) == wanted
            for addresses in self.addresses.values()
            for each in addresses
            if (":" in each) is (family is Family.IPV6)
        )

    def is_routed_home(self, packet: Packet) -> bool:
        """Whether a policy route delivers the packet locally because of its mark."""
        return any(
            route.family is packet.family and route.mark == packet.mark for route in self.routes
        )

    def answering(self, packet: Packet) -> str | None:
        """The address of this machine that REDIRECT gives an arriving packet.

        It is the first one of the interface that the packet came by; "" if that has none, None
        if it isn't known.
        """
        interface = packet.in_interface
        if self.addresses is not None and interface is not None and interface in self.addresses:
            for each in self.addresses[interface]:
                if (":" in each) is (packet.family is Family.IPV6):
                    return each
            return ""
        # Mostly the address that was asked for is the interface's.
        asked = packet.destination
        return None if self.is_local(asked, packet.family) is False else asked


def loopback(family: Family) -> str:
    """The address by which a machine speaks of itself."""
    return "127.0.0.1" if family is Family.IPV4 else "::1"


def is_loopback(address: str, family: Family) -> bool:
    """Whether *address* never leaves any machine."""
    number = address_number(address, family)
    return number is not None and (
        number >> 24 == 127 if family is Family.IPV4 else number == 1  # noqa: PLR2004 - 127.0.0.0/8
    )
