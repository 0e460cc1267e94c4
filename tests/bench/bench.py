"""Whole processes against the clock, each in a fresh network namespace: the table of ``make bench``.

    python tests/bench/bench.py [--runs N] [--only TEXT]

Everything is measured round-robin in one run, so that a busy moment hits all of it alike, and a
namespace is made outside of what is measured. The least that any program takes stands beside: bare
Python, click, and iptables-restore of the same rules. Nothing here can fail on time; what the
program does not do (or does wrongly) is said instead of a number. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PYTHON = sys.executable
PROGRAM = str(Path(PYTHON).parent / "istio-iptables")
DOCUMENTED = (
    *("-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT"),
    *("-i", "*", "-b", "*", "-d", "15090,15021,15020"),
)
PORTS = (*DOCUMENTED[:-1], ",".join(str(20000 + number) for number in range(5000)))
NETWORKS = (
    *DOCUMENTED,
    "-x",
    ",".join(f"10.{number >> 8}.{number & 255}.0/24" for number in range(5000)),
)
BACKENDS = ("legacy", "nft")
BASE = "python -c pass"
LIMIT_SECONDS = 600
_CLONE_NEWNET = 0x40000000
#: A program is as large as its parent until it is one of its own: this parent is small.
_PEAK = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
print(os.wait4(child, 0)[2].ru_maxrss, file=sys.stderr)
"""
#: An installed program has its modules compiled; here, the first run of each command does it.
ENVIRONMENT = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Step(NamedTuple):
    """One program to run in a namespace, and its row in the table."""

    name: str
    command: tuple[str, ...]
    #: The multiple of bare Python that is aimed at.
    target: float | None = None
    stdin: str = os.devnull
    status: int = 0


class Outcome(NamedTuple):
    """How long a step took, in milliseconds, or why it can't be said; and its peak in MB."""

    milliseconds: float
    fault: str = ""
    peak: float = 0.0


