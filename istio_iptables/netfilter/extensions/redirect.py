"""REDIRECT: the packet goes to this machine itself; and the ports of every target of nat."""

from __future__ import annotations

import struct

from istio_iptables.netfilter.extensions import Effect, Next, Situation, TargetExtension
from istio_iptables.netfilter.fieldvalues import MAX_PORT, Range, number_range
from istio_iptables.netfilter.model import Family, Option, Target
from istio_iptables.netfilter.parts import known, only, part
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_iptables.netfilter.packet import Packet

__all__ = ["TARGETS", "given_port", "nat_ports"]

_NAMES = ("--to-ports", "--to-port")


def _spell(target: Target, _: Family) -> Target:
    options = []
    for option in target.options:
        ports = number_range(option.value) if option.name in _NAMES else None
        options.append(option if ports is None else Option("--to-ports", (ports.spelt("-"),)))
    return Target(target.name, tuple(options))


def nat_ports(text: str) -> Range | None:
    """The ports of ``80`` or ``80-90``, as nat's targets write them."""
    ports = number_range(text)
    return ports if ports and ports.first <= ports.last <= MAX_PORT else None


def given_port(port: int | None, ports: Range | None, target: Target) -> int | None:
    """The port that nat gives a connection, None if only the kernel knows it.

    One that is in the range stays, unless the port is to be a random one.
    """
    from istio_iptables.netfilter.questions import among
    from istio_iptables.netfilter.sets import numbers

    if ports is None:
        return port
    if ports.first == ports.last:
        return ports.first
    is_random = target.option("--random", "--random-fully") is not None
    return port if not is_random and port is not None and among(port, numbers(ports)) else None


def _effect(target: Target, situation: Situation) -> Effect | None:
    from istio_iptables.netfilter.packet import loopback

    packet = situation.packet
    option = target.option(*_NAMES)
    ports = nat_ports(option.value) if option else None
    if option is not None and (ports is None or not packet.has_ports):
        return None
    is_sent = situation.hook == "OUTPUT"
    here = loopback(packet.family) if is_sent else situation.world.answering(packet)
    if here == "":
        return Effect(Next.DROP, packet, "its interface has no address")
    port = given_port(packet.destination_port, ports, target)
    changed = packet._replace(destination=here, destination_port=port)
    change = _redirected_to(changed, ports)
    return Effect(Next.ACCEPT, changed, change, takes=True, to_port=port, translated=True)


def _redirected_to(packet: Packet, ports: Range | None) -> str:
    """Where REDIRECT sends a packet, in words."""
    whose = packet.destination or f"the first address of {packet.in_interface or 'its interface'}"
    if ports is not None and packet.destination_port is None:
        return f"to a port from {ports.first} to {ports.last} of {whose}"
    if packet.destination is None and packet.destination_port is not None:
        return f"to port {packet.destination_port} of {whose}"
    return f"to {packet.endpoints[1] if packet.destination else whose}"


_TO_PORTS = 2


def _encode(target: Target, family: Family) -> bytes:
    ports = struct.pack(">HH", *known(nat_ports(only(target, "--to-ports").value)))
    if family is Family.IPV6:
        return part("REDIRECT", 0, struct.pack("=I32x", _TO_PORTS) + ports)
    # One range, and no addresses in it.
    return part("REDIRECT", 0, struct.pack("=III4x", 1, _TO_PORTS, 0) + ports)


TARGETS = {"REDIRECT": TargetExtension(spell=_spell, effect=_effect, encode=_encode)}
