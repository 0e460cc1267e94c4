"""Changes that are disturbed, hundreds of times: nothing is half done, nothing of others is lost.

    .venv/bin/python tests/soak.py --rounds 500

needs root. Each round is in namespaces of its own: an install, a replace or a clean in one of
the backends, among Docker's rules, while it is interrupted, terminated, killed, short of
memory, or while another program writes into the same tables. What is checked:

* exit status 0: the new rules, as a whole; 1: the old ones; 128 + a signal: one of both;
* after a kill each table is the old or the new one, and a second run ends the change;
* every rule of others is there, in its order.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.kernel.configurations import CONFIGURATIONS
from tests.kernel.foreign import load_layout
from tests.kernel.sandbox import (
    CLI,
    PATH,
    State,
    adopting,
    chosen,
    forked,
    joined,
    process,
    state,
    wait_for_children,
    wait_for_group,
)
from tests.namespaces import ALL_BACKENDS, sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

DISTURBANCES = ("INT", "TERM", "HUP", "KILL", "memory", "writer")
ACTIONS = ("install", "replace", "clean")
_NAMES = ("everything", "documented", "dual", "tproxy", "dns", "tproxy-other-mark")
#: Ports of the rules that the other program writes.
_FIRST_PORT = 20000
_WRITTEN = re.compile(rf"^.*--dport {str(_FIRST_PORT)[:2]}\d\d\d -j ACCEPT\n?", re.MULTILINE)


class Round(NamedTuple):
    """What is done, and what disturbs it."""

    backend: str
    action: str
    #: The configurations before and after; None is none of ours.
    old: str | None
    new: str | None
    disturbance: str

    @property
    def words(self) -> tuple[str, ...]:
        """The command line."""
        words = (CLI, *chosen(self.backend))
        if self.new is None:
            return (*words, "--cleanup-only")
        more = ("--reconcile",) if self.action == "replace" else ()
        return (*words, *CONFIGURATIONS[self.new], *more)


class Failed(Exception):
    """A promise was not kept."""


@cache
def after(name: str | None, backend: str) -> State:
    """What the namespace is like with a configuration installed among Docker's rules."""
    with sandbox():
        _begin(name, backend)
        return seen(backend)


@cache
def _seconds(each: Round) -> float:
    """How long it takes when nobody disturbs it."""
    with sandbox():
        _begin(each.old, each.backend)
        start = time.monotonic()
        process(*each.words)
        return time.monotonic() - start


def iptables(backend: str) -> str:
    """The backend of iptables that others have their rules in."""
    return "nft" if backend == "native" else backend


def seen(backend: str) -> State:
    """What there is of ours and of others."""
    return state(backends=tuple({backend, iptables(backend)}))


def _begin(name: str | None, backend: str) -> None:
    load_layout("docker", iptables(backend))
    if name is not None:
        done = process(CLI, *chosen(backend), *CONFIGURATIONS[name])
        if done.status:
            raise Failed(done)


def draw(chance: random.Random, disturbances: Sequence[str]) -> Round:
    """Any round with one of these disturbances."""
    backend, action = chance.choice(ALL_BACKENDS), chance.choice(ACTIONS)
    first, second = chance.sample(_NAMES, 2)
    old = None if action == "install" else first
    new = None if action == "clean" else second
    return Round(backend, action, old, new, chance.choice(disturbances))


def run(each: Round, chance: random.Random) -> str:
    """Carry a round out; returns what came of it, and raises Failed when that may not be."""
    old, new = after(each.old, each.backend), after(each.new, each.backend)
    with sandbox(), tempfile.TemporaryDirectory() as folder:
        _begin(each.old, each.backend)
        if each.disturbance == "writer":
            return _beside_writer(each, Path(folder), old, new)
        if each.disturbance == "memory":
            limit = chance.randrange(20_000, 64_000)
            words = ("sh", "-c", f'ulimit -v {limit}; exec "$0" "$@"', *each.words)
            done = process(*words)
            return _judge(each, done.status, done.err, old, new)
        return _signalled(each, chance, old, new)


