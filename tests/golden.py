"""The golden cases: a folder each, described in golden/README.md.

``python -m tests.golden`` tells which cases differ; with ``--write`` it rewrites them.
"""

from __future__ import annotations

import difflib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import click

from istio_iptables.commands.options import flags_given
from istio_iptables.commands.root import root
from istio_iptables.errors import IstioIptablesError
from istio_iptables.settings.converters import TRUE
from tests.program import Result, run

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GOLDEN", "BadCaseError", "Case", "cases", "difference", "write"]

_T = TypeVar("_T")

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


class BadCaseError(Exception):
    """A case that must not be run; one line a problem, each with the file's name."""


def cases() -> list[Case]:
    """Every case there is, by name.

    Raises BadCaseError if one of them can't be read, or would do more than print: nothing of
    golden/ is run then.
    """
    found, problems = [], []
    for path in sorted(GOLDEN.glob("*/arguments")):
        try:
            found.append(_case(path.parent))
        except BadCaseError as error:
            problems.append(str(error))
    if problems:
        raise BadCaseError("\n".join(problems))
    return found


def _case(folder: Path) -> Case:
    arguments = _parsed(folder / "arguments", shlex.split)
    if why := _why_not(arguments):
        message = f"{_shown(folder / 'arguments')}: {why}"
        raise BadCaseError(message)
    return Case(
        folder,
        _parsed(folder / "about", str.strip),
        arguments,
        _parsed(folder / "environment", _variables),
    )


def _variables(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if not equals:
            message = f"{line!r} is not NAME=value"
            raise ValueError(message)
        found[name] = value
    return found


def _parsed(path: Path, parse: Callable[[str], _T]) -> _T:
    """What *parse* makes of a file."""
    try:
        return parse(_read(path))
    except ValueError as error:
        message = f"{_shown(path)}: {error}"
        raise BadCaseError(message) from error


def _shown(path: Path) -> str:
    return str(path.relative_to(GOLDEN.parent))


def _why_not(arguments: list[str]) -> str:
    """Why these arguments must not be run: they are no dry run; "" if they are one.

    The program's own parser tells: a word --dry-run may be another option's value, and a later
    --dry-run=false takes it back. The environment does not count.
    """
    if arguments[:1] and arguments[0] in root.list_commands(click.Context(root)):
        return f"no dry run: {arguments[0]} is a command"
    try:
        context = root.make_context(root.name, list(arguments))
    except IstioIptablesError as error:
        return "; ".join(error.lines)
    except click.ClickException as error:
        return error.format_message()
    if flags_given(context).get("dry_run", "false") not in TRUE:
        return "no dry run: --dry-run is missing"
    return ""


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
    try:
        found = cases()
    except BadCaseError as error:
        print(error, file=sys.stderr)
        return 2
    status = 0
    for case in found:
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
