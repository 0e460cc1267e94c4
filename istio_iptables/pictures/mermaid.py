"""Pictures as Mermaid, which forges and wikis draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.pictures.flow import Box, Flow, RuleLine
    from istio_iptables.pictures.sequence import Sequence

__all__ = ["flow_text", "sequence_text"]

#: What Mermaid takes for its own, and the way in which it wants it written.
_ESCAPED = str.maketrans({each: f"#{ord(each)};" for each in '#"<>;&`\\%~'})
_WAY = "stroke:#0a58ca,stroke-width:3px"


def _said(text: str) -> str:
    return text.translate(_ESCAPED)


def flow_text(flows: Iterable[Flow]) -> str:
    """A flowchart: a subgraph for each table, a node for each chain, rules as its lines."""
    lines = ["flowchart LR"]
    arrows: list[str] = []
    on_way: list[int] = []
    for number, flow in enumerate(flows):
        lines.append(f'  subgraph table{number}["{_said(flow.title)}"]')
        for box in flow.boxes:
            lines += (f"    {each}" for each in _node(box))
        lines.append("  end")
        for box in flow.boxes:
            for arrow, passed in _arrows(box):
                if passed:
                    on_way.append(len(arrows))
                arrows.append(arrow)
        lines += (f"  class {box.name} way" for box in flow.boxes if box.passed)
    lines += (f"  {each}" for each in arrows)
    lines.append("  classDef rules text-align:left")
    lines.append(f"  classDef way {_WAY}")
    if on_way:
        lines.append(f"  linkStyle {','.join(map(str, on_way))} {_WAY}")
    return "".join(f"{line}\n" for line in lines)


def _node(box: Box) -> Iterator[str]:
    if box.is_end:
        yield f'{box.name}(["{_said(box.title)}"])'
        return
    rows = [f"<b>{_said(box.title)}</b>", *map(_row, box.lines)]
    yield f'{box.name}["{"<br/>".join(rows)}"]:::rules'
    # Where Mermaid allows links it shows the reasons where the pointer rests.
    reasons = [f"{each.number}: {each.note.reason}" for each in box.lines if each.note.reason]
    if reasons:
        yield f'click {box.name} href "#" "{_said(" / ".join(reasons))}"'


def _row(line: RuleLine) -> str:
    words = _said(f"{line.number} {line.text}".strip())
    if line.note.foreign:
        words += " (foreign)"
    return f"<b>{words}</b>" if line.note.passed else words


def _arrows(box: Box) -> Iterator[tuple[str, bool]]:
    """An arrow for each place that rules lead to, and whether the packet goes there."""
    places = dict.fromkeys(to for line in box.lines for to in line.to)
    for to in places:
        mine = [line for line in box.lines if to in line.to]
        numbers = ", ".join(
            f"{line.number}: {line.note.counted}" if line.note.counted else line.number
            for line in mine
            if line.number
        )
        passed = any(line.note.passed for line in mine)
        yield f'{box.name} -- "{_said(numbers)}" --> {to}', passed


def sequence_text(sequences: Iterable[Sequence]) -> str:
    """A sequence diagram: each request's connections, below a note that says what it is."""
    lines = ["sequenceDiagram"]
    names: dict[str, str] = {}
    parts = list(sequences)
    for each in parts:
        for actor in each.actors:
            if actor not in names:
                names[actor] = f"a{len(names)}"
                lines.append(f"  participant {names[actor]} as {_said(actor)}")
    for each in parts:
        ends = [names[actor] for actor in each.actors]
        over = ",".join(dict.fromkeys((ends[0], ends[-1])))
        lines.append(f"  Note over {over}: {_said(each.title)}")
        lines += (
            f"  {names[hop.origin]}->>{names[hop.taker]}: {_said(hop.label)}" for hop in each.hops
        )
        lines += (f"  Note over {ends[-1]}: {_said(remark)}" for remark in each.remarks)
    return "".join(f"{line}\n" for line in lines)
