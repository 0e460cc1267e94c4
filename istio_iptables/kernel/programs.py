"""The one place that runs another program."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from istio_iptables import interrupts
from istio_iptables.errors import KernelRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["run"]


def run(command: Sequence[str], stdin: str = "") -> str:
    """What *command* prints on stdout, given *stdin*.

    Raises KernelRefused with the program's own words if it is missing or fails.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own words, and no shell
            command,
            input=stdin.encode(errors="surrogateescape"),
            capture_output=True,
            check=False,
            # Ctrl-C at a terminal is for us: we end the child, or wait for it.
            process_group=0,
            preexec_fn=interrupts.mask_of_children(),
        )
    except OSError as error:
        hint = " (is the package iptables installed?)" if "tables" in command[0] else ""
        message = f"can't run {command[0]}: {error.strerror}{hint}"
        raise KernelRefused(message) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").split("\n")
        words = "; ".join(line.strip() for line in said if line.strip() and "--help" not in line)
        if "Permission denied" in words or "Operation not permitted" in words:
            from istio_iptables.kernel.capabilities import missing

            words += missing()
        message = f"{' '.join(command)} failed with status {done.returncode}: {words}"
        raise KernelRefused(message)
    return done.stdout.decode(errors="surrogateescape")
