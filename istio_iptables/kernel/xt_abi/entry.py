"""What matches and targets have in common: their head, and how values are written."""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_iptables.netfilter.model import Match, Option, Target

__all__ = [
    "HEAD",
    "WHOLE_MARK",
    "UnknownPartError",
    "aligned",
    "only_option",
    "part",
    "value_and_mask",
]

#: The head of a part: its size, its name, its revision.
HEAD = struct.Struct("=H29sB")
WHOLE_MARK = 0xFFFFFFFF


class UnknownPartError(ValueError):
    """A rule has a part whose bytes are not known here; only a foreign rule can have one."""


class _Widest(ctypes.Structure):
    """struct _xt_align: where a number of 64 bits stands in a structure, 4 on i386, else 8."""

    _fields_ = (("widest", ctypes.c_uint64),)


_ALIGNMENT = ctypes.alignment(_Widest)


def aligned(size: int) -> int:
    """*size* up to the kernel's alignment of rules and their parts (XT_ALIGN)."""
    return (size + _ALIGNMENT - 1) & -_ALIGNMENT


def part(name: str, revision: int, data: bytes) -> bytes:
    """A part with its head, filled up to the kernel's alignment."""
    size = aligned(HEAD.size + len(data))
    head = HEAD.pack(size, name.encode(errors="surrogateescape"), revision)
    return head + data + bytes(size - HEAD.size - len(data))


def only_option(each: Match | Target) -> Option:
    """The one option of a part; raises ValueError if it has none or more."""
    (option,) = each.options
    return option


def value_and_mask(text: str) -> tuple[int, int]:
    """The mark and the mask of ``0x1/0xff``; the mask is whole if there is none."""
    value, slash, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if slash else WHOLE_MARK
