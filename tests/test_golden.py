"""Every folder of golden/: its arguments give its expected text."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests import golden
from tests.golden import GOLDEN, Case, cases, difference

if TYPE_CHECKING:
    from pathlib import Path

# What iptables-save prints in an injected pod of Istio 1.25.2, without comments and counters.
ARTICLE_ARGUMENTS = [
    *("-p", "15001"),
    *("-z", "15006"),
    *("-u", "1337"),
    *("-m", "REDIRECT"),
    *("-i", "*"),
    *("-b", "*"),
    *("-d", "15090,15021,15020"),
    "--log_output_level=default:info",
]
ARTICLE_RULESET = """\
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:ISTIO_INBOUND -
:ISTIO_IN_REDIRECT -
:ISTIO_OUTPUT -
:ISTIO_REDIRECT -
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
"""

CASES = cases()


def named(name: str) -> Case:
    """The golden case of this name."""
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    """The arguments of the case print its expected text, and its warnings."""
    result = case.run()
    assert result.status == 0, result.err
    changed = difference(case, result)
    if changed:
        pytest.fail(f"{case.about}\n{changed}(make golden rewrites it)", pytrace=False)


def test_the_documented_case_is_what_a_pod_holds() -> None:
    """The injector's arguments, given for a dry run, print the ruleset of an injected pod."""
    case = named("documented")
    assert case.arguments[:15] == ARTICLE_ARGUMENTS
    assert case.arguments[15:] == ["--ip-family", "ipv4", "--dry-run"]
    assert case.expected.replace(" [0:0]", "") == f"# IPv4\n{ARTICLE_RULESET}"
    assert not case.warnings


@pytest.mark.parametrize("name", ["documented", "environment-every-variable"])
def test_case_as_a_process(name: str) -> None:
    """The program, started as a user starts it, prints the expected text."""
    case = named(name)
    done = subprocess.run(
        [sys.executable, "-m", "istio_iptables", *case.arguments],
        cwd=case.folder,
        env={"PYTHONPATH": str(GOLDEN.parent), "PATH": os.defpath, **case.environment},
        capture_output=True,
        check=False,
        encoding="utf-8",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, case.expected, case.warnings)


def test_every_folder_is_a_case() -> None:
    """A folder has the files that golden/README.md names, and no others."""
    allowed = {"about", "arguments", "environment", "resolv.conf", "expected", "warnings"}
    for folder in filter(os.path.isdir, GOLDEN.iterdir()):
        files = {path.name for path in folder.iterdir()}
        assert {"about", "arguments", "expected"} <= files, folder
        assert files <= allowed, folder
        assert len((folder / "arguments").read_text().splitlines()) == 1, folder


def test_write_changes_only_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rewriting touches the one case that differs, names it, and leaves the others alone."""
    for name in ("documented", "dns-without-server"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
    wrong = tmp_path / "documented" / "expected"
    right = wrong.read_text()
    wrong.write_text(right.replace("15001", "1"))
    monkeypatch.setattr(golden, "GOLDEN", tmp_path)
    assert golden._main([]) == 1
    assert "+-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001" in capsys.readouterr().out
    untouched = (tmp_path / "dns-without-server" / "expected").stat().st_mtime_ns
    assert golden._main(["--write"]) == 0
    assert capsys.readouterr().out.endswith("documented: written\n")
    assert wrong.read_text() == right
    assert (tmp_path / "dns-without-server" / "expected").stat().st_mtime_ns == untouched
    assert golden._main([]) == 0


def _add(folder: Path, arguments: str, environment: str = "") -> None:
    folder.mkdir()
    (folder / "about").write_text("A case.\n")
    (folder / "arguments").write_text(f"{arguments}\n")
    if environment:
        (folder / "environment").write_text(f"{environment}\n")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("-i '*'", "--dry-run is missing"),
        ("", "--dry-run is missing"),
        ("-n --dry-run=false", "--dry-run is missing"),
        ("--log_target --dry-run", "--dry-run is missing"),
        ("--ip-family=ipv4 -b --dry-run", "--dry-run is missing"),
        ("clean", "clean is a command"),
        ("lab --dry-run", "lab is a command"),
    ],
)
def test_a_case_that_would_do_more_than_print_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    why: str,
) -> None:
    """Before any case is run, and DRY_RUN in the environment is not enough: by the file's name."""
    shutil.copytree(GOLDEN / "documented", tmp_path / "documented")
    (tmp_path / "documented" / "expected").write_text("")
    _add(tmp_path / "installs", arguments, "DRY_RUN=true")
    monkeypatch.setattr(golden, "GOLDEN", tmp_path)
    monkeypatch.setattr(golden, "run", lambda *_: pytest.fail("a case was run"))
    assert golden._main(["--write"]) == 2
    name = f"{tmp_path.name}/installs/arguments"
    assert capsys.readouterr().err == f"{name}: no dry run: {why}\n"
    assert (tmp_path / "documented" / "expected").read_text() == ""


@pytest.mark.parametrize("arguments", ["-n", "-ni '*'", "--dry-run=1", "-n=t -i '*' --nonsense"])
def test_a_dry_run_however_it_is_spelled_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    """The program's own parser says what a dry run is."""
    _add(tmp_path / "prints", arguments)
    monkeypatch.setattr(golden, "GOLDEN", tmp_path)
    assert [case.name for case in cases()] == ["prints"]


def test_files_that_can_not_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quote that is not closed, a variable without a value, letters that are none: all at once."""
    _add(tmp_path / "a-quote", "-n -i '*")
    _add(tmp_path / "b-variable", "-n", "PROXY_UID")
    _add(tmp_path / "c-letters", "-n")
    (tmp_path / "c-letters" / "about").write_bytes(b"\xff")
    monkeypatch.setattr(golden, "GOLDEN", tmp_path)
    assert golden._main([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"{tmp_path.name}/{name}"
        for name in ("a-quote/arguments", "b-variable/environment", "c-letters/about")
    ]
    assert "No closing quotation" in lines[0]
    assert "'PROXY_UID' is not NAME=value" in lines[1]
