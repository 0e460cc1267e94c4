"""Network and mount namespaces that are gone afterwards: for a block of the test, or for commands.

Entering one in the test's own process takes a millisecond, and the program then runs in the process
that is there already, so that a test can install hundreds of times.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from istio_iptables.netfilter.model import Family

__all__ = [
    "ALL_BACKENDS",
    "BACKENDS",
    "TOOLS",
    "Done",
    "Step",
    "enter_network",
    "inside",
    "mount",
    "new_network",
    "program",
    "read_only",
    "rules_of",
    "sandbox",
    "set_loopback",
    "why_not",
]

#: The two stores of rules that the kernel has, by the name of their tools.
BACKENDS = ("legacy", "nft")
#: And our native nftables rules beside them.
ALL_BACKENDS = (*BACKENDS, "native")

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_RDONLY, _MS_REMOUNT = 4096, 16384, 1 << 18, 1, 32
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)

TOOLS = ("unshare", "ip", "iptables-legacy-restore", "iptables-nft-restore")

# Runs in the namespace: reads the steps, answers with what became of each.
_DRIVER = """
import json, subprocess, sys
done = []
for argv, text in json.load(sys.stdin):
    each = subprocess.run(argv, input=text, capture_output=True, encoding="utf-8")
    done.append((each.returncode, each.stdout, each.stderr))
json.dump(done, sys.stdout)
"""


class Step(NamedTuple):
    """A command and the text of its stdin."""

    argv: Sequence[str]
    stdin: str = ""


class Done(NamedTuple):
    """What became of a step."""

    status: int
    out: str
    err: str


def why_not() -> str:
    """The reason why the real kernel can't be used here; "" if it can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def inside(steps: Iterable[Step]) -> list[Done]:
    """What became of each step, run one after the other in a fresh network namespace."""
    answer = subprocess.run(
        ["unshare", "--net", sys.executable, "-S", "-E", "-c", _DRIVER],
        input=json.dumps([(list(step.argv), step.stdin) for step in steps]),
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
        timeout=120,
    )
    return [Done(*each) for each in json.loads(answer.stdout)]


def program(family: Family, backend: str, what: str = "") -> str:
    """The name of a tool, such as ``ip6tables-nft-save``."""
    name = "iptables" if family.value == "ipv4" else "ip6tables"
    return f"{name}-{backend}-{what}" if what else f"{name}-{backend}"


def rules_of(save: str) -> str:
    """What a text of iptables-save says: no counters and comments, no tables without rules.

    The kernel makes a table when it is first looked at, so an empty one means nothing.
    """
    tables: list[list[str]] = []
    for line in save.splitlines():
        if line.startswith("*"):
            tables.append([line])
        elif line.startswith(":"):
            tables[-1].append(line.rpartition(" ")[0])
        elif line.startswith("-"):
            tables[-1].append(line)
    order = ("*raw", "*mangle", "*nat", "*filter", "*security")
    full = [table for table in tables if any(line.startswith("-") for line in table)]
    return "".join(
        f"{line}\n" for table in sorted(full, key=lambda t: order.index(t[0])) for line in table
    )


def _call(function: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", *, bind: bool = False, data: str = "") -> None:
    """Mount in the sandbox: a file or folder over another one, or a new file system."""
    _call(
        "mount",
        source.encode(),
        target.encode(),
        kind.encode() or None,
        ctypes.c_ulong(_MS_BIND if bind else 0),
        data.encode() or None,
    )


def read_only(target: str) -> None:
    """Make what is mounted at *target* read-only."""
    _call(
        "mount",
        None,
        target.encode(),
        None,
        ctypes.c_ulong(_MS_REMOUNT | _MS_BIND | _MS_RDONLY),
        None,
    )


def new_network() -> None:
    """Put this process into a network namespace of its own, with lo up."""
    _call("unshare", _CLONE_NEWNET)
    set_loopback(up=True)


def enter_network(path: str) -> None:
    """Put this process into the network namespace at *path*."""
    with Path(path).open("rb") as namespace:
        _call("setns", namespace.fileno(), _CLONE_NEWNET)


def set_loopback(*, up: bool) -> None:
    """Take lo up or down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh", b"lo", 0).ljust(40, b"\0")
        flags = struct.unpack_from("h", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request), 16)[0]
        flags = flags | _IFF_UP if up else flags & ~_IFF_UP
        request = struct.pack("16sh", b"lo", flags).ljust(40, b"\0")
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


@contextlib.contextmanager
def sandbox() -> Iterator[None]:
    """Be in a fresh network namespace with lo up, and see an empty /run, for the block.

    Everything that is mounted or installed in the block is gone after it.
    """
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    home = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("net", "mnt")]
    try:
        _call("unshare", _CLONE_NEWNET | _CLONE_NEWNS)
        _call("mount", b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
        mount("tmpfs", "/run", "tmpfs", data="size=1m")
        set_loopback(up=True)
        yield
    finally:
        for each in home:
            # A process that can't get home must not go on in the test's namespaces.
            if _libc.setns(each, 0):
                os.abort()
            os.close(each)
        os.fchdir(folder)
        os.close(folder)
