"""Text on its way out: to people, whose terminals obey what is in it, or byte for byte to programs."""

from __future__ import annotations

import os
import sys
from functools import cache

from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import re
    from typing import TextIO

__all__ = ["clip", "excerpt", "paint", "pattern", "printable", "write_exactly"]

#: What paint knows, as ECMA-48 (SGR) numbers it.
_STYLES = {"red": 31, "green": 32, "yellow": 33, "bold": 1}

#: How much of a foreign text a message quotes.
_MOST_LETTERS = 120


def printable(text: str) -> str:
    """*text* as one line that shows what is in it: control characters and their like are escaped.

    Rules, comments and names come from files and from others' rules. Written as they are, they
    could clear the terminal, or forge a line of this program's.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def paint(text: str, style: str, stream: TextIO) -> str:
    """*text* in a style (red, green, yellow, bold), if *stream* is a terminal that shows styles.

    NO_COLOR (https://no-color.org) and a dumb terminal are respected.
    """
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # noqa: PLR2004 - how Python keeps a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return ascii(letter)[1:-1]


def clip(text: str) -> str:
    """*text*, cut where a message has enough of it."""
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."


def excerpt(text: str) -> str:
    """*text* in quotes, cut where a message has enough of it."""
    return repr(text) if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]!r}..."


@cache
def pattern(text: str) -> re.Pattern[str]:
    """The regular expression *text*, compiled when it is first asked for.

    A dry run needs none, and would take 3 ms longer with those of all its modules.
    """
    import re

    return re.compile(text)


def write_exactly(text: str) -> None:
    """Write *text*, which is a format, to stdout: the bytes it has, whatever a terminal can show."""
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]  # a text file
    sys.stdout.write(text)
