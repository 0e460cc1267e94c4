"""What the kernel's own state lets past Envoy: IPv6 addresses beside IPv4 rules alone."""

from __future__ import annotations

import pytest

from tests.kernel.sandbox import command, install, run
from tests.namespaces import BACKENDS

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

CAPTURE = ("-i", "*", "-b", "*")
LINE = "IPv6 address fd00::5: not captured, since the rules are for IPv4 only: {} captures IPv6"


def _addresses(*addresses: str) -> None:
    for address in addresses:
        command("ip", "address", "add", address, "dev", "lo")


@pytest.mark.parametrize("words", [(), ("--dry-run",), ("diff",), ("explain",)])
def test_ipv6_that_is_left_out_is_told(words: tuple[str, ...]) -> None:
    """By each command, with the flag that captures it; --strict makes it an error."""
    _addresses("10.0.0.5/32", "fd00::5/128")
    strict = run(*words, *CAPTURE, "--strict")
    assert (strict.status, strict.out) == (2, "")
    assert strict.errors == [f"{LINE.format('--dual-stack')} (--strict)"]
    assert run(*words, *CAPTURE).warnings == [LINE.format("--dual-stack")]
    assert run(*words, *CAPTURE, "--dual-stack").warnings == []


@pytest.mark.parametrize("words", [(), ("diff",)])
def test_a_family_that_was_given_leaves_out_as_much(words: tuple[str, ...]) -> None:
    """The namespace's addresses count, whoever decided; a dry run for elsewhere asks nobody."""
    _addresses("10.0.0.5/32", "fd00::5/128")
    flags = (*CAPTURE, "--ip-family", "ipv4")
    assert run(*words, *flags).warnings == [LINE.format("--ip-family dual")]
    assert run("--dry-run", *flags).warnings == []
    assert run("explain", *flags).warnings == []


def test_addresses_that_nobody_is_reached_by() -> None:
    """Loopback, link-local and the address that an earlier installation left are none."""
    _addresses("10.0.0.5/32", "fe80::5/64", "::6/128")
    assert run(*CAPTURE, "--dry-run").warnings == []


def test_many_addresses_are_one_line() -> None:
    """The first three by name, the rest by number."""
    _addresses("10.0.0.5/32", *(f"fd00::{number}/128" for number in range(10, 15)))
    (warning,) = run(*CAPTURE, "--dry-run").warnings
    assert warning.startswith("IPv6 addresses fd00::")
    assert " and 2 more: not captured" in warning


@pytest.mark.parametrize("backend", BACKENDS)
def test_live_rules_decide_for_explain(backend: str) -> None:
    """With --live the rules that are there count, and not those of the flags."""
    _addresses("10.0.0.5/32", "fd00::5/128")
    assert run("explain", "--live").warnings == []
    install(backend, *CAPTURE)
    assert run("explain", "--live").warnings == [LINE.format("--dual-stack")]
    assert run("explain", "--live", "--strict").status == 2
    install(backend, *CAPTURE, "--dual-stack", "--reconcile")
    assert run("explain", "--live").warnings == []


def test_an_application_as_the_proxys_user_is_told_of_live_rules() -> None:
    """Without any capture flag: the rules say what is meant to be captured."""
    _addresses("10.0.0.5/32")
    install("legacy", "-i", "10.0.0.0/8", "-q", "8080")
    (warning,) = run("explain", "--live", "--uid", "1337").warnings
    assert "an application that runs as the proxy's uid 1337 and gid 1337 escapes" in warning


def test_what_can_not_be_captured_is_told_when_installing() -> None:
    """And nothing is installed with --strict."""
    _addresses("10.0.0.5/32")
    flags = ("-u", "1000", "-i", "*", "-b", "")
    dry = run(*flags, "--dry-run")
    assert len(dry.warnings) == 2
    strict = run(*flags, "--strict")
    assert (strict.status, strict.errors) == (2, [f"{line} (--strict)" for line in dry.warnings])
    assert "nothing to do" in run("clean").err
    done = run(*flags)
    assert (done.status, done.warnings) == (0, dry.warnings)


@pytest.mark.parametrize("flag", ["--cleanup-only", "--skip-rule-apply"])
def test_where_no_rules_are_made_none_are_judged(flag: str) -> None:
    """A clean-up, and a run that installs nothing, say nothing about the plan."""
    _addresses("10.0.0.5/32", "fd00::5/128")
    result = run(flag, "--strict")
    assert (result.status, result.warnings, result.errors) == (0, [], [])


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize(
    "gone", [("rule", "del", "fwmark", "1337"), ("route", "flush", "table", "133")]
)
def test_the_validation_needs_the_policy_route(family: str, gone: tuple[str, ...]) -> None:
    """Without the rule or its route, in either family, nothing that TPROXY captures arrives."""
    _addresses("10.0.0.5/32", "fd00::5/128")
    flags = (*CAPTURE, "-m", "TPROXY", "--dual-stack", "--run-validation", "--probe-timeout", "1s")
    assert run(*flags).status == 0
    command("ip", family, *gone)
    result = run(*flags, "--skip-rule-apply")
    assert result.status == 126
    (problem,) = result.errors
    assert problem.startswith(f"IPv{family[1]}: the policy route is missing")
