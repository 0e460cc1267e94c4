"""multiport: a list of ports and of ranges of them."""

from __future__ import annotations

import struct

from istio_iptables.netfilter.extensions import MatchExtension, Situation
from istio_iptables.netfilter.extensions.ports import ports_text
from istio_iptables.netfilter.fieldvalues import port_range
from istio_iptables.netfilter.model import Match, Option
from istio_iptables.netfilter.parts import part

__all__ = ["MATCHES"]

_NAMES = {"--source-ports": "--sports", "--destination-ports": "--dports"}
_KINDS = {"--sports": 0, "--dports": 1, "--ports": 2}
_MOST = 15


def _spell(match: Match) -> Match:
    return Match(match.name, tuple(map(_spell_option, match.options)))


def _spell_option(option: Option) -> Option:
    values = option.values
    if len(values) == 1:
        values = (",".join(map(_spell_item, values[0].split(","))),)
    return Option(_NAMES.get(option.name, option.name), values, option.negated)


def _spell_item(item: str) -> str:
    ports = port_range(item)
    if ports is None:
        return item
    # A range of one port stays a range, as iptables-save prints it.
    return f"{ports.first}:{ports.last}" if ":" in item else str(ports.first)


def _holds(option: Option, situation: Situation, _: Match) -> bool | None:
    from istio_iptables.netfilter.questions import among
    from istio_iptables.netfilter.sets import Intervals

    packet = situation.packet
    kind = _KINDS.get(_NAMES.get(option.name, option.name))
    if kind is None:
        return None
    if not packet.has_ports:
        return False
    both = (packet.source_port, packet.destination_port)
    ports = both if kind == _KINDS["--ports"] else (both[kind],)
    ranges = [port_range(item) for item in ",".join(option.values).split(",")]
    if None in ports or None in ranges:
        return None
    wanted = Intervals.of(each for each in ranges if each)
    return any(among(port, wanted) for port in ports if port is not None) is not option.negated


def _encode(match: Match) -> bytes:
    (option,) = match.options
    ports: list[int] = []
    #: Whether a port begins a range, whose end is the next one.
    begins: list[bool] = []
    for item in option.values[0].split(","):
        first, colon, last = item.partition(":")
        ports += (int(first), int(last)) if colon else (int(first),)
        begins += (True, False) if colon else (False,)
    free = (0,) * (_MOST - len(ports))
    layout = f"=BB{_MOST}H{_MOST}BB"
    kind = _KINDS[option.name]
    data = struct.pack(layout, kind, len(ports), *ports, *free, *begins, *free, option.negated)
    return part("multiport", 1, data)


MATCHES = {
    "multiport": MatchExtension(spell=_spell, rank=3, holds=_holds, has=ports_text, encode=_encode)
}
