"""Many pods from one process beside a process each: the table of ``make bench`` for a node.

    python -m tests.bench.many [NAMESPACES]

Each figure is one run over fresh namespaces, in network and mount namespaces of this script's own;
memory is the peak of the process. Needs root.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from istio_iptables import Capture, install, plan
from tests.bench.bench import ENVIRONMENT
from tests.namespaces import BACKENDS, sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = ("-i", "*", "-b", "*", "-d", "15090,15021,15020", "--ip-family", "ipv4")
CLI = str(Path(sys.executable).with_name("istio-iptables"))


def rate(count: int, seconds: float) -> str:
    """Namespaces a second, as a column."""
    return f"{count / seconds:8.0f}"


def peak() -> float:
    """The most memory that this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def by_api(backend: str, names: list[str]) -> float:
    """The seconds of one call."""
    documented = plan(
        Capture(
            istio_service_cidr="*",
            istio_inbound_ports="*",
            istio_local_exclude_ports="15090,15021,15020",
            ip_family="ipv4",
        )
    )
    started = time.perf_counter()
    results = install(documented, namespaces=names, backend=backend)
    seconds = time.perf_counter() - started
    assert not any(each.error for each in results), results
    return seconds


def by_program(backend: str, *groups: list[str]) -> float:
    """The seconds of a process for each group of namespaces."""
    started = time.perf_counter()
    for group in groups:
        flags = [f"--network-namespace={name}" for name in group]
        words = (CLI, *WORDS, "--force-iptables-binary", backend, *flags)
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    return time.perf_counter() - started


def main(count: int) -> None:
    """Print the table."""
    # The machine's other work is no part of it.
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    names = [f"pod{number}" for number in range(count)]
    print(f"{count} namespaces, installs a second")
    print(f"{'backend':<10}{'API':>8}{'one CLI':>10}{'a CLI each':>12}{'peak MB':>9}")
    for backend in BACKENDS:
        found = []
        ways: list[Callable[[str, list[str]], float]] = [
            by_api,
            by_program,
            lambda backend, names: by_program(backend, *([name] for name in names)),
        ]
        for way in ways:
            with sandbox():
                for name in names:
                    subprocess.run(("ip", "netns", "add", name), check=True)
                found.append(way(backend, names))
                for name in names:
                    subprocess.run(("ip", "netns", "del", name), check=True)
        api, one, each = (rate(count, seconds) for seconds in found)
        print(f"{backend:<10}{api}{one:>10}{each:>12}{peak():9.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