def _signalled(each: Round, chance: random.Random, old: State, new: State) -> str:
    number = signal.Signals[f"SIG{each.disturbance}"]
    running = subprocess.Popen(
        each.words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=PATH,
        process_group=0,
    )
    # The first part is Python's and the reading; most moments are for where changes are made.
    time.sleep(_seconds(each) * chance.triangular(0.1, 1.0, 0.75))
    with suppress(ProcessLookupError):
        (os.killpg if chance.random() < 0.5 else os.kill)(running.pid, number)
    _, err = running.communicate(timeout=60)
    wait_for_group(running.pid)
    if number != signal.SIGKILL or running.returncode == 0:
        return _judge(each, running.returncode, err, old, new)
    wait_for_children()
    now = seen(each.backend)
    for backend in {each.backend, iptables(each.backend)}:
        before, behind, found = (given.tables(backend) for given in (old, new, now))
        for table in {*before, *behind, *found}:
            if found.get(table) not in (before.get(table), behind.get(table)):
                raise Failed(each, "half a table", table, found.get(table))
    done = process(*each.words, *(("--reconcile",) if each.new else ()))
    if done.status or seen(each.backend) != new:
        raise Failed(each, "the second run does not end it", done, seen(each.backend))
    return "killed: " + ("old" if now == old else "new" if now == new else "between tables")


def _judge(each: Round, status: int, err: str, old: State, new: State) -> str:
    now = seen(each.backend)
    what = "new" if now == new else "old" if now == old else "half"
    allowed = {0: {"new"}, 1: {"old"}}.get(status, {"old", "new"})
    if what not in allowed or (status >= 0 and _is_traceback(err)):
        raise Failed(each, status, what, err)
    return f"status {status}: {what}"


def _is_traceback(err: str) -> bool:
    """Whether our own code is in it; Python itself may be hit, or lack memory, while it begins."""
    return "Traceback" in err and ("/istio_iptables/cli.py" in err or "istio-iptables: " in err)


def _beside_writer(each: Round, folder: Path, old: State, new: State) -> str:
    results, stop = folder / "results", folder / "stop"
    results.touch()
    backend = iptables(each.backend)
    child = forked(lambda: _write(backend, results, stop), quiet=True)
    while not results.read_text():
        time.sleep(0.01)
    done = process(*each.words)
    stop.touch()
    joined(child)
    now = seen(each.backend)
    added = results.read_text().split()
    # The IPv4 table nat, and without these rules everything is as if nobody had been there.
    text = getattr(now, backend)[0].get("nat", "")
    found = re.findall(r"^-A OUTPUT .*--dport (2\d{4}) -j ACCEPT$", text, re.MULTILINE)
    # iptables-legacy says that it failed, too, when only the counters did; see install.py.
    if [port for port in found if port in added] != added:
        raise Failed(each, "lost or moved", set(added) - set(found), found)
    if _without(now, backend) != _without(new if done.status == 0 else old, backend):
        raise Failed(each, done, "half")
    return f"writer, status {done.status}, {'over 10' if len(added) > 10 else 'up to 10'} rules"


def _without(given: State, backend: str) -> State:
    ipv4, ipv6 = getattr(given, backend)
    ipv4 = {name: _WRITTEN.sub("", text).rstrip() for name, text in ipv4.items()}
    if backend == "legacy":
        return given._replace(legacy=(ipv4, ipv6))
    return given._replace(nft=(ipv4, ipv6))


def _write(backend: str, results: Path, stop: Path) -> int:
    """The other program: rules at the end of nat's OUTPUT, one after the other, with no lock."""
    with results.open("w") as file:
        for port in range(_FIRST_PORT, _FIRST_PORT + 1000):
            if stop.exists():
                break
            rule = ("-p", "tcp", "-m", "tcp", "--dport", str(port), "-j", "ACCEPT")
            # Others are not quicker than that, and no table is to hold hundreds of rules here.
            time.sleep(0.01)
            done = process(
                *(f"iptables-{backend}", "-t", "nat", "-A", "OUTPUT", *rule),
                environment={"XTABLES_LOCKFILE": "/run/another.lock"},
            )
            if done.status == 0:
                file.write(f"{port}\n")
                file.flush()
    return 0


def main() -> int:
    """Run the rounds, and print how often what came of which."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--rounds", type=int, default=500)
    options.add_argument("--seed", type=int, default=int(time.time()))
    options.add_argument("--only", choices=DISTURBANCES, action="append")
    given = options.parse_args()
    # What a shell in the background, or nohup, has ignored would be ignored by all children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    chance = random.Random(given.seed)  # noqa: S311 - nothing secret
    counts: Counter[tuple[str, str, str, str]] = Counter()
    failed = 0
    with adopting():
        for number in range(1, given.rounds + 1):
            each = draw(chance, given.only or DISTURBANCES)
            try:
                outcome = run(each, chance)
            except Failed as error:
                failed += 1
                outcome = "FAILED"
                print(f"round {number}: {error}", flush=True)
            counts[each.backend, each.action, each.disturbance, outcome] += 1
            if number % 50 == 0:
                print(f"{number} rounds, {failed} failed", file=sys.stderr, flush=True)
    for key, count in sorted(counts.items()):
        print(f"{count:4}  {', '.join(key)}")
    print(f"seed {given.seed}: {given.rounds} rounds, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
