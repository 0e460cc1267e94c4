"""The one place that runs another program."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from istio_iptables import interrupts
from istio_iptables.errors import KernelRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ProgramFailed", "run"]

#: Where the programs of root are: cron, su and sudo may leave these out of PATH.
_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
#: It says the same of every rule of a table that the kernel refuses.
_MOST_LINES = 3


class ProgramFailed(KernelRefused):
    """A program ran, and could not do what was asked."""


def run(command: Sequence[str], stdin: str = "") -> str:
    """What *command* prints on stdout, given *stdin*.

    Raises ProgramFailed with the program's own words if it fails, and KernelRefused if it can't
    be run.
    """
    program, *arguments = command
    try:
        done = subprocess.run(  # noqa: S603 - our own words, and no shell
            [_path(program), *arguments],
            input=stdin.encode(errors="surrogateescape"),
            capture_output=True,
            check=False,
            # What it says is quoted, and read.
            env=os.environ | {"LC_ALL": "C"},
            # Ctrl-C at a terminal is for us: we end the child, or wait for it.
            process_group=0,
            preexec_fn=interrupts.mask_of_children(),
        )
    except OSError as error:
        message = f"can't run {program}: {error.strerror or error}"
        raise KernelRefused(message) from error
    if done.returncode:
        message = f"{' '.join(command)} {_failure(done.returncode)}: {_words(done.stderr)}"
        raise ProgramFailed(message)
    return done.stdout.decode(errors="surrogateescape")


def _path(program: str) -> str:
    """Where the program is; raises KernelRefused if it is nowhere."""
    folders = dict.fromkeys((*filter(None, os.get_exec_path()), *_FOLDERS))
    for folder in folders:
        path = os.path.join(folder, program)  # noqa: PTH118 - pathlib costs 5 ms
        if os.access(path, os.X_OK):
            return path
    package = " (is the package iptables installed?)" if "tables" in program else ""
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
    words = "; ".join(said)
    if "Permission denied" in words or "Operation not permitted" in words:
        from istio_iptables.kernel.capabilities import missing

        words += missing()
    return words
