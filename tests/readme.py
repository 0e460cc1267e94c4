"""The parts of README.md and docs/ that the program can write itself: options, and output of commands.

``python -m tests.readme --write`` rewrites both, as ``make golden`` does for golden files.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from istio_iptables.settings.declarations import GROUPS, SETTINGS, Setting

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
OPTIONS = ROOT / "docs" / "options.md"
#: Its commands are run on a lab (tests/incidents.py).
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
#: The texts whose commands are run.
TEXTS = (README, *sorted({*(ROOT / "docs").glob("*.md")} - {TROUBLESHOOTING}))
#: All texts that link to each other.
LINKED = (
    *TEXTS,
    TROUBLESHOOTING,
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
)

_TABLE = re.compile(
    r"(?<=<!-- options: made from settings/declarations.py -->\n).*?(?=<!-- end -->)", re.DOTALL
)
_BLOCK = re.compile(r"(?<=```console\n).*?(?=^```)", re.DOTALL | re.MULTILINE)
#: The target of a link or a picture; text between ``[`` and ``]`` may go over lines.
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_PROMPT = "$ "
#: What a shell writes before the further lines of a command.
_FURTHER = "> "
#: A line of its own that stands for lines left out.
_ELISION = "..."
_ADDRESS = "ip link set lo up && ip address add 10.0.0.1/32 dev lo && "


def options_table() -> str:
    """All settings in one table, a group after the other as in ``--help``."""
    lines = ["", "| option | environment | default | |", "|---|---|---|---|"]
    for group in GROUPS:
        lines.append(f"| **{group.title}** | | | |")
        lines += (_row(setting) for setting in SETTINGS if setting.group is group)
    return "\n".join((*lines, "", ""))


def _row(setting: Setting) -> str:
    option = ""
    if setting.on_command_line:
        value = f" {setting.kind.value}" if setting.kind.value else ""
        option = ", ".join(
            f"`{spelling}`"
            for spelling in (setting.short and f"-{setting.short}", f"{setting.flag}{value}")
            if spelling
        )
    environment = ", ".join(f"`{name}`" for name in setting.environment)
    default = setting.default_note or (f"`{setting.default}`" if setting.default else "")
    cells = (option, environment, default, setting.help.replace("*", "\\*"))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


class Shown(NamedTuple):
    """A command of a text and what that shows of its output; both end with a newline."""

    command: str
    output: str


def with_options(text: str) -> str:
    """The text with the options as they are."""
    return _TABLE.sub(lambda _: options_table(), text)


def links(text: str) -> list[str]:
    """The targets of the links and pictures of a text, as they are written."""
    return _LINK.findall(_CODE.sub("", text))


def anchors(text: str) -> set[str]:
    """The names that a link to a heading of the text may have, as forges make them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in _HEADING.findall(_CODE.sub("", text))
    }


def blocks(text: str) -> list[list[Shown]]:
    """The commands of each console block; those of one block are run one after the other."""
    found = []
    for block in _BLOCK.findall(text):
        shown = []
        for part in re.split(rf"^{re.escape(_PROMPT)}", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            while output.startswith(_FURTHER):
                line, _, output = output.removeprefix(_FURTHER).partition("\n")
                command += f"\n{line}"
            shown.append(Shown(f"{command}\n", output))
        found.append(shown)
    return found


def outputs(block: list[Shown]) -> list[str]:
    """What the commands of a block print, stderr too, in a fresh namespace with one address."""
    end = "\x04"
    script = "".join(f"{{ {each.command}\n}} 2>&1; printf '\\004'\n" for each in block)
    program = Path(sys.executable).parent
    done = subprocess.run(
        ("unshare", "--net", "bash", "-c", _ADDRESS + f"{{\n{script}}}"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": f"{program}:{os.environ['PATH']}:/usr/sbin:/sbin"},
        check=True,
        timeout=120,
    )
    return done.stdout.split(end)[:-1]


def agrees(shown: str, printed: str) -> bool:
    """Whether *shown* is *printed*, but for lines left out where ``...`` stands."""
    pattern = "".join(
        "(?:.*\n)*" if line == f"{_ELISION}\n" else re.escape(line)
        for line in shown.splitlines(keepends=True)
    )
    return re.fullmatch(pattern, printed) is not None


def rewritten(text: str) -> str:
    """The text as the program has it; what a block leaves out stays out where it agrees."""

    def rewrite(match: re.Match[str]) -> str:
        block = blocks(f"```console\n{match[0]}```\n")[0]
        return "".join(
            _PROMPT
            + f"\n{_FURTHER}".join(each.command.splitlines())
            + "\n"
            + (each.output if agrees(each.output, printed) else printed)
            for each, printed in zip(block, outputs(block), strict=True)
        )

    return _BLOCK.sub(rewrite, with_options(text))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.readme --write")
    from tests import incidents

    for path, rewrite in (
        *((path, rewritten) for path in TEXTS),
        (TROUBLESHOOTING, incidents.rewritten),
    ):
        path.write_text(rewrite(path.read_text(encoding="utf-8")), encoding="utf-8")
