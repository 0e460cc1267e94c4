"""What tests do with the kernel's rules: install, load, save, compare; and processes of their own.

What needs a process of its own (to be killed, or to hold fewer rights) is forked from the test's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from istio_iptables.netfilter.model import Family
from tests import program
from tests.namespaces import ALL_BACKENDS, BACKENDS, mount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "CLI",
    "PATH",
    "Finished",
    "State",
    "adopting",
    "chosen",
    "command",
    "forked",
    "install",
    "joined",
    "load",
    "needs",
    "ours_in",
    "planned",
    "process",
    "run",
    "save",
    "state",
    "tables",
    "wait_for_children",
    "wait_for_group",
    "without_nft",
]


_PR_SET_CHILD_SUBREAPER = 36

#: The program as a user runs it.
CLI = str(Path(sys.executable).with_name("istio-iptables"))

#: What the program's environment holds here: only where iptables is.
PATH = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def needs(*tools: str) -> pytest.MarkDecorator:
    """Skip a test, and say so, where a tool it needs is missing."""
    missing = [tool for tool in tools if shutil.which(tool, path=PATH["PATH"]) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def without_nft() -> None:
    """Leave the rest of the test without the program nft."""
    nft = shutil.which("nft", path=PATH["PATH"])
    assert nft
    mount("/dev/null", str(Path(nft).resolve()), bind=True)


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> program.Result:
    """Run the program in this process, IPv4 and IPv6 as the arguments say."""
    return program.run(arguments, PATH | dict(environment or {}))


def chosen(backend: str) -> tuple[str, ...]:
    """The words that make it *backend* that rules are installed into."""
    return ("--native-nftables",) if backend == "native" else ("--force-iptables-binary", backend)


def install(backend: str, *arguments: str) -> program.Result:
    """Install into *backend*."""
    return run(*chosen(backend), *arguments)


class Finished(NamedTuple):
    """What became of a process."""

    status: int
    out: str
    err: str


def process(*words: str, stdin: str = "", environment: Mapping[str, str] | None = None) -> Finished:
    """Run a program as a process of its own, to its end."""
    done = subprocess.run(
        words,
        input=stdin,
        capture_output=True,
        check=False,
        encoding="utf-8",
        env=PATH | dict(environment or {}),
        timeout=60,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def command(*words: str, stdin: str = "") -> str:
    """What a command prints; it has to succeed."""
    done = process(*words, stdin=stdin)
    assert done.status == 0, f"{' '.join(words)}: {done.err}"
    return done.out


def _program(family: Family, backend: str, what: str) -> str:
    return f"{'iptables' if family is Family.IPV4 else 'ip6tables'}-{backend}-{what}"


def load(backend: str, family: Family, text: str) -> None:
    """Have iptables load rules beside those that are there."""
    command(_program(family, backend, "restore"), "--noflush", stdin=text)


def save(backend: str, family: Family) -> str:
    """What iptables-save prints."""
    return command(_program(family, backend, "save"))


_COUNTERS = re.compile(r"\[\d+:\d+\]")


def tables(text: str, *, counters: bool = False) -> dict[str, str]:
    """The tables of a text of iptables-save by name: each its text, without comments.

    Packet counts of chains are left out unless *counters*; rules have none.
    """
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("*"):
            lines = found.setdefault(line[1:], [])
        if line and not line.startswith("#"):
            lines.append(line if counters else _COUNTERS.sub("[0:0]", line))
    return {name: "\n".join(each) for name, each in found.items()}


def ours_in(text: str) -> dict[str, str]:
    """The tables of a text of iptables-save that hold rules or chains beside the built-in ones.

    Looking at a legacy table makes it, so that an empty one means nothing.
    """
    return {
        name: table
        for name, table in tables(text).items()
        if any(line.startswith("-A") or " - [" in line for line in table.splitlines())
    }


def planned(*arguments: str) -> dict[Family, dict[str, str]]:
    """The tables that a dry run prints, by family."""
    printed = run(*arguments, "--dry-run")
    assert printed.status == 0, printed.err
    ipv4, _, ipv6 = printed.out.partition("# IPv6")
    return {Family.IPV4: tables(ipv4), Family.IPV6: tables(ipv6)}


_LINES = re.MULTILINE | re.DOTALL


class State(NamedTuple):
    """Everything of a network namespace that an install may change, as text."""

    legacy: tuple[dict[str, str], dict[str, str]]
    nft: tuple[dict[str, str], dict[str, str]]
    rules: tuple[str, str]
    routes: tuple[str, str]
    addresses: str
    #: The tables of the family inet by name, without counters and handles.
    native: dict[str, str]

    def tables(self, backend: str) -> dict[str, str]:
        """The tables of a backend, those of each address family by names of their own."""
        if backend == "native":
            return self.native
        found = self.legacy if backend == "legacy" else self.nft
        families = zip(Family, found, strict=True)
        return {f"{family} {name}": each[name] for family, each in families for name in each}


def state(*, backends: tuple[str, ...] = ALL_BACKENDS, everything: bool = False) -> State:
    """What the namespace holds now; tables without rules only with *everything*."""
    read = tables if everything else ours_in
    both = {
        backend: (read(save(backend, Family.IPV4)), read(save(backend, Family.IPV6)))
        if backend in backends
        else ({}, {})
        for backend in BACKENDS
    }
    # One process for the lot: most of the time goes into starting them.
    # The kernel routes a new IPv6 address a little later, when it is no longer tentative.
    asked = "while ip -o addr show dev lo | grep -q tentative; do :; done; "
    asked += "ip -4 rule; echo %; ip -6 rule; echo %; ip -4 route show table all; echo %;"
    asked += "ip -6 route show table all; echo %; ip -o addr; echo %;"
    if "native" in backends:
        asked += "nft -s list ruleset inet"
    ip = command("sh", "-c", asked).split("%\n")
    native = {text.split()[2]: text for text in re.findall(r"^table .*?^}\n", ip[5], _LINES)}
    return State(both["legacy"], both["nft"], (ip[0], ip[1]), (ip[2], ip[3]), ip[4], native)


def forked(work: Callable[[], int], *, group: bool = False, quiet: bool = False) -> int:
    """Run *work* in a child process, at the head of a process group of its own if asked.

    Its return value is the child's exit status; an exception of it is 99 and a traceback.
    """
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        if group:
            os.setpgid(0, 0)
        if quiet:
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
        status = work()
    except BaseException:  # noqa: BLE001 - nothing may get out of the child into pytest
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def joined(child: int) -> int:
    """The exit status of a child, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Orphans are children of this process meanwhile, to be waited for; left so, they'd stay zombies."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def wait_for_children() -> None:
    """Wait until every child of this process has ended; orphans too, if they are adopted.

    A program that a killed one had started has a group of its own.
    """
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def wait_for_group(group: int) -> None:
    """Wait until every process of a group has ended; orphans too, if they are adopted.

    A child that leaves the group while it is waited for would be waited for for ever.
    """
    with contextlib.suppress(ChildProcessError):
        while True:
            if os.waitpid(-group, os.WNOHANG) == (0, 0):
                time.sleep(0.001)
