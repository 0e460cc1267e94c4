"""What fails, at every step: the namespace is as before, and one clear line says why."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from istio_iptables.istio.native import build_native
from istio_iptables.istio.ownership import OWNERSHIP
from istio_iptables.istio.plan import build
from istio_iptables.kernel import libiptc, native, nft
from istio_iptables.kernel.host import ThisHost
from istio_iptables.kernel.install import InstallOptions
from istio_iptables.kernel.install import install as apply
from istio_iptables.netfilter.model import Family
from istio_iptables.settings.config import configure
from istio_iptables.settings.sources import gather
from tests.kernel.configurations import CONFIGURATIONS, DUAL, TPROXY, UNLIKE
from tests.kernel.foreign import load_layout
from tests.kernel.sandbox import (
    CLI,
    Finished,
    chosen,
    command,
    install,
    load,
    needs,
    ours_in,
    planned,
    process,
    run,
    save,
    state,
)
from tests.namespaces import ALL_BACKENDS, mount, sandbox, set_loopback

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]


def check_told(result: Finished, *words: str) -> None:
    """Exit 1, no traceback, and an error line that says all of *words*."""
    assert result.status == 1, result
    assert "Traceback" not in result.err
    lines = [line for line in result.err.splitlines() if ": error: " in line]
    assert lines
    assert all(line.startswith("istio-iptables: ") for line in result.err.splitlines())
    assert any(all(word in line for word in words) for line in lines), lines


#: Errors of a commit, and what a user reads of them.
ERRORS = {
    "EPERM": "Operation not permitted",
    "ENOSPC": "No space left on device",
    "EBUSY": "Device or resource busy",
    "ENOMEM": "Cannot allocate memory",
}


def _legacy_run_with(fault: str, *arguments: str) -> Finished:
    return process(
        *("strace", "-qq", "-o", "/dev/null", "-e", "trace=setsockopt", "-e", fault),
        *(CLI, "--force-iptables-binary", "legacy", *arguments),
    )


@needs("strace")
@pytest.mark.parametrize(("first", "second"), UNLIKE)
def test_a_commit_that_fails_is_taken_back(first: str, second: str, tmp_path: Path) -> None:
    """Each commit of a replace in legacy tables, one after the other, fails with one of the errors."""
    log = tmp_path / "log"
    with sandbox():
        install("legacy", *CONFIGURATIONS[first])
        words = (
            "strace",
            "-qq",
            "-o",
            str(log),
            "-e",
            "signal=none",
            "-e",
            "trace=setsockopt",
            CLI,
            "--reconcile",
        )
        wanted = ("--force-iptables-binary", "legacy", *CONFIGURATIONS[second])
        assert process(*words, *wanted).status == 0
    calls = log.read_text().splitlines()
    commits = [number for number, call in enumerate(calls, 1) if "SO_SET_REPLACE" in call]
    install("legacy", *CONFIGURATIONS[first])
    before = state(backends=("legacy",))
    for commit, (name, reason) in zip(commits, [*ERRORS.items()] * len(commits), strict=False):
        fault = f"inject=setsockopt:error={name}:when={commit}"
        result = _legacy_run_with(fault, *CONFIGURATIONS[second], "--reconcile")
        check_told(result, "can't commit", "table", reason)
        assert state(backends=("legacy",)) == before
    assert len(commits) > 1


@needs("strace")
@pytest.mark.parametrize("fault", ["setsockopt:error=EAGAIN:when=1..200"])
def test_tables_that_never_stand_still(fault: str) -> None:
    """When others change a table under our hands each time, we give up with a line."""
    before = state()
    result = _legacy_run_with(f"inject={fault}", *CONFIGURATIONS["documented"])
    check_told(result, "changed by another program")
    assert state() == before


@needs("strace")
@pytest.mark.parametrize("wanted", [DUAL, TPROXY], ids=["a table", "tables"])
@pytest.mark.parametrize(("call", "error"), [("SET_REPLACE", "EAGAIN"), ("ADD_COUNTERS", "EINVAL")])
def test_a_table_that_changed_meanwhile_is_tried_again(
    call: str, error: str, wanted: tuple[str, ...], tmp_path: Path
) -> None:
    """Another program changes a table before our commit, or between it and its counters: begun anew."""
    log = tmp_path / "log"
    words = ("strace", "-qq", "-o", str(log), "-e", "signal=none", "-e", "trace=setsockopt", CLI)
    with sandbox():
        assert process(*words, *wanted, "--force-iptables-binary", "legacy").status == 0
    calls = log.read_text().splitlines()
    commits = [number for number, line in enumerate(calls, 1) if call in line]
    for commit in commits:
        with sandbox():
            fault = f"inject=setsockopt:error={error}:when={commit}"
            assert _legacy_run_with(fault, *wanted).status == 0
            assert state().legacy == tuple(planned(*wanted)[family] for family in Family)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder that stands first in PATH."""
    return tmp_path


