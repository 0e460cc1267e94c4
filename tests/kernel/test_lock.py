"""The xtables lock: taken as iptables takes it, waited for, and named when it is not free."""

from __future__ import annotations

import fcntl
import os
import time
from functools import partial
from pathlib import Path

import pytest

from istio_iptables.errors import KernelRefused
from istio_iptables.kernel.lock import locked
from tests.kernel.configurations import DUAL
from tests.kernel.sandbox import CLI, forked, install, joined, process, run, state
from tests.namespaces import BACKENDS, mount

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

LOCK = "/run/xtables.lock"


def _held(path: str, seconds: float) -> int:
    """Have another process hold a lock for a while; returns when it does."""
    ready, told = os.pipe()

    def work() -> int:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        os.write(told, b"1")
        time.sleep(seconds)
        return 0

    child = forked(work, quiet=True)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    return child


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_held_lock_is_waited_for(backend: str) -> None:
    """An install begins when the other program is done."""
    other = _held(LOCK, 0.5)
    start = time.monotonic()
    assert install(backend, *DUAL).status == 0
    assert time.monotonic() - start > 0.4
    assert joined(other) == 0


def test_iptables_waits_for_us() -> None:
    """While we hold the lock, iptables does not begin."""
    with locked(lambda _: None):
        done = process("iptables-legacy", "-w", "1", "-t", "nat", "-N", "MINE")
        assert done.status == 4
        assert "xtables lock" in done.err
    assert process("iptables-legacy", "-w", "1", "-t", "nat", "-N", "MINE").status == 0


def test_the_holder_is_named_when_time_is_up() -> None:
    """The line says which lock, for how long it was waited, and which process holds it."""
    other = _held(LOCK, 2)
    with pytest.raises(KernelRefused) as refused, locked(lambda _: None, wait=0.2):
        pass
    name = Path(f"/proc/{other}/comm").read_text().strip()
    assert refused.value.lines == (
        f"the xtables lock {LOCK} was not free for 0.2 s (held by {name}, process {other})",
    )
    assert joined(other) == 0


def test_waiting_is_told() -> None:
    """After a second of waiting a line says for what."""
    told: list[str] = []
    other = _held(LOCK, 1.3)
    with locked(told.append):
        assert [line.partition(" (held by ")[0] for line in told] == [
            f"waiting for the xtables lock {LOCK}"
        ]
    assert joined(other) == 0


def test_another_lock_file(tmp_path: Path) -> None:
    """$XTABLES_LOCKFILE is locked instead, and has to be there to be had."""
    elsewhere = str(tmp_path / "lock")
    other = _held(elsewhere, 0.5)
    start = time.monotonic()
    assert run(*DUAL, environment={"XTABLES_LOCKFILE": elsewhere}).status == 0
    assert time.monotonic() - start > 0.4
    assert joined(other) == 0
    before = state()
    result = run("--cleanup-only", environment={"XTABLES_LOCKFILE": "/no/such/lock"})
    assert result.status == 1
    assert result.errors == [
        "can't open the lock /no/such/lock ($XTABLES_LOCKFILE): No such file or directory"
    ]
    assert state() == before


def test_the_pod_has_a_lock_of_its_own() -> None:
    """With --cni-mode the node's lock is neither waited for nor made; the namespace's is."""
    other = _held(LOCK, 1)
    start = time.monotonic()
    assert run(*DUAL, "--cni-mode").status == 0
    assert time.monotonic() - start < 0.8
    assert joined(other) == 0
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
