"""The matches of protocols that have ports: tcp, udp, sctp, dccp, udplite."""

from __future__ import annotations

import struct

from istio_iptables.netfilter.extensions import MatchExtension, Situation, in_order
from istio_iptables.netfilter.fieldvalues import MAX_PORT, PROTOCOLS, port_range
from istio_iptables.netfilter.model import Match, Option
from istio_iptables.netfilter.parts import align_size
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_iptables.netfilter.packet import Packet

__all__ = ["MATCHES", "ports_text"]

_NAMES = {"--source-port": "--sport", "--destination-port": "--dport"}
_ORDER = {"--sport": 0, "--dport": 1, "--tcp-option": 2, "--tcp-flags": 3}
_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
_SYN = ("FIN,SYN,RST,ACK", "SYN")


def _spell(match: Match) -> Match | None:
    """The match with ports as numbers; without an option it says what -p says."""
    options = []
    for option in match.options:
        name = _NAMES.get(option.name, option.name)
        if name in {"--sport", "--dport"}:
            ports = port_range(option.value)
            if ports is None:
                options.append(option._replace(name=name))
            elif ports != (0, MAX_PORT) or option.negated:
                options.append(Option(name, (ports.spelt(":"),), option.negated))
        elif name == "--syn":
            options.append(Option("--tcp-flags", _SYN, option.negated))
        elif name == "--tcp-flags":
            options.append(option._replace(values=tuple(map(_spell_flags, option.values))))
        else:
            options.append(option)
    return Match(match.name, in_order(options, _ORDER)) if options else None


def _spell_flags(text: str) -> str:
    if text in {"ALL", "NONE"}:
        flags = set(_FLAGS if text == "ALL" else ())
    else:
        flags = set(text.upper().split(","))
        if not flags <= set(_FLAGS):
            return text
    return ",".join(flag for flag in _FLAGS if flag in flags) or "NONE"


def _holds(option: Option, situation: Situation, _: Match) -> bool | None:
    from istio_iptables.netfilter.questions import among
    from istio_iptables.netfilter.sets import numbers

    packet = situation.packet
    name = _NAMES.get(option.name, option.name)
    if name == "--dport":
        port = packet.destination_port
    elif name == "--sport":
        port = packet.source_port
    else:
        return _has_flags(option, packet)
    ports = port_range(option.value)
    if ports is None or port is None:
        return None
    return among(port, numbers(ports)) is not option.negated


def _has_flags(option: Option, packet: Packet) -> bool | None:
    """The first packet of a connection has SYN alone; of others it isn't known."""
    from istio_iptables.netfilter.questions import among, named
    from istio_iptables.netfilter.sets import one_number

    values = _SYN if option.name == "--syn" else option.values
    if (
        option.name not in {"--syn", "--tcp-flags"}
        or not among(packet.state, named("NEW"))
        or not among(packet.protocol, one_number(PROTOCOLS["tcp"]))
        or len(values) != 2  # noqa: PLR2004 - the flags looked at, and those that have to be set
    ):
        return None
    mask, wanted = values
    looked_at = {"SYN"} if mask == "ALL" or "SYN" in mask.split(",") else set()
    return (looked_at == set(wanted.replace("NONE", "").split(",")) - {""}) is not option.negated


def ports_text(packet: Packet) -> str:
    """Between which ports a packet goes."""
    source, destination = packet.endpoints
    return f"{packet.protocol_name} {source} to {destination}"


#: Whole parts, since a list of ports may be long: tcp has an option and two bytes of flags between
#: the ports and the inversion.
_SIZE = align_size(44)
_TCP_PART = struct.Struct(f"=H29sBHHHH3xB{_SIZE - 44}x")
_UDP_PART = struct.Struct(f"=H29sBHHHHB{_SIZE - 41}x")


def _encode(match: Match) -> bytes:
    source = destination = (0, MAX_PORT)
    inverted = 0
    for option in match.options:
        first, colon, last = option.values[0].partition(":")
        low = int(first)
        ports = (low, int(last) if colon else low)
        if option.name == "--dport":
            destination = ports
            inverted |= option.negated << 1
        elif option.name == "--sport":
            source = ports
            inverted |= option.negated
        else:
            raise ValueError(option.name)
    if match.name == "tcp":
        return _TCP_PART.pack(_SIZE, b"tcp", 0, *source, *destination, inverted)
    return _UDP_PART.pack(_SIZE, b"udp", 0, *source, *destination, inverted)


_BYTES = {"tcp": _encode, "udp": _encode}
_RANKS = {"tcp": 1, "udp": 2}

MATCHES = {
    name: MatchExtension(
        spell=_spell,
        rank=_RANKS.get(name),
        protocol=PROTOCOLS[name],
        holds=_holds,
        has=ports_text,
        encode=_BYTES.get(name),
    )
    for name in ("tcp", "udp", "sctp", "dccp", "udplite")
}
