"""The processes of the current network namespace, as far as /proc shows them."""

from __future__ import annotations

import contextlib
import os
import re
from typing import NamedTuple

__all__ = ["Process", "processes", "sockets_of"]

_HERE = "/proc/thread-self/ns/net"


class Process(NamedTuple):
    """One process, and who it is to the kernel when it opens a socket."""

    pid: int
    #: The name of its program, cut at 15 letters.
    name: str
    uid: int
    gid: int
    #: Whether it is in this network namespace for certain; else that can't be read.
    certain: bool
    #: Whether it was stopped, by a signal or by who traces it.
    stopped: bool


def processes() -> tuple[Process, ...] | None:
    """The other processes that are, or may be, in this network namespace; None without /proc.

    In a container these are the container's own, unless the pod shares its process namespace.
    """
    try:
        here = os.stat(_HERE).st_ino  # noqa: PTH116 - pathlib costs 5 ms
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208
    except OSError:
        return None
    found = (_process(pid, here) for pid in pids if pid != os.getpid())
    return tuple(each for each in found if each is not None)


def _process(pid: int, here: int) -> Process | None:
    """The process, unless it has ended or is in another network namespace."""
    try:
        try:
            if os.stat(f"/proc/{pid}/ns/net").st_ino != here:  # noqa: PTH116 - see above
                return None
            certain = True
        except PermissionError:
            certain = False
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="surrogateescape") as file:
            fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    except OSError:
        return None
    # Real, effective, saved, and the one for files, by which sockets are owned.
    uid, gid = (int(fields[name].split()[3]) for name in ("Uid", "Gid"))
    return Process(pid, fields["Name"], uid, gid, certain, fields["State"][0] in "Tt")


def sockets_of(pid: int) -> set[int]:
    """The numbers of the sockets that a process has open; none if that can't be read."""
    folder = f"/proc/{pid}/fd"
    found: set[int] = set()
    try:
        for each in os.listdir(folder):  # noqa: PTH208 - pathlib costs 5 ms
            with contextlib.suppress(FileNotFoundError):
                there = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"{folder}/{each}"))  # noqa: PTH115
                found.update(map(int, there.groups()) if there else ())
    except OSError:
        return set()
    return found
