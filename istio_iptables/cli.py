"""The program: read the settings, call one function, print what it says."""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import suppress

from istio_iptables import interrupts
from istio_iptables.commands.apply import CLEAN_SETTINGS, clean_ready, ready
from istio_iptables.commands.flags import read_flags
from istio_iptables.commands.load import PROGRAM, tell
from istio_iptables.errors import ExitStatus, IstioIptablesError, UsageProblems, status_of_failure
from istio_iptables.interrupts import TRACEBACK, Interrupted
from istio_iptables.streams import OutputFailed, standard_streams
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with *arguments* (those of the process by default); returns the exit status.

    Results go to stdout; every problem is one line on stderr.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == [PROGRAM]:
        # Istio's pods start it as a subcommand of the image's pilot-agent.
        del given[0]
    elif given[1:2] == [PROGRAM] and given[0][:1] != "-" and given[0] != "compare":
        # The arguments of a pod's container behind a command of ours; not an option's value, nor a
        # file that is to be compared.
        del given[1]
    with standard_streams():
        try:
            with interrupts.raised():
                status = _run(given)
                sys.stdout.flush()
        except BaseException as error:
            if os.environ.get(TRACEBACK):
                raise
            status = _status_of(error)
            if status == ExitStatus.FAILED:
                return status_of_failure(given)
            return status
    return int(status or ExitStatus.DONE)


#: Set by a shell that asks click what a word on the line may be completed to.
_COMPLETION = "_ISTIO_IPTABLES_COMPLETE"


def _run(given: list[str]) -> int | None:
    """Do what the arguments say; returns the exit status, None for 0."""
    if os.environ.get(_COMPLETION):
        # The process has no arguments then, which would mean: install.
        from istio_iptables.commands.root import run

        return run(given)
    if given[:1] == ["clean"]:
        flags, prepare = read_flags(given[1:], CLEAN_SETTINGS), clean_ready
    else:
        flags, prepare = read_flags(given), ready
    if flags.complete:
        try:
            act = prepare(flags, [])
        except UsageProblems:
            # The other way to the same line knows the mistakes that everybody makes.
            pass
        else:
            return act()
    from istio_iptables.commands.root import run

    return run(given)


def _status_of(error: BaseException) -> int:
    """The exit status for what was raised, which is told in clear lines."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        # What had failed before it came has to be known as well.
        before = error.__context__
        tell("error", before.lines if isinstance(before, IstioIptablesError) else ())
        tell("error", ("interrupted",))
        return (error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)).status
    if isinstance(error, OutputFailed) and error.reader_gone:
        # Whoever read our output has seen enough; keep Python from complaining at exit.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.FAILED
    if isinstance(error, IstioIptablesError):
        tell("error", error.lines)
        return error.status
    tell("error", (_unforeseen(error),))
    return ExitStatus.FAILED


def _unforeseen(error: BaseException) -> str:
    """A line about an exception that no code has turned into one."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "out of memory"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or _place(error)}: {error.strerror}"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, ImportError):
        return f"a package can't be loaded: {text} ({_place(error)})"
    return f"internal error: {text} ({_place(error)}; please report it, with ${TRACEBACK}=1)"


def _place(error: BaseException) -> str:
    """The innermost function of ours that the exception went through."""
    place, trace = "", error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if not place or module.partition(".")[0] == __package__:
            place = f"{module}.{trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return place
