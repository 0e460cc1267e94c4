"""``istio-iptables check``: what is wrong in a namespace or with rules, and what to do about it."""

from __future__ import annotations

import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from istio_iptables.api.checking import Severity, check
from istio_iptables.commands.documents import JSON_OPTION, print_json
from istio_iptables.commands.inputs import CAPTURE_SETTINGS
from istio_iptables.commands.load import tell
from istio_iptables.commands.options import Example, SettingsCommand
from istio_iptables.commands.sources import SOURCE_OPTIONS, read_asked
from istio_iptables.errors import ExitStatus
from istio_iptables.interrupts import Interrupted
from istio_iptables.streams import OutputFailed
from istio_iptables.text import paint, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_iptables.api.checking import Diagnostic, Report
    from istio_iptables.commands.sources import Asked

__all__ = ["command"]

_STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "bold"}


@click.pass_context
def _run(ctx: click.Context, /, **options: Any) -> ExitStatus:  # noqa: ANN401 - click's values
    asked = read_asked(ctx, options)
    report = _look(asked)
    _print(report, as_json=options["as_json"])
    if options["watch"]:
        report = _watch(asked, report, options["interval"], as_json=options["as_json"])
    if report.wrong:
        return ExitStatus.FAILED
    return ExitStatus.USAGE if report.unread else ExitStatus.DONE


def _look(asked: Asked) -> Report:
    return check(asked.plan, asked.there, family=asked.family, name=asked.name or "the plan")


def _print(report: Report, *, as_json: bool) -> None:
    settings = report.settings
    if as_json:
        print_json(
            {
                "what": report.what,
                "arguments": list(settings.arguments) if settings else None,
                "environment": settings.environment if settings else {},
                "ok": not report.wrong and not report.unread,
                "findings": [_as_json(each) for each in report.findings],
                "not_checked": list(report.unread),
            }
        )
        return
    _print_lines("", report.findings)
    tell("warning", (f"not checked, since it can't be read: {each}" for each in report.unread))
    count = sum(each.severity is not Severity.INFO for each in report.findings)
    found = (
        "nothing is wrong" if not count else "1 thing is" if count == 1 else f"{count} things are"
    )
    if settings:
        sys.stdout.write(f"{printable(f'by the rules, the settings are {settings.line}')}\n")
    line = f"{report.what}: {found}" + (" wrong" if count else "")
    sys.stdout.write(f"{paint(printable(line), 'bold', sys.stdout)}\n")
    sys.stdout.flush()


def _print_lines(start: str, findings: Iterable[Diagnostic]) -> None:
    for each in findings:
        word = each.severity.value
        line = printable(each.line).replace(
            word, paint(word, _STYLES[each.severity], sys.stdout), 1
        )
        sys.stdout.write(f"{start}{line}\n")


def _as_json(finding: Diagnostic) -> dict[str, str]:
    return {
        "kind": finding.kind,
        "severity": finding.severity.value,
        "evidence": finding.evidence,
        "remedy": finding.remedy,
    }


def _watch(asked: Asked, report: Report, interval: float, *, as_json: bool) -> Report:
    """Look again and again until Ctrl-C, and print what has come and what is gone."""
    try:
        while True:
            _wait(interval)
            before, report = report, _look(asked)
            come = [each for each in report.findings if each not in before.findings]
            gone = [each for each in before.findings if each not in report.findings]
            if not come and not gone:
                continue
            now = time.strftime("%H:%M:%S")
            if as_json:
                print_json(
                    {
                        "time": now,
                        "new": [_as_json(each) for each in come],
                        "gone": [_as_json(each) for each in gone],
                    }
                )
            else:
                _print_lines(f"{now} new: ", come)
                _print_lines(f"{now} gone: ", gone)
            sys.stdout.flush()
    except Interrupted as error:
        if error.number != signal.SIGINT:
            raise
        return report


def _wait(seconds: float) -> None:
    """Wait, unless whoever reads has gone: with nothing new to write that would not be seen."""
    reader = select.poll()
    # Without events that are asked for, errors are told.
    reader.register(sys.stdout, 0)
    if reader.poll(seconds * 1000):
        gone = OutputFailed("nobody reads the output any more")
        gone.reader_gone = True
        raise gone


command = SettingsCommand(
    CAPTURE_SETTINGS,
    name="check",
    callback=_run,
    help="Say what is wrong in a namespace (this one, or --network-namespace), or with the rules of a"
    " file, a manifest or the flags: each finding one line, with what shows it and what to do.",
    epilog="Exit status: 0 nothing is wrong; 1 there are findings (other than info); 2 it can't be"
    " told, or the command line is wrong.",
    examples=(
        Example("what is wrong in this namespace?", "istio-iptables check"),
        Example(
            "... by the arguments that it should have",
            "istio-iptables check --live -i '*' -b '*' -d 15090,15021,15020",
        ),
        Example("what is wrong with saved rules?", "istio-iptables check --rules saved.rules"),
    ),
    more=(
        *SOURCE_OPTIONS,
        click.Option(
            ["--watch"], is_flag=True, help="Look again and again until Ctrl-C; print what changes."
        ),
        click.Option(
            ["--interval"],
            metavar="SECONDS",
            type=click.FloatRange(0.1, 3600),
            default=2,
            help="How long --watch waits between.  [default: 2]",
        ),
        JSON_OPTION,
    ),
)