def measure(steps: Sequence[Step], *, peak: bool) -> list[Outcome]:
    """Run *steps* one after the other in one fresh namespace; the time of each process alone.

    With *peak* it is the memory that is measured, and the times are those of another process too.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.close(reading)
            signal.signal(signal.SIGALRM, _too_long)
            with tempfile.NamedTemporaryFile() as lock:
                # The lock is the machine's otherwise, and someone else may hold it.
                ENVIRONMENT["XTABLES_LOCKFILE"] = lock.name
                _fresh_namespace()
                with contextlib.suppress(PermissionError):
                    # What else runs on the machine is not to be measured.
                    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
                outcomes = [_run(step, peak=peak) for step in steps]
            os.write(writing, json.dumps(outcomes).encode())
            status = 0
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    if not text:
        return [Outcome(0.0, "no namespace could be made here")] * len(steps)
    return [Outcome(*each) for each in json.loads(text)]


def _too_long(_signal: int, _frame: object) -> None:
    raise TimeoutError


def _fresh_namespace() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
    subprocess.run(("ip", "address", "add", "10.0.0.1/32", "dev", "lo"), check=True)


def _run(step: Step, *, peak: bool) -> Outcome:
    command = step.command
    if peak:
        program = shutil.which(command[0]) or command[0]
        command = (PYTHON, "-I", "-S", "-c", _PEAK, program, *command[1:])
    with Path(step.stdin).open("rb") as stdin, tempfile.TemporaryFile() as told:
        # run(timeout=...) would look for the end every 50 ms only.
        signal.alarm(LIMIT_SECONDS)
        started = time.perf_counter()
        try:
            done = subprocess.run(
                command,
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=told,
                env=ENVIRONMENT,
                check=False,
            )
        except TimeoutError:
            return Outcome(0.0, f"more than {LIMIT_SECONDS} s")
        taken = (time.perf_counter() - started) * 1000
        signal.alarm(0)
        told.seek(0)
        lines = told.read().decode(errors="replace").splitlines() or ["nothing said"]
        if peak:
            return Outcome(taken, "", int(lines[-1]) / 1024)
        if done.returncode == step.status:
            return Outcome(taken)
        return Outcome(0.0, f"exit {done.returncode}: {lines[-1][:150]}")


def chains(folder: Path) -> Iterator[list[Step]]:
    """What is measured; each list in a namespace of its own, one step after the other."""
    yield [Step(BASE, (PYTHON, "-c", "pass"))]
    yield [Step("python -I -S -c pass", (PYTHON, "-I", "-S", "-c", "pass"))]
    yield [Step("python -c 'import click'", (PYTHON, "-c", "import click"))]
    yield [Step("--help", (PROGRAM, "--help"), 4.5)]
    yield [Step("dry run", (PROGRAM, *DOCUMENTED, "--dry-run"), 3.0)]
    yield [Step("explain", (PROGRAM, "explain", *DOCUMENTED), 5.0)]
    yield [Step("matrix", (PROGRAM, "matrix", *DOCUMENTED))]
    sides = (shlex.join(DOCUMENTED), shlex.join((*DOCUMENTED, "-x", "10.0.0.0/8")))
    yield [Step("compare", (PROGRAM, "compare", *sides), status=1)]
    saved = _printed(folder / "documented.save", DOCUMENTED)
    yield [Step("diff", (PROGRAM, "diff", *DOCUMENTED, "--against", saved), 5.0)]
    yield from _looks(saved)
    yield [Step("install", (PROGRAM, *DOCUMENTED), 3.9)]
    for backend, again, clean in (("legacy", 3.5, 3.9), ("nft", 4.5, 6.5)):
        yield [_restore(folder, backend, DOCUMENTED, "")]
        yield _life(backend, DOCUMENTED, "", [3.9, again, clean])
    size = ", 5,000 ports"
    yield [Step(f"dry run{size}", (PROGRAM, *PORTS, "--dry-run"))]
    for backend, *targets in (("legacy", 8.5, 14.0, None), ("nft", 13.5, None, None)):
        yield [_restore(folder, backend, PORTS, size)]
        yield _life(backend, PORTS, size, targets)
    yield from _questions(folder)


def _life(
    backend: str, arguments: Sequence[str], size: str, targets: Sequence[float | None]
) -> list[Step]:
    """Installed, installed again, and removed."""
    install = (PROGRAM, *arguments, "--force-iptables-binary", backend)
    commands = {"install": install, "again": install, "clean": (PROGRAM, "clean")}
    return [
        Step(f"{name} {backend}{size}", command, target)
        for (name, command), target in zip(commands.items(), targets, strict=True)
    ]


def _looks(saved: str) -> Iterator[list[Step]]:
    """What describe and check say of the documented rules, beside explain: at most 1.5 times as long."""
    for command, status in (("explain", 0), ("describe", 0), ("check", 0)):
        yield [Step(f"{command} --rules", (PROGRAM, command, "--rules", saved), 7.5, status=status)]
    for backend in BACKENDS:
        install = (PROGRAM, *DOCUMENTED, "--force-iptables-binary", backend)
        looks = [
            Step(f"{command} --live, {backend}", (PROGRAM, command, "--live"), status=status)
            # Nobody listens there.
            for command, status in (("explain", 0), ("describe", 0), ("check", 1))
        ]
        yield [Step(f"to look at, {backend}", install), *looks]


def _questions(folder: Path) -> Iterator[list[Step]]:
    """What explain and diff say of 5,000 excluded networks."""
    save = _printed(folder / "networks.save", NETWORKS)
    text = Path(save).read_text(encoding="utf-8")
    older, broken = folder / "older.save", folder / "broken.save"
    older.write_text(text.replace("/24 ", "/255.255.255.0 ").replace("-A ", "[1:2] -A "))
    lines = text.splitlines(keepends=True)
    # Every tenth rule is gone, and the last thousand stand before the others.
    middle = [line for number, line in enumerate(lines[:5000]) if number < 50 or number % 10]
    moved = middle[:40] + middle[-1050:-50] + middle[40:-1050] + middle[-50:]
    broken.write_text("".join(moved + lines[5000:]))
    diff = (PROGRAM, "diff", *NETWORKS, "--against")
    yield [Step("explain, 5,000 networks", (PROGRAM, "explain", *NETWORKS))]
    yield [Step("matrix, 5,000 networks", (PROGRAM, "matrix", *NETWORKS))]
    yield [Step("matrix --json, 5,000", (PROGRAM, "matrix", *NETWORKS, "--json"))]
    sides = (shlex.join(NETWORKS), shlex.join((*NETWORKS[:-1], NETWORKS[-1].partition(",")[2])))
    yield [Step("compare, 5,000 and 4,999", (PROGRAM, "compare", *sides), status=1)]
    yield [Step("explain --rules, 5,000", (PROGRAM, "explain", "--rules", save))]
    yield [Step("diff, 5,000 the same", (*diff, save))]
    yield [Step("diff, 5,000 of older text", (*diff, str(older)))]
    yield [Step("diff, 5,000 gone and moved", (*diff, str(broken)), status=1)]


def _printed(file: Path, arguments: Sequence[str], form: str = "save") -> str:
    """The rules that *arguments* make, as text in *file*."""
    command = (PROGRAM, *arguments, "--dry-run", "--ip-family", "ipv4", "--format", form)
    file.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    return str(file)


def _restore(folder: Path, backend: str, arguments: Sequence[str], size: str) -> Step:
    """One iptables-restore of the same rules."""
    rules = _printed(folder / f"{len(arguments)}{size}.restore", arguments, "restore")
    name = f"iptables-{backend}-restore"
    return Step(f"{name}{size}", (name, "--noflush"), stdin=rules)


def measure_all(runs: int, only: str) -> dict[Step, list[Outcome]]:
    """The outcomes of *runs* rounds; the first of each step has its peak of memory alone."""
    with tempfile.TemporaryDirectory() as folder:
        lists = [
            each for each in chains(Path(folder)) if only in each[0].name or each[0].name == BASE
        ]
        outcomes: dict[Step, list[Outcome]] = {}
        for number in range(runs + 1):
            for steps in lists:
                for step, outcome in zip(steps, measure(steps, peak=not number), strict=True):
                    outcomes.setdefault(step, []).append(outcome)
    return outcomes


def show(outcomes: dict[Step, list[Outcome]]) -> None:
    """Print the table."""
    times = {
        step.name: [each.milliseconds for each in found[1:]] for step, found in outcomes.items()
    }
    middle, least = statistics.median(times[BASE]), min(times[BASE])
    print(f"{'':28}{'milliseconds':>16}{'x python -c pass':>20}{'':>9}{'peak':>6}")
    print(f"{'':28}{'median':>8}{'min':>8}{'of medians':>12}{'of min':>8}{'target':>9}{'MB':>6}")
    for step, found in outcomes.items():
        fault = next((each.fault for each in found if each.fault), "")
        if fault:
            print(f"{step.name:28}  {fault}")
            continue
        here = times[step.name]
        median = statistics.median(here)
        row = f"{step.name:28}{median:8.1f}{min(here):8.1f}"
        row += f"{median / middle:12.1f}{min(here) / least:8.1f}"
        row += f"{step.target:9.1f}" if step.target else f"{'':9}"
        print(f"{row}{found[0].peak:6.0f}")


def main() -> int:
    """Measure, print, and say nothing about whether it is good enough."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20, help="rounds (20)")
    parser.add_argument("--only", default="", help="rows that begin a list with this in their name")
    asked = parser.parse_args()
    if shutil.which("ip") is None or os.geteuid() != 0:
        print("bench: namespaces take root and the program ip", file=sys.stderr)
        return 1
    version = subprocess.run(
        ("iptables-legacy", "--version"), capture_output=True, text=True, check=False
    ).stdout.strip()
    print(
        f"Python {platform.python_version()}, Linux {platform.release()}, {version},"
        f" {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}; whole processes, {asked.runs} each"
    )
    show(measure_all(asked.runs, asked.only))
    return 0


if __name__ == "__main__":
    sys.exit(main())
