"""What is made of files, and made again when they change."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from istio_iptables.errors import IstioIptablesError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Watched"]

T = TypeVar("T")


class Watched(Generic[T]):
    """A value of files; a change that can't be used is told, and the value stays.

    The files are read, not their times or their inodes, so that it does not matter how they change:
    Kubernetes replaces the folder of a ConfigMap or a Secret by another behind a symbolic link.
    """

    def __init__(
        self,
        label: str,
        paths: Sequence[str],
        load: Callable[[], T],
        tell: Callable[[str, list[str]], object],
        failed: Callable[[], object],
    ) -> None:
        self._label = label
        self._paths = paths
        self._load = load
        self._tell = tell
        self._failed = failed
        self._used = self._last = self._contents()
        self.value = load()

    def refresh(self) -> None:
        """Make the value again if the files have changed, and not between this call and the last."""
        found, before = self._contents(), self._last
        self._last = found
        # Twice the same: nobody is at work on them.
        if found == self._used or found != before:
            return
        self._used = found
        try:
            self.value = self._load()
        except Exception as error:  # noqa: BLE001 - what is served stays, whatever was written there
            self._failed()
            why: Sequence[str] = [f"internal error: {type(error).__name__}: {error}"]
            if isinstance(error, IstioIptablesError):
                why = error.lines
            lines = [f"{self._label} changed and can't be used: {line}" for line in why]
            self._tell("error", [*lines, f"{self._label}: what was read before stays"])
        else:
            self._tell("info", [f"{self._label} changed: read again"])

    def _contents(self) -> list[bytes | None]:
        found: list[bytes | None] = []
        for path in self._paths:
            found.append(None)
            with suppress(OSError), open(path, "rb") as file:  # noqa: PTH123 - a path may be any text
                found[-1] = file.read()
        return found
