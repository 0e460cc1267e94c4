"""A world of its own for the lab: a tree of processes with private mounts and networks.

    the caller -> the guard -> the first process of a new PID namespace, which does the work

When the first process of a PID namespace ends, the kernel kills all the others, and with the
last process go the mounts and the network namespaces. The guard is ended by the kernel when
the caller ends, and the first process when the guard ends, so nothing has to be cleaned up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import select
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from istio_iptables import interrupts
from istio_iptables.errors import IstioIptablesError, KernelRefused
from istio_iptables.lab import syscalls as kernelcalls
from istio_iptables.lab.syscalls import NEW_IPC, NEW_MOUNTS, NEW_NETWORK, NEW_PROCESSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FOLDER", "in_sandbox", "make_network", "on_network"]

_Result = TypeVar("_Result")

#: Where the lab keeps its files, in the world's own /run.
FOLDER = "/run/lab"

_SET_FLAGS, _UP = 0x8914, 1


def in_sandbox(work: Callable[[int], _Result], *, interrupts_end_it: bool = True) -> _Result:
    """What *work* returns or raises, done as the first process of a world of its own.

    It is called with its process number outside of the world. Raises KernelRefused if there is
    no making such a world.
    """
    if os.geteuid() != 0:
        message = "the lab makes network namespaces and processes of other users: it needs root"
        raise KernelRefused(message)
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    caller = os.getpid()
    guard = os.fork()
    if guard == 0:
        interrupts.as_by_default()
        os.close(reader)
        end_with(lambda: _guard(caller, writer, work), writer)
    os.close(writer)
    before = signal.getsignal(signal.SIGINT)
    try:
        if not interrupts_end_it:
            # The work is interrupted as well, and ends as it likes.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        with os.fdopen(reader, "rb") as answers:
            answer = answers.read()
    except BaseException:
        os.kill(guard, signal.SIGKILL)
        raise
    finally:
        os.waitpid(guard, 0)
        signal.signal(signal.SIGINT, before)
    result: _Result = read_answer(answer)
    return result


def _guard(caller: int, writer: int, work: Callable[[int], object]) -> NoReturn:
    """Stand between the caller and the world until the world is over."""
    kernelcalls.die_with_parent()
    if os.getppid() != caller:
        os._exit(1)
    kernelcalls.unshare(NEW_PROCESSES | NEW_MOUNTS | NEW_NETWORK | NEW_IPC)
    alive, ours = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(ours)
        kernelcalls.die_with_parent()
        if select.select([alive], [], [], 0)[0]:  # the guard is gone already
            os._exit(1)
        end_with(lambda: _furnished(work), writer)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.close(writer)
    os.waitpid(first, 0)
    os._exit(0)


def _furnished(work: Callable[[int], _Result]) -> _Result:
    number_outside = int(Path("/proc/self").readlink().name)
    kernelcalls.make_mounts_private()
    kernelcalls.mount("proc", "/proc")
    # Holds the xtables lock, the names of networks, and sockets: none of them is the host's.
    kernelcalls.mount("tmpfs", "/run", "mode=755")
    Path("/run/netns").mkdir()
    Path(FOLDER).mkdir()
    return work(number_outside)


def end_with(work: Callable[[], object], writer: int) -> NoReturn:
    """End this process with what *work* returns or raises, written to *writer*."""
    answer: tuple[bool, Any] = (False, ("ended",))
    try:
        answer = (True, work())
    except IstioIptablesError as error:
        answer = (False, error.lines)
    except KeyboardInterrupt:
        answer = (False, ("interrupted",))
    except BaseException as error:  # noqa: BLE001 - the process ends here; nothing is above
        answer = (False, _told(error))
    finally:
        with contextlib.suppress(OSError), os.fdopen(writer, "wb") as answers:
            pickle.dump(answer, answers)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(0)


def _told(error: BaseException) -> tuple[str, ...]:
    import traceback  # only for what should not happen

    return tuple("".join(traceback.format_exception(error)).rstrip().split("\n"))


def read_answer(answer: bytes) -> Any:  # noqa: ANN401 - whatever the process sent
    """What a process sent by ``end_with``; raises KernelRefused with what it raised."""
    if not answer:
        message = "a process of the lab ended without an answer"
        raise KernelRefused(message)
    fine, result = pickle.loads(answer)  # noqa: S301 - written by our own child
    if not fine:
        raise KernelRefused(*result)
    return result


def make_network(name: str) -> int:
    """Make a network namespace with its loopback up, named in /run/netns; returns it opened."""
    path = f"/run/netns/{name}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernelcalls.unshare(NEW_NETWORK)
        kernelcalls.bind_mount("/proc/self/ns/net", path)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP))
    finally:
        kernelcalls.enter_network(home)
        os.close(home)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def on_network(file: int) -> Iterator[None]:
    """Be in a network namespace for the length of the block."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernelcalls.enter_network(file)
        yield
    finally:
        kernelcalls.enter_network(home)
        os.close(home)
