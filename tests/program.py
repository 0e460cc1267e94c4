"""Run the program inside the test's process: quick, and with nothing of the caller's environment."""

from __future__ import annotations

import contextlib
import io
import os
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

from istio_iptables.cli import main

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Result", "run"]


class Result(NamedTuple):
    """What a run left behind."""

    status: int
    out: str
    err: str

    @property
    def warnings(self) -> list[str]:
        """The warnings told on stderr, without their prefix."""
        return _told(self.err, "warning")

    @property
    def errors(self) -> list[str]:
        """The problems told on stderr, without their prefix."""
        return _told(self.err, "error")


def _told(text: str, kind: str) -> list[str]:
    prefix = f"istio-iptables: {kind}: "
    return [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    folder: Path | str = ".",
) -> Result:
    """Run ``istio-iptables`` with *arguments* in *folder*; only *environment* is set."""
    out, err = io.BytesIO(), io.BytesIO()
    with (
        mock.patch.dict(os.environ, environment or {}, clear=True),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(_text_file(out)) as stdout,
        contextlib.redirect_stderr(_text_file(err)) as stderr,
    ):
        status = main(list(arguments))
        stdout.flush()
        stderr.flush()
    return Result(
        status, *(each.getvalue().decode(errors="surrogateescape") for each in (out, err))
    )


def _text_file(binary: io.BytesIO) -> io.TextIOWrapper:
    return io.TextIOWrapper(binary, "utf-8", newline="")
