"""CT, and NOTRACK, which is an older one: how the packet's connection is tracked."""

from __future__ import annotations

import struct

from istio_iptables.netfilter.extensions import Effect, Next, Situation, TargetExtension
from istio_iptables.netfilter.fieldvalues import option_number
from istio_iptables.netfilter.model import Family, Option, Target
from istio_iptables.netfilter.parts import known, only, part

__all__ = ["TARGETS"]


def _spell(target: Target, _: Family) -> Target:
    options = []
    for option in target.options:
        zone = option_number(option) if option.name == "--zone" else None
        options.append(option if zone is None else Option("--zone", (str(zone),)))
    return Target(target.name, tuple(options))


def _effect(target: Target, situation: Situation) -> Effect:
    """Only the first such target takes effect."""
    packet = situation.packet
    if packet.settled:
        return Effect(Next.CONTINUE, packet)
    if target.name == "NOTRACK" or target.option("--notrack"):
        changed = packet._replace(settled=True, state="UNTRACKED", early_state="UNTRACKED")
        return Effect(Next.CONTINUE, changed, "not tracked")
    # A connection to be: the rest of raw sees it as a new one.
    packet = packet._replace(settled=True, early_state="NEW")
    option = target.option("--zone")
    if option is None:
        return Effect(Next.CONTINUE, packet)
    zone = option_number(option)
    text = "unknown" if zone is None else zone
    return Effect(Next.CONTINUE, packet._replace(zone=zone), f"zone {text}")


def _encode(target: Target, _: Family) -> bytes:
    zone = known(option_number(only(target, "--zone")))
    # struct xt_ct_target_info_v1: the end is a pointer of the kernel's own.
    return part("CT", 2, struct.pack("=HHII48s4x8x", 0, zone, 0, 0, b""))


TARGETS = {
    "CT": TargetExtension(spell=_spell, effect=_effect, encode=_encode),
    "NOTRACK": TargetExtension(
        spell=lambda _target, _family: Target("CT", (Option("--notrack"),)), effect=_effect
    ),
}
