"""The program's own output: that it fails is told apart from every other failure."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager, suppress

from istio_iptables.errors import IstioIptablesError
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

__all__ = ["OutputFailed", "standard_streams"]


class OutputFailed(IstioIptablesError):
    """The results could not be written."""

    #: Whoever read them has seen enough.
    reader_gone = False


class _Stream:
    """A text stream as it is, but for what happens when it can't be written."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401 - any text file
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)

    def write(self, text: str) -> int:
        """Write *text*."""
        with self._told():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of *lines*, as the stream's own method does."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is waiting."""
        with self._told():
            self._stream.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            failed = OutputFailed(f"can't write the output: {error.strerror or error}")
            failed.reader_gone = error.errno == errno.EPIPE
            raise failed from error


class _Messages(_Stream):
    """Where messages go: if they can't be read, nothing else changes."""

    @contextmanager
    def _told(self) -> Iterator[None]:
        with suppress(OSError):
            yield


@contextmanager
def standard_streams() -> Iterator[None]:
    """In the block a failing stdout raises OutputFailed, and a failing stderr nothing."""
    given = sys.stdout, sys.stderr
    # A stream that the caller closed is None: output fails as at any descriptor that is not for
    # writing, and messages are lost.
    out = sys.stdout or open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: SIM115, PTH123 - open to the end
    err = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - open to the end
    for stream in (out, err):
        # A letter that the terminal's encoding lacks is shown as its number.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # both are text files
    sys.stdout, sys.stderr = _Stream(out), _Messages(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = given
