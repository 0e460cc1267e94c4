"""nf_tables of others: ours goes without a trace, theirs stay, whatever they hold at the moment."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest

from istio_iptables.kernel.nftbatch import COMMENT, make_table, remove_table
from istio_iptables.netfilter.model import Family
from tests.kernel.configurations import CONFIGURATIONS, DUAL
from tests.kernel.foreign import chains
from tests.kernel.sandbox import CLI, PATH, command, forked, install, joined, needs, process, run
from tests.namespaces import BACKENDS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box"), needs("nft")]

_OUTPUT = "chain OUTPUT { type nat hook output priority -100; };"

#: Tables without a rule that others made before us, and a command of theirs that needs them.
BEFORE = {
    "comment": (
        'comment "owned by mydaemon"; chain POSTROUTING { type nat hook postrouting priority 100; };',
        "add rule ip nat POSTROUTING masquerade",
    ),
    "as iptables makes it": (_OUTPUT, "add rule ip nat OUTPUT accept"),
    "nothing in it": ("", "add chain ip nat own"),
    "a set": ("set s { type ipv4_addr; };", "add element ip nat s { 10.0.0.1 }"),
    "a chain": (f"{_OUTPUT} chain own {{ }};", "add rule ip nat own accept"),
    "a counter": (f"{_OUTPUT} counter c {{ }};", "add rule ip nat OUTPUT counter name c"),
    "another chain": (
        "chain POSTROUTING { type nat hook postrouting priority 100; };",
        "add rule ip nat POSTROUTING accept",
    ),
}

#: What others put into the table that we made, and a command of theirs that needs it.
AFTER = {
    "a set": ("add set ip nat s { type ipv4_addr; }", "add element ip nat s { 10.0.0.1 }"),
    "a map": ("add map ip nat m { type ipv4_addr : verdict; }", "delete map ip nat m"),
    "a chain": ("add chain ip nat own", "add rule ip nat own accept"),
    "a counter": ("add counter ip nat c", "delete counter ip nat c"),
    "a chain of iptables'": (
        "add chain ip nat POSTROUTING { type nat hook postrouting priority 100; };",
        "add rule ip nat POSTROUTING accept",
    ),
    "a base chain": (
        "add chain ip nat mine { type nat hook output priority 5; }",
        "add rule ip nat mine accept",
    ),
    "a policy": (
        "add chain ip nat OUTPUT { type nat hook output priority -100; policy drop; }",
        "add rule ip nat OUTPUT accept",
    ),
    "a rule": ("add rule ip nat OUTPUT accept", "flush chain ip nat OUTPUT"),
}


def ruleset() -> str:
    """All of nf_tables."""
    return command("nft", "list", "ruleset")


@pytest.mark.parametrize("name", BEFORE)
def test_a_table_of_others_stays(name: str) -> None:
    """Made before our install and without a rule: it can be used after our clean as before it."""
    text, use = BEFORE[name]
    command("nft", f"table ip nat {{ {text} }}")
    assert install("nft", *DUAL).status == 0
    assert run("clean").status == 0
    assert "ISTIO" not in ruleset()
    command("nft", use)


@pytest.mark.parametrize("name", AFTER)
def test_what_others_put_into_our_table_stays(name: str) -> None:
    """The table that we made holds something of theirs: it can be used after our clean."""
    add, use = AFTER[name]
    assert install("nft", *DUAL).status == 0
    command("nft", add)
    assert run("clean").status == 0
    assert "ISTIO" not in ruleset()
    command("nft", use)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_our_tables_go(name: str) -> None:
    """After a clean nf_tables are as before, and meanwhile it is seen whose tables they are."""
    command("nft", 'table inet theirs { comment "not ours"; chain c { counter; }; }')
    before = ruleset()
    assert install("nft", *CONFIGURATIONS[name]).status == 0
    assert ruleset().count(f'comment "{COMMENT}"') == ruleset().count("\ntable ip") > 0
    assert run("clean").status == 0
    assert ruleset() == before


def test_a_roll_back_leaves_no_table(tmp_path: Path) -> None:
    """An install that fails in the midst leaves nf_tables as they were."""
    command("nft", f"table ip nat {{ {_OUTPUT} }}")
    before = ruleset()
    name = "ip6tables-nft-restore"
    program = tmp_path / name
    program.write_text(
        f'#!/bin/sh\n[ "$2" ] && exec /usr/sbin/{name} "$@"; nft list ruleset >{tmp_path}/then\nexit 1\n'
    )
    program.chmod(0o755)
    words = ("--force-iptables-binary", "nft", *CONFIGURATIONS["everything"])
    result = process(CLI, *words, environment={"PATH": f"{tmp_path}:{PATH['PATH']}"})
    assert result.status == 1
    assert COMMENT in (tmp_path / "then").read_text()
    assert ruleset() == before


def test_a_table_that_a_killed_install_had_just_made() -> None:
    """The next clean takes it away."""
    make_table(Family.IPV4, "nat")
    assert COMMENT in ruleset()
    assert run("clean").status == 0
    assert ruleset() == ""


def test_a_table_that_is_gone() -> None:
    """There is nothing to take away: fine."""
    assert remove_table(Family.IPV4, "nat")
    make_table(Family.IPV6, "raw")
    assert remove_table(Family.IPV6, "raw")
    assert remove_table(Family.IPV6, "raw")


@pytest.mark.parametrize("backend", BACKENDS)
def test_others_that_write_beside_a_clean(backend: str, tmp_path: Path) -> None:
    """What another program was told to be in the table is there after our clean."""
    for round_ in range(12):
        assert install(backend, *CONFIGURATIONS["documented"]).status == 0
        results = tmp_path / str(round_)
        rule = ("-p", "tcp", "-m", "tcp", "--dport", str(20000 + round_), "-j", "ACCEPT")
        program = f"iptables-{backend}"
        work = partial(_add_often, program, rule, results)
        child = forked(work, quiet=True)
        done = process(CLI, "clean")
        assert done.status == 0, done
        (tmp_path / f"{round_}.stop").touch()
        assert joined(child) == 0
        wanted = int(results.read_text())
        found = chains(backend, Family.IPV4).get("nat", {}).get("OUTPUT", [])
        # iptables-legacy may say that it failed although its rule went in: libiptc puts the table in
        # place first, and then the counters, which a change in between makes invalid.
        assert found.count(" ".join(rule)) >= wanted > 0
        process(program, "-t", "nat", "-F", "OUTPUT")


def _add_often(program: str, rule: tuple[str, ...], results: Path) -> int:
    """Adds one rule again and again, as long as the clean runs; notes how often it was taken."""
    taken = 0
    while not results.with_suffix(".stop").exists():
        # Its own lock: our program would have it wait.
        done = process(
            *(program, "-t", "nat", "-A", "OUTPUT", *rule),
            environment={"XTABLES_LOCKFILE": "/run/another.lock"},
        )
        taken += done.status == 0
    results.write_text(str(taken))
    return 0


def test_a_table_that_others_delete_beside_a_clean() -> None:
    """It is gone when we come to it: the clean has done what it was to do."""
    for _ in range(8):
        assert install("nft", *DUAL).status == 0
        child = forked(_delete_often, quiet=True)
        done = process(CLI, "clean")
        os.kill(child, signal.SIGTERM)
        joined(child)
        assert done.status == 0, done
        assert run("clean").status == 0
        assert "ISTIO" not in ruleset()


def _delete_often() -> int:
    while True:
        for family in ("ip", "ip6"):
            # Only while it is empty, as a careful program does it.
            text = process("nft", "list", "table", family, "nat").out
            if "ISTIO" not in text:
                process("nft", "delete", "table", family, "nat")
