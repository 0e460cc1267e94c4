"""Targets that give a packet another address: DNAT, SNAT, MASQUERADE, NETMAP, DNPT, SNPT."""

from __future__ import annotations

from istio_iptables.netfilter.extensions import Effect, Next, Situation, TargetExtension
from istio_iptables.netfilter.extensions.redirect import given_port, nat_ports
from istio_iptables.netfilter.fieldvalues import Range, address_number, map_network
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from istio_iptables.netfilter.model import Family, Target

__all__ = ["TARGETS"]


class _Endpoint(NamedTuple):
    """What ``--to-destination`` and ``--to-source`` name; None is "as it is"."""

    address: str | None
    ports: Range | None
    #: Whether it could be read, a range of addresses apart.
    known: bool = True

    def port(self, old: int | None, target: Target) -> int | None:
        """The port that a packet gets instead of *old*."""
        return given_port(old, self.ports, target) if self.known else None

    def instead_of(self, old: str | None, family: Family) -> str | None:
        """The address that a packet gets instead of *old*; which one of a range can't be known."""
        address = old if self.address is None else self.address
        known = address is not None and address_number(address, family) is not None
        return address if known else None


def _endpoint(text: str) -> _Endpoint:
    if text.startswith("["):
        address, _, ports = text[1:].partition("]")
        ports = ports.removeprefix(":")
    elif text.count(":") == 1:
        address, _, ports = text.partition(":")
    else:
        address, ports = text, ""
    found = nat_ports(ports) if ports else None
    return _Endpoint(address or None, found, not ports or found is not None)


def _destination_nat(target: Target, situation: Situation) -> Effect:
    packet = situation.packet
    option = target.option("--to-destination")
    text = option.value if option else ""
    wanted = _endpoint(text)
    changed = packet._replace(
        destination=wanted.instead_of(packet.destination, packet.family) if text else None,
        destination_port=wanted.port(packet.destination_port, target),
    )
    return Effect(Next.ACCEPT, changed, f"to {changed.endpoints[1]}", translated=True)


def _source_nat(target: Target, situation: Situation) -> Effect:
    """Another source; the port stays as a rule, but nothing says that it must."""
    packet = situation.packet
    option = target.option("--to-source", "--to-ports")
    text = option.value if option else ""
    wanted = _endpoint(text)
    if option and option.name == "--to-source" and text:
        source = wanted.instead_of(packet.source, packet.family)
        port = wanted.port(packet.source_port, target)
    else:
        source = None
        is_other = target.option("--to-ports", "--random", "--random-fully") is not None
        port = None if is_other else packet.source_port
    changed = packet._replace(source=source, source_port=port)
    return Effect(Next.ACCEPT, changed, f"from {text or 'another address'}")


def _network_nat(target: Target, situation: Situation) -> Effect:
    """NETMAP: the network's part of the address is another, the host's part stays."""
    from istio_iptables.netfilter.questions import plain_address

    packet = situation.packet
    option = target.option("--to")
    text = option.value if option else ""
    if situation.hook in {"INPUT", "POSTROUTING"}:
        source = plain_address(packet.source, "NETMAP")
        changed = packet._replace(source=map_network(text, source, packet.family))
        return Effect(Next.ACCEPT, changed, f"from {changed.endpoints[0]}")
    destination = plain_address(packet.destination, "NETMAP")
    changed = packet._replace(destination=map_network(text, destination, packet.family))
    return Effect(Next.ACCEPT, changed, f"to {changed.endpoints[1]}", translated=True)


def _prefix_translation(target: Target, situation: Situation) -> Effect:
    """DNPT and SNPT, which change an IPv6 prefix without a connection: to what isn't computed."""
    packet, is_source = situation.packet, target.name == "SNPT"
    changed = packet._replace(source=None) if is_source else packet._replace(destination=None)
    change = f"{'from' if is_source else 'to'} another address"
    return Effect(Next.CONTINUE, changed, change)


TARGETS = {
    "DNAT": TargetExtension(effect=_destination_nat),
    "SNAT": TargetExtension(effect=_source_nat),
    "MASQUERADE": TargetExtension(effect=_source_nat),
    "NETMAP": TargetExtension(effect=_network_nat),
    "DNPT": TargetExtension(effect=_prefix_translation),
    "SNPT": TargetExtension(effect=_prefix_translation),
}
