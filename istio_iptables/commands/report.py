"""``istio-iptables report``: everything about rules as one page of HTML."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from istio_iptables.api.reporting import report
from istio_iptables.commands.inputs import CAPTURE_SETTINGS
from istio_iptables.commands.load import warn
from istio_iptables.commands.options import Example, SettingsCommand, split_extra
from istio_iptables.commands.sources import SOURCE_OPTIONS, read_asked
from istio_iptables.errors import ExitStatus, UsageProblems
from istio_iptables.streams import OutputFailed
from istio_iptables.text import excerpt, write_exactly

__all__ = ["command"]


@click.pass_context
def _run(ctx: click.Context, /, **options: Any) -> ExitStatus:  # noqa: ANN401 - click's values
    output: str | None = options["output"]
    if output is None:
        message = "--output (-o): is missing: the file for the page, or - for stdout"
        raise UsageProblems([*split_extra(ctx), message])
    _require_page(output)
    asked = read_asked(ctx, options)
    planned = "the plan"
    if asked.pod:
        planned = f"{asked.pod} ({'stdin' if options['pod'] == '-' else options['pod']})"
    page = report(asked.plan, asked.there, family=asked.family, name=asked.name or planned)
    warn(page.warnings, strict=asked.strict)
    if output == "-":
        write_exactly(page.html)
    else:
        _write(Path(output), page.html)
    return ExitStatus.DONE


def _require_page(output: str) -> None:
    """Raise UsageProblems for an output that is probably meant otherwise: a list of ports, another file."""
    name = f"--output (-o): {excerpt(output)}"
    if output.startswith("-") and output != "-":
        raise UsageProblems([f"{name} looks like an option: is the file before it missing?"])
    if re.fullmatch(r"[\d,:*\s]+", output):
        message = f"{name} looks like ports: those have --istio-local-outbound-ports-exclude here"
        raise UsageProblems([message])
    try:
        if output == "-" or not Path(output).is_file():
            return
        with Path(output).open("rb") as file:
            start = file.read(len(_PAGE))
    except (OSError, ValueError):
        # Whether it can be written is told when it is.
        return
    if start and start.upper() != _PAGE:
        raise UsageProblems([f"{name} is there and is not an HTML page: it is left as it is"])


#: How a page begins.
_PAGE = b"<!DOCTYPE HTML"


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
            help="Where to write it; - is stdout.  [required]",
        ),
    ),
)
