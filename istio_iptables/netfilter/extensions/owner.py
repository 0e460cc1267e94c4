"""owner: the user and the group of the process that a packet's socket belongs to."""

from __future__ import annotations

import struct

from istio_iptables.netfilter.extensions import MatchExtension, Situation, in_order
from istio_iptables.netfilter.fieldvalues import number_range
from istio_iptables.netfilter.model import Match, Option
from istio_iptables.netfilter.parts import known, part
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_iptables.netfilter.packet import Packet

__all__ = ["MATCHES"]

_ORDER = {"--uid-owner": 0, "--gid-owner": 1, "--socket-exists": 2, "--suppl-groups": 3}
_IDS = ("--uid-owner", "--gid-owner")
_SENDING = frozenset({"OUTPUT", "POSTROUTING"})


def _spell(match: Match) -> Match:
    """``--uid-owner 0x539`` and ``1337-1337`` are ``1337``; names stay."""
    options = []
    for option in match.options:
        ids = number_range(option.value) if option.name in _IDS else None
        options.append(option if ids is None else option._replace(values=(ids.spelt("-"),)))
    return Match(match.name, in_order(options, _ORDER))


def _holds(option: Option, situation: Situation, match: Match) -> bool | None:
    if option.name == "--socket-exists":
        return (situation.packet.uid is not None) is not option.negated
    # --suppl-groups is no condition of its own.
    return option.name not in _IDS or _has_id(option, situation, match)


def _has_id(option: Option, situation: Situation, match: Match) -> bool | None:
    from istio_iptables.netfilter.questions import among
    from istio_iptables.netfilter.sets import numbers

    packet = situation.packet
    if situation.hook not in _SENDING:
        return None
    if packet.uid is None and packet.gid is None:
        # A packet of no socket (the kernel's own) matches only what is negated.
        return option.negated
    owner = packet.uid if option.name == "--uid-owner" else packet.gid
    ids = number_range(option.value)
    if ids is None or owner is None:
        return None
    inside = among(owner, numbers(ids))
    if not inside and option.name == "--gid-owner" and match.option("--suppl-groups"):
        # A process has groups beside its own, which a packet does not tell.
        return None
    return inside is not option.negated


def _has(packet: Packet) -> str:
    return "no socket" if packet.uid is None else f"uid {packet.uid}, gid {packet.gid}"


def _encode(match: Match) -> bytes:
    ids = [(0, 0), (0, 0)]
    present = inverted = 0
    for option in match.options:
        place = _IDS.index(option.name)
        ids[place] = known(number_range(option.value))
        present |= 1 << place
        inverted |= option.negated << place
    return part("owner", 1, struct.pack("=IIIIBBxx", *ids[0], *ids[1], present, inverted))


MATCHES = {"owner": MatchExtension(spell=_spell, rank=4, holds=_holds, has=_has, encode=_encode)}
