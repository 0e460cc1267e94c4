"""The golden cases: a folder each, described in golden/README.md.

``python -m tests.golden`` tells which cases differ; with ``--write`` it rewrites them.
"""

from __future__ import annotations

import difflib
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from tests.program import Result, run

__all__ = ["GOLDEN", "Case", "cases", "difference", "write"]

GOLDEN = Path(__file__).parent.parent / "golden"


class Case(NamedTuple):
    """One folder of golden/."""

    folder: Path
    about: str
    arguments: list[str]
    environment: dict[str, str]

    @property
    def name(self) -> str:
        """What the case is called: the folder's name."""
        return self.folder.name

    @property
    def expected(self) -> str:
        """The text that stdout is to be; "" while there is none."""
        return _read(self.folder / "expected")

    @property
    def warnings(self) -> str:
        """The text that stderr is to be; mostly nothing."""
        return _read(self.folder / "warnings")

    @property
    def format(self) -> str:
        """The value of --format in the arguments."""
        after = [*self.arguments, "--format", "save"]
        return after[after.index("--format") + 1]

    def run(self) -> Result:
        """What the program makes of the case, in its folder and with its environment alone."""
        return run(self.arguments, self.environment, self.folder)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def cases() -> list[Case]:
    """Every case there is, by name."""
    return [_case(path.parent) for path in sorted(GOLDEN.glob("*/arguments"))]


def _case(folder: Path) -> Case:
    lines = _read(folder / "environment").splitlines()
    return Case(
        folder,
        _read(folder / "about").strip(),
        shlex.split(_read(folder / "arguments")),
        dict(line.split("=", 1) for line in lines),
    )


def difference(case: Case, result: Result) -> str:
    """What *result* has otherwise than the case expects, as a unified diff; "" if nothing."""
    return "".join(
        line if line.endswith("\n") else f"{line}\n"
        for name, expected, got in (
            ("expected", case.expected, result.out),
            ("warnings", case.warnings, result.err),
        )
        for line in difflib.unified_diff(
            expected.splitlines(keepends=True),
            got.splitlines(keepends=True),
            f"golden/{case.name}/{name}",
            "what the program printed",
        )
    )


def write(case: Case, result: Result) -> None:
    """Make *result* what the case expects."""
    for name, text in (("expected", result.out), ("warnings", result.err)):
        path = case.folder / name
        if text:
            path.write_text(text, encoding="utf-8")
        else:
            path.unlink(missing_ok=True)


def _main(arguments: list[str]) -> int:
    writing = arguments == ["--write"]
    if arguments and not writing:
        print("usage: python -m tests.golden [--write]", file=sys.stderr)
        return 2
    status = 0
    for case in cases():
        result = case.run()
        if result.status != 0:
            print(f"{case.name}: exit {result.status}\n{result.err}", end="", file=sys.stderr)
            status = 1
        elif changed := difference(case, result):
            print(changed, end="")
            if writing:
                write(case, result)
                print(f"{case.name}: written")
            else:
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
