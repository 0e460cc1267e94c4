"""Where the time of a run goes: a table of docs/speed.md.

    python -m tests.bench.where [RUNS]

Each way through the program is run in fresh namespaces, as it is and with Python's -X importtime;
the least of each is told, so the parts need not add up to the whole to the last tenth. Needs root.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

from tests.bench.bench import DOCUMENTED, PROGRAM, PYTHON, Step, measure
from tests.namespaces import sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Runs the program, and tells how long what it calls outside of itself took.
DRIVER = """
import gc, sys, time
gc.set_threshold(50_000)
from istio_iptables import cli
spent = {}
def watch(label, holder, *names):
    for name in names:
        def timed(*given, _call=getattr(holder, name), **named):
            began = time.perf_counter()
            try:
                return _call(*given, **named)
            finally:
                spent[label] = spent.get(label, 0) + time.perf_counter() - began
        setattr(holder, name, timed)
if sys.argv[1] != "dry":
    from istio_iptables.kernel import netlink, programs
    watch("questions over netlink", netlink, "_dump")
    watch("programs of iptables", programs, "run", "run_all")
    if sys.argv[1] == "legacy":
        from istio_iptables.kernel import legacy
        legacy.run, legacy.run_all = programs.run, programs.run_all
    else:
        from istio_iptables.kernel import nft, nftbatch
        nft.run, nft.run_all = programs.run, programs.run_all
        watch("transactions of ours", nftbatch, "make_table", "remove_table")
    if sys.argv[1:3] == ["legacy", "changes"]:
        from istio_iptables.kernel import libiptc
        watch("transactions of ours", libiptc.Handle, "commit")
status = cli.main(sys.argv[3:])
for label, seconds in spent.items():
    print(f"spent: {seconds * 1e6:.0f} | {label}", file=sys.stderr)
sys.exit(status)
"""
PARTS = (
    "modules of Python",
    "modules of this program",
    "python-iptables",
    "questions over netlink",
    "programs of iptables",
    "transactions of ours",
)
FORCED = "--force-iptables-binary"
WAYS = {
    "dry run": ("dry", "", (), (*DOCUMENTED, "--dry-run")),
    "install legacy": ("legacy", "changes", (), (*DOCUMENTED, FORCED, "legacy")),
    "again legacy": (
        *("legacy", "", (*DOCUMENTED, FORCED, "legacy")),
        (*DOCUMENTED, FORCED, "legacy"),
    ),
    "clean legacy": ("legacy", "changes", (*DOCUMENTED, FORCED, "legacy"), ("clean",)),
    "install nft": ("nft", "changes", (), (*DOCUMENTED, FORCED, "nft")),
    "again nft": ("nft", "", (*DOCUMENTED, FORCED, "nft"), (*DOCUMENTED, FORCED, "nft")),
    "clean nft": ("nft", "changes", (*DOCUMENTED, FORCED, "nft"), ("clean",)),
}


def parts_of(told: str) -> dict[str, float]:
    """The milliseconds of each part, as -X importtime and the driver told of them."""
    found: dict[str, float] = defaultdict(float)
    started = False
    for line in told.splitlines():
        if line.startswith("import time:") and "self" not in line:
            microseconds, _, module = line.removeprefix("import time:").split("|")
            top = module.strip().partition(".")[0]
            if started:
                found[part_of(top)] += int(microseconds) / 1000
            started = started or top == "site"
        elif line.startswith("spent:"):
            microseconds, _, label = line.removeprefix("spent:").partition("|")
            found[label.strip()] += int(microseconds) / 1000
    return found


def part_of(top: str) -> str:
    """What a module belongs to."""
    if top == "istio_iptables":
        return "modules of this program"
    return "python-iptables" if top == "iptc" else "modules of Python"


def taken_apart(
    runs: int, kind: str, change: str, before: Sequence[str], words: Sequence[str]
) -> dict[str, float]:
    """The least of each part, of some runs."""
    least: dict[str, float] = {}
    for _ in range(runs):
        with sandbox():
            ip = ("ip", "address", "add", "10.0.0.1/32", "dev", "lo")
            subprocess.run(ip, check=True)
            if before:
                subprocess.run((PROGRAM, *before), check=True, capture_output=True)
            command = (PYTHON, "-X", "importtime", "-c", DRIVER, kind, change, *words)
            done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
        for part, milliseconds in parts_of(done.stderr).items():
            least[part] = min(milliseconds, least.get(part, milliseconds))
    return least


def main(runs: int) -> None:
    """Print the table."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    base = min(
        measure([Step("", (PYTHON, "-c", "pass"))], peak=False)[0].milliseconds for _ in range(runs)
    )
    print(f"| {'':24} | {' | '.join(WAYS)} |")
    rows: dict[str, list[float]] = defaultdict(list)
    for kind, change, before, words in WAYS.values():
        steps = [Step("", (PROGRAM, *each)) for each in (before, words) if each]
        whole = min(measure(steps, peak=False)[-1].milliseconds for _ in range(runs))
        parts = taken_apart(runs, kind, change, before, words)
        rows["whole"].append(whole)
        rows["Python itself"].append(base)
        for part in PARTS:
            rows[part].append(parts.get(part, 0.0))
        rows["the rest: what it computes"].append(whole - base - sum(parts.values()))
    for name, columns in rows.items():
        print(f"| {name:24} | " + " | ".join(f"{each:5.1f}" for each in columns) + " |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
