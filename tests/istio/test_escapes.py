"""What a plan lets past Envoy is told, by every command that works on a plan alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from istio_iptables.istio.checks import findings
from istio_iptables.istio.escapes import APPLICATIONS, worth_following
from istio_iptables.istio.plan import build
from tests.program import run
from tests.strategies import configs

if TYPE_CHECKING:
    from pathlib import Path

    from istio_iptables.settings.config import Config

ESCAPING = ["-u", "1000", "-i", "*", "-b", "*", "--ip-family", "ipv4"]


@given(configs())
def test_only_what_is_worth_following_has_findings(config: Config) -> None:
    """Where packets are not followed, to save the time, there is nothing to be found."""
    if not worth_following(config):
        plan = build(config)
        assert findings(plan.rulesets, plan.routes, config, APPLICATIONS) == ()


COMMANDS = (["--dry-run"], ["explain"], ["diff", "--golden", "/dev/null"])


@pytest.mark.parametrize("words", COMMANDS, ids=[words[0] for words in COMMANDS])
@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (ESCAPING, "an application that runs as the proxy's uid 1000 escapes"),
        ([*ESCAPING, "-u", "5", "-i", ""], "nothing outbound is captured"),
        (
            [*ESCAPING, "-u", "5-4294967294,0-7"],
            "nothing outbound is captured: --proxy-uid (-u) names",
        ),
        ([*ESCAPING, "-u", "1-64999"], "runs as the proxy's uid 1000 escapes"),
        ([*ESCAPING, "-u", "5", "-p", "15006"], "15006 is also the port of"),
        ([*ESCAPING, "-u", "5", "-b", "0"], "port 0 matches next to nothing"),
    ],
)
def test_every_command_says_the_same(words: list[str], flags: list[str], fragment: str) -> None:
    """A dry run, explain and diff; and --strict makes it an error with each of them."""
    (warning,) = run([*words, *flags]).warnings
    assert fragment in warning
    strict = run([*words, *flags, "--strict"])
    assert (strict.status, strict.out, strict.errors) == (2, "", [f"{warning} (--strict)"])


def test_explain_tells_of_the_direction_that_was_asked() -> None:
    """What is not captured inbound does not matter to a packet that leaves."""
    flags = ["explain", "-u", "5", "-i", "*", "--ip-family", "ipv4"]
    assert run(flags).warnings == []
    (warning,) = run([*flags, "--in"]).warnings
    assert warning.startswith("nothing inbound is captured")


def test_rules_of_a_file_are_not_the_plans(tmp_path: Path) -> None:
    """The flags may be left out where the rules are a file's: what they capture says nothing."""
    file = tmp_path / "rules"
    file.write_text(run(["--dry-run", *ESCAPING]).out)
    (warning,) = run(["explain", "--rules", str(file)]).warnings
    assert "an application that runs as the proxy's uid 1000 escapes" in warning
    file.write_text(run(["--dry-run", *ESCAPING, "-u", "5"]).out)
    assert run(["explain", "--rules", str(file)]).warnings == []
    (warning,) = run(["explain", "--rules", str(file), "--uid", "5", "--gid", "6"]).warnings
    assert "an application that runs as the proxy's uid 5 escapes" in warning
    # A proxy that is said to be another than the rules have is captured by them.
    (warning,) = run(["explain", "--rules", str(file), "-u", "6"]).warnings
    assert warning.startswith("what Envoy sends on for the application would be sent back")