def _fake(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("first", ["none", "everything", "documented"])
@pytest.mark.parametrize("failing", range(1, 13))
def test_any_iptables_nft_restore_may_fail(first: str, failing: int, programs: Path) -> None:
    """The nth start of iptables-nft-restore fails, a trial or a real one: all as before."""
    if first != "none":
        install("nft", *CONFIGURATIONS[first])
    before = state(backends=("nft",))
    counter = programs / "count"
    for family in ("", "6"):
        name = f"ip{family}tables-nft-restore"
        count = f"n=$(cat {counter} 2>/dev/null || echo 0); n=$((n + 1)); echo $n >{counter}"
        refuse = f"[ $n = {failing} ] && {{ echo '{name}: RULE_APPEND failed' >&2; exit 4; }}"
        _fake(programs, name, f'{count}; {refuse}; exec /usr/sbin/{name} "$@"')
    path = {"PATH": f"{programs}:/usr/sbin:/usr/bin"}
    other = "documented" if first == "everything" else "everything"
    words = ("--force-iptables-binary", "nft", *CONFIGURATIONS[other], "--reconcile")
    result = process(CLI, *words, environment=path)
    if int(counter.read_text()) < failing:
        # There were fewer of them.
        assert result.status == 0
        return
    check_told(result, "RULE_APPEND failed")
    assert state(backends=("nft",)) == before


@needs("strace")
@pytest.mark.parametrize("backend", ["nft", "native"])
@pytest.mark.parametrize("name", ["EPERM", "ENOSPC", "EBUSY"])
def test_the_kernel_refuses_nft_messages(name: str, backend: str) -> None:
    """Each message to nf_tables is answered with an error, in whatever process sends it."""
    install(backend, *DUAL)
    before = state(backends=(backend,))
    fault = f"inject=sendmsg:error={name}:when=1+"
    words = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=sendmsg", "-e", fault, CLI)
    result = process(*words, *chosen(backend), *TPROXY, "--reconcile")
    assert result.status == 1
    assert "Traceback" not in result.err
    assert state(backends=(backend,)) == before


@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize("first", ["none", "dual"])
def test_a_route_that_can_not_be_added(first: str, backend: str) -> None:
    """Lo is down: TPROXY's route fails, so nothing is installed and the line says what failed."""
    if first != "none":
        install(backend, *DUAL)
    set_loopback(up=False)
    before = state()
    result = install(backend, *TPROXY, "--reconcile")
    check_told(Finished(*result), "can't add the route", "Network is down")
    assert state() == before


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_no_ipv6_address_can_be_added(backend: str) -> None:
    """IPv6 is switched off in the namespace: ::6 fails, and nothing is installed."""
    Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text("1")
    before = state()
    check_told(Finished(*install(backend, *DUAL)), "can't add the address ::6")
    assert state() == before
    assert install(backend, *CONFIGURATIONS["documented"]).status == 0


def test_a_kernel_without_legacy_tables() -> None:
    """No list of legacy tables in /proc: nft is chosen, and the reason told."""
    mount("tmpfs", "/proc/sys", "tmpfs")
    result = _without_proc_names("--dry-run")
    assert result.status == 0
    result = _without_proc_names()
    assert (result.status, "backend nft: the kernel has no legacy tables" in result.err) == (
        0,
        True,
    )
    assert ours_in(save("nft", Family.IPV4)) == planned(*DUAL)[Family.IPV4]


def _without_proc_names(*more: str) -> Finished:
    # The folder of the process's only thread is the one that is read; an empty one has none of the files.
    hide = 'mount -t tmpfs none /proc/$$/task/$$/net && exec "$0" "$@"'
    return process("sh", "-c", hide, CLI, *DUAL, *more)


@pytest.mark.parametrize("hidden", ["save", "restore"])
def test_iptables_nft_is_not_installed(hidden: str, programs: Path) -> None:
    """A missing program is named; nothing is half done."""
    for tool in ("iptables", "ip6tables"):
        for what in {"save", "restore"} - {hidden}:
            shutil.copy("/usr/sbin/xtables-nft-multi", programs / f"{tool}-nft-{what}")
    load_layout("docker", "nft")
    before = state()
    # Root's folders are looked in whatever PATH says.
    hide = '/usr/bin/mount -t tmpfs none /usr/sbin && exec "$0" "$@"'
    words = ("/usr/bin/unshare", "--mount", "/bin/sh", "-c", hide, CLI, *DUAL)
    result = process(*words, "--force-iptables-binary", "nft", environment={"PATH": str(programs)})
    check_told(result, f"can't run iptables-nft-{hidden}", "No such file")
    assert state() == before


def test_a_path_without_the_folders_of_root() -> None:
    """As cron and su leave it: the programs are found all the same."""
    for arguments in (DUAL, (*DUAL, "--reconcile"), ("clean",)):
        words = (CLI, *arguments, "--force-iptables-binary", "nft")
        result = process(*words, environment={"PATH": "/usr/bin:/bin"})
        assert (result.status, "error" in result.err) == (0, False)


@pytest.mark.parametrize("given", ["gone", "/run/netns/gone", "/proc/999999999/ns/net"])
def test_a_namespace_that_does_not_exist(given: str) -> None:
    """The path that was tried is named."""
    result = run(*DUAL, "--network-namespace", given)
    assert result.status == 1
    path = given if "/" in given else f"/run/netns/{given}"
    assert f"can't open the network namespace {path}: No such file or directory" in result.err


def test_a_namespace_that_is_none() -> None:
    """A file that is no namespace, as is left of one that vanished."""
    Path("/run/netns").mkdir()
    Path("/run/netns/pod").touch()
    result = run(*DUAL, "--network-namespace", "pod")
    assert result.status == 1
    assert result.errors == ["can't enter the network namespace /run/netns/pod: Invalid argument"]


def test_nft_rules_that_iptables_can_not_read() -> None:
    """Somebody's own nft rules inside iptables' table: told, and left alone."""
    load("nft", Family.IPV4, "*nat\n-A OUTPUT -j RETURN\nCOMMIT\n")
    command("nft", "add rule ip nat OUTPUT ct mark set 5")
    before = command("nft", "list", "ruleset")
    result = install("nft", *DUAL)
    assert result.status == 1
    assert any("rules that iptables can't show" in line for line in result.errors)
    assert command("nft", "list", "ruleset") == before


#: From the start of Python to where there is enough of it, in KiB of address space.
MEMORY = range(14_000, 60_000, 2_300)


@pytest.mark.parametrize("first", ["everything", "documented"])
@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_too_little_memory(backend: str, first: str) -> None:
    """A replace under ulimit -v has the old rules or the new ones, and one line why."""
    second = "documented" if first == "everything" else "everything"
    install(backend, *CONFIGURATIONS[first])
    before = state(backends=(backend,))
    refused = 0
    for limit in MEMORY:
        script = f'ulimit -v {limit}; exec "$0" "$@"'
        words = (CLI, *chosen(backend), *CONFIGURATIONS[second], "--reconcile")
        result = process("sh", "-c", script, *words)
        if result.status == 0:
            break
        assert state(backends=(backend,)) == before
        if ": error: " in result.err:
            # Otherwise Python had not come as far as to our code.
            refused += 1
            assert "Traceback" not in result.err
            assert result.err.count(": error: ") == 1, result.err
    assert refused > 3


@pytest.mark.parametrize("words", [(*DUAL, "--reconcile"), ("clean",)], ids=["replace", "clean"])
@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_pyroute2_can_not_be_loaded(backend: str, words: tuple[str, ...], tmp_path: Path) -> None:
    """What takes the policy route away is loaded before anything is done."""
    install(backend, *CONFIGURATIONS["everything"])
    before = state()
    (tmp_path / "pyroute2").mkdir()
    (tmp_path / "pyroute2" / "__init__.py").write_text("raise ImportError('it is broken')")
    words = (*words, *(chosen(backend) if words[0] != "clean" else ()))
    result = process(CLI, *words, environment={"PYTHONPATH": str(tmp_path)})
    check_told(result, "pyroute2", "can't be loaded", "it is broken")
    assert state() == before


class _Broken(BaseException):
    """What no code expects."""


#: What commits, and how often: once for each table, or for all native ones.
COMMITS: dict[str, tuple[Any, str, int]] = {
    "legacy": (libiptc.Handle, "commit", 6),
    "nft": (nft._Restore, "commit", 6),
    "native": (native, "_commit", 1),
}


@pytest.mark.parametrize("error", [MemoryError, OSError, SystemError, KeyboardInterrupt, _Broken])
@pytest.mark.parametrize("done", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_anything_may_be_raised(
    backend: str,
    done: bool,  # noqa: FBT001 - a case
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before or behind each commit of a table: everything goes back, and the error goes on."""
    where, name, most = COMMITS[backend]
    commit = getattr(where, name)
    install(backend, *CONFIGURATIONS["everything"])
    before = state(backends=(backend,))
    values, _ = gather({"dual_stack": "true", "istio_service_cidr": "*"}, {})
    config = configure(values, ThisHost())[0]
    plan = build(config)
    rules = build_native(config, plan) if backend == "native" else None
    where_to = InstallOptions(backend="" if rules else backend)
    for fatal in range(1, most + 1):
        commits = 0

        def failing(self: Any) -> None:
            nonlocal commits
            commits += 1
            if commits == fatal and not done:  # noqa: B023 - called in this round only
                raise error
            commit(self)
            if commits == fatal:  # noqa: B023 - see above
                raise error

        monkeypatch.setattr(where, name, failing)
        with pytest.raises(error):
            apply(plan, OWNERSHIP, lambda _: None, where_to, replace=True, native=rules)
        monkeypatch.undo()
        assert state(backends=(backend,)) == before


@pytest.mark.parametrize("end", ["exit 1", "kill -KILL $$", "kill -TERM $$"])
def test_a_child_that_has_done_its_work_may_still_fail(end: str, programs: Path) -> None:
    """Whether iptables-nft-restore has changed the table is asked of the kernel, not of its status."""
    install("nft", *CONFIGURATIONS["everything"])
    before = state(backends=("nft",))
    for name in ("iptables-nft-restore", "ip6tables-nft-restore"):
        _fake(programs, name, f'/usr/sbin/{name} "$@" || exit; [ $# = 1 ] || exit 0\n{end}')
    path = {"PATH": f"{programs}:/usr/sbin:/usr/bin"}
    for words in ((*DUAL, "--reconcile"), ("--cleanup-only",)):
        result = process(CLI, "--force-iptables-binary", "nft", *words, environment=path)
        assert result.status == 1, result
        # Each child that puts a table back fails as well, after it has done so.
        assert "Traceback" not in result.err
        assert state(backends=("nft",)) == before


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_a_refusal_leaves_nothing_open(backend: str) -> None:
    """Handles of tables that were prepared and not committed are closed."""
    run("--cleanup-only")
    set_loopback(up=False)
    assert install(backend, *TPROXY).status == 1
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert install(backend, *TPROXY).status == 1
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_loading_python_iptables_leaves_the_process_alone() -> None:
    """No variable and no module stays that was there only for its import."""
    script = (
        "import os, sys; before = dict(os.environ)\n"
        "from istio_iptables.kernel.libiptc import import_iptc; import_iptc()\n"
        "assert dict(os.environ) == before\n"
        "import iptc.util; assert iptc.util.__file__"
    )
    assert process(sys.executable, "-c", script) == Finished(0, "", "")


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_few_descriptors(backend: str) -> None:
    """With any number of descriptors: all of the new rules or all of the old ones."""
    install(backend, *CONFIGURATIONS["everything"])
    before = state(backends=(backend,))
    for limit in range(5, 40):
        script = f'ulimit -n {limit}; exec "$0" "$@"'
        words = (CLI, *chosen(backend), *DUAL, "--reconcile")
        result = process("sh", "-c", script, *words)
        if result.status == 0:
            break
        assert "Traceback" not in result.err or ": error: " not in result.err
        assert state(backends=(backend,)) == before
    assert result.status == 0
    assert limit > 10


def test_no_more_files_can_be_opened() -> None:
    """A process that may open nothing more ends with a line, or before it has begun."""
    before = state()
    limit = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (5, 5))"
    script = (
        f"import sys; {limit}; from istio_iptables.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    result = process(sys.executable, "-c", script, *DUAL)
    assert result.status == 1
    assert state() == before
