"""What the lab is made of, as values: nodes on links, proxies with listeners, servers, routes."""

from __future__ import annotations

from enum import Enum
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.netfilter.model import Family

if TYPE_CHECKING:
    from istio_iptables.lab.processes import Identity

__all__ = [
    "Interface",
    "LabServer",
    "Listener",
    "Node",
    "Proxy",
    "Rewrite",
    "ServerProtocol",
    "SourceAddress",
    "Upstream",
    "addresses_of",
    "family_of",
]


def family_of(address: str) -> Family:
    """The family of an address."""
    return Family.IPV6 if ":" in address else Family.IPV4


class Interface(NamedTuple):
    """One end of a wire to the switch *link*; addresses carry their prefix length."""

    name: str
    link: str
    addresses: tuple[str, ...]


class SourceAddress(Enum):
    """The source address of a proxy's connections to the target; the value is for people."""

    ANY = "an address of its own"
    #: 127.0.0.6 or ::6, by which the rules know that a connection has been through.
    BOUND = "127.0.0.6 or ::6"
    #: The client's, by a transparent socket with a mark.
    CLIENT = "the client's address"


class Upstream(NamedTuple):
    """Where a proxy sends what is for one destination (and port)."""

    destinations: tuple[str, ...]
    #: The target of each family: address and port.
    targets: tuple[tuple[str, int], ...]
    #: Who gets it, for people.
    name: str


class Rewrite(NamedTuple):
    """A rule of the mesh, as a VirtualService makes it: paths of one prefix become another's."""

    prefix: str
    to: str


class Listener(NamedTuple):
    """A port on which a proxy takes connections."""

    name: str
    port: int
    #: Answers itself, with this text, and sends nothing on.
    answer: str = ""
    #: Passes what it finds no upstream for to where it was addressed.
    passes_on: bool = True
    upstreams: tuple[Upstream, ...] = ()
    source: SourceAddress = SourceAddress.ANY
    transparent: bool = False
    mark: int = 0
    rewrites: tuple[Rewrite, ...] = ()
    #: Sends requests for /stats to the proxy's own administration.
    statistics: bool = False


class Proxy(NamedTuple):
    """An Envoy."""

    name: str
    identity: Identity
    listeners: tuple[Listener, ...]


class ServerProtocol(Enum):
    """What a server speaks."""

    HTTP = "http"
    DNS = "dns"


class LabServer(NamedTuple):
    """A small server of ours that answers with who it saw."""

    name: str
    port: int
    identity: Identity
    speaks: ServerProtocol = ServerProtocol.HTTP
    #: Listens on the loopback addresses alone. Over udp that decides whether an answer to a
    #: redirected query leaves from the address that it went to, and is recognised.
    on_loopback: bool = False


class Node(NamedTuple):
    """A machine of the lab: a network namespace and what runs in it."""

    name: str
    interfaces: tuple[Interface, ...]
    servers: tuple[LabServer, ...] = ()
    proxy: Proxy | None = None
    #: Whether the rules are installed here.
    captured: bool = False
    #: Destinations that are on the wire although no address here is of their network.
    reaches: tuple[str, ...] = ()
    #: Destinations that a router on the wire is asked about: it has no way to them and says so.
    asks_router: tuple[str, ...] = ()

    def address(self, family: Family, interface: str = "eth0") -> str:
        """The first address of a family on an interface."""
        return next(
            address
            for each in self.interfaces
            if each.name == interface
            for address in addresses_of(each)
            if family_of(address) is family
        )

    def has(self, address: str) -> bool:
        """Whether the address is this node's, on a wire or on loopback."""
        parsed = ip_address(address)
        return parsed.is_loopback or any(
            ip_address(each) == parsed
            for interface in self.interfaces
            for each in addresses_of(interface)
        )

    def way_to(self, address: str) -> tuple[str, str]:
        """The interface by which *address* is reached, and the source address on it."""
        family = family_of(address)
        if self.has(address):
            return "lo", address
        for interface in self.interfaces:
            for each in interface.addresses:
                network = ip_network(each, strict=False)
                if ip_address(address) in network:
                    return interface.name, each.partition("/")[0]
        return "eth0", self.address(family)


def addresses_of(interface: Interface) -> tuple[str, ...]:
    """The addresses of an interface, without their prefix lengths."""
    return tuple(each.partition("/")[0] for each in interface.addresses)
