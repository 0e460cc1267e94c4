"""TPROXY: the packet goes to a local listener with the addresses that it has."""

from __future__ import annotations

import struct

from istio_iptables.netfilter.extensions import Effect, Next, Situation, TargetExtension
from istio_iptables.netfilter.extensions.mark import mark_text, mix_mark
from istio_iptables.netfilter.fieldvalues import (
    MAX_PORT,
    address_number,
    option_number,
    read_masked,
)
from istio_iptables.netfilter.model import Family, Option, Target
from istio_iptables.netfilter.parts import known, part

__all__ = ["TARGETS"]

_NAMES = frozenset({"--on-port", "--on-ip", "--tproxy-mark"})


def _mark(target: Target) -> tuple[int, int] | None:
    """The value and the mask that it gives the packet's mark."""
    option = target.option("--tproxy-mark")
    return read_masked(option.value) if option else (0, 0)


def _address(target: Target, family: Family) -> str:
    """Where the listener is; anywhere, if that isn't said."""
    option = target.option("--on-ip")
    anywhere = "0.0.0.0" if family is Family.IPV4 else "::"  # noqa: S104 - a rule's text
    return option.value if option else anywhere


def _spell(target: Target, family: Family) -> Target:
    """All three of its options, in one order."""
    port, mark = option_number(target.option("--on-port")), _mark(target)
    if port is None or mark is None or any(each.name not in _NAMES for each in target.options):
        return target
    return Target(
        target.name,
        (
            Option("--on-port", (str(port),)),
            Option("--on-ip", (_address(target, family),)),
            Option("--tproxy-mark", (f"{mark[0]:#x}/{mark[1]:#x}",)),
        ),
    )


def _effect(target: Target, situation: Situation) -> Effect | None:
    packet = situation.packet
    # Port 0 is the one that was asked for.
    port, read = option_number(target.option("--on-port"), 0), _mark(target)
    if read is None or port is None or port > MAX_PORT:
        return None
    port = port or packet.destination_port
    mark = mix_mark(packet.mark, *read)
    changed = packet._replace(mark=mark)
    change = f"to the listener on port {port}, mark {mark_text(mark)}"
    return Effect(Next.ACCEPT, changed, change, takes=True, to_port=port)


def _encode(target: Target, family: Family) -> bytes:
    if {option.name for option in target.options} != _NAMES:
        raise ValueError(target.options)
    value, mask = known(_mark(target))
    address = known(address_number(_address(target, family), family))
    port = known(option_number(target.option("--on-port")))
    # The address has the room of one of IPv6.
    room = address.to_bytes(family.bits // 8, "big")
    return part("TPROXY", 1, struct.pack("=II16s", mask, value, room) + struct.pack(">Hxx", port))


TARGETS = {"TPROXY": TargetExtension(spell=_spell, effect=_effect, encode=_encode)}
