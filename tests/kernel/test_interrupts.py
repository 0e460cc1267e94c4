"""INT, TERM and HUP at any moment: the old rules or the new ones, one line, 128 + the signal."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.configurations import CONFIGURATIONS
from tests.kernel.sandbox import (
    CLI,
    PATH,
    State,
    adopting,
    chosen,
    install,
    needs,
    state,
    wait_for_group,
)
from tests.namespaces import ALL_BACKENDS, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: What is done, from which configuration to which; None is none.
CHANGES = {
    "replace": ("everything", "documented", (*CONFIGURATIONS["documented"], "--reconcile")),
    "replace back": ("documented", "everything", (*CONFIGURATIONS["everything"], "--reconcile")),
    "install": (None, "everything", CONFIGURATIONS["everything"]),
    "clean": ("everything", None, ("--cleanup-only",)),
}

#: How many boundaries are tried in one test, beside the first and the last.
MOMENTS = {"legacy": 20, "nft": 20, "native": 8}

#: And how many are drawn of the whole time of a change.
ROUNDS = {"legacy": 12, "nft": 12, "native": 4}

#: The calls by which the program's own process changes anything, starts a child or waits for one.
TRACE = "setsockopt,sendto,sendmsg,vfork,clone,clone3,wait4"


#: What is told of a change that was made.
DONE = r"info: (installed|replaced by|removed our rules)"


@cache
def after(name: str | None, backend: str) -> State:
    """What a namespace is like with a configuration installed."""
    with sandbox():
        if name is not None:
            install(backend, *CONFIGURATIONS[name])
        return state(backends=(backend,))


def begin(name: str | None, backend: str) -> None:
    """Have a configuration in place."""
    if name is not None:
        assert install(backend, *CONFIGURATIONS[name]).status == 0


def check_interrupted(done: subprocess.CompletedProcess[str], number: int) -> None:
    """The status is the signal's, and there is one line that says so."""
    assert done.returncode == 128 + number, done
    told = (": info: ", ": warning: ")
    lines = [line for line in done.stderr.splitlines() if not any(each in line for each in told)]
    assert lines == ["istio-iptables: error: interrupted"]


def started(*words: str, group: bool = False) -> subprocess.Popen[str]:
    """A program that is running, its stdin left open."""
    return subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=PATH,
        process_group=0 if group else None,
    )


