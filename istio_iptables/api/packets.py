"""The packet that explain is asked about: what was said of it, and sensible defaults for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.errors import UsageProblems
from istio_iptables.istio.checks import ELSEWHERE, POD
from istio_iptables.kernel.host import ThisHost
from istio_iptables.netfilter.fieldvalues import address_number, number, protocol_number
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.packet import (
    STATES,
    WITH_PORTS,
    Packet,
    Surroundings,
    is_link_local,
    is_loopback,
    loopback,
)
from istio_iptables.netfilter.questions import same
from istio_iptables.settings.converters import MAX_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from istio_iptables.netfilter.packet import Route

__all__ = [
    "PACKET_FIELDS",
    "PacketQuery",
    "complete_packet",
    "own_addresses",
    "packet_words",
    "usual_values",
]

#: What can be said of a packet, by the names of explain's options.
PACKET_FIELDS = ("proto", "src", "dst", "iface", "uid", "gid", "mark", "connmark", "ctstate")

_TCP, _UDP = 6, 17
_EPHEMERAL = 40000
_APPLICATION = 1000
#: What stands before the IPv4 address in ::ffff:0:0/96.
_MAPPED = 0xFFFF
_MAX_PORT = 65535
_MAX_MARK = 2**32 - 1
#: The number of ::6, from which Envoy speaks to the application.
_ENVOYS_OWN = 6


class PacketQuery(NamedTuple):
    """The packet, and what of it was assumed because it was not given."""

    packet: Packet
    assumed: tuple[str, ...]

    @property
    def direction(self) -> str:
        """``in`` or ``out``."""
        return "out" if self.packet.in_interface == "" else "in"

    @property
    def line(self) -> str:
        """The packet in one line, and what was assumed in brackets."""
        packet = self.packet
        source, destination = packet.endpoints
        parts = [self.direction, packet.protocol_name, f"{source} -> {destination}"]
        if self.direction == "out":
            parts.append(f"out of {packet.out_interface}, uid {packet.uid}, gid {packet.gid}")
        else:
            parts.append(f"in by {packet.in_interface}")
        parts.append(f"mark {packet.mark or 0:#x}, state {packet.state}")
        if packet.connmark != 0:
            known = "unknown" if packet.connmark is None else f"{packet.connmark:#x}"
            parts.append(f"connection mark {known}")
        assumed = f" (assumed: {', '.join(self.assumed)})" if self.assumed else ""
        return f"{', '.join(parts)}{assumed}"


class _Endpoint(NamedTuple):
    address: str | None = None
    port: int | None = None


class _Reader:
    """Reads the options of a packet; collects what is wrong with them."""

    def __init__(self, given: Mapping[str, str | None]) -> None:
        self._given = given
        self.problems: list[str] = []

    def endpoint(self, name: str) -> _Endpoint:
        text = self._given[name]
        if text is None:
            return _Endpoint()
        address, port = text, ""
        if text.endswith(":") and text.count(":") == 1 < len(text):
            self._refuse(name, "there is no port behind the colon")
            return _Endpoint()
        if text.startswith("["):
            address, _, port = text[1:].partition("]")
            if port[:1] not in {"", ":"}:
                address = text
            port = port[1:]
        elif text.count(":") == 1:
            address, _, port = text.partition(":")
        value = number(port) if port else None
        wrong = (
            all(address_number(address, family) is None for family in Family)
            if address
            else text.startswith("[") or not port
        )
        if wrong:
            self._refuse(name, "write an address, and perhaps a port: 10.0.0.1:80 or [fd00::1]:80")
        elif port and (value is None or value > _MAX_PORT):
            self._refuse(name, f"a port is a number from 0 to {_MAX_PORT}")
        return _Endpoint(_unmapped(address) or None, value)

    def number(self, name: str, most: int = _MAX_MARK) -> int | None:
        text = self._given[name]
        value = None if text is None else number(text)
        if text is not None and (value is None or value > most):
            self._refuse(name, f"is not a number from 0 to {most}, decimal or 0x...")
        return value

    def identity(self, name: str, what: str, lookup: Callable[[str], int | None]) -> int | None:
        """A number, or the name of a user or group, as -u and -g take them."""
        text = self._given[name]
        if text is None or number(text) is not None:
            return self.number(name, MAX_ID)
        found = lookup(text)
        if found is None:
            self._refuse(name, f"is neither a number nor a {what} that exists here")
        return found

    def protocol(self) -> int | None:
        text = self._given["proto"]
        value = _TCP if text is None else protocol_number(text)
        if value is None or not 0 < value <= 255:  # noqa: PLR2004 - one byte
            self._refuse("proto", "is not a protocol: write tcp, udp, icmp or a number")
        return value

    def state(self) -> str:
        state = (self._given["ctstate"] or "NEW").upper()
        if state not in STATES:
            self._refuse("ctstate", f"is not one of {', '.join(STATES)}")
        return state

    def families(self, *ends: _Endpoint) -> set[Family]:
        """The families of the addresses that were given: one, or none."""
        found = {
            Family.IPV6 if ":" in each.address else Family.IPV4 for each in ends if each.address
        }
        if len(found) > 1:
            self.problems.append("--src, --dst: the addresses are of different families")
        return found

    def check_ports(self, protocol: int | None, *ends: _Endpoint) -> None:
        """Refuse a port for a protocol that has none."""
        portless = protocol is not None and protocol not in WITH_PORTS
        if portless and any(each.port for each in ends):
            self.problems.append(f"--proto: {self._given['proto']} has no ports")

    def _refuse(self, name: str, reason: str) -> None:
        self.problems.append(f"--{name}: {self._given[name]!r}: {reason}")


def _unmapped(address: str) -> str:
    """*address*, that of IPv4 for ::ffff:10.0.0.1: what an IPv6 socket sends to it is IPv4."""
    value = address_number(address, Family.IPV6) if ":" in address else None
    if value is None or value >> 32 != _MAPPED:
        return address
    return ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0))


def complete_packet(
    given: Mapping[str, str | None],
    *,
    incoming: bool,
    world: Surroundings,
    family: Family | None = None,
) -> PacketQuery:
    """The packet that the options describe, completed, with the addresses of *world* if known.

    Raises UsageProblems with one line for each option that can't be used.
    """
    reader = _Reader(given)
    source, destination = reader.endpoint("src"), reader.endpoint("dst")
    protocol, state = reader.protocol(), reader.state()
    uid = reader.identity("uid", "user", ThisHost().uid)
    gid = reader.identity("gid", "group", ThisHost().gid)
    mark, connmark = reader.number("mark"), reader.number("connmark")
    if incoming and (uid is not None or gid is not None):
        reader.problems.append("--uid, --gid: a packet that comes in has no owner")
    found = reader.families(source, destination)
    reader.check_ports(protocol, source, destination)
    if given["iface"] == "":
        reader.problems.append("--iface: the name is empty")
    if reader.problems or protocol is None:
        raise UsageProblems(reader.problems)
    whose = found.pop() if found else family or Family.IPV4
    packet = Packet(
        whose,
        protocol,
        source.address,
        destination.address,
        source.port,
        destination.port,
        uid=uid,
        gid=gid,
        mark=mark or 0,
        # A packet of a known connection may have any mark of it; one of a new one has none.
        connmark=connmark if connmark is not None or state != "NEW" else 0,
        state=state,
    )
    complete = _complete_in if incoming else _complete_out
    return complete(packet, given["iface"], world)


def own_addresses(packet: Packet) -> tuple[str, ...]:
    """The addresses that must be the pod's for the packet to be what was asked about."""
    ends = [packet.destination] if packet.in_interface else [packet.source]
    if packet.out_interface and same(packet.out_interface, "lo"):
        ends.append(packet.destination)
    return tuple(each for each in ends if each is not None)


