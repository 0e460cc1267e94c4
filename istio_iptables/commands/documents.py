"""JSON documents of commands: one object with ``version``, then what the command has to say."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["JSON_OPTION", "print_json"]

#: Of every document; docs/json.md says what it promises.
_VERSION = 1

JSON_OPTION = click.Option(["--json", "as_json"], is_flag=True, help="Print JSON.")


def print_json(fields: Mapping[str, object]) -> None:
    """Print the document that holds *fields*."""
    import json  # no other format needs it

    sys.stdout.write(json.dumps({"version": _VERSION, **fields}, indent=2) + "\n")
