"""The connection's mark: the match connmark and the target CONNMARK."""

from __future__ import annotations

import struct

from istio_iptables.netfilter.extensions import (
    Effect,
    Next,
    Situation,
    TargetExtension,
    match_extension,
)
from istio_iptables.netfilter.extensions.mark import (
    has_mark,
    mark_text,
    mix_mark,
    spell_xmark,
    xmark,
)
from istio_iptables.netfilter.fieldvalues import WHOLE_MARK, option_number
from istio_iptables.netfilter.model import Family, Match, Option, Target
from istio_iptables.netfilter.parts import known, part

__all__ = ["MATCHES", "TARGETS"]


def _holds(option: Option, situation: Situation, _: Match) -> bool | None:
    packet = situation.packet
    if option.name != "--mark":
        return None
    # Without a connection there is no mark to compare, in either sense.
    if not packet.tracked:
        return False
    # Behind a CT target, raw sees the mark of what that target has made, not the connection's.
    return None if packet.early_state else has_mark(option, packet.connmark)


#: The ways to copy a mark, with the kernel's numbers of them.
_COPIES = {"--save-mark": 1, "--restore-mark": 2}
_MASKS = frozenset({"--mask", "--nfmask", "--ctmask"})


def _masks(target: Target) -> tuple[int, int] | None:
    """Through which masks a mark is copied: the packet's and the connection's."""
    both = option_number(target.option("--mask"), WHOLE_MARK)
    nfmask = option_number(target.option("--nfmask"), both)
    ctmask = option_number(target.option("--ctmask"), both)
    return None if nfmask is None or ctmask is None else (nfmask, ctmask)


def _spell(target: Target, family: Family) -> Target:
    """Saved and restored marks get both of their masks."""
    which = target.option(*_COPIES)
    if which is None:
        return spell_xmark(target, family)
    read = _masks(target)
    if read is None:
        return target
    masks = (Option("--nfmask", (f"{read[0]:#x}",)), Option("--ctmask", (f"{read[1]:#x}",)))
    return Target(target.name, (Option(which.name), *masks))


def _effect(target: Target, situation: Situation) -> Effect:
    packet = situation.packet
    if not packet.tracked:
        return Effect(Next.CONTINUE, packet, "no connection, so no mark of it")
    masks = None
    # What raw finds behind a CT target is no connection yet.
    if not packet.early_state and {each.name for each in target.options} <= _COPIES.keys() | _MASKS:
        masks = _masks(target)
    if target.option("--restore-mark"):
        mark = (
            None if masks is None else _copy_mark(packet.connmark, masks[1], packet.mark, masks[0])
        )
        return Effect(Next.CONTINUE, packet._replace(mark=mark), f"mark {mark_text(mark)}")
    if packet.early_state:
        return Effect(Next.CONTINUE, packet, "no connection yet, so no mark of it")
    connmark = None
    if target.option("--save-mark") is None:
        read = xmark(target)
        connmark = None if read is None else mix_mark(packet.connmark, *read)
    elif masks is not None:
        connmark = _copy_mark(packet.mark, masks[0], packet.connmark, masks[1])
    changed = packet._replace(connmark=connmark)
    return Effect(Next.CONTINUE, changed, f"connection mark {mark_text(connmark)}")


def _copy_mark(source: int | None, mask: int, old: int | None, replaced: int) -> int | None:
    from istio_iptables.netfilter.questions import mix

    if source is None:
        return None
    if replaced == WHOLE_MARK:
        return mix(source, mask, 0)
    return None if old is None else mix(old, ~replaced & WHOLE_MARK, mix(source, mask, 0))


def _encode(target: Target, _: Family) -> bytes:
    (mode,) = (_COPIES[each.name] for each in target.options if each.name not in _MASKS)
    nfmask, ctmask = known(_masks(target))
    # Revision 2 (Linux 4.17) is what iptables makes: it does not print the text of another.
    return part("CONNMARK", 2, struct.pack("=IIIBBBx", 0, ctmask, nfmask, 0, 0, mode))


MATCHES = {
    # Spelled, and laid out in bytes, like the match on the packet's mark.
    "connmark": match_extension("mark")._replace(
        rank=6,
        holds=_holds,
        has=lambda packet: f"connection mark {mark_text(packet.connmark)}",
    )
}
TARGETS = {"CONNMARK": TargetExtension(spell=_spell, effect=_effect, encode=_encode)}
