"""``istio-iptables report``: everything about rules as one page of HTML."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from istio_iptables.api.reporting import report
from istio_iptables.commands.inputs import CAPTURE_SETTINGS
from istio_iptables.commands.load import warn
from istio_iptables.commands.options import Example, SettingsCommand
from istio_iptables.commands.sources import SOURCE_OPTIONS, read_asked
from istio_iptables.errors import ExitStatus
from istio_iptables.streams import OutputFailed
from istio_iptables.text import write_exactly

__all__ = ["command"]


@click.pass_context
def _run(ctx: click.Context, /, **options: Any) -> ExitStatus:  # noqa: ANN401 - click's values
    asked = read_asked(ctx, options)
    about, notes = "" if asked.rules else "these settings", ()
    if asked.given and asked.rules is None:
        # What the rules are made for, and what was said about it.
        file = "stdin" if options["pod"] == "-" else options["pod"]
        about, notes = f"{asked.given.pod} ({file})", asked.given.warnings
    page = report(
        asked.plan,
        asked.there,
        family=asked.family,
        name=asked.name or "the plan",
        about=about,
        notes=notes,
    )
    warn(page.warnings, strict=asked.strict)
    if options["output"] == "-":
        write_exactly(page.html)
    else:
        _write(Path(options["output"]), page.html)
    return ExitStatus.DONE


def _write(path: Path, page: str) -> None:
    """Put the page where *path* is: whole, or not at all."""
    try:
        # Through a link to what it leads to; what is no file (a pipe, a device) is written to as it is.
        path = path.resolve()
        if path.exists() and not path.is_file():
            path.write_text(page, "utf-8")
            return
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(page)
            mask = os.umask(0)
            os.umask(mask)
            Path(name).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~mask)
            Path(name).replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                Path(name).unlink()
            raise
    except (OSError, RuntimeError) as error:
        # A RuntimeError tells of links that lead to each other.
        message = f"--output: {path}: {getattr(error, 'strerror', None) or error}"
        raise OutputFailed(message) from error


#: ``-o`` is the page here; ports that stay uncaptured have their long option.
_SETTINGS = tuple(
    each._replace(short="") if each.short == "o" else each for each in CAPTURE_SETTINGS
)

command = SettingsCommand(
    _SETTINGS,
    name="report",
    callback=_run,
    help="Write one page of HTML about the rules of a namespace (this one, or --network-namespace),"
    " of a file, a manifest or the flags: settings and where they are from, findings, the chains as a"
    " picture, all traffic and what becomes of it, every rule with its reason, and a box that follows"
    " a packet. The page needs no other file and no network.",
    epilog="Exit status: 0 written; 1 it can't be written; 2 it can't be told, or the command line is"
    " wrong.",
    examples=(
        Example("a page about this namespace", "istio-iptables report -o capture.html"),
        Example(
            "what will a pod do with traffic?", "istio-iptables report --pod web.yaml -o web.html"
        ),
        Example("of saved rules", "istio-iptables report --rules saved.rules -o saved.html"),
    ),
    more=(
        *SOURCE_OPTIONS,
        click.Option(
            ["-o", "--output"],
            metavar="FILE",
            required=True,
            help="Where to write it; - is stdout.",
        ),
    ),
)
