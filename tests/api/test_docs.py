"""The examples of docs/api.md are run as they stand."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

from tests.namespaces import why_not

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
FLAGS = doctest.NORMALIZE_WHITESPACE


def failures(text: str) -> int:
    """How many examples of a text do not print what they say, which is reported on stdout."""
    text = text.replace("```python\n", "").replace("```", "")
    test = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    return doctest.DocTestRunner(optionflags=FLAGS).run(test).failed


def test_what_needs_no_privilege() -> None:
    """All but the last section."""
    assert not failures(PAGE.read_text(encoding="utf-8").partition("## Installing")[0])


@pytest.mark.kernel
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_all_of_them() -> None:
    """The whole page, in a network namespace of its own."""
    program = "from tests.api import test_docs as page\nimport sys\n"
    program += 'sys.exit(page.failures(page.PAGE.read_text(encoding="utf-8")))'
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", program],
        capture_output=True,
        encoding="utf-8",
        check=False,
        cwd=PAGE.parents[1],
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
