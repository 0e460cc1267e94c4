"""The xtables lock: taken as iptables takes it, waited for, and named when it is not free."""

from __future__ import annotations

import fcntl
import os
import subprocess
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import pytest

from istio_iptables.errors import KernelRefused
from istio_iptables.kernel.lock import locked
from tests.kernel.configurations import DUAL
from tests.kernel.sandbox import CLI, PATH, forked, joined, process, run, state
from tests.namespaces import BACKENDS, mount

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

LOCK = "/run/xtables.lock"


@contextmanager
def _held(path: str) -> Iterator[TextIO]:
    """A lock that is held in the block, or until the file is closed."""
    with Path(path).open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _begins_when_it_is_free(path: str, *words: str, environment: dict[str, str]) -> None:
    """The program waits for the lock, has done nothing when it says so, and then does its work."""
    before = state()
    with (
        _held(path) as lock,
        subprocess.Popen(
            (CLI, *words), stderr=subprocess.PIPE, text=True, env=PATH | environment
        ) as waiting,
    ):
        assert waiting.stderr is not None
        while "waiting for the xtables lock" not in (line := waiting.stderr.readline()):
            assert line
        assert f"process {os.getpid()}" in line
        assert state() == before
        lock.close()
        assert waiting.wait() == 0
    assert state() != before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_held_lock_is_waited_for(backend: str) -> None:
    """An install begins when the other program is done."""
    words = (*DUAL, "--force-iptables-binary", backend)
    _begins_when_it_is_free(LOCK, *words, environment={})


def test_iptables_waits_for_us() -> None:
    """While we hold the lock, iptables does not begin."""
    with locked(lambda _: None):
        done = process("iptables-legacy", "-w", "1", "-t", "nat", "-N", "MINE")
        assert done.status == 4
        assert "xtables lock" in done.err
    assert process("iptables-legacy", "-w", "1", "-t", "nat", "-N", "MINE").status == 0


def test_the_holder_is_named_when_time_is_up() -> None:
    """The line says which lock, for how long it was waited, and which process holds it."""
    with _held(LOCK), pytest.raises(KernelRefused) as refused, locked(lambda _: None, wait=0.2):
        pass
    name = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
    assert refused.value.lines == (
        f"the xtables lock {LOCK} was not free for 0.2 s (held by {name}, process {os.getpid()})",
    )


def test_waiting_is_told() -> None:
    """After a second of waiting a line says for what."""
    told: list[str] = []
    with _held(LOCK) as lock:

        def tell(line: str) -> None:
            told.append(line)
            lock.close()

        with locked(tell):
            assert [line.partition(" (held by ")[0] for line in told] == [
                f"waiting for the xtables lock {LOCK}"
            ]


def test_another_lock_file(tmp_path: Path) -> None:
    """$XTABLES_LOCKFILE is locked instead, and has to be there to be had."""
    elsewhere = str(tmp_path / "lock")
    _begins_when_it_is_free(elsewhere, *DUAL, environment={"XTABLES_LOCKFILE": elsewhere})
    before = state()
    result = run("--cleanup-only", environment={"XTABLES_LOCKFILE": "/no/such/lock"})
    assert result.status == 1
    assert result.errors == [
        "can't open the lock /no/such/lock ($XTABLES_LOCKFILE): No such file or directory"
    ]
    assert state() == before


def test_the_pod_has_a_lock_of_its_own() -> None:
    """With --cni-mode the node's lock is neither waited for nor made; the namespace's is."""
    with _held(LOCK):
        assert run(*DUAL, "--cni-mode").status == 0
    with locked(lambda _: None, pod_only=True):
        child = forked(partial(_try_pod_lock), quiet=True)
        assert joined(child) == 1


def _try_pod_lock() -> int:
    try:
        with locked(lambda _: None, pod_only=True, wait=0.2):
            return 0
    except KernelRefused as error:
        return 1 if "the xtables lock of the network namespace was not free" in str(error) else 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_run_is_missing(backend: str) -> None:
    """Without /run the namespace's own lock is enough, and a line says so."""
    mount("tmpfs", "/mnt", "tmpfs")
    result = process(
        *(
            "unshare",
            "--mount",
            "sh",
            "-c",
            'umount -l /run; mount --bind /mnt /run; rmdir /run/x 2>/dev/null; exec "$0" "$@"',
        ),
        *(CLI, *DUAL, "--force-iptables-binary", backend),
        environment={"XTABLES_LOCKFILE": ""},
    )
    assert (result.status, "Traceback" in result.err) == (0, False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_run_is_read_only(backend: str) -> None:
    """On a read-only /run without a lock file the program says what it does instead, and works."""
    command = 'mount -o remount,ro /run; exec "$0" "$@"'
    words = (CLI, *DUAL, "--force-iptables-binary", backend)
    result = process("unshare", "--mount", "sh", "-c", command, *words)
    if backend == "legacy":
        assert result.status == 0
        assert "no lock /run/xtables.lock (" in result.err
        assert "only the namespace's own lock is taken" in result.err
    assert "Traceback" not in result.err
    assert result.status == 0
