"""How many programs a run of the program starts: itself, and no other where none is needed."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.namespaces import Step, inside

DOCUMENTED = (
    *("-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT"),
    *("-i", "*", "-b", "*", "-d", "15090,15021,15020"),
)
SETTLED = ("--ip-family", "ipv4", "--force-iptables-binary", "legacy")
PROGRAM = str(Path(sys.executable).parent / "istio-iptables")

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("strace") is None, reason="not installed: strace"),
]


def programs_run(trace: str) -> list[str]:
    """The paths of the programs that were really started, in order."""
    return re.findall(r'execve\("([^"]*)".*\) = 0$', trace, re.MULTILINE)


def traced(tmp_path: Path, *arguments: str, before: tuple[Step, ...] = ()) -> list[str]:
    """The programs that ``istio-iptables`` with *arguments* runs in a fresh namespace."""
    log = tmp_path / "trace"
    strace = ("strace", "-f", "-qq", "-s", "200", "-e", "trace=execve", "-o", str(log))
    *_, done = inside([*before, Step((*strace, PROGRAM, *arguments))])
    assert done.status == 0, done.err
    return programs_run(log.read_text(encoding="utf-8"))


def test_the_reading_of_a_trace() -> None:
    """A program counts once, where it was found; failed searches for it do not."""
    trace = (
        '7 execve("/a/x", ["x"], 0x7ffd /* 9 vars */) = -1 ENOENT (No such file or directory)\n'
        '7 execve("/b/x", ["x", "-n"], 0x7ffd /* 9 vars */) = 0\n'
        "7 +++ exited with 0 +++\n"
    )
    assert programs_run(trace) == ["/b/x"]


def test_a_dry_run_starts_no_program(tmp_path: Path) -> None:
    """A dry run is one process, whatever it prints."""
    assert traced(tmp_path, *DOCUMENTED, "--dry-run", *SETTLED) == [PROGRAM]


def test_a_legacy_install_starts_no_program(tmp_path: Path) -> None:
    """Installing through python-iptables is one process, without its search for libraries."""
    assert traced(tmp_path, *DOCUMENTED, *SETTLED) == [PROGRAM]


def test_a_legacy_tproxy_install_starts_no_program(tmp_path: Path) -> None:
    """Both families, the policy routes and the IPv6 address take no other program either."""
    arguments = (*DOCUMENTED, "-m", "TPROXY", "--ip-family", "dual", *SETTLED[2:])
    up = Step(("ip", "link", "set", "lo", "up"))
    assert traced(tmp_path, *arguments, before=(up,)) == [PROGRAM]


def test_a_native_install_starts_nft_twice(tmp_path: Path) -> None:
    """The trial and the commit; to know that there is nothing yet takes no program."""
    names = [
        Path(each).name for each in traced(tmp_path, "--native-nftables", *DOCUMENTED, *SETTLED[:2])
    ]
    assert names == ["istio-iptables", "nft", "nft"]


def test_a_legacy_install_again_starts_one_program(tmp_path: Path) -> None:
    """Finding out that nothing is to be done takes one iptables-legacy-save a family with tables."""
    install = (*DOCUMENTED, *SETTLED)
    first = Step((PROGRAM, *install))
    assert [Path(each).name for each in traced(tmp_path, *install, before=(first,))] == [
        "istio-iptables",
        "iptables-legacy-save",
    ]