def packet_words(packet: Packet) -> tuple[str, ...]:
    """The options of ``explain`` that ask about *packet*; what is usual is left out."""
    source, destination = packet.endpoints
    incoming = packet.in_interface != ""
    words = ["--in" if incoming else "--out", "--proto", packet.protocol_name]
    words += ["--src", source, "--dst", destination]
    words += ["--iface", packet.in_interface or packet.out_interface or ""]
    usual: tuple[tuple[str, object, object], ...] = (
        ("uid", packet.uid, None if incoming else _APPLICATION),
        ("gid", packet.gid, packet.uid),
        ("mark", packet.mark, 0),
        ("connmark", packet.connmark, 0 if packet.state == "NEW" else None),
        ("ctstate", packet.state, "NEW"),
    )
    for name, value, default in usual:
        if value != default:
            words += [f"--{name}", f"{value:#x}" if name.endswith("mark") else f"{value}"]
    return tuple(words)


def usual_values(
    world: Surroundings, family: Family, *, incoming: bool
) -> dict[str, tuple[int | str, ...]]:
    """What a packet has that nothing is said of: for each field the values to be tried first."""
    interface = _interface(world, family)
    addresses = (_own(world, family, interface), ELSEWHERE[family])
    own, other = (address_number(each, family) or 0 for each in addresses)
    return {
        "protocol": (_TCP, _UDP),
        "source": (other,) if incoming else (own,),
        "destination": (own,) if incoming else (other, own),
        "source_port": (_EPHEMERAL,),
        "destination_port": (80, 53),
        "in_interface": (interface,),
        "out_interface": (interface,),
        "uid": (_APPLICATION,),
        "gid": (_APPLICATION,),
        "mark": (0,),
        "connmark": (0,),
        "state": ("NEW",),
    }


