"""conntrack, and state, which is an older and smaller one: what is known about the connection."""

from __future__ import annotations

import struct

from istio_iptables.netfilter.extensions import MatchExtension, Situation
from istio_iptables.netfilter.fieldvalues import protocol_number
from istio_iptables.netfilter.model import Match, Option
from istio_iptables.netfilter.parts import only, part
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_iptables.netfilter.packet import Packet

__all__ = ["MATCHES"]

#: The states in the order in which iptables-save prints them, with the kernel's bits.
_STATES = {
    "INVALID": 1,
    "NEW": 8,
    "RELATED": 4,
    "ESTABLISHED": 2,
    "UNTRACKED": 256,
    "SNAT": 64,
    "DNAT": 128,
}
_BY_STATE = ("--ctstate", "--state")


def _spell(match: Match) -> Match:
    """States in one order; ``-m state --state`` asks the same of fewer of them."""
    options = tuple(map(_spell_option, match.options))
    if match.name == "state" and not all(option.name == "--ctstate" for option in options):
        return match
    return Match("conntrack", options)


def _spell_option(option: Option) -> Option:
    asked = set(option.value.upper().split(","))
    if option.name not in _BY_STATE or not asked <= _STATES.keys():
        return option
    text = ",".join(state for state in _STATES if state in asked)
    return Option("--ctstate", (text,), option.negated)


def _holds(option: Option, situation: Situation, match: Match) -> bool | None:
    from istio_iptables.netfilter.questions import among
    from istio_iptables.netfilter.sets import one_number

    packet = situation.packet
    if option.name in _BY_STATE:
        return _has_state(option, situation)
    if not packet.tracked:
        # The kernel looks at the state alone then, or refuses if it isn't asked for.
        return match.option(*_BY_STATE) is not None
    # Of a connection to be the protocol isn't known yet; an error has that of the packet it is
    # about.
    if option.name != "--ctproto" or packet.early_state or packet.is_error:
        return None
    wanted = protocol_number(option.value)
    if wanted is None:
        return None
    return among(packet.protocol, one_number(wanted)) is not option.negated


def _has_state(option: Option, situation: Situation) -> bool | None:
    from istio_iptables.netfilter.questions import among, named

    asked = set(",".join(option.values).upper().split(","))
    packet = situation.packet
    if among(packet.seen_state, named(*sorted(asked))):
        return not option.negated
    if asked & {"DNAT", "SNAT"} and packet.tracked and not packet.early_state:
        is_first = among(packet.state, named("NEW"))
        if "DNAT" in asked and not is_first:
            return None
        if "DNAT" in asked and situation.translated:
            # Where it is unknown, the new destination may be the old one.
            known = packet.destination and (
                packet.destination_port is not None or not packet.has_ports
            )
            return not option.negated if known else None
        if "SNAT" in asked and not is_first:
            return None
    return option.negated


def _has(packet: Packet) -> str:
    early = " (before connection tracking)" if packet.early_state else ""
    return f"state {packet.seen_state}{early}"


#: struct xt_conntrack_mtinfo3: 8 addresses of 16 bytes, then expiry, protocol, ports, flags.
_LAYOUT = struct.Struct("=128sIIH4HHHHH4H")
_STATE_FLAG = 1


def _encode(match: Match) -> bytes:
    option = only(match, "--ctstate")
    # Each state is there once: the sum is their union.
    states = sum(_STATES[name] for name in set(option.value.split(",")))
    ports = (0,) * 4
    inverted = _STATE_FLAG if option.negated else 0
    data = _LAYOUT.pack(b"", 0, 0, 0, *ports, _STATE_FLAG, inverted, states, 0, *ports)
    return part("conntrack", 3, data)


MATCHES = {
    "conntrack": MatchExtension(spell=_spell, rank=7, holds=_holds, has=_has, encode=_encode),
    "state": MatchExtension(spell=_spell, holds=_holds, has=_has),
}