def finished(running: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """What became of it."""
    out, err = running.communicate(timeout=30)
    return subprocess.CompletedProcess((), running.returncode, out, err)


def calls(log: str) -> Iterator[tuple[str, int]]:
    """Each call of a trace, with its number among those of its name."""
    counts: Counter[str] = Counter()
    for line in log.splitlines():
        name = line.partition("(")[0]
        if re.fullmatch(r"[a-z0-9]+", name):
            counts[name] += 1
            yield name, counts[name]


def traced(options: Sequence[str], words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The program under strace, which passes its exit status on."""
    return subprocess.run(
        ("strace", "-qq", *options, CLI, *words),
        capture_output=True,
        check=False,
        encoding="utf-8",
        env=PATH,
        timeout=60,
    )


@needs("strace")
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_at_every_boundary(backend: str, name: str, tmp_path: Path) -> None:
    """Before and behind everything that the program does to the kernel, each time another signal."""
    old, new, words = CHANGES[name]
    words = (*words, *chosen(backend))
    log = tmp_path / "log"
    with sandbox():
        begin(old, backend)
        assert traced(("-o", str(log), "-e", f"trace={TRACE}"), words).returncode == 0
    seen = Counter[bool]()
    found = list(calls(log.read_text()))
    assert len(found) > 10
    chance = random.Random(3)  # noqa: S311 - the same each time
    moments = chance.sample(range(1, len(found) - 1), min(len(found) - 2, MOMENTS[backend]))
    for index in (0, *moments, len(found) - 1):
        call, number = found[index]
        which = SIGNALS[index % len(SIGNALS)]
        with sandbox():
            begin(old, backend)
            fault = f"inject={call}:signal={which.name}:when={number}"
            options = ("-o", "/dev/null", "-e", f"trace={call}", "-e", fault)
            interrupted = traced(options, words)
            check_interrupted(interrupted, which)
            now = state(backends=(backend,))
            assert now in (after(old, backend), after(new, backend)), (call, number)
            changed = now == after(new, backend)
            # Who reads "interrupted" has to know which of the two it is.
            assert bool(re.search(DONE, interrupted.stderr)) is changed, interrupted.stderr
            seen[changed] += 1
    # The moments were on both sides of the change.
    assert seen[True]
    assert seen[False]


@pytest.mark.parametrize("name", ["replace", "clean"])
@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_of_the_whole_process_group(backend: str, name: str) -> None:
    """As from a terminal or timeout(1): the children that change tables are not hit in the midst."""
    moments = random.Random(5)  # noqa: S311 - the same moments each time, as far as time allows
    old, new, words = CHANGES[name]
    words = (*words, *chosen(backend))
    with adopting():
        for round_ in range(ROUNDS[backend]):
            with sandbox():
                begin(old, backend)
                running = started(CLI, *words, group=True)
                time.sleep(moments.uniform(0.06, 0.7))
                which = SIGNALS[round_ % len(SIGNALS)]
                with suppress(ProcessLookupError):
                    os.killpg(running.pid, which)
                done = finished(running)
                wait_for_group(running.pid)
                # Python itself shows a traceback when it is hit before it has come to our code.
                assert "/istio_iptables/cli.py" not in done.stderr
                # Before it has come to run our code, Python is ended by the signal itself.
                assert done.returncode in {0, 1, 128 + which, -which}, done
                now = state(backends=(backend,))
                assert now in (after(old, backend), after(new, backend))
                if done.returncode == 1:
                    assert "istio-iptables: " not in done.stderr, done
                if done.returncode != 128 + which:
                    assert now == after(new if done.returncode == 0 else old, backend)


def _hold_lock() -> subprocess.Popen[str]:
    holder = started("flock", "/run/xtables.lock", "sh", "-c", "echo; read x")
    assert holder.stdout
    holder.stdout.readline()
    return holder


def _wait_until_it_waits(running: subprocess.Popen[str]) -> None:
    """Until the program says that it waits for the lock."""
    assert running.stderr
    while "waiting for the xtables lock" not in (line := running.stderr.readline()):
        assert line, "it has ended"


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("words", [CONFIGURATIONS["dual"], ("clean",)], ids=["install", "clean"])
def test_while_waiting_for_the_lock(words: tuple[str, ...], number: signal.Signals) -> None:
    """It is not waited for any longer, and nothing was done."""
    before = state()
    holder = _hold_lock()
    running = started(CLI, *words)
    _wait_until_it_waits(running)
    running.send_signal(number)
    check_interrupted(finished(running), number)
    finished(holder)
    assert state() == before


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_that_is_ignored_stays_ignored(number: signal.Signals) -> None:
    """As under nohup, or in the background of a script."""
    holder = _hold_lock()
    name = number.name.removeprefix("SIG")
    running = started("env", f"--ignore-signal={name}", CLI, *CONFIGURATIONS["dual"])
    _wait_until_it_waits(running)
    running.send_signal(number)
    finished(holder)
    assert finished(running).returncode == 0
    assert state().nft != state().legacy


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize(
    "words",
    [
        ("explain", "--rules", "-", "--dst", "1.2.3.4:80", *CONFIGURATIONS["documented"]),
        ("diff", "--against", "-", *CONFIGURATIONS["documented"]),
    ],
    ids=["explain", "diff"],
)
def test_while_reading_stdin(words: tuple[str, ...], number: signal.Signals) -> None:
    """Rules that never come can be given up."""
    running = started(CLI, *words)
    deadline = time.monotonic() + 20
    while "pipe_read" not in _waits_in(running.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    # Its stdin is still open: the signal is what ends it.
    running.send_signal(number)
    assert running.stdin
    running.wait(10)
    check_interrupted(finished(running), number)


def _waits_in(pid: int) -> str:
    try:
        # read(0, ...): the number of read differs, its first argument is stdin.
        words = Path(f"/proc/{pid}/syscall").read_text(encoding="ascii")
        return "pipe_read" if re.match(r"\d+ 0x0 ", words) else ""
    except OSError:
        return ""


#: A program that hangs the first time that it is to change something.
_HANGS = """\
#!/bin/sh
case "$*" in
*--test* | -c* | *list*) ;;
*) [ -e {here}/hung ] || {{ touch {here}/hung; exec sleep 600; }} ;;
esac
exec /usr/sbin/{name} "$@"
"""


@pytest.mark.parametrize(
    ("backend", "name", "change"),
    [
        ("nft", "iptables-nft-restore", "iptables-nft-restore --noflush"),
        ("native", "nft", "nft -f -"),
    ],
)
def test_a_program_that_hangs(backend: str, name: str, change: str, tmp_path: Path) -> None:
    """It is killed a few seconds behind the signal, and everything goes back."""
    program = tmp_path / name
    program.write_text(_HANGS.format(here=tmp_path, name=name))
    program.chmod(0o755)
    install(backend, *CONFIGURATIONS["documented"])
    before = state(backends=(backend,))
    words = (*CONFIGURATIONS["tproxy-ipv4"], "--reconcile", *chosen(backend))
    running = started("env", f"PATH={tmp_path}:{PATH['PATH']}", CLI, *words)
    while running.poll() is None and not (tmp_path / "hung").exists():
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    done = finished(running)
    assert done.returncode == 128 + signal.SIGTERM, done
    assert f"{change} does not end: killed after" in done.stderr
    assert state(backends=(backend,)) == before
