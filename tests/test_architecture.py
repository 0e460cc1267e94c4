"""docs/architecture.md is held to the code: what imports what, and the functions of each walk."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import istio_iptables

ROOT = Path(istio_iptables.__file__).parent
PAGE = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
GRAPH = re.search(r"```text\n(__main__ -> .*?)```", PAGE, re.DOTALL)
WALKS = re.findall(r"```text\n((?:cli|commands)\.\w+.*?)```", PAGE, re.DOTALL)


def room_of(path: Path) -> str:
    """The package, or the module beside the packages, that a file belongs to."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imported(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == ROOT.name:
            _, _, rest = (node.module or "").partition(".")
            names = [rest.split(".")[0]] if rest else [each.name for each in node.names]
            found |= {name for name in names if not name.startswith("__")}
    # Python's own socket and typing in small, which are for all of them.
    return found - {"sockets", "typed"}


def test_what_imports_what() -> None:
    """The list in the page is the one that the code makes, and every arrow leads down."""
    assert GRAPH
    drawn = {
        room: set(others.split(", "))
        for room, _, others in (line.partition(" -> ") for line in GRAPH[1].splitlines())
    }
    made: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        room = room_of(path)
        if room != "__init__":
            made.setdefault(room, set()).update(imported(path) - {room})
    assert {room: others for room, others in made.items() if others} == drawn
    rank = {room: number for number, room in enumerate(drawn)}
    for room, others in drawn.items():
        assert all(rank.get(other, len(rank)) > rank[room] for other in others), room


def test_no_two_classes_have_one_name() -> None:
    """A name in a traceback or a type tells which one it is."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py"))
    names = [
        node.name
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("walk", WALKS)
def test_the_walks_are_of_functions_that_exist(walk: str) -> None:
    """Each line begins with a function or class of the package."""
    names = [line.split()[0] for line in walk.splitlines()]
    assert len(names) > 5
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(f"{ROOT.name}.{module}"), attribute), name


def test_there_are_five_walks() -> None:
    """To text, to the kernel, back to settings, a packet's, and that of all packets."""
    assert len(WALKS) == 5
