"""A script in a pod's network namespace of its own: it is asked in lines of JSON, and answers so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

__all__ = ["PodProcess"]


class PodProcess:
    """The script, for as long as the block lasts; its first line holds the pod's addresses."""

    #: All addresses of each interface, in the kernel's order.
    addresses: dict[str, tuple[str, ...]]

    def __init__(self, script: str, *arguments: str) -> None:
        path = Path(__file__).with_name(script)
        self._command = ["unshare", "--net", sys.executable, "-S", "-E", str(path), *arguments]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )
        self.addresses = {name: tuple(each) for name, each in self._line().items()}
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)

    def _request(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _answer(self, about: object = None) -> dict[str, Any]:
        """The answer to the last request, which was *about* something; a failure shows that."""
        answer = self._line()
        assert not answer["error"], (answer["error"], about)
        return answer

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found
