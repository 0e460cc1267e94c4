"""The manual pages of docs/man: what the help says, in roff.

``python -m tests.manual --write`` writes them again, as ``make docs`` does.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from istio_iptables import __version__
from istio_iptables.commands.load import PROGRAM
from istio_iptables.commands.root import root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_iptables.commands.options import SettingsCommand

FOLDER = Path(__file__).parent.parent / "docs" / "man"

#: What roff reads as something else, or prints as another letter.
_SPECIAL = str.maketrans(
    {
        "\\": r"\e",
        "-": r"\-",
        "'": r"\(aq",
        '"': r"\(dq",
        "`": r"\(ga",
        "^": r"\(ha",
        "~": r"\(ti",
    }
)
#: When the version was made: a page says it, and is the same whenever it is written.
_DATE = "2026-11-25"
_WIDTH = 78
_STATUS = "Exit status: "
#: Pages of others.
_BESIDE = ("iptables(8)", "iptables-save(8)", "nft(8)", "ip-netns(8)")


def pages() -> dict[str, str]:
    """The text of each page by the name of its file: one of the program, one of each command."""
    top = click.Context(root, info_name=PROGRAM)
    commands = next(each.rows for each in root.sections(top) if each.title == "Commands")
    names = [PROGRAM, *(f"{PROGRAM}-{name}" for name, _ in commands)]
    abouts = ["Redirect a pod's traffic to Envoy.", *(about for _, about in commands)]
    contexts = [top]
    for name, _ in commands:
        command = cast("click.Command", root.get_command(top, name))
        contexts.append(click.Context(command, info_name=name, parent=top))
    return {
        f"{name}.1": "".join(f"{line}\n" for line in _page(name, about, context, names))
        for name, about, context in zip(names, abouts, contexts, strict=True)
    }


def _page(name: str, about: str, ctx: click.Context, names: list[str]) -> Iterator[str]:
    command = cast("SettingsCommand", ctx.command)
    yield r".\" Made from what --help says: python -m tests.manual --write"
    yield f'.TH {name.upper().translate(_SPECIAL)} 1 "{_DATE}" "{PROGRAM} {__version__}"'
    # Names of variables and options are not to be broken.
    yield from (".nh", ".ad l")
    yield ".SH NAME"
    yield _text(f"{name} - {about[0].lower()}{about[1:].rstrip('.')}")
    yield ".SH SYNOPSIS"
    yield f".B {ctx.command_path.translate(_SPECIAL)}"
    yield from map(_text, command.collect_usage_pieces(ctx))
    yield ".SH DESCRIPTION"
    yield _text(command.help or "")
    for section in command.sections(ctx):
        yield f'.SH "{_text(section.title.upper())}"'
        for term, explanation in section.rows:
            yield from (".TP", f".B {_text(term)}", _text(explanation))
    if command.epilog:
        yield ".SH EXIT STATUS"
        # "0 done; 1 failed": each on a line.
        yield ".PD 0"
        for each in command.epilog.removeprefix(_STATUS).rstrip(".").split("; "):
            status, _, meaning = each.partition(" ")
            yield from (".TP", f".B {status}", _text(meaning))
        yield ".PD"
    yield ".SH EXAMPLES"
    for number, example in enumerate(command.examples):
        if number:
            yield ".PP"
        yield _text(f"{example.about[0].upper()}{example.about[1:]}")
        yield from (".PP", ".RS 4", ".nf", example.line.translate(_SPECIAL), ".fi", ".RE")
    yield ".SH SEE ALSO"
    others = [f"{each}(1)" for each in (names[1:] if name == PROGRAM else names[:1])]
    yield _text(", ".join((*others, *_BESIDE)))


def _text(text: str) -> str:
    """Words of a paragraph, on lines of a length that ``mandoc -T lint`` likes."""
    lines = textwrap.wrap(
        " ".join(text.split()).translate(_SPECIAL),
        _WIDTH,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(rf"\&{line}" if line.startswith(".") else line for line in lines)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.manual --write")
    FOLDER.mkdir(exist_ok=True)
    for each in FOLDER.glob("*.1"):
        each.unlink()
    for name, page in pages().items():
        (FOLDER / name).write_text(page, encoding="utf-8")
