"""The one place that runs other programs.

Each gets files in memory for its input and output, so that none ever waits for us, and is started
with posix_spawn: importing subprocess costs as much time as iptables-save takes.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import ExitStack, suppress

from istio_iptables import interrupts
from istio_iptables.errors import KernelRefused
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

__all__ = ["ProgramFailed", "run", "run_all"]

#: Where the programs of root are: cron, su and sudo may leave these out of PATH.
_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
#: Of the programs that the name alone does not tell it of.
_PACKAGES = {"nft": "nftables"}
#: It says the same of every rule of a table that the kernel refuses.
_MOST_LINES = 3
#: How long one of them may take; loading 10,000 rules takes one or two seconds.
_MOST_SECONDS = 120
#: And once we have been told to end.
_GRACE_SECONDS = 3
_LOOK_MILLISECONDS = 500
#: Python ignores these, and a program that it starts would too.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)


class ProgramFailed(KernelRefused):
    """A program ran, and could not do what was asked."""


def run(command: Sequence[str], stdin: str = "") -> str:
    """What *command* prints on stdout, given *stdin*.

    Raises ProgramFailed with the program's own words if it fails, and KernelRefused if it can't
    be run.
    """
    with _Child(command, stdin) as child:
        return child.output()


def run_all(commands: Iterable[Sequence[str]]) -> list[str | KernelRefused]:
    """What each of *commands*, which run side by side, prints on stdout, or what ``run`` would raise."""
    results: list[str | KernelRefused] = []
    with ExitStack() as stack:
        for child in [_start(stack, command) for command in commands]:
            try:
                results.append(child if isinstance(child, KernelRefused) else child.output())
            except KernelRefused as error:
                results.append(error)
    return results


def _start(stack: ExitStack, command: Sequence[str]) -> _Child | KernelRefused:
    try:
        return stack.enter_context(_Child(command))
    except KernelRefused as error:
        return error


class _Child:
    """A program that was started, and what it has printed."""

    def __init__(self, command: Sequence[str], stdin: str = "") -> None:
        self._command = command
        self._stdin = stdin
        self._files: list[int] = []
        self._running = 0

    def __enter__(self) -> Self:
        program, *arguments = self._command
        path = _path(program)
        try:
            for name in ("stdin", "stdout", "stderr"):
                self._files.append(os.memfd_create(name))
            with open(self._files[0], "wb", closefd=False) as file:
                file.write(self._stdin.encode(errors="surrogateescape"))
                file.seek(0)
            self._running = os.posix_spawn(
                path,
                (program, *arguments),
                # What it says is quoted, and read.
                os.environ | {"LC_ALL": "C"},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, each, at) for at, each in enumerate(self._files)
                ],
                # Ctrl-C at a terminal is for us: we end the child, or wait for it.
                setpgroup=0,
                setsigdef=_IGNORED,
                setsigmask=interrupts.mask_of_children(),
            )
        except BaseException as error:
            self.__exit__()
            if not isinstance(error, OSError):
                raise
            message = f"can't run {program}: {error.strerror or error}"
            raise KernelRefused(message) from error
        return self

    def output(self) -> str:
        """What it has printed, as soon as it has ended."""
        self._wait()
        _, status = os.waitpid(self._running, 0)
        self._running = 0
        code = os.waitstatus_to_exitcode(status)
        _, output, errors = self._files
        if code:
            words = _words(_content(errors))
            message = f"{' '.join(self._command)} {_failure(code)}: {words}"
            raise ProgramFailed(message)
        return _content(output).decode(errors="surrogateescape")

    def _wait(self) -> None:
        """Until it has ended; raises KernelRefused if it does not, or we are to end meanwhile."""
        began = time.monotonic()
        patience: float = _MOST_SECONDS
        try:
            ended = os.pidfd_open(self._running)
        except OSError:
            # Before Linux 5.3, or not allowed: then for ever.
            return
        try:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            while not poll.poll(_LOOK_MILLISECONDS):
                waited = time.monotonic() - began
                if interrupts.is_waiting():
                    patience = min(patience, waited + _GRACE_SECONDS)
                if waited > patience:
                    message = f"{' '.join(self._command)} does not end: killed after {waited:.0f} s"
                    raise KernelRefused(message)
        finally:
            os.close(ended)

    def __exit__(self, *_: object) -> None:
        if self._running:
            with suppress(OSError):
                os.kill(self._running, signal.SIGKILL)
                os.waitpid(self._running, 0)
        while self._files:
            os.close(self._files.pop())


def _content(file: int) -> bytes:
    with open(file, "rb", closefd=False) as opened:
        opened.seek(0)
        return opened.read()


def _path(program: str) -> str:
    """Where the program is; raises KernelRefused if it is nowhere."""
    folders = dict.fromkeys((*filter(None, os.get_exec_path()), *_FOLDERS))
    for folder in folders:
        path = os.path.join(folder, program)  # noqa: PTH118 - pathlib costs 5 ms
        if os.access(path, os.X_OK) and not os.path.isdir(path):  # noqa: PTH112 - see above
            return path
    package = _PACKAGES.get(program, "iptables" if "tables" in program else "")
    package = f" (is the package {package} installed?)" if package else ""
    message = f"can't run {program}: No such file in {', '.join(folders)}{package}"
    raise KernelRefused(message)


def _failure(status: int) -> str:
    return f"failed with status {status}" if status > 0 else f"was ended by signal {-status}"


def _words(stderr: bytes) -> str:
    """What a program said, in one line."""
    lines = (line.strip() for line in stderr.decode(errors="replace").split("\n"))
    said = [line for line in lines if line and "--help" not in line]
    if len(said) > _MOST_LINES:
        said[_MOST_LINES:] = [f"and {len(said) - _MOST_LINES} lines more"]
    words = "; ".join(said) or "it gave no reason"
    if "Permission denied" in words or "Operation not permitted" in words:
        from istio_iptables.kernel.capabilities import missing

        words += missing()
    return words
