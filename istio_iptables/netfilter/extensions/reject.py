"""REJECT and TARPIT, which end a connection."""

from __future__ import annotations

from istio_iptables.netfilter.extensions import Effect, Next, Situation, TargetExtension
from istio_iptables.netfilter.model import Family, Option, Target

__all__ = ["TARGETS"]


def _spell(target: Target, family: Family) -> Target:
    """What it answers is always printed, the default too."""
    if target.options:
        return target
    answer = "icmp-port-unreachable" if family is Family.IPV4 else "icmp6-port-unreachable"
    return Target(target.name, (Option("--reject-with", (answer,)),))


def _effect(_: Target, situation: Situation) -> Effect:
    return Effect(Next.DROP, situation.packet)


TARGETS = {
    "REJECT": TargetExtension(spell=_spell, effect=_effect),
    "TARPIT": TargetExtension(effect=_effect),
}
