"""README.md and docs/ show what the program does, and their links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import pytest

from istio_iptables.errors import IstioIptablesError
from istio_iptables.lab import envoy
from istio_iptables.settings.declarations import SETTINGS
from tests.namespaces import why_not
from tests.readme import (
    LINKED,
    OPTIONS,
    README,
    ROOT,
    TEXTS,
    Shown,
    agrees,
    anchors,
    blocks,
    links,
    outputs,
    with_options,
)

if TYPE_CHECKING:
    from pathlib import Path

CONTRACT = ROOT / "docs" / "contract.md"
#: The settings that Istio's program does not have.
OWN_SETTINGS = {"resolv_conf", "ip_family", "format", "only", "verbose", "strict", "json"} | {
    "nft_like_iptables",
    "nft_sets",
}
BLOCKS = [
    pytest.param(block, id=f"{path.name}: {block[-1].command.strip()[:60]}")
    for path in TEXTS
    for block in blocks(path.read_text(encoding="utf-8"))
]


def test_the_options_are_those_of_the_program() -> None:
    """The tables of options are made from the settings (python -m tests.readme --write)."""
    text = OPTIONS.read_text(encoding="utf-8")
    assert with_options(text) == text
    assert all(each.help.replace("*", "\\*") in text for each in SETTINGS)


@pytest.mark.kernel
@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize("block", BLOCKS)
def test_each_command_prints_what_is_shown(block: list[Shown]) -> None:
    """Every console block, run in a namespace of its own, prints what stands below it."""
    if any("istio-iptables lab" in each.command for each in block):
        try:
            envoy.find()
        except IstioIptablesError as error:
            pytest.skip(error.lines[0])
    for each, printed in zip(block, outputs(block), strict=True):
        assert agrees(each.output, printed), f"{each.command}{printed}"


def test_the_contract_has_the_settings_of_the_program() -> None:
    """Section 1 of the contract lists Istio's settings as the program reads them."""
    text = CONTRACT.read_text(encoding="utf-8")
    section = text.partition("\n## 1. ")[2].partition("\n## 2. ")[0]
    rows = {
        tuple(tuple(re.findall(r"`([-\w]+)`", cell)) for cell in line.split("|")[1:4])
        for line in section.splitlines()
        if line.startswith(("| `--", "| (none)"))
    }
    assert rows == {
        (
            (each.flag,) if each.on_command_line else (),
            (f"-{each.short}",) if each.short else (),
            each.environment,
        )
        for each in SETTINGS
        if each.name not in OWN_SETTINGS
    }


def test_the_readme_is_short() -> None:
    """The README is a front door: what is longer belongs into docs/."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", LINKED, ids=[path.name for path in LINKED])
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link names a file of the repository, and a heading that it has."""
    text = path.read_text(encoding="utf-8")
    dead = []
    for link in links(text):
        name, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = path.parent / name if name else path
        if not target.exists() or (
            anchor and anchor not in anchors(target.read_text(encoding="utf-8"))
        ):
            dead.append(link)
    assert not dead


def test_every_page_is_in_the_table_of_contents() -> None:
    """docs/README.md links to each page, and the README to the table."""
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    linked = set(links((ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    assert pages <= linked
    assert "docs/README.md" in links(README.read_text(encoding="utf-8"))


def test_the_description_on_pypi_stands_alone() -> None:
    """It has no link into the repository, which PyPI could not follow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    description = (ROOT / project["readme"]).read_text(encoding="utf-8")
    assert all(link.startswith("https://") for link in links(description))


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
