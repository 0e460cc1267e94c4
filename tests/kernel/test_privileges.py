"""Installing with no more rights than it takes, and what is said when one of them is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from istio_iptables.netfilter.model import Family
from tests.kernel.configurations import CONFIGURATIONS
from tests.kernel.sandbox import (
    BACKENDS,
    CLI,
    Finished,
    needs,
    ours_in,
    planned,
    process,
    save,
    state,
)

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


def test_nothing_at_all_is_needed_to_print() -> None:
    """A dry run needs no capability."""
    assert with_only("", *EVERYTHING, "--dry-run").status == 0
    assert os.path.exists("/run")  # noqa: PTH110 - a name
