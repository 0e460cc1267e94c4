"""Many at once: one correct state, and nothing of anybody else's lost."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import pytest

from istio_iptables.netfilter.model import Family
from tests.kernel.configurations import CONFIGURATIONS, DUAL, TPROXY
from tests.kernel.foreign import chains, is_ours
from tests.kernel.sandbox import (
    Finished,
    chosen,
    command,
    forked,
    install,
    joined,
    process,
    run,
    state,
)
from tests.namespaces import ALL_BACKENDS, BACKENDS, sandbox

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

PROCESSES = 20

#: With which backend, and whether the other program holds the lock of iptables, which nft has none of.
CASES = pytest.mark.parametrize(
    ("backend", "lock"),
    [*((backend, lock) for backend in BACKENDS for lock in (True, False)), ("native", False)],
)


def _add_rules(backend: str, results: Path, *, lock: bool) -> int:
    """Another program: a rule at the head and one at the tail of OUTPUT, again and again."""
    environment = {} if lock else {"XTABLES_LOCKFILE": "/run/another.lock"}
    with results.open("w") as file:
        for number in range(40):
            way, port = "-I" if number % 2 else "-A", 20000 + number
            if backend == "native":
                rule = f"tcp dport {port} accept"
                words = f"nft {'insert' if way == '-I' else 'add'} rule inet other output {rule}"
            else:
                rule = f"-p tcp -m tcp --dport {port} -j ACCEPT"
                words = f"iptables-{backend} -w -t nat {way} OUTPUT {rule}"
            done: Finished = process(*words.split(), environment=environment)
            if done.status == 0:
                file.write(f"{way} {rule}\n")
    return 0


def _foreign(backend: str, results: Path) -> None:
    """Whether what the other program was told to be in is there, in its order."""
    added = [line.split(" ", 1) for line in results.read_text().splitlines()]
    assert len(added) > 20
    wanted = [rule for way, rule in reversed(added) if way == "-I"]
    wanted += [rule for way, rule in added if way == "-A"]
    if backend == "native":
        found = command("nft", "list", "chain", "inet", "other", "output").splitlines()
    else:
        found = chains(backend, Family.IPV4)["nat"]["OUTPUT"]
    there = [rule.strip() for rule in found if "dport 2" in rule]
    # iptables-legacy says that it failed, too, where the rule is in and the table is another before
    # it has put the counters back.
    assert [rule for rule in there if rule in wanted] == wanted


def _ours(backend: str) -> dict[str, object]:
    """Our chains that there are, and how often our chain of outbound rules is jumped to."""
    if backend == "native":
        tables = state(backends=("native",)).native
        return {name: text for name, text in tables.items() if name != "other"}
    found: dict[str, object] = {}
    for family in Family:
        there = chains(backend, family)
        for table, each in there.items():
            if ours := {chain: rules for chain, rules in each.items() if is_ours(table, chain)}:
                found[f"{family} {table}"] = ours
        found[f"{family} jumps"] = there["nat"]["OUTPUT"].count("-j ISTIO_OUTPUT")
    return found


def _fresh(backend: str, arguments: tuple[str, ...]) -> dict[str, object]:
    with sandbox():
        install(backend, *arguments)
        return _ours(backend)


def _begin(backend: str) -> None:
    """Make what the other program writes into, where that is not there by itself."""
    if backend == "native":
        command("nft", "add table inet other; add chain inet other output")


@CASES
def test_twenty_installs_at_once(backend: str, lock: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a case
    """All of them end well, the rules are there once, and a foreign are all there."""
    _begin(backend)
    other = forked(partial(_add_rules, backend, tmp_path / "added", lock=lock), quiet=True)
    work = partial(_status, backend, CONFIGURATIONS["everything"])
    children = [forked(work) for _ in range(PROCESSES)]
    assert [joined(child) for child in children] == [0] * PROCESSES
    assert joined(other) == 0
    assert _ours(backend) == _fresh(backend, CONFIGURATIONS["everything"])
    _foreign(backend, tmp_path / "added")


def _status(backend: str, arguments: tuple[str, ...]) -> int:
    result = install(backend, *arguments)
    if result.status:
        os.write(2, result.err.encode())
    return result.status


@CASES
def test_two_minds_at_once(backend: str, lock: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a case
    """Ten want TPROXY and ten do not, all with --reconcile: it ends as the last one wanted it."""
    _begin(backend)
    other = forked(partial(_add_rules, backend, tmp_path / "added", lock=lock), quiet=True)
    wishes = [(*(TPROXY if number % 2 else DUAL), "--reconcile") for number in range(PROCESSES)]
    children = [forked(partial(_status, backend, wish)) for wish in wishes]
    assert [joined(child) for child in children] == [0] * PROCESSES
    assert joined(other) == 0
    now = _ours(backend)
    assert now in (_fresh(backend, TPROXY), _fresh(backend, DUAL))
    assert ("fwmark" in state(backends=()).rules[0]) == (now == _fresh(backend, TPROXY))
    _foreign(backend, tmp_path / "added")


def test_all_backends_at_once() -> None:
    """Ten without a say which backend, ten for each in turn: the rules end up in one, once."""
    wishes: list[tuple[str, ...]] = [()] * 10
    wishes += [chosen(ALL_BACKENDS[number % len(ALL_BACKENDS)]) for number in range(10)]
    work = [partial(_any_status, (*DUAL, *wish, "--reconcile")) for wish in wishes]
    children = [forked(each, quiet=True) for each in work]
    assert [joined(child) for child in children] == [0] * 20
    now = state()
    (backend,) = (each for each in ALL_BACKENDS if now.tables(each))
    with sandbox():
        install(backend, *DUAL)
        assert now.tables(backend) == state(backends=(backend,)).tables(backend)


def _any_status(arguments: tuple[str, ...]) -> int:
    return run(*arguments).status
