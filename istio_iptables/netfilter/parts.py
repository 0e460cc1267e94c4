"""A match or a target as bytes: its head, its alignment, and reading what goes into it."""

from __future__ import annotations

import struct

from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeVar

    from istio_iptables.netfilter.model import Match, Option, Target

    _T = TypeVar("_T")

__all__ = ["align_size", "known", "only", "part"]

#: The head of a part: its size, its name, its revision.
_HEAD = struct.Struct("=H29sB")
#: struct _xt_align: where C puts a number of 64 bits behind a byte, 4 on i386, else 8.
_ALIGNMENT = struct.calcsize("BQ") - struct.calcsize("Q")


def align_size(size: int) -> int:
    """*size* up to the kernel's alignment of rules and their parts (XT_ALIGN)."""
    return (size + _ALIGNMENT - 1) & -_ALIGNMENT


def part(name: str, revision: int, data: bytes) -> bytes:
    """A part with its head, filled up to the kernel's alignment."""
    size = align_size(_HEAD.size + len(data))
    head = _HEAD.pack(size, name.encode(errors="surrogateescape"), revision)
    return (head + data).ljust(size, b"\0")


def only(each: Match | Target, name: str) -> Option:
    """The one option of *each*; raises ValueError if it has another one or more."""
    (option,) = each.options
    if option.name != name:
        raise ValueError(option.name)
    return option


def known(value: _T | None) -> _T:
    """*value*; raises ValueError if its text could not be read."""
    if value is None:
        message = "a value that is not known"
        raise ValueError(message)
    return value
