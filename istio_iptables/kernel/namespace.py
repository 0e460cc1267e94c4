"""Work inside another network namespace."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager

from istio_iptables.errors import KernelRefused
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["entered"]

_RUN_NETNS = "/run/netns"
# A thread may be in another namespace than the first one of its process, which /proc/self is of.
_HERE = "/proc/thread-self/ns/net"
_NS_GET_NSTYPE = 0xB703
_CLONE_NEWNET = 0x40000000
_KINDS = {
    0x00000080: "time",
    0x00020000: "mount",
    0x02000000: "cgroup",
    0x04000000: "UTS",
    0x08000000: "IPC",
    0x10000000: "user",
    0x20000000: "PID",
    _CLONE_NEWNET: "network",
}


@contextmanager
def entered(namespace: str) -> Iterator[None]:
    """Be in the network namespace *namespace* for the length of the block.

    A name under /run/netns, or a path such as /proc/PID/ns/net; "" stays where we are.
    Raises KernelRefused when it does not exist or can't be entered.
    """
    if not namespace:
        yield
        return
    path = namespace if "/" in namespace else f"{_RUN_NETNS}/{namespace}"
    hint = ""
    if namespace.isascii() and namespace.isdigit():
        hint = f" (for process {namespace}: /proc/{namespace}/ns/net)"
    home = _open(_HERE)
    try:
        there = _open(path, hint)
        elsewhere = True
        try:
            try:
                _enter(there, path)
            except KernelRefused:
                elsewhere = False
                raise
            finally:
                os.close(there)
            yield
        finally:
            # An interrupt may come right behind the change, too.
            if elsewhere:
                _enter(home, _HERE)
    finally:
        os.close(home)


def _open(path: str, hint: str = "") -> int:
    """The file of a network namespace, opened; anything else is not touched."""
    try:
        # What is no regular file may wait for another process, or do something, when it is opened.
        mode = os.stat(path).st_mode  # noqa: PTH116 - pathlib costs 5 ms
        if not stat.S_ISREG(mode):
            message = (
                f"{path} is not a network namespace: it is a {_KINDS_OF_FILE[stat.S_IFMT(mode)]}"
            )
            raise KernelRefused(message)
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        message = f"can't open the network namespace {path}: {error.strerror}{hint}"
        if path == _HERE and error.errno == errno.ENOENT:
            message += " (is /proc mounted?)"
        raise KernelRefused(message) from error
    try:
        _require_network(file, path)
    except BaseException:
        os.close(file)
        raise
    return file


_KINDS_OF_FILE = {
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def _require_network(file: int, path: str) -> None:
    import fcntl

    try:
        kind = fcntl.ioctl(file, _NS_GET_NSTYPE)
    except OSError:
        # No namespace at all, such as the file that is left of one: it can't be entered.
        return
    if kind != _CLONE_NEWNET:
        message = (
            f"{path} is not a network namespace: it is a {_KINDS.get(kind, 'different')} namespace"
        )
        raise KernelRefused(message)


def _enter(file: int, path: str) -> None:
    import ctypes

    # Python has os.setns from 3.12 on.
    if ctypes.CDLL(None, use_errno=True).setns(file, _CLONE_NEWNET):
        number = ctypes.get_errno()
        reason = os.strerror(number)
        if number == errno.EPERM:
            reason += ": it takes CAP_SYS_ADMIN, here and in the namespace's user namespace"
        message = f"can't enter the network namespace {path}: {reason}"
        raise KernelRefused(message)
