"""Pictures on stdout: the formats that commands offer, and how each is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from istio_iptables.errors import UsageProblems
from istio_iptables.text import write_exactly

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from istio_iptables.pictures.flow import Flow
    from istio_iptables.pictures.sequence import Sequence

__all__ = ["PICTURES", "format_option", "picture_format", "print_flows", "print_sequences"]

#: The formats of pictures.
PICTURES = ("svg", "mermaid", "dot")


def format_option(*more: str) -> click.Option:
    """``--format``, with text, the pictures' formats, and *more*."""
    return click.Option(
        ["--format"],
        type=click.Choice(["text", *more, *PICTURES]),
        default="text",
        help="Print text, or a picture: SVG, Mermaid, or Graphviz's dot.  [default: text]",
    )


def picture_format(options: Mapping[str, Any], others: Collection[str] = ()) -> str:
    """The format that was asked for, "" for text; raises UsageProblems if JSON was asked for too.

    *others* are formats of the command's own that are no pictures.
    """
    asked: str = options["format"]
    if options["as_json"] and asked != "text":
        raise UsageProblems([f"--json, --format {asked}: these contradict each other: give one"])
    return asked if asked in PICTURES or asked in others else ""


def print_flows(flows: tuple[Flow, ...], label: str, asked: str) -> None:
    """Print the rules as a picture in the format *asked*; *label* says what it shows."""
    if asked == "svg":
        from istio_iptables.pictures import svg

        write_exactly(svg.text(svg.flow_element(flows, label)))
        return
    from istio_iptables.pictures import dot, mermaid

    write_exactly((dot if asked == "dot" else mermaid).flow_text(flows))


def print_sequences(sequences: tuple[Sequence, ...], label: str, asked: str) -> None:
    """The same for who talks to whom."""
    if asked == "svg":
        from istio_iptables.pictures import svg

        write_exactly(svg.text(svg.sequence_element(sequences, label)))
        return
    from istio_iptables.pictures import dot, mermaid

    write_exactly((dot if asked == "dot" else mermaid).sequence_text(sequences))
