"""Whole processes against the clock, each in a fresh network namespace; what ``make bench`` runs.

Two tables, both made in one run of this script. The first is about starting: the program with
the documented arguments beside Python itself, click, and iptables-restore of the same rules. The
second is about size: every operation at up to 5,000 excluded ports and networks, beside one
iptables-restore. Measurements go round-robin, so that a busy moment hits all of them alike, and
making a namespace is never part of one. Nothing here can fail on time; what the program does not
do (or does wrongly) is said instead of a number.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
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
BASE = ("-p", "15001", "-z", "15006", "-u", "1337", "-i", "*", "-b", "*")
BACKENDS = ("legacy", "nft")
SIZES = (1000, 5000)
LIMIT_SECONDS = 600
_CLONE_NEWNET = 0x40000000


class Step(NamedTuple):
    """One program to run in a namespace, and its name in the tables."""

    name: str
    command: tuple[str, ...]
    stdin: str = os.devnull


class Outcome(NamedTuple):
    """How long a step took, in milliseconds, or why it can't be said."""

    milliseconds: float
    fault: str = ""


class Case(NamedTuple):
    """Arguments of the program, others to replace them by, and the rules they make."""

    name: str
    arguments: tuple[str, ...]
    others: tuple[str, ...]


def measure(steps: Sequence[Step]) -> list[Outcome]:
    """Run *steps* one after the other in one fresh namespace; the time of each process alone."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.close(reading)
            signal.signal(signal.SIGALRM, _too_long)
            with tempfile.NamedTemporaryFile() as lock:
                # The lock is the machine's otherwise, and someone else may hold it.
                os.environ["XTABLES_LOCKFILE"] = lock.name
                _fresh_namespace()
                outcomes = [_timed(step) for step in steps]
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


def _timed(step: Step) -> Outcome:
    with Path(step.stdin).open("rb") as stdin, tempfile.TemporaryFile() as told:
        # run(timeout=...) would look for the end every 50 ms only.
        signal.alarm(LIMIT_SECONDS)
        started = time.perf_counter()
        try:
            done = subprocess.run(
                step.command,
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=told,
                check=False,
            )
        except TimeoutError:
            return Outcome(0.0, f"more than {LIMIT_SECONDS} s")
        taken = (time.perf_counter() - started) * 1000
        signal.alarm(0)
        if done.returncode == 0:
            return Outcome(taken)
        told.seek(0)
        lines = told.read().decode(errors="replace").splitlines() or ["nothing said"]
        return Outcome(0.0, f"exit {done.returncode}: {lines[-1][:150]}")


def rounds(chains: Sequence[Sequence[Step]], runs: int) -> dict[str, list[Outcome]]:
    """The outcomes of each step by name, of *runs* rounds through all *chains*.

    Each chain is run in a namespace of its own, its steps in that one.
    """
    outcomes: dict[str, list[Outcome]] = {}
    for _ in range(runs):
        for chain in chains:
            for step, outcome in zip(chain, measure(chain), strict=True):
                outcomes.setdefault(step.name, []).append(outcome)
    return outcomes


def restore_step(case: Case, backend: str, folder: Path) -> Step:
    """One iptables-restore of the rules that the arguments of *case* make."""
    rules = folder / "rules"
    printed = subprocess.run(
        (PROGRAM, *case.arguments, "--dry-run", "--ip-family", "ipv4", "--format", "restore"),
        capture_output=True,
        check=True,
    )
    rules.write_bytes(printed.stdout)
    return Step(
        f"iptables-{backend}-restore", (f"iptables-{backend}-restore", "--noflush"), str(rules)
    )


def start_table(runs: int) -> None:
    """The first table: the documented arguments, and what is the least any program takes."""
    print(f"\nThe documented arguments, {runs} runs each: milliseconds of a whole process")
    with tempfile.TemporaryDirectory() as folder:
        case = Case("documented", DOCUMENTED, ())
        chains = [
            [Step("python -c pass", (PYTHON, "-c", "pass"))],
            [Step("python -c 'import click'", (PYTHON, "-c", "import click"))],
            [Step("istio-iptables --help", (PROGRAM, "--help"))],
            [Step("dry run", (PROGRAM, *DOCUMENTED, "--dry-run"))],
        ]
        for backend in BACKENDS:
            install = (PROGRAM, *DOCUMENTED, "--force-iptables-binary", backend)
            chains.append([Step(f"install, {backend}", install)])
            chains.append([restore_step(case, backend, Path(folder))])
        outcomes = rounds(chains, runs)
    base = statistics.median(each.milliseconds for each in outcomes["python -c pass"])
    print(f"{'':28}{'median':>8}{'min':>8}{'x pass':>8}")
    faults = []
    for name, each in outcomes.items():
        times = _times(each)
        if times is None:
            faults.append(f"{name}: {_fault(each)}")
            print(f"{name:28}{'-':>8}{'-':>8}{'-':>8}")
            continue
        median = statistics.median(times)
        print(f"{name:28}{median:8.1f}{min(times):8.1f}{median / base:8.2f}")
    _tell(faults)


def _times(outcomes: Sequence[Outcome]) -> list[float] | None:
    """The times, or None if any run of the step failed."""
    if any(each.fault for each in outcomes):
        return None
    return [each.milliseconds for each in outcomes]


def _fault(outcomes: Sequence[Outcome]) -> str:
    return next(each.fault for each in outcomes if each.fault)


def _tell(faults: Sequence[str]) -> None:
    for fault in faults:
        print(f"  - {fault}")


def cases() -> Iterator[Case]:
    """What the second table measures; the others of each case are as many, one moved on."""
    yield Case("documented", DOCUMENTED, (*DOCUMENTED[:-1], "15090,15021"))
    for size in SIZES:
        for option, item in (("-d", _port), ("-o", _port), ("-x", _network)):
            first, second = (
                (*BASE, option, ",".join(item(number) for number in range(start, start + size)))
                for start in (0, 1)
            )
            yield Case(f"{option} {size}", first, second)


def _port(number: int) -> str:
    return str(20000 + number)


def _network(number: int) -> str:
    return f"10.{number >> 8}.{number & 255}.0/24"


def size_table(runs: int, only: str) -> None:
    """The second table: every operation, at every size, in both backends."""
    names = ("dry run", "install", "again", "replace", "clean")
    print(
        f"\nBy size, median of {runs} runs: milliseconds of a whole process, and in brackets how"
        "\nmany times one iptables-restore --noflush of the same rules (-o makes two rules a port)"
    )
    print(f"{'':12}{'backend':9}{'restore':>9}" + "".join(f"{name:>16}" for name in names))
    faults = []
    for case in cases():
        if only not in case.name:
            continue
        for backend in BACKENDS:
            which = ("--force-iptables-binary", backend)
            chain = [
                Step("dry run", (PROGRAM, *case.arguments, "--dry-run")),
                Step("install", (PROGRAM, *case.arguments, *which)),
                Step("again", (PROGRAM, *case.arguments, *which)),
                Step("replace", (PROGRAM, *case.others, *which, "--reconcile")),
                Step("clean", (PROGRAM, "clean")),
            ]
            with tempfile.TemporaryDirectory() as folder:
                restore = restore_step(case, backend, Path(folder))
                outcomes = rounds([[restore], chain], runs)
            times = _times(outcomes[restore.name])
            base = statistics.median(times) if times else 0.0
            row = f"{case.name:12}{backend:9}" + (f"{base:9.1f}" if times else f"{'-':>9}")
            for name in names:
                times = _times(outcomes[name])
                if times is None:
                    faults.append(f"{case.name}, {backend}, {name}: {_fault(outcomes[name])}")
                    row += f"{'-':>16}"
                    continue
                median = statistics.median(times)
                row += f"{median:9.1f}" + (f" ({median / base:.1f})" if base else "").rjust(7)
            print(row, flush=True)
    _tell(faults)


def main() -> int:
    """Measure, print, and say nothing about whether it is good enough."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20, help="rounds of the first table (20)")
    parser.add_argument("--size-runs", type=int, default=5, help="rounds of the second table (5)")
    parser.add_argument("--table", choices=("start", "size"), help="one of the tables alone")
    parser.add_argument("--only", default="", help="cases of the second table with this in them")
    asked = parser.parse_args()
    version = subprocess.run(
        ("iptables-legacy", "--version"), capture_output=True, text=True, check=False
    ).stdout.strip()
    print(
        f"Python {platform.python_version()}, Linux {platform.release()}, {version},"
        f" {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}"
    )
    if shutil.which("ip") is None or os.geteuid() != 0:
        print("bench: namespaces take root and the program ip", file=sys.stderr)
        return 1
    if asked.table != "size":
        start_table(asked.runs)
    if asked.table != "start":
        size_table(asked.size_runs, asked.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
