"""Tables for people: columns whose texts are wrapped where a line would get too long, and Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["markdown", "table"]

#: A line is no longer than this, if words allow.
_WIDTH = 100
_GAP = 2
_LEAST = 20


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines with the *rows* in columns below their *heads*, indented."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    # The widest gives way, until the line is short enough.
    while sum(widths) + _GAP * len(widths) > _WIDTH and max(widths) > _LEAST:
        widths[widths.index(max(widths))] -= 1
    for row in (heads, *rows):
        cells = [_wrapped(text, width) for text, width in zip(row, widths, strict=True)]
        for number in range(max(map(len, cells))):
            parts = (
                (cell[number] if number < len(cell) else "").ljust(width + _GAP)
                for cell, width in zip(cells, widths, strict=True)
            )
            yield f"  {''.join(parts)}".rstrip() + "\n"


def _wrapped(text: str, width: int) -> list[str]:
    """The words of *text* on lines of at most *width*; those behind the first are indented."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1].strip() and len(longer) > width:
            lines.append(f"  {word}")
        else:
            lines[-1] = longer
    return lines


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The same as a table of Markdown."""
    yield f"| {' | '.join(heads)} |\n"
    yield f"|{'|'.join('---' for _ in heads)}|\n"
    for row in rows:
        yield f"| {' | '.join(_escaped(text) for text in row)} |\n"


def _escaped(text: str) -> str:
    """*text* without what Markdown would take for its own."""
    return "".join(f"\\{letter}" if letter in _MEANT else letter for letter in text)


_MEANT = frozenset("\\`*_[]<>|")
