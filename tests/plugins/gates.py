"""What continuous integration adds to passing tests: none was skipped.

Loaded by .ci/test; without CI=true it only reports.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

#: Node ids of tests that may be skipped where CI runs, each with a reason beside it.
EXPECTED_SKIPS: frozenset[str] = frozenset()

_failures = pytest.StashKey[list[str]]()
_skipped = pytest.StashKey[list[str]]()


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() == "true"


class _Skips:
    """Remembers what was skipped; an expected failure (xfail) is not a skip."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._config.stash[_skipped].append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._config.stash[_skipped].append(report.nodeid)


def pytest_configure(config: pytest.Config) -> None:
    """Begin with nothing skipped and nothing failed."""
    config.stash[_skipped] = []
    config.stash[_failures] = []
    config.pluginmanager.register(_Skips(config))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Judge when all tests have run."""
    result = yield
    failures = session.config.stash[_failures]
    failures += (
        f"skipped: {name}" for name in session.config.stash[_skipped] if name not in EXPECTED_SKIPS
    )
    if _in_ci() and failures:
        session.testsfailed += 1
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what is not good enough, above pytest's closing line."""
    failures = terminalreporter.config.stash[_failures]
    if failures:
        verdict = "CI fails because of these" if _in_ci() else "CI would fail because of these"
        terminalreporter.section(verdict)
        for failure in failures:
            terminalreporter.write_line(failure)
