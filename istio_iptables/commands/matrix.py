"""``istio-iptables matrix``: all traffic at a glance, and what the rules do with it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from istio_iptables.api.matrix import matrix
from istio_iptables.commands.documents import JSON_OPTION, print_json
from istio_iptables.commands.inputs import CAPTURE_SETTINGS
from istio_iptables.commands.load import warn
from istio_iptables.commands.options import Example, SettingsCommand
from istio_iptables.commands.pictures import picture_format
from istio_iptables.commands.sources import SOURCE_OPTIONS, read_asked
from istio_iptables.commands.tables import markdown, table
from istio_iptables.errors import ExitStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_iptables.api.conditions import Condition
    from istio_iptables.api.matrix import Matrix, TrafficClass

__all__ = ["command", "condition_json"]

_HEADS = ("traffic", "what becomes of it", "rule")
_DIRECTIONS = {"out": "All that the pod sends", "in": "All that arrives at the pod"}
_OPENING = {"out": "New connections from the pod", "in": "New connections to the pod"}


@click.pass_context
def _run(ctx: click.Context, /, **options: Any) -> ExitStatus:  # noqa: ANN401 - click's values
    in_markdown = bool(picture_format(options, ("markdown",)))
    asked = read_asked(ctx, options)
    found = matrix(asked.plan, asked.rules, family=asked.family, name=asked.name)
    warn(found.warnings, strict=asked.strict)
    if options["as_json"]:
        print_json({"classes": [_class_json(each) for each in found.classes]})
    else:
        lines = _lines(found, everything=options["everything"], in_markdown=in_markdown)
        sys.stdout.writelines(lines)
    return ExitStatus.DONE


def _lines(found: Matrix, *, everything: bool, in_markdown: bool) -> Iterator[str]:
    """The tables: one for each family and direction."""
    rows = found.all_rows if everything else found.rows
    parts = dict.fromkeys((row.family, row.direction) for row in rows)
    write = markdown if in_markdown else table
    for number, (family, direction) in enumerate(parts):
        if number:
            yield "\n"
        what = _DIRECTIONS[direction] if everything else _OPENING[direction]
        title = f"{what} ({family.title}); the first line that fits counts"
        yield f"### {title}\n\n" if in_markdown else f"{title}:\n"
        mine = [row for row in rows if (row.family, row.direction) == (family, direction)]
        yield from write(_HEADS, [(row.traffic, row.verdict, row.rules) for row in mine])


def _class_json(each: TrafficClass) -> dict[str, object]:
    return {
        "family": each.family.value,
        "direction": each.direction,
        "conditions": [condition_json(condition) for condition in each.conditions],
        "packet": list(each.words),
        "verdict": each.verdict,
        "fate": each.fate,
        "to_port": each.to_port,
        "captured": each.captured,
        "rule": each.rule,
        "text": each.text,
    }


def condition_json(condition: Condition) -> dict[str, object]:
    """A condition as an object of a JSON document."""
    return {
        "field": condition.field,
        "among": list(condition.among),
        "but": list(condition.but),
    }


command = SettingsCommand(
    CAPTURE_SETTINGS,
    name="matrix",
    callback=_run,
    help="Divide all traffic into classes that no rule tells apart, and say what becomes of each and"
    " which rule decides: by the rules of the capture flags, of a file (--rules), or those of a"
    " namespace. The tables are about packets that open a connection and have no mark, and with"
    " --all about all; --json is about all.",
    examples=(
        Example("what do these settings do with traffic?", "istio-iptables matrix -i '*' -b '*'"),
        Example(
            "what do the rules of a running pod do?",
            "istio-iptables matrix --network-namespace /proc/4711/ns/net",
        ),
        Example(
            "the same of saved rules, for a review",
            "istio-iptables matrix --rules saved.rules --format markdown",
        ),
    ),
    epilog="Exit status: 0 answered; 2 it can't be told, or the command line is wrong.",
    more=(
        *SOURCE_OPTIONS,
        click.Option(
            ["--format"],
            type=click.Choice(["text", "markdown"]),
            default="text",
            help="How to print the tables.  [default: text]",
        ),
        click.Option(
            ["--all", "everything"],
            is_flag=True,
            help="All packets in the tables, also those of open connections or with a mark.",
        ),
        JSON_OPTION,
    ),
)
