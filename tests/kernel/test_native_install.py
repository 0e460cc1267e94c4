"""Native rules in the kernel: what is printed is installed; nothing, all, and back again."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from tests.kernel.configurations import CONFIGURATIONS, DUAL, TPROXY
from tests.kernel.sandbox import (
    CLI,
    PATH,
    command,
    install,
    needs,
    process,
    run,
    state,
    without_nft,
)
from tests.kernel.test_native import without_comments
from tests.namespaces import BACKENDS, sandbox

if TYPE_CHECKING:
    from pathlib import Path

    from tests.program import Result

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box"), needs("nft")]

OTHER = """table inet other {
	chain istio-inbound {
		counter accept
	}
}
table ip istio-proxy-nat {
	chain prerouting {
	}
}
table inet istio-proxy {
	set s {
		type ipv4_addr
	}
}
"""
EXTRA = "other rules of ours are there"


def native(*arguments: str) -> Result:
    """Run the program for native rules."""
    return run("--native-nftables", *arguments)


def listed() -> str:
    """What nft lists, without counters and handles."""
    return command("nft", "-s", "list", "ruleset")


def everything() -> str:
    """All of the namespace with counters and handles, so that nothing was touched if it is equal."""
    return f"{command('nft', '-a', 'list', 'ruleset')}{state()}"


def printed(*arguments: str) -> str:
    """The dry run's text as nft lists it."""
    return without_comments(native(*arguments, "--dry-run").out)


def fresh(*arguments: str) -> str:
    """What there is after an install in an empty namespace."""
    with sandbox():
        assert native(*arguments).status == 0
        return f"{listed()}{state()}"


def load_native(text: str) -> None:
    """Have nft take a text."""
    command("nft", "-f", "-", stdin=text)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_printed_text_is_installed_and_once_is_enough(name: str) -> None:
    """Installed as a dry run prints it; again, nothing is touched; clean leaves no trace."""
    arguments = CONFIGURATIONS[name]
    load_native(OTHER)
    before = everything()
    done = native(*arguments)
    assert (done.status, done.out, done.errors) == (0, "", [])
    assert listed() == OTHER + printed(*arguments)
    after = everything()
    again = native(*arguments)
    assert (again.status, again.errors) == (0, [])
    assert "the rules are in place already: nothing to do" in again.err
    assert everything() == after
    assert run("clean").status == 0
    assert everything() == before


def test_the_routes_and_the_address_come_with_the_rules() -> None:
    """As with rules of iptables."""
    with sandbox():
        install("legacy", *TPROXY)
        wanted = state()
    native(*TPROXY)
    now = state()
    assert now.rules == wanted.rules
    assert now.routes == wanted.routes
    assert now.addresses == wanted.addresses
    command("ip", "rule", "del", "fwmark", "1337", "lookup", "133")
    command("ip", "addr", "del", "::6/128", "dev", "lo")
    handles = command("nft", "-a", "list", "ruleset")
    assert native(*TPROXY).status == 0
    assert state() == now
    assert command("nft", "-a", "list", "ruleset") == handles


@pytest.mark.parametrize(("old", "new"), [(TPROXY, DUAL), (DUAL, TPROXY)])
def test_other_native_rules_are_refused_or_replaced(
    old: tuple[str, ...], new: tuple[str, ...]
) -> None:
    """Refused with the tables that differ; replaced, it is a fresh install."""
    native(*old)
    before = everything()
    refused = native(*new)
    assert refused.status == 1
    assert EXTRA in refused.errors[0]
    assert "changed: nftables table inet istio-proxy-nat" in refused.errors
    assert any("nftables table inet istio-proxy-mangle" in line for line in refused.errors)
    assert everything() == before
    assert native(*new, "--reconcile").status == 0
    assert f"{listed()}{state()}" == fresh(*new)


@pytest.mark.parametrize("change", ["insert rule inet istio-proxy-nat output accept", "dormant"])
def test_a_changed_table_differs(change: str) -> None:
    """A rule that somebody put in, or a table that the kernel does not apply."""
    native(*DUAL)
    wanted = listed()
    dormant = "add table inet istio-proxy-nat { flags dormant; }"
    load_native(dormant if change == "dormant" else change)
    assert native(*DUAL).status == 1
    assert native(*DUAL, "--reconcile").status == 0
    assert listed() == wanted


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("arguments", [DUAL, TPROXY])
def test_switching_leaves_exactly_one(backend: str, arguments: tuple[str, ...]) -> None:
    """From rules of iptables to native ones and back, each refused first."""
    with sandbox():
        install(backend, *arguments)
        iptables = state()
    install(backend, *arguments)
    refused = native(*arguments)
    assert refused.status == 1
    (line,) = refused.errors[1:]
    assert line.startswith(f"extra: rules of ours in the {backend} backend")
    assert state() == iptables
    assert native(*arguments, "--reconcile").status == 0
    assert f"{listed()}{state()}" == fresh(*arguments)
    refused = install(backend, *arguments)
    assert refused.status == 1
    assert refused.errors[1].startswith("extra: native nftables rules of ours")
    assert f"{listed()}{state()}" == fresh(*arguments)
    assert install(backend, *arguments, "--reconcile").status == 0
    assert "inet" not in listed()
    assert state() == iptables


