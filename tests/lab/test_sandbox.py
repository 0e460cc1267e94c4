"""The lab's world: who its processes are, and that nothing of it is left, however it ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from istio_iptables.errors import KernelRefused
from istio_iptables.lab.sandbox import in_sandbox
from tests.lab.labs import Inputs, run

if TYPE_CHECKING:
    from istio_iptables.lab.runner import Up

pytestmark = pytest.mark.kernel

LAB = [sys.executable, "-m", "istio_iptables", "lab", "--path", "client-app"]


def network_namespaces() -> set[str]:
    """The network namespaces of all processes on this machine."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.add(str((process / "ns/net").readlink()))
        except OSError:
            continue
    return found


def descendants(top: int) -> set[int]:
    """The processes below one, all the way down."""
    children: dict[int, set[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status = (process / "stat").read_text(encoding="utf-8")
        except OSError:
            continue
        parent = int(status.rpartition(") ")[2].split()[1])
        children.setdefault(parent, set()).add(int(process.name))
    found: set[int] = set()
    waiting = [top]
    while waiting:
        below = children.get(waiting.pop(), set()) - found
        found |= below
        waiting += below
    return found


def outside() -> tuple[object, ...]:
    """What a lab could leave behind: named namespaces, mounts, links and files of its own."""
    return (
        Path("/proc/self/mounts").read_text(encoding="utf-8"),
        Path("/proc/self/net/dev").read_text(encoding="utf-8").count("\n"),
        Path("/run/lab").exists(),
        sorted(each.name for each in Path("/run/netns").glob("*")),
    )


def gone(processes: set[int]) -> bool:
    """Whether the processes end within three seconds."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{each}").exists() for each in processes):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_a_lab_that_is_kept(how: signal.Signals) -> None:
    """A lab that is up ends with the program, processes and namespaces and all."""
    before = outside()
    with subprocess.Popen(
        [*LAB, "--keep"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as lab:
        assert lab.stderr is not None
        for line in lab.stderr:
            if "nsenter" in line:
                break
        below = descendants(lab.pid)
        assert len(below) > 5
        namespaces = {
            str(Path(f"/proc/{each}/ns/net").readlink()) for each in below
        } - network_namespaces_of_this_process()
        assert len(namespaces) > 2
        os.kill(lab.pid, how)
        if how is signal.SIGINT:
            # A terminal sends it to all of the lab's first processes.
            for each in below:
                if Path(f"/proc/{each}").exists():
                    os.kill(each, how)
        lab.wait(5)
    assert gone(below)
    assert not namespaces & network_namespaces()
    assert outside() == before


def network_namespaces_of_this_process() -> set[str]:
    """The namespace that tests run in."""
    return {str(Path("/proc/self/ns/net").readlink())}


def test_nothing_is_left_whenever_it_is_killed() -> None:
    """SIGKILL at any moment, while the lab is built too, leaves no process and no mount."""
    before = outside()
    moments = random.Random(5)  # noqa: S311 - any moments will do, the same each time
    for _ in range(12):
        with subprocess.Popen(LAB, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as lab:
            time.sleep(moments.uniform(0.05, 0.8))
            below = descendants(lab.pid)
            lab.kill()
        assert gone(below)
    assert outside() == before


def test_the_command_to_enter_works() -> None:
    """What --keep prints leads into the pod: its rules and its address are there."""
    with subprocess.Popen(
        [*LAB, "--keep"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as lab:
        assert lab.stderr is not None
        enter = next(line for line in lab.stderr if line.lstrip().startswith("pod:"))
        words = enter.split()[1:-1]
        shown = subprocess.run(
            [*words, "iptables-legacy-save"], capture_output=True, text=True, check=True
        )
        lab.kill()
    assert "-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001" in shown.stdout


@pytest.mark.parametrize(
    ("asked", "uid", "capabilities"),
    [
        (Inputs("REDIRECT"), 1337, 0),
        (Inputs("TPROXY"), 0, 1 << 12),
        (Inputs("TPROXY", envoy_uid=1338), 1338, 1 << 12),
    ],
    ids=["redirect", "tproxy", "tproxy-another-user"],
)
def test_who_envoy_is(asked: Inputs, uid: int, capabilities: int) -> None:
    """Envoy has its user, gid 1337, and no capability but NET_ADMIN, and that under TPROXY only."""
    seen: list[dict[str, str]] = []

    def look(_up: Up) -> None:
        for process in Path("/proc").glob("[0-9]*"):
            lines = (process / "status").read_text(encoding="utf-8").splitlines()
            status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if status["Name"] == "envoy":
                seen.append(status)
        (envoy,) = seen
        assert envoy["Uid"].split() == [str(uid)] * 4
        assert envoy["Gid"].split() == ["1337"] * 4
        assert envoy["Groups"].strip() == ""
        for name in ("CapEff", "CapPrm", "CapBnd"):
            assert int(envoy[name], 16) == capabilities

    assert run(asked, only=["client-app"], keep=look).as_predicted


def test_what_goes_wrong_is_told() -> None:
    """What is raised in the world is raised here, and a world that dies is told."""

    def refuse(_process: int) -> None:
        message = "no, thank you"
        raise KernelRefused(message)

    with pytest.raises(KernelRefused, match="no, thank you"):
        in_sandbox(refuse)
    with pytest.raises(KernelRefused, match="ended without an answer"):
        in_sandbox(lambda _process: os._exit(3))
    assert in_sandbox(lambda process: (os.getpid(), process > 1)) == (1, True)
