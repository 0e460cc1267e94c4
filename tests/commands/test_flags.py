"""Settings on a command line: one reader, with click and without."""

from __future__ import annotations

import subprocess
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_iptables import cli
from istio_iptables.commands.flags import Flags, read_flags
from istio_iptables.errors import UsageProblems
from istio_iptables.settings.declarations import SETTINGS
from tests.loading import DRY, command, read
from tests.program import run


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["-p", "1", "-i", "*"], {"envoy_port": "1", "istio_service_cidr": "*"}),
        (["-p=1", "--envoy-port=2"], {"envoy_port": "2"}),
        (["--envoy-port", "2", "-p1"], {"envoy_port": "1"}),
        (["-n"], {"dry_run": "true"}),
        (["-n=false"], {"dry_run": "false"}),
        (["-nv"], {"dry_run": "true", "verbose": "true"}),
        (["-nv=0"], {"dry_run": "true", "verbose": "0"}),
        (["-np", "3"], {"dry_run": "true", "envoy_port": "3"}),
        (["-np=3"], {"dry_run": "true", "envoy_port": "3"}),
        (["-d", ""], {"istio_local_exclude_ports": ""}),
        (["-d", "-p"], {"istio_local_exclude_ports": "-p"}),
        (["--dry-run=x", "--dry-run"], {"dry_run": "true"}),
        (["--log_target", "stdout", "--log_as_json", "--vklog=3", "-p", "1"], {"envoy_port": "1"}),
        ([], {}),
    ],
)
def test_all_of_pflags_spellings(words: list[str], texts: dict[str, str]) -> None:
    """The last one counts, and nothing is left for click."""
    flags = read_flags(words)
    assert flags.texts == texts
    assert flags.complete


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["clean"], ["clean"]),
        (["--help"], ["--help"]),
        (["-h", "-p", "1"], ["-h", "--envoy-port", "1"]),
        (["-p"], ["-p"]),
        (["-nX"], ["-nX"]),
        (["--bogus", "1", "-p", "2"], ["--bogus", "1", "--envoy-port", "2"]),
        (["--", "-p", "1"], ["--", "-p", "1"]),
    ],
)
def test_what_is_left_for_click(words: list[str], arguments: list[str]) -> None:
    """Words and options that are no settings, and a setting that lacks its value."""
    assert read_flags(words)[2:] == Flags({}, (), arguments, complete=False)[2:]


def test_every_namespace_is_kept() -> None:
    """Once, in the order of the line."""
    words = ["--network-namespace=b", "--network-namespace", "a", "--network-namespace=b"]
    assert read_flags(words).namespaces == ("b", "a")


def test_a_log_flag_needs_its_value() -> None:
    """As with Istio's program."""
    with pytest.raises(UsageProblems, match="--vklog: the value is missing"):
        read_flags(["--vklog"])


HEAVY = {
    *("click", "iptc", "pyroute2", "subprocess", "json", "ctypes", "inspect", "threading"),
    *("pathlib", "typing", "re", "socket"),
}
NAMES = [each.flag for each in SETTINGS if each.on_command_line]
NAMES += [f"-{each.short}" for each in SETTINGS if each.short]
WORDS = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(NAMES).flatmap(
        lambda name: st.sampled_from(("", "1", "true", "*", "x")).map(lambda v: f"{name}={v}")
    ),
    st.sampled_from(("*", "1", "80,90", "10.0.0.0/8", "ipv4", "", "x", "-", "-nv", "-p80", "json")),
)


@given(st.lists(WORDS, max_size=6))
def test_with_click_and_without_it_is_the_same(words: list[str]) -> None:
    """The same settings, output, refusals and exit status, whoever reads the line."""
    words = ["--dry-run", "--ip-family=ipv4", "--resolv-conf=/dev/null", *words, "--dry-run"]
    straight = run(words)
    with mock.patch.object(
        cli, "read_flags", lambda args: read_flags(args)._replace(complete=False)
    ):
        assert run(words) == straight


def test_what_a_dry_run_loads() -> None:
    """A set of modules, which does not grow unnoticed; click is for what people type."""
    words = ("-p", "15001", "-i", "*", "-b", "*", "--ip-family", "ipv4", "--dry-run")
    done = subprocess.run(command(*words), capture_output=True, check=True, encoding="utf-8")
    ours, others = read(done.stderr)
    assert ours <= DRY
    assert not others & HEAVY