def test_all_three_at_once_are_cleaned() -> None:
    """Rules in both backends and native ones."""
    before = state()
    native(*TPROXY)
    text = command("nft", "-s", "list", "ruleset")
    run("clean")
    install("legacy", *TPROXY)
    load_native(text)
    assert run("--cleanup-only", "--native-nftables").status == 0
    assert (listed(), state()) == ("", before)


@pytest.mark.parametrize(
    ("foreign", "what"),
    [
        ("add chain inet istio-proxy-raw mine", "the chain mine"),
        ("add set inet istio-proxy-raw s { type ipv4_addr; }", "the set s"),
        ("add counter inet istio-proxy-raw c", "the counter c"),
        # A chain of ours, but of another table.
        ("add chain inet istio-proxy-raw istio-tproxy", "the chain istio-tproxy"),
    ],
)
def test_what_is_not_ours_in_our_tables_is_refused(foreign: str, what: str) -> None:
    """Whatever is asked for, in one line, and nothing is done."""
    load_native(f"add table inet istio-proxy-raw\n{foreign}\n")
    before = everything()
    for words in (["--native-nftables", *DUAL, "--reconcile"], ["clean"], DUAL):
        done = run(*words)
        assert done.status == 1
        (line,) = done.errors
        assert f"inet istio-proxy-raw holds what is not ours, {what}:" in line
        assert everything() == before


def fake(folder: Path, script: str, name: str = "nft") -> dict[str, str]:
    """An environment in which a program is a shell script; ``real`` is the program itself."""
    real = shutil.which(name, path=PATH["PATH"])
    program = folder / name
    program.write_text(f'#!/bin/sh\nreal() {{ {real} "$@"; }}\n{script}\n')
    program.chmod(0o755)
    return {"PATH": f"{folder}:{PATH['PATH']}"}


#: It fails for all, refuses the trial, or refuses the commit.
FAILING = {
    "always": "exit 1",
    "trial": 'case $1 in -c) exit 1;; esac; real "$@"',
    "commit": 'case $1 in -f) exit 1;; esac; real "$@"',
}
BEGINNINGS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "native": ("--native-nftables", *TPROXY),
    "iptables": TPROXY,
}


@pytest.mark.parametrize("way", FAILING)
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_a_failing_nft_leaves_everything_as_before(
    way: str, beginning: str, tmp_path: Path
) -> None:
    """Whenever it fails: handles and counters too are as they were."""
    if BEGINNINGS[beginning]:
        assert run(*BEGINNINGS[beginning]).status == 0
    before = everything()
    environment = fake(tmp_path, FAILING[way])
    done = run("--native-nftables", *DUAL, "--reconcile", environment=environment)
    assert done.status == 1
    assert "nft" in done.errors[0]
    assert everything() == before


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_a_commit_that_says_it_failed_is_taken_back(beginning: str, tmp_path: Path) -> None:
    """The tables are there again as they were listed, or gone."""
    if BEGINNINGS[beginning]:
        assert run(*BEGINNINGS[beginning]).status == 0
    before = f"{listed()}{state()}"
    once = f'case $1 in -f) real "$@"; mkdir {tmp_path}/done && exit 1; exit 0;; esac; real "$@"'
    done = run("--native-nftables", *DUAL, "--reconcile", environment=fake(tmp_path, once))
    assert done.status == 1
    assert not any("could not put back" in line for line in done.errors)
    assert f"{listed()}{state()}" == before


def test_rules_of_iptables_that_will_not_go_bring_everything_back(tmp_path: Path) -> None:
    """They go after the native ones have come, which go again."""
    install("nft", *TPROXY)
    before = f"{listed()}{state()}"
    failing = 'case "$*" in *--test*) real "$@";; *) exit 1;; esac'
    environment = fake(tmp_path, failing, "iptables-nft-restore")
    done = run("--native-nftables", *DUAL, "--reconcile", environment=environment)
    assert done.status == 1
    assert "everything that was changed before was put back" in done.errors
    assert f"{listed()}{state()}" == before


def test_what_can_not_be_put_back_is_told(tmp_path: Path) -> None:
    """It is never passed over."""
    environment = fake(tmp_path, 'real "$@"; case $1 in -f) exit 1;; esac')
    done = run("--native-nftables", *DUAL, environment=environment)
    assert done.status == 1
    assert any("could not put back the native nftables tables" in line for line in done.errors)


def test_an_nft_that_is_too_old_is_told(tmp_path: Path) -> None:
    """What it can't do is found by trying; the line names its version and what it said."""
    old = (
        "case $1 in -c) echo '/dev/stdin:9:3-8: Error: syntax error, unexpected tproxy' >&2; exit 1;;"
        " --version) echo 'nftables v0.8.2 (Joe Btfsplk)'; exit;; esac; real \"$@\""
    )
    done = run("--native-nftables", *TPROXY, environment=fake(tmp_path, old))
    assert done.status == 1
    (line,) = done.errors
    assert line.startswith(
        "nftables v0.8.2 (Joe Btfsplk) can't take these rules: nft -c -f - failed"
    )
    assert "unexpected tproxy" in line
    assert listed() == ""