def _interface(world: Surroundings, family: Family) -> str:
    """The interface that leads out of the pod: eth0, or where there is none what has an address."""
    addresses = world.addresses or {}
    if "eth0" in addresses:
        return "eth0"
    others = (name for name in addresses if name != "lo" and _usable(addresses[name], family))
    return next(others, "eth0")


def _usable(addresses: Iterable[str], family: Family) -> list[str]:
    """The addresses that a packet may have when none is given.

    Not link-local ones, nor Envoy's own on lo, which nothing else sends from.
    """
    return [
        each
        for each in addresses
        if (":" in each) is (family is Family.IPV6)
        and not is_loopback(each, family)
        and not is_link_local(each, family)
        and address_number(each, family) != _ENVOYS_OWN
    ]


def _own(world: Surroundings, family: Family, interface: str, *, link_local: bool = False) -> str:
    """The pod's address on *interface*, or another of the pod's, or an assumed one."""
    addresses = world.addresses or {}
    if link_local:
        for each in addresses.get(interface, ()):
            if (":" in each) is (family is Family.IPV6) and is_link_local(each, family):
                return each
    # lo last: a virtual address on it is seldom what the pod is known by.
    names = sorted(addresses, key=lambda name: (name != interface, name == "lo"))
    found = (each for name in names for each in _usable(addresses[name], family))
    return next(found, POD[family])


def _complete_in(packet: Packet, interface: str | None, world: Surroundings) -> PacketQuery:
    assumed = []
    name = interface or _interface(world, packet.family)
    if packet.source is None:
        packet = packet._replace(source=ELSEWHERE[packet.family])
        assumed.append("source")
    if packet.destination is None:
        packet = packet._replace(destination=_own(world, packet.family, name))
        assumed.append("destination")
    if interface is None:
        assumed.append("interface")
    packet, assumed_ports = _complete_ports(packet._replace(in_interface=name))
    return PacketQuery(packet, (*assumed, *assumed_ports))


def _complete_out(packet: Packet, interface: str | None, world: Surroundings) -> PacketQuery:
    assumed = []
    family = packet.family
    if packet.destination is None:
        packet = packet._replace(destination=ELSEWHERE[family])
        assumed.append("destination")
    if address_number(packet.destination or "", family) == 0:
        # The kernel connects to loopback for 0.0.0.0 and ::.
        packet = packet._replace(destination=loopback(family))
    packet, assumed_ports = _complete_ports(packet)
    owner = _APPLICATION if packet.uid is None else packet.uid
    route = world.route(packet._replace(uid=owner))
    here = _is_delivered(packet, route, world)
    if interface is None:
        assumed.append("interface")
        interface = "lo" if here else (route and route.interface) or _interface(world, family)
    packet = packet._replace(out_interface=interface)
    if packet.source is None:
        told = route.source if route else ""
        packet = packet._replace(source=told or _source(packet, world, here=here))
        assumed.append("source")
    assumed += (name for name in ("uid", "gid") if getattr(packet, name) is None)
    group = owner if packet.gid is None else packet.gid
    return PacketQuery(packet._replace(uid=owner, gid=group), (*assumed, *assumed_ports))


def _is_delivered(packet: Packet, route: Route | None, world: Surroundings) -> bool:
    """Whether this machine is where the packet goes, as far as that is known."""
    if route is not None:
        return route.local
    if world.addresses is None and packet.destination == POD[packet.family]:
        return True
    local = world.is_local(packet.destination, packet.family)
    return bool(local or world.is_routed_home(packet))


def _source(packet: Packet, world: Surroundings, *, here: bool) -> str:
    """The address that the packet is sent from, if the kernel does not tell."""
    family, destination = packet.family, packet.destination or ""
    if is_loopback(destination, family):
        return loopback(family)
    if here and packet.out_interface == "lo":
        # What a machine sends to an address of its own comes from that address.
        return destination
    inner = packet.out_interface == "lo" or not packet.out_interface
    interface = _interface(world, family) if inner else packet.out_interface or ""
    return _own(world, family, interface, link_local=is_link_local(destination, family))


def _complete_ports(packet: Packet) -> tuple[Packet, list[str]]:
    """The packet with its ports, if its protocol has any, and which were assumed."""
    assumed = []
    if packet.has_ports:
        if packet.source_port is None:
            packet = packet._replace(source_port=_EPHEMERAL)
            assumed.append("source port")
        if packet.destination_port is None:
            packet = packet._replace(destination_port=53 if packet.protocol == _UDP else 80)
            assumed.append("destination port")
    return packet, assumed
