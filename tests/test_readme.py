"""The README, and what it hands on to, say what the program is."""

from __future__ import annotations

import pytest

from istio_iptables.settings.options import SETTINGS
from tests.kernel.netns import why_not
from tests.readme import OPTIONS, TEXTS, Shown, agrees, blocks, outputs, with_options

BLOCKS = [block for path in TEXTS for block in blocks(path.read_text(encoding="utf-8"))]


def test_the_options_are_those_of_the_program() -> None:
    """The tables of options are made from the settings (python -m tests.readme --write)."""
    text = OPTIONS.read_text(encoding="utf-8")
    assert with_options(text) == text
    assert all(each.help.replace("*", "\\*") in text for each in SETTINGS)


@pytest.mark.kernel
@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize("block", BLOCKS, ids=[block[-1].command.strip()[:60] for block in BLOCKS])
def test_each_command_prints_what_is_shown(block: list[Shown]) -> None:
    """Every console block, run in a namespace of its own, prints what stands below it."""
    for each, printed in zip(block, outputs(block), strict=True):
        assert agrees(each.output, printed), f"{each.command}{printed}"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\n", "a\nb\n", False),
        ("a\n...\n", "a\nb\nc\n", True),
        ("...\nc\n", "a\nb\nc\n", True),
        ("a\n...\nc\n", "a\nc\n", True),
        ("a\n...\nc\n", "a\nd\n", False),
        ("a.c\n", "abc\n", False),
    ],
)
def test_what_may_be_left_out(shown: str, printed: str, *, same: bool) -> None:
    """Three dots on a line stand for any number of lines, and everything else for itself."""
    assert agrees(shown, printed) is same