def test_another_nft_lists_it_in_other_words(tmp_path: Path) -> None:
    """Later versions have a name for the priority of output, too: there is nothing to do."""
    later = 'real "$@" | sed "s/hook output priority -100;/hook output priority dstnat;/"'
    environment = fake(tmp_path, later)
    native(*DUAL)
    before = everything()
    done = run("--native-nftables", *DUAL, environment=environment)
    assert (done.status, done.errors) == (0, [])
    assert everything() == before
    # One that comes later is another one.
    command("nft", "delete", "table", "inet", "istio-proxy-nat")
    load_native(printed(*DUAL).replace("hook output priority -100;", "hook output priority 0;"))
    done = run("--native-nftables", *DUAL, environment=environment)
    assert done.errors[1:] == ["changed: nftables table inet istio-proxy-nat"]


def test_without_nft_it_is_named() -> None:
    """And so is its package."""
    without_nft()
    done = native(*DUAL)
    assert done.status == 1
    assert done.errors[0].startswith("can't run nft")
    assert done.errors[0].endswith("(is the package nftables installed?)")


def test_an_install_of_iptables_rules_loads_none_of_this() -> None:
    """Where there are no native rules of ours, whatever others have."""
    load_native(OTHER)
    loud = process(sys.executable, "-X", "importtime", CLI, *DUAL)
    assert loud.status == 0
    assert "istio_iptables.kernel.install" in loud.err
    assert "native" not in loud.err


#: Before and behind what nft does for a replace.
KILLS = {
    "before the trial": "case $1 in -c) kill -9 $PPID; exit;; esac; real",
    "before the commit": "case $1 in -f) kill -9 $PPID; exit;; esac; real",
    "behind the commit": 'case $1 in -f) real "$@"; kill -9 $PPID; exit;; esac; real',
}


@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("moment", KILLS)
def test_a_killed_install_is_completed_by_the_next(
    moment: str, beginning: str, tmp_path: Path
) -> None:
    """The tables are the old or the new ones, and the second run ends as a fresh install does."""
    wanted = fresh(*DUAL)
    if BEGINNINGS[beginning]:
        assert run(*BEGINNINGS[beginning]).status == 0
    old = listed()
    words = (CLI, "--native-nftables", *DUAL, "--reconcile")
    killed = process(*words, environment=fake(tmp_path, f'{KILLS[moment]} "$@"'))
    assert killed.status == -9
    assert (listed() == old) == (moment != "behind the commit")
    assert native(*DUAL, "--reconcile").status == 0
    assert f"{listed()}{state()}" == wanted


@pytest.mark.parametrize("moment", list(KILLS)[1:])
def test_a_killed_clean_is_completed_by_the_next(moment: str, tmp_path: Path) -> None:
    """Nothing of ours is left behind it."""
    before = everything()
    native(*TPROXY)
    killed = process(CLI, "clean", environment=fake(tmp_path, f'{KILLS[moment]} "$@"'))
    assert killed.status == -9
    assert run("clean").status == 0
    assert everything() == before


@pytest.mark.parametrize("arguments", [DUAL, (*TPROXY, "--nft-like-iptables")])
def test_native_rules_capture(arguments: tuple[str, ...]) -> None:
    """A real connection in each family arrives, and does not where the rule is gone that sends it on."""
    done = native(*arguments, "--run-validation")
    assert (done.status, done.errors) == (0, [])
    for family in ("IPv4", "IPv6"):
        assert f"{family}: a connection to port 15002 was captured" in done.err
    command("nft", "flush", "chain", "inet", "istio-proxy-nat", "istio-in-redirect")
    lost = native(*arguments, "--skip-rule-apply", "--run-validation", "--probe-timeout", "1s")
    assert lost.status == 126
    assert [line.partition(":")[0] for line in lost.errors] == ["IPv4", "IPv6"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--ip-family", "ipv4"), "IPv6 is off, and is captured all the same"),
        (("--ip-family", "dual", "-m", "TPROXY"), "let new inbound connections through"),
        (("--ip-family", "dual", "--drop-invalid"), "drop invalid packets of TCP alone"),
    ],
)
def test_what_is_otherwise_is_told_before_anything_changes(
    words: tuple[str, ...], told: str
) -> None:
    """A warning of an install; with --strict an error, and nothing is installed."""
    before = everything()
    refused = native("-i", "*", "-b", "*", *words, "--strict")
    assert (refused.status, len(refused.errors)) == (2, 1)
    assert told in refused.errors[0]
    assert everything() == before
    done = native("-i", "*", "-b", "*", *words)
    assert (done.status, len(done.warnings)) == (0, 1)
    assert told in done.warnings[0]
    assert native("-i", "*", "-b", "*", *words, "--strict", "--nft-like-iptables").status == 1
