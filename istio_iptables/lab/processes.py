"""Processes of the lab: on a network, as a user, forked so that no file has to be readable.

They are forked from a Python that has loaded what they need: its files may lie in the home of
root, where the proxy's user can't look.
"""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from istio_iptables.errors import KernelRefused
from istio_iptables.lab import syscalls as kernelcalls
from istio_iptables.lab.sandbox import FOLDER, end_with, read_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ROOT", "Call", "Identity", "LabProcess", "call", "execute", "start"]

#: Nothing in the lab takes longer, unless something is wrong.
_PATIENCE_SECONDS = 15.0


class Identity(NamedTuple):
    """Who a process is: user, group, and the capabilities that it keeps."""

    uid: int
    gid: int
    capabilities: tuple[int, ...] = ()


#: Who everything here is started by: this process, as it is.
ROOT = Identity(0, 0)


class LabProcess(NamedTuple):
    """A process that runs until the world ends."""

    name: str
    pid: int
    #: Gets one byte when the process is ready, and is closed when it ends before.
    ready: int

    def wait_ready(self) -> None:
        """Return when the process is ready; raises KernelRefused with its words if it ended."""
        if not select.select([self.ready], [], [], _PATIENCE_SECONDS)[0]:
            message = f"{self.name} was not ready within {_PATIENCE_SECONDS:g} s"
            raise KernelRefused(message)
        if not os.read(self.ready, 1):
            message = f"{self.name} ended at once"
            raise KernelRefused(message, *self.words())
        os.close(self.ready)

    def words(self) -> list[str]:
        """What the process wrote, at the end of it."""
        text = Path(_log(self.name)).read_text(encoding="utf-8", errors="replace")
        return text.splitlines()[-20:]


def _log(name: str) -> str:
    return f"{FOLDER}/{name.replace(' ', '-')}.log"


def start(
    name: str, network: int, identity: Identity, work: Callable[[Callable[[], None]], object]
) -> LabProcess:
    """Start a process that does *work*, which calls its argument when it is ready."""
    reader, writer = os.pipe()
    log = os.open(_log(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    pid = os.fork()
    if pid == 0:
        os.dup2(log, 1)
        os.dup2(log, 2)
        _begin(network, identity)

        def ready() -> None:
            os.write(writer, b".")
            os.close(writer)

        _ended(lambda: work(ready))
    os.close(writer)
    os.close(log)
    return LabProcess(name, pid, reader)


def _begin(network: int, identity: Identity) -> None:
    """Turn a forked process into one that is somewhere and someone else."""
    os.setsid()  # an interrupt at the terminal is not for us
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    kernelcalls.enter_network(network)
    if identity != ROOT:
        kernelcalls.become(*identity)


def _ended(work: Callable[[], object]) -> NoReturn:
    try:
        work()
    except BaseException:  # noqa: BLE001 - the process ends here; nothing is above
        import traceback  # only for what should not happen

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(1)


def execute(name: str, network: int, identity: Identity, command: Sequence[str]) -> LabProcess:
    """Start a program; it can't say that it is ready, only that it has ended."""

    def become_it(_ready: Callable[[], None]) -> None:
        os.chdir("/")
        words = list(command)
        os.execve(words[0], words, {"PATH": "/usr/bin:/bin"})  # noqa: S606 - our own words

    return start(name, network, identity, become_it)


class Call(NamedTuple):
    """A process that was asked something."""

    pid: int
    answer: int

    def result(self, patience: float = _PATIENCE_SECONDS) -> Any:  # noqa: ANN401 - what was asked
        """What it returned; raises KernelRefused with what it raised, or if it takes too long."""
        deadline = time.monotonic() + patience
        answer = b""
        try:
            while True:
                left = max(deadline - time.monotonic(), 0)
                if not select.select([self.answer], [], [], left)[0]:
                    os.kill(self.pid, signal.SIGKILL)
                    message = f"a process of the lab took longer than {patience:g} s"
                    raise KernelRefused(message)
                chunk = os.read(self.answer, 1 << 16)
                if not chunk:
                    return read_answer(answer)
                answer += chunk
        finally:
            os.close(self.answer)
            os.waitpid(self.pid, 0)


def call(network: int, identity: Identity, work: Callable[[], object]) -> Call:
    """Do *work* in a process on that network, as that user."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:

        def begun() -> object:
            _begin(network, identity)
            return work()

        end_with(begun, writer)
    os.close(writer)
    return Call(pid, reader)
