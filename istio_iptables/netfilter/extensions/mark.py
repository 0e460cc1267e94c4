"""The packet's mark: the match mark, the targets MARK, HMARK and SET, and what others share."""

from __future__ import annotations

import struct

from istio_iptables.netfilter.extensions import (
    Effect,
    MatchExtension,
    Next,
    Situation,
    TargetExtension,
)
from istio_iptables.netfilter.fieldvalues import WHOLE_MARK, read_masked
from istio_iptables.netfilter.model import Family, Match, Option, Target
from istio_iptables.netfilter.parts import known, only, part

__all__ = ["MATCHES", "TARGETS", "has_mark", "mark_text", "mix_mark", "spell_xmark", "xmark"]


def _spell_match(match: Match) -> Match:
    """``--mark 1337`` is ``--mark 0x539``; a whole mask is not printed."""
    options = []
    for option in match.options:
        read = read_masked(option.value) if option.name == "--mark" else None
        if read is not None:
            value, mask = read
            text = f"{value:#x}" if mask == WHOLE_MARK else f"{value:#x}/{mask:#x}"
            option = option._replace(values=(text,))  # noqa: PLW2901 - the same option, spelled
        options.append(option)
    return Match(match.name, tuple(options))


def has_mark(option: Option, mark: int | None) -> bool | None:
    """Whether *mark* is the one that an option ``--mark`` asks for."""
    from istio_iptables.netfilter.questions import has_bits

    read = read_masked(option.value) if option.name == "--mark" else None
    if read is None or mark is None:
        return None
    value, mask = read
    return has_bits(mark, value, mask) is not option.negated


def mark_text(mark: int | None) -> str:
    """A mark as iptables prints it."""
    return "unknown" if mark is None else f"{mark:#x}"


def _encode_match(match: Match) -> bytes:
    option = only(match, "--mark")
    data = struct.pack("=IIBxxx", *known(read_masked(option.value)), option.negated)
    return part(match.name, 1, data)


def xmark(target: Target) -> tuple[int, int] | None:
    """The value and the mask of ``--set-xmark``, from any spelling."""
    option = target.options[0] if len(target.options) == 1 else None
    read = read_masked(option.value) if option else None
    if option is None or read is None:
        return None
    value, mask = read
    return {
        "--set-xmark": (value, mask),
        "--set-mark": (value, mask | value),
        "--and-mark": (0, ~value & WHOLE_MARK),
        "--or-mark": (value, value),
        "--xor-mark": (value, 0),
    }.get(option.name)


def spell_xmark(target: Target, _: Family) -> Target:
    """Every way to change a mark as the one that the kernel keeps: ``--set-xmark``."""
    read = xmark(target)
    if read is None:
        return target
    return Target(target.name, (Option("--set-xmark", (f"{read[0]:#x}/{read[1]:#x}",)),))


def mix_mark(old: int | None, value: int, mask: int) -> int | None:
    """What ``--set-xmark value/mask`` makes of a mark."""
    from istio_iptables.netfilter.questions import mix

    if mask == WHOLE_MARK:
        return value
    return None if old is None else mix(old, ~mask & WHOLE_MARK, value)


def _set_mark(target: Target, situation: Situation) -> Effect:
    packet = situation.packet
    read = xmark(target)
    mark = None if read is None else mix_mark(packet.mark, *read)
    return Effect(Next.CONTINUE, packet._replace(mark=mark), f"mark {mark_text(mark)}")


def _unknown_mark(_: Target, situation: Situation) -> Effect:
    """A mark that only the kernel knows: HMARK computes it from the addresses, in its own way."""
    return Effect(Next.CONTINUE, situation.packet._replace(mark=None), "mark unknown")


def _set(target: Target, situation: Situation) -> Effect:
    """SET: a map may give the packet a mark, which only the set knows."""
    if target.option("--map-mark"):
        return _unknown_mark(target, situation)
    return Effect(Next.CONTINUE, situation.packet)


def _encode(target: Target, _: Family) -> bytes:
    return part("MARK", 2, struct.pack("=II", *known(xmark(target))))


MATCHES = {
    "mark": MatchExtension(
        spell=_spell_match,
        rank=5,
        holds=lambda option, situation, _: has_mark(option, situation.packet.mark),
        has=lambda packet: f"mark {mark_text(packet.mark)}",
        encode=_encode_match,
    )
}
TARGETS = {
    "MARK": TargetExtension(spell=spell_xmark, effect=_set_mark, encode=_encode),
    "HMARK": TargetExtension(effect=_unknown_mark),
    "SET": TargetExtension(effect=_set),
}
