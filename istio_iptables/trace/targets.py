"""What a matching rule does: where the packet goes next, and what is changed about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.netfilter.extensions import Effect, Next, target_extension

if TYPE_CHECKING:
    from collections.abc import Container

    from istio_iptables.netfilter.extensions import Situation
    from istio_iptables.netfilter.model import Rule, Target

__all__ = ["effect", "target_effect"]

_WRITES_DOWN = {"AUDIT", "IDLETIMER", "LED", "LOG", "NFLOG", "RATEEST", "TEE", "TRACE", "ULOG"}
_LABELS = {"CLASSIFY", "CONNSECMARK", "SECMARK"}
#: What these change about a packet, no match that is known here asks for.
_CHANGES = {"CHECKSUM", "DSCP", "ECN", "HL", "TCPMSS", "TCPOPTSTRIP", "TOS", "TTL"}
#: Targets that let the packet go on as it is here.
_GOES_ON = frozenset(_WRITES_DOWN | _LABELS | _CHANGES)
_VERDICTS = {"ACCEPT": Next.ACCEPT, "DROP": Next.DROP, "RETURN": Next.RETURN}


def effect(rule: Rule, situation: Situation, chains: Container[str]) -> Effect:
    """What *rule* does to the packet, which it matches."""
    if rule.target is None:
        return Effect(Next.CONTINUE, situation.packet)
    return target_effect(rule.target, situation, chains)


def target_effect(target: Target, situation: Situation, chains: Container[str]) -> Effect:
    """What *target* does to a packet that it gets."""
    packet = situation.packet
    name = target.name
    if name in chains:
        done: Effect | None = Effect(Next.GOTO if target.goto else Next.JUMP, packet)
    elif name in _VERDICTS:
        done = Effect(_VERDICTS[name], packet)
    elif name in _GOES_ON:
        done = Effect(Next.CONTINUE, packet)
    else:
        act = target_extension(name).effect
        done = act(target, situation) if act else None
    if done is None:
        # If it lets the packet go on, it may have marked it.
        marked = packet._replace(mark=None, connmark=None if packet.tracked else packet.connmark)
        done = Effect(Next.UNKNOWN, marked, "what it does can't be known from here")
    return done._replace(verdict=name)
