"""Pictures in Graphviz's language: ``dot -Tsvg`` draws them."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.pictures.flow import Box, Flow, RuleLine
    from istio_iptables.pictures.sequence import Sequence

__all__ = ["flow_text", "sequence_text"]

_START = (
    "digraph rules {",
    '  graph [rankdir=LR, fontname="monospace", bgcolor="transparent"]',
    '  node [fontname="monospace", fontsize=11, shape=box, style="rounded,filled", fillcolor="#f3f5f8"]',
    '  edge [fontname="monospace", fontsize=10, color="#6e7681", fontcolor="#6e7681"]',
)
_WAY = 'color="#0a58ca", penwidth=2.5'


def _quoted(*lines: str) -> str:
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'


def flow_text(flows: Iterable[Flow]) -> str:
    """A directed graph: a cluster for each table, a node for each chain, a port for each rule."""
    lines = [*_START]
    for number, flow in enumerate(flows):
        lines.append(f"  subgraph cluster_{number} {{")
        lines.append(f"    label={_quoted(flow.title)}")
        lines += (f"    {_node(box)}" for box in flow.boxes)
        lines.append("  }")
        for box in flow.boxes:
            lines += (f"  {each}" for each in _arrows(box))
    return "".join(f"{line}\n" for line in (*lines, "}"))


def _node(box: Box) -> str:
    way = f", {_WAY}" if box.passed else ""
    if box.is_end:
        return f"{box.name} [label={_quoted(box.title)}{way}]"
    rows = [f'<tr><td port="entry"><b>{escape(box.title)}</b></td></tr>', *map(_row, box.lines)]
    table = f'<table border="0" cellborder="0" cellspacing="1">{"".join(rows)}</table>'
    return f"{box.name} [label=<{table}>{way}]"


def _row(line: RuleLine) -> str:
    attributes = {"align": "left"}
    if line.number:
        attributes["port"] = f"r{line.number}"
    if line.note.reason:
        # Graphviz shows a hint only for what has a link.
        attributes |= {"href": "#", "tooltip": line.note.reason}
    if line.note.passed:
        attributes["bgcolor"] = "#dbe9ff"
    words = escape(f"{line.number} {line.text}".strip())
    if line.note.foreign:
        words = f'<font color="#a8071a">{words}</font>'
    told = " ".join(f'{name}="{escape(value)}"' for name, value in attributes.items())
    return f"<tr><td {told}>{words}</td></tr>"


def _arrows(box: Box) -> Iterator[str]:
    for line in box.lines:
        for to in line.to if line.number else ():
            more = [_WAY] if line.note.passed else []
            if line.note.counted:
                more.append(f"label={_quoted(line.note.counted)}")
            told = f" [{', '.join(more)}]" if more else ""
            yield f"{box.name}:r{line.number}:e -> {to}{told}"


def sequence_text(sequences: Iterable[Sequence]) -> str:
    """A directed graph: a cluster for each request, its connections numbered in their order."""
    lines = [*_START]
    for number, each in enumerate(sequences):
        names = {actor: f"a{number}_{place}" for place, actor in enumerate(each.actors)}
        lines += (
            f"  subgraph cluster_{number} {{",
            f"    label={_quoted(each.title, *each.remarks)}",
        )
        lines += (f"    {name} [label={_quoted(actor)}]" for actor, name in names.items())
        lines.append("  }")
        for place, hop in enumerate(each.hops, 1):
            told = f"label={_quoted(f'{place}. {hop.label}')}"
            if hop.details:
                told += f", tooltip={_quoted(' / '.join(hop.details))}"
            lines.append(f"  {names[hop.origin]} -> {names[hop.taker]} [{told}]")
    return "".join(f"{line}\n" for line in (*lines, "}"))
