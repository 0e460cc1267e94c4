"""diff and explain as whole processes: the documented rules, and 5,000 excluded networks.

``python tests/bench/explain.py [runs]`` prints a table; nothing here can fail on time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PYTHON = sys.executable
PROGRAM = str(Path(PYTHON).parent / "istio-iptables")
DOCUMENTED = (
    *("-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT"),
    *("-i", "*", "-b", "*", "-d", "15090,15021,15020", "--ip-family", "ipv4"),
)
MANY = (
    *DOCUMENTED,
    "-x",
    ",".join(f"10.{number // 250}.{number % 250}.0/24" for number in range(5000)),
)
#: An installed program has its modules compiled; here, the first run of each command does it.
ENVIRONMENT = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def timed(command: tuple[str, ...], status: int) -> float:
    """The milliseconds of a whole process that ends with this status."""
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT, check=False)
    taken = (time.perf_counter() - started) * 1000
    if done.returncode != status:
        message = f"{command[:2]} ended with {done.returncode}"
        raise SystemExit(message)
    return taken


def main(runs: int, folder: Path) -> None:
    """Measure each command *runs* times, in turn, and print the table."""
    same, old, broken = folder / "same", folder / "old", folder / "broken"
    rules = subprocess.run(
        (PROGRAM, "-n", *MANY), capture_output=True, check=True, encoding="utf-8"
    ).stdout
    same.write_text(rules)
    old.write_text(rules.replace("/24 ", "/255.255.255.0 ").replace("-A ", "[1:2] -A "))
    lines = rules.splitlines(keepends=True)
    # Every tenth rule is gone, and the last thousand stand before the others.
    middle = [line for number, line in enumerate(lines[:5000]) if number < 50 or number % 10]
    moved = middle[:40] + middle[-1050:-50] + middle[40:-1050] + middle[-50:]
    broken.write_text("".join(moved + lines[5000:]))
    commands = {
        "python -c pass": ((PYTHON, "-c", "pass"), 0),
        "dry run, documented": ((PROGRAM, "-n", *DOCUMENTED), 0),
        "explain, documented": ((PROGRAM, "explain", *DOCUMENTED), 0),
        "explain, 5,000 networks": ((PROGRAM, "explain", *MANY), 0),
        "explain -v, 5,000 networks": ((PROGRAM, "explain", "-v", *MANY), 0),
        "explain --rules, 5,000": ((PROGRAM, "explain", "--rules", str(same)), 0),
        "diff, 5,000 the same": ((PROGRAM, "diff", *MANY, "--against", str(same)), 0),
        "diff, 5,000 of older text": ((PROGRAM, "diff", *MANY, "--against", str(old)), 0),
        "diff, 5,000 gone and moved": ((PROGRAM, "diff", *MANY, "--against", str(broken)), 1),
    }
    for command, status in commands.values():
        timed(command, status)
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, (command, status) in commands.items():
            taken[name].append(timed(command, status))
    base = statistics.median(taken["python -c pass"])
    print(f"{runs} runs each: milliseconds of a whole process")
    print(f"{'':30}{'median':>8}{'min':>8}{'x pass':>8}")
    for name, times in taken.items():
        median = statistics.median(times)
        print(f"{name:30}{median:8.1f}{min(times):8.1f}{median / base:8.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, Path(made))
