"""The system calls that Python 3.11 has no function for: namespaces, mounts, capabilities."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from istio_iptables.errors import KernelRefused

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CAP_NET_ADMIN",
    "NEW_IPC",
    "NEW_MOUNTS",
    "NEW_NETWORK",
    "NEW_PROCESSES",
    "become",
    "bind_mount",
    "die_with_parent",
    "enter_network",
    "make_mounts_private",
    "make_read_only",
    "mount",
    "unshare",
]

CAP_NET_ADMIN = 12

NEW_MOUNTS = 0x00020000
NEW_IPC = 0x08000000
NEW_PROCESSES = 0x20000000
NEW_NETWORK = 0x40000000

_MS_RDONLY, _MS_REMOUNT = 1, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT = 1, 8, 24, 47
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT_RAISE = 38, 2
_SIGKILL = 9
_CAPABILITY_VERSION = 0x20080522
_EINVAL = 22

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        message = f"can't {what}: {os.strerror(number)}"
        raise KernelRefused(message)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones; for processes, only children are in the new one."""
    _check(_libc.unshare(flags), "make namespaces of our own")


def enter_network(file: int) -> None:
    """Be in the network namespace that *file* is open on, from now on."""
    _check(_libc.setns(file, NEW_NETWORK), "enter a network namespace")


def mount(kind: str, target: str, options: str = "") -> None:
    """Mount a new file system of a kind, such as ``tmpfs``."""
    words = (kind.encode(), target.encode(), kind.encode(), 0, options.encode())
    _check(_libc.mount(*words), f"mount {kind} on {target}")


def bind_mount(source: str, target: str) -> None:
    """Show *source* at *target*, which is there already."""
    words = (source.encode(), target.encode(), None, _MS_BIND, None)
    _check(_libc.mount(*words), f"mount {source} on {target}")


def make_read_only(target: str) -> None:
    """Let nothing be written to what is mounted at *target*."""
    words = (None, target.encode(), None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY, None)
    _check(_libc.mount(*words), f"make {target} read-only")


def make_mounts_private() -> None:
    """Keep every later mount to this namespace."""
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "make mounts private")


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "be ended with the parent")


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def become(uid: int, gid: int, capabilities: Iterable[int] = ()) -> None:
    """Be this user and group, with these capabilities at most, now and after an exec."""
    kept = sum(1 << number for number in capabilities)
    # The bounding set is what uid 0 gets on an exec.
    for number in range(64):
        if not kept >> number & 1 and _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            if ctypes.get_errno() == _EINVAL:
                break  # behind the kernel's last capability
            _check(-1, "drop a capability")
    _check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    header = _CapHeader(_CAPABILITY_VERSION, 0)
    data = (_CapData * 2)()
    for half in range(2):
        bits = kept >> 32 * half & 0xFFFFFFFF
        data[half] = _CapData(bits, bits, bits)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "set capabilities")
    for number in range(64):
        if kept >> number & 1:
            raised = _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0)
            _check(raised, "hand capabilities on")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "give up gaining privileges")
