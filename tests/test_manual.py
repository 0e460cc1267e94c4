"""docs/man has the pages of the commands as they are, and they are what man can print."""

from __future__ import annotations

import re
import subprocess
import tomllib

import click
import pytest

from istio_iptables.commands.load import PROGRAM
from istio_iptables.commands.options import SettingsCommand
from istio_iptables.commands.root import root
from tests.manual import FOLDER, pages

PAGES = pages()
NAMES = ("", *root.list_commands(click.Context(root)))


def mandoc(name: str, *options: str) -> str:
    """What mandoc makes of a page."""
    done = subprocess.run(
        ("mandoc", *options, name), cwd=FOLDER, capture_output=True, check=False, encoding="utf-8"
    )
    return done.stdout


def test_the_pages_are_those_of_the_program() -> None:
    """Written by python -m tests.manual --write."""
    assert {each.name: each.read_text(encoding="utf-8") for each in FOLDER.iterdir()} == PAGES


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_a_page_with_all_that_its_help_says(name: str) -> None:
    """Each option or command with its text, each example, and the exit statuses."""
    top = click.Context(root, info_name=PROGRAM)
    command = root.get_command(top, name) if name else root
    assert isinstance(command, SettingsCommand)
    page = f"{PROGRAM}-{name}.1" if name else f"{PROGRAM}.1"
    # One long line a paragraph.
    printed = mandoc(page, "-Tascii", "-Owidth=1000")
    # A letter that is struck over itself is bold.
    lines = {" ".join(re.sub(".\b", "", line).split()) for line in printed.splitlines()}
    text = "\n".join(lines)
    for section in command.sections(top):
        assert section.title.upper() in lines
        for term, explanation in section.rows:
            about = " ".join(explanation.split())
            # A short one stands beside its explanation.
            assert lines >= {about, term} or f"{term} {about}" in lines, term
    for example in command.examples:
        assert example.line in lines
    for part in (command.help or "").split() + (command.epilog or "").split()[2:]:
        assert part.rstrip(";.") in text


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wrong_with_a_page(name: str) -> None:
    """There is nothing that mandoc warns of."""
    assert mandoc(name, "-Tlint", "-Wwarning") == ""


def test_a_package_has_them() -> None:
    """Where man looks below a prefix."""
    with (FOLDER.parents[1] / "pyproject.toml").open("rb") as file:
        files = tomllib.load(file)["tool"]["setuptools"]["data-files"]
    assert files == {"share/man/man1": ["docs/man/*.1"]}
