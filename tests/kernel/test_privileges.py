"""Installing with no more rights than it takes, and what is said when one of them is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from istio_iptables.netfilter.model import Family
from tests.kernel.configurations import CONFIGURATIONS
from tests.kernel.sandbox import CLI, Finished, needs, ours_in, planned, process, run, save, state
from tests.namespaces import BACKENDS

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box"), needs("setpriv")]

EVERYTHING = CONFIGURATIONS["everything"]


def with_only(capabilities: str, *arguments: str, root: bool = True) -> Finished:
    """Run the program with some capabilities and no others, and no way to gain any."""
    names = f"-all{''.join(f',+{name}' for name in capabilities.split())}"
    words = ["setpriv", "--no-new-privs", f"--inh-caps={names}"]
    if not root:
        words += ["--reuid=1337", "--regid=0", "--clear-groups", f"--ambient-caps={names}"]
    return process(*words, f"--bounding-set={names}", CLI, *arguments)


def _someone_else_may_run_it() -> bool:
    words = ("setpriv", "--reuid=1337", "--regid=1337", "--clear-groups", "--inh-caps=-all")
    return process(*words, "--bounding-set=-all", CLI, "--version").status == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("root", [True, False], ids=["root", "uid-1337"])
def test_two_capabilities_are_enough(root: bool, backend: str) -> None:  # noqa: FBT001 - a case
    """Install, again, replace and clean with CAP_NET_ADMIN and CAP_NET_RAW alone.

    Another uid has to be in group 0, which alone may read which legacy tables there are.
    """
    if not root and not _someone_else_may_run_it():
        pytest.skip("this environment's Python can be run by root alone")
    if not root:
        Path("/run/xtables.lock").touch(0o666)
        Path("/run/xtables.lock").chmod(0o666)
    before = state()
    two = "net_admin net_raw"
    for arguments in (EVERYTHING, EVERYTHING, (*CONFIGURATIONS["documented"], "--reconcile")):
        result = with_only(two, "--force-iptables-binary", backend, *arguments, root=root)
        assert result.status == 0, result.err
    wanted = planned(*CONFIGURATIONS["documented"])
    assert ours_in(save(backend, Family.IPV4)) == wanted[Family.IPV4]
    result = with_only(two, "--cleanup-only", root=root)
    assert result.status == 0, result.err
    assert state() == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_read_only_root(backend: str) -> None:
    """Nothing is written anywhere: the whole tree may be read-only."""
    script = 'mount -o remount,bind,ro / && mount -o remount,ro /run && exec "$0" "$@"'
    words = ("unshare", "--mount", "sh", "-c", script, CLI, "--force-iptables-binary", backend)
    result = process(*words, *EVERYTHING)
    assert result.status == 0, result.err
    assert "Traceback" not in result.err
    assert ours_in(save(backend, Family.IPV4)) == planned(*EVERYTHING)[Family.IPV4]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("held", "lacking"),
    [
        ("", "CAP_NET_ADMIN and CAP_NET_RAW"),
        ("net_raw", "CAP_NET_ADMIN"),
        ("net_admin", "CAP_NET_RAW"),
    ],
)
def test_the_missing_capability_is_named(held: str, lacking: str, backend: str) -> None:
    """Without one of the two: either it works all the same, or the line names what is missing."""
    before = state()
    result = with_only(held, "--force-iptables-binary", backend, *EVERYTHING)
    assert "Traceback" not in result.err
    if result.status == 0:
        # nf_tables asks for CAP_NET_ADMIN alone.
        assert (held, backend) == ("net_admin", "nft")
        return
    assert result.status == 1
    assert f"{lacking} is missing" in result.err or f"{lacking} are missing" in result.err
    assert state() == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("held", ["", "net_raw", "net_admin", "sys_admin dac_override"])
@pytest.mark.parametrize("asked", ["diff", "explain", "clean"])
def test_what_can_not_be_read_is_not_absent(asked: str, held: str, backend: str) -> None:
    """Our rules are there: without a capability the answer is the right one, or that none can be had."""
    assert run("--force-iptables-binary", backend, *EVERYTHING).status == 0
    before = state()
    words = {"diff": ("diff", *EVERYTHING), "explain": ("explain", "--live"), "clean": ("clean",)}
    result = with_only(held, *words[asked])
    assert "Traceback" not in result.err
    if (held, backend) == ("net_admin", "nft"):
        assert result.status == 0
        return
    assert (result.status, result.out) == (1 if asked == "clean" else 2, "")
    errors = [line for line in result.err.splitlines() if "error" in line]
    assert len(errors) == 1
    lacking = {"net_raw": "CAP_NET_ADMIN is", "net_admin": "CAP_NET_RAW is"}.get(held)
    assert f"{lacking or 'CAP_NET_ADMIN and CAP_NET_RAW are'} missing" in errors[0]
    assert state() == before


@pytest.mark.parametrize("asked", ["diff", "install", "clean"])
def test_another_user_namespace_than_the_network_namespace_s(asked: str) -> None:
    """All capabilities are there, and none of them counts here: that is what the line says."""
    arguments = {
        "diff": ("diff",),
        "install": ("-u", "0", "--ip-family", "ipv4"),
        "clean": ("clean",),
    }[asked]
    result = process("unshare", "--user", "--map-root-user", CLI, *arguments)
    assert result.status == (2 if asked == "diff" else 1)
    assert "Operation not permitted: the network namespace belongs to another" in result.err


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_that_the_user_namespace_does_not_map(backend: str) -> None:
    """One line each that names the id, and nothing begun; a mapped id goes in."""
    own = ("unshare", "--user", "--map-root-user", "--net")
    capture = ("--ip-family", "ipv4", "-i", "*", "-b", "*")
    words = (*own, CLI, *capture, "--force-iptables-binary", backend)
    result = process(*words)
    assert result.status == 1
    assert result.err.splitlines() == [
        f"istio-iptables: error: {kind} 1337 is not mapped in this user namespace"
        f" (/proc/self/{kind}_map): the kernel knows no such user or group here"
        for kind in ("uid", "gid")
    ]
    assert process(*words, "-u", "0", "-g", "0").status == 0


def test_nothing_at_all_is_needed_to_print() -> None:
    """A dry run needs no capability."""
    assert with_only("", *EVERYTHING, "--dry-run").status == 0
    assert os.path.exists("/run")  # noqa: PTH110 - a name


@pytest.mark.parametrize("backend", BACKENDS)
def test_neither_user_nor_group_0(backend: str) -> None:
    """With ambient capabilities all works; which other legacy tables there are is not known."""
    if not _someone_else_may_run_it():
        pytest.skip("this environment's Python can be run by root alone")
    names = "-all,+net_admin,+net_raw"
    ids = ("--reuid=12345", "--regid=12345", "--clear-groups")
    words = ("setpriv", *ids, f"--inh-caps={names}", f"--ambient-caps={names}", CLI)
    capture = ("--ip-family", "ipv4", "-i", "*", "-b", "*")
    installed = process(*words, *capture, "--force-iptables-binary", backend)
    assert installed.status == 0, installed.err
    # Without the option: it finds them where they are.
    compared = process(*words, "diff", *capture)
    assert (compared.status, compared.err) == (0, "")
    assert f"({backend}) is as planned" in compared.out
    changed = process(*words, *capture, "-d", "8080")
    assert changed.status == 1
    assert "other rules of ours are there" in changed.err
    explained = process(*words, "explain", *capture, "--live", "--dst", "192.0.2.1:80")
    assert explained.status == 0
    assert "unless the unreadable table IPv4 filter (legacy)" in explained.out
    cleaned = process(*words, "clean")
    assert cleaned.status == 0, cleaned.err
    assert "ISTIO" not in save(backend, Family.IPV4)
