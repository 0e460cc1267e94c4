"""Pictures as SVG: plain shapes and text, that follow the reader's light or dark colours."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.pictures.flow import Box, Flow, RuleLine
    from istio_iptables.pictures.sequence import Sequence

__all__ = ["STYLE", "flow_element", "sequence_element", "text"]

#: A letter of a monospaced font is 0.6 as wide as it is high; some fonts are a little wider.
_SIZE, _LETTER, _ROW = 12, 7.4, 17
_PAD, _GAP, _BETWEEN = 10, 130, 22
#: A rule longer than that goes on in the next row.
_MOST_LETTERS = 62
_INDENT = "    "

STYLE = """
.ii { --ink: #1c1e21; --faint: #57606a; --paper: #ffffff; --box: #f3f5f8; --edge: #8b949e;
  --way: #0a58ca; --wash: #dbe9ff; --foreign: #a8071a; color-scheme: light dark;
  font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
@media (prefers-color-scheme: dark) {
  .ii { --ink: #e6edf3; --faint: #a5b0bb; --paper: #0d1117; --box: #1a212b; --edge: #6e7681;
    --way: #79b8ff; --wash: #12325c; --foreign: #ff9492; } }
.ii text { fill: var(--ink); white-space: pre; }
.ii .paper { fill: var(--paper); }
.ii .box { fill: var(--box); stroke: var(--edge); }
.ii .title { font-weight: bold; }
.ii .faint { fill: var(--faint); }
.ii .foreign { fill: var(--foreign); }
.ii .arrow { fill: none; stroke: var(--edge); stroke-width: 1.3; }
.ii .head { fill: var(--edge); stroke: none; }
.ii .arrow.way { stroke: var(--way); stroke-width: 2.6; }
.ii .head.way { fill: var(--way); }
.ii .box.way { stroke: var(--way); stroke-width: 2; }
.ii .row { fill: transparent; }
.ii .row.way { fill: var(--wash); }
.ii .halo { stroke: var(--paper); stroke-width: 4; paint-order: stroke; }
.ii .wrong { fill: var(--foreign); font-weight: bold; }
"""


def text(drawing: ET.Element) -> str:
    """The drawing as a file of its own."""
    ET.indent(drawing, " ")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(drawing, encoding="unicode")}\n'


def _canvas(width: float, height: float, label: str) -> ET.Element:
    drawing = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "ii",
            "viewBox": f"0 0 {width:.0f} {height:.0f}",
            "width": f"{width:.0f}",
            "height": f"{height:.0f}",
            "role": "img",
            "aria-label": label,
        },
    )
    ET.SubElement(drawing, "style").text = STYLE
    ET.SubElement(drawing, "rect", {"class": "paper", "width": "100%", "height": "100%"})
    return drawing


def _write(parent: ET.Element, x: float, y: float, words: str, kind: str = "", **more: str) -> None:
    """*words* with the left end of their base line at *x* and *y*."""
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", **more}
    if kind:
        attributes["class"] = kind
    ET.SubElement(parent, "text", attributes).text = words


def _hint(parent: ET.Element, words: str) -> None:
    """What is shown where the pointer rests, and read to those who see no picture."""
    if words:
        ET.SubElement(parent, "title").text = words


# Rules.


class _Laid(NamedTuple):
    """A box and where it is."""

    box: Box
    x: float
    y: float
    width: float
    rows: tuple[tuple[RuleLine, tuple[str, ...]], ...]

    @property
    def height(self) -> float:
        return _ROW * (1 + sum(len(each) for _, each in self.rows)) + 2 * _PAD

    @property
    def entry(self) -> tuple[float, float]:
        """Where arrows to the box end."""
        return self.x, self.y + _PAD + _ROW / 2


def flow_element(flows: Iterable[Flow], label: str) -> ET.Element:
    """The tables, one below the other; chains from left to right as a packet passes them."""
    parts = []
    y, width = float(_PAD), 0.0
    for flow in flows:
        laid, bottom = _lay_out(flow, y + _ROW + _PAD)
        parts.append((flow, y, laid))
        y = bottom + 2 * _BETWEEN
        width = max(width, *(each.x + each.width for each in laid.values()))
    drawing = _canvas(width + _PAD, max(y - _BETWEEN, 2 * _ROW), label)
    if not parts:
        _write(drawing, _PAD, _ROW, "no rules")
    for flow, top, laid in parts:
        _write(drawing, _PAD, top + _ROW, flow.title, "title")
        # Boxes lie over the arrows that pass below them; counters over both.
        counters: list[tuple[float, float, str]] = []
        for each in laid.values():
            counters += _draw_arrows(drawing, each, laid)
        for each in laid.values():
            _draw_box(drawing, each)
        for x, height, counted in counters:
            _write(drawing, x, height, counted, "faint halo")
    return drawing


def _lay_out(flow: Flow, top: float) -> tuple[dict[str, _Laid], float]:
    """Every box in its column, and how far down they reach."""
    found: dict[str, _Laid] = {}
    x, bottom = float(_PAD), top
    for column in sorted({box.column for box in flow.boxes}):
        y = top
        boxes = [box for box in flow.boxes if box.column == column]
        rows = {box.name: tuple((line, _rows_of(line)) for line in box.lines) for box in boxes}
        widest = max(
            _LETTER * max(len(row) for row in (box.title, *_texts(rows[box.name]))) + 2 * _PAD
            for box in boxes
        )
        for box in boxes:
            laid = _Laid(box, x, y, widest, rows[box.name])
            found[box.name] = laid
            y += laid.height + _BETWEEN
        bottom = max(bottom, y - _BETWEEN)
        x += widest + _GAP
    return found, bottom


def _texts(rows: Iterable[tuple[RuleLine, tuple[str, ...]]]) -> Iterator[str]:
    for _, each in rows:
        yield from each


def _rows_of(line: RuleLine) -> tuple[str, ...]:
    start = f"{line.number} " if line.number else ""
    return tuple(
        wrap(
            start + line.text,
            _MOST_LETTERS,
            subsequent_indent=_INDENT,
            break_on_hyphens=False,
        )
    ) or (start,)


def _way(passed: bool, kind: str) -> str:  # noqa: FBT001 - reads as "if passed"
    return f"{kind} way" if passed else kind


def _draw_box(drawing: ET.Element, laid: _Laid) -> None:
    box = laid.box
    group = ET.SubElement(drawing, "g", {"data-chain": box.title})
    ET.SubElement(
        group,
        "rect",
        {
            "class": _way(box.passed, "box"),
            "x": f"{laid.x:.1f}",
            "y": f"{laid.y:.1f}",
            "width": f"{laid.width:.1f}",
            "height": f"{laid.height:.1f}",
            "rx": str(laid.height / 2 if box.is_end else 5),
        },
    )
    y = laid.y + _PAD
    _write(group, laid.x + _PAD, y + _SIZE, box.title, "title")
    for line, rows in laid.rows:
        y += _ROW
        row = ET.SubElement(group, "g")
        _hint(row, line.note.reason or ("a rule of others" if line.note.foreign else ""))
        ET.SubElement(
            row,
            "rect",
            {
                "class": _way(line.note.passed, "row"),
                "x": f"{laid.x + 1:.1f}",
                "y": f"{y:.1f}",
                "width": f"{laid.width - 2:.1f}",
                "height": str(_ROW * len(rows)),
            },
        )
        kind = "foreign" if line.note.foreign else "" if line.number else "faint"
        for words in rows:
            _write(row, laid.x + _PAD, y + _SIZE, words, kind)
            y += _ROW
        y -= _ROW


def _draw_arrows(
    drawing: ET.Element, laid: _Laid, others: dict[str, _Laid]
) -> Iterator[tuple[float, float, str]]:
    """The arrows that leave a box; yields where a counter is to be written, and its words."""
    y = laid.y + _PAD + _ROW / 2
    start = laid.x + laid.width
    for line, rows in laid.rows:
        y += _ROW
        for to in line.to:
            x, end = others[to].entry
            bend = max((x - start) / 2, _GAP / 2)
            ET.SubElement(
                drawing,
                "path",
                {
                    "class": _way(line.note.passed, "arrow"),
                    "d": f"M{start:.1f} {y:.1f} C{start + bend:.1f} {y:.1f}"
                    f" {x - bend:.1f} {end:.1f} {x - 6:.1f} {end:.1f}",
                },
            )
            ET.SubElement(
                drawing,
                "path",
                {
                    "class": _way(line.note.passed, "head"),
                    "d": f"M{x:.1f} {end:.1f} l-9 -4 v8 z",
                },
            )
        if line.to and line.note.counted:
            yield start + 3, y - 3, line.note.counted
        y += _ROW * (len(rows) - 1)


# Who talks to whom.

_HOP = 34
#: The least distance between two who talk, and the room beside a label.
_APART, _BESIDE = 150, 30


def sequence_element(sequences: Iterable[Sequence], label: str) -> ET.Element:
    """Connections hop by hop, one below the other: who makes each, and who takes it."""
    parts = []
    y, width = float(_PAD), 0.0
    for each in sequences:
        parts.append((each, y))
        y += _ROW * (3 + len(each.remarks)) + _HOP * len(each.hops) + _BETWEEN
        longest = max(len(line) for line in (each.title, *each.remarks))
        width = max(width, _distance(each) * len(each.actors), _LETTER * longest)
    drawing = _canvas(width + 2 * _PAD, max(y, 2 * _ROW), label)
    for each, top in parts:
        _draw_sequence(drawing, each, top)
    return drawing


def _distance(sequence: Sequence) -> float:
    """How far its actors stand from each other: labels lie between two."""
    names = (*sequence.actors, *(hop.label for hop in sequence.hops))
    return max(_APART, _LETTER * max(map(len, names), default=0) + _BESIDE)


def _draw_sequence(drawing: ET.Element, sequence: Sequence, top: float) -> None:
    _write(drawing, _PAD, top + _SIZE, sequence.title, "title")
    apart = _distance(sequence)
    middle = {actor: _PAD + apart * (place + 0.5) for place, actor in enumerate(sequence.actors)}
    y = top + 2 * _ROW
    bottom = y + _ROW / 2 + _HOP * len(sequence.hops)
    for actor, x in middle.items():
        line = {"class": "arrow", "d": f"M{x:.1f} {y + 6:.1f} V{bottom:.1f}"}
        ET.SubElement(drawing, "path", {**line, "stroke-dasharray": "3 3"})
        _write(drawing, x, y, actor, "halo", **{"text-anchor": "middle"})
    for number, hop in enumerate(sequence.hops):
        at = y + _HOP * (number + 1) - 4
        start, end = middle[hop.origin], middle[hop.taker]
        group = ET.SubElement(drawing, "g")
        _hint(group, "\n".join(hop.details))
        if start == end:
            line_to = f"M{start:.1f} {at - 10:.1f} h26 v10 h-20"
            head = f"M{start:.1f} {at:.1f} l9 -4 v8 z"
        else:
            back = 9 if end < start else -9
            line_to = f"M{start:.1f} {at:.1f} H{end + back:.1f}"
            head = f"M{end:.1f} {at:.1f} l{back} -4 v8 z"
        ET.SubElement(group, "path", {"class": "arrow way", "d": line_to})
        ET.SubElement(group, "path", {"class": "head way", "d": head})
        x = min(start, end) + 8 + (30 if start == end else 0)
        _write(group, x, at - 5, hop.label, "faint halo")
    y = bottom + _ROW
    for words in sequence.remarks:
        _write(drawing, _PAD, y, words, "wrong" if words in sequence.wrong else "faint")
        y += _ROW
