"""Many at once: one correct state, and nothing of anybody else's lost."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import pytest

from istio_iptables.netfilter.model import Family
from tests.kernel.configurations import CONFIGURATIONS, DUAL, TPROXY
from tests.kernel.foreign import chains, is_ours
from tests.kernel.sandbox import Finished, forked, install, joined, planned, process, run, state
from tests.namespaces import BACKENDS, sandbox

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

PROCESSES = 20


def _add_rules(backend: str, results: Path, *, lock: bool) -> int:
    """Another program: a rule at the head and one at the tail of OUTPUT, again and again."""
    environment = {} if lock else {"XTABLES_LOCKFILE": "/run/another.lock"}
    with results.open("w") as file:
        for number in range(40):
            rule = ("-p", "tcp", "-m", "tcp", "--dport", str(20000 + number), "-j", "ACCEPT")
            way = "-I" if number % 2 else "-A"
            words = (f"iptables-{backend}", "-w", "-t", "nat", way, "OUTPUT", *rule)
            done: Finished = process(*words, environment=environment)
            if done.status == 0:
                file.write(f"{way} {' '.join(rule)}\n")
    return 0


def _foreign(backend: str, results: Path) -> None:
    """Whether what the other program was told to be in is there, in its order."""
    added = [line.split(" ", 1) for line in results.read_text().splitlines()]
    assert len(added) > 20
    wanted = [rule for way, rule in reversed(added) if way == "-I"]
    wanted += [rule for way, rule in added if way == "-A"]
    found = chains(backend, Family.IPV4)["nat"]["OUTPUT"]
    assert [rule for rule in found if "--dport 2" in rule] == wanted


def _ours(backend: str, family: Family) -> dict[str, dict[str, list[str]]]:
    return {
        table: {chain: rules for chain, rules in found.items() if is_ours(table, chain)}
        for table, found in chains(backend, family).items()
    }


def _fresh(backend: str, arguments: tuple[str, ...]) -> list[dict[str, dict[str, list[str]]]]:
    with sandbox():
        install(backend, *arguments)
        return [_ours(backend, family) for family in Family]


def _jumps(backend: str) -> int:
    return chains(backend, Family.IPV4)["nat"]["OUTPUT"].count("-j ISTIO_OUTPUT")


@pytest.mark.parametrize("lock", [True, False], ids=["with-the-lock", "without-the-lock"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_twenty_installs_at_once(backend: str, lock: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a case
    """All of them end well, the rules are there once, and a foreign are all there."""
    other = forked(partial(_add_rules, backend, tmp_path / "added", lock=lock), quiet=True)
    work = partial(_status, backend, CONFIGURATIONS["everything"])
    children = [forked(work) for _ in range(PROCESSES)]
    assert [joined(child) for child in children] == [0] * PROCESSES
    assert joined(other) == 0
    now = [_ours(backend, family) for family in Family]
    assert now == _fresh(backend, CONFIGURATIONS["everything"])
    assert _jumps(backend) == 1
    _foreign(backend, tmp_path / "added")


def _status(backend: str, arguments: tuple[str, ...]) -> int:
    result = install(backend, *arguments)
    if result.status:
        os.write(2, result.err.encode())
    return result.status


@pytest.mark.parametrize("lock", [True, False], ids=["with-the-lock", "without-the-lock"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_minds_at_once(backend: str, lock: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a case
    """Ten want TPROXY and ten do not, all with --reconcile: it ends as the last one wanted it."""
    other = forked(partial(_add_rules, backend, tmp_path / "added", lock=lock), quiet=True)
    wishes = [(*(TPROXY if number % 2 else DUAL), "--reconcile") for number in range(PROCESSES)]
    children = [forked(partial(_status, backend, wish)) for wish in wishes]
    assert [joined(child) for child in children] == [0] * PROCESSES
    assert joined(other) == 0
    now = [_ours(backend, family) for family in Family]
    now = [{table: found for table, found in each.items() if found} for each in now]
    assert now in (_fresh(backend, TPROXY), _fresh(backend, DUAL))
    assert ("fwmark" in state(backends=()).rules[0]) == (now == _fresh(backend, TPROXY))
    assert _jumps(backend) == 1
    _foreign(backend, tmp_path / "added")


def test_both_backends_at_once() -> None:
    """Ten without a say which backend, five for each: the rules end up in one of them, once."""
    wishes: list[tuple[str, ...]] = [()] * 10
    wishes += [("--force-iptables-binary", BACKENDS[number % 2]) for number in range(10)]
    work = [partial(_any_status, (*DUAL, *wish, "--reconcile")) for wish in wishes]
    children = [forked(each, quiet=True) for each in work]
    assert [joined(child) for child in children] == [0] * 20
    now = state()
    assert bool(now.legacy[0]) != bool(now.nft[0])
    tables = now.legacy if now.legacy[0] else now.nft
    assert tables == tuple(planned(*DUAL)[family] for family in Family)


def _any_status(arguments: tuple[str, ...]) -> int:
    return run(*arguments).status
