"""A text of YAML with other values in it: what does not change keeps its letters, comments and all.

ruamel.yaml keeps comments too, but takes 27 ms for a Deployment and its pod once injected, and writes
the whole document in its own way.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes.yamlnodes import plain_value, read_nodes
from istio_iptables.kubernetes.yamltext import write

if TYPE_CHECKING:
    from istio_iptables.kubernetes.yamlnodes import YamlNode

__all__ = ["rewritten"]


_COMMENT = re.compile(r"(?:^|[ \t])#", re.MULTILINE)


class _Edit(NamedTuple):
    start: int
    end: int
    text: str


class _CannotKeep(Exception):
    """The text can't stay beside the new value."""


def rewritten(text: str, roots: list[YamlNode], values: list[Any]) -> tuple[str, list[int]]:
    """*text*, whose documents are *roots*, with *values* for them; and the lines where comments are lost.

    What stands in one line is written anew in several, and so is a whole document that can't be
    changed otherwise: where aliases stand for what changes.
    """
    edits: list[_Edit] = []
    lost: list[int] = []
    newline = "\r\n" if "\r\n" in text else "\n"
    for root, value in zip(roots, values, strict=True):
        if _same(plain_value(root), value):
            continue
        change = _Change(text, newline)
        if not (change.kept(root, value) and _holds(text, root, change.edits, value)):
            change = _Change(text, newline)
            change.whole(root, value, root.end)
            if not _holds(text, root, change.edits, value):
                # A comment behind a block of text would be a part of it.
                change = _Change(text, newline)
                change.whole(root, value, text.find("\n", root.end) % (len(text) + 1))
        edits += change.edits
        lost += [
            text.count("\n", 0, each.start) + 1
            for each in change.edits
            if _COMMENT.search(text, each.start, each.end)
        ]
    return _applied(text, edits, 0, len(text)), lost


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401 - of YAML
    """Whether two values are one, 1 and true told apart."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(_same(each, other[key]) for key, each in one.items())
        )
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _applied(text: str, edits: list[_Edit], start: int, end: int) -> str:
    parts: list[str] = []
    for edit in sorted(edits, key=lambda each: each.start):
        parts += (text[start : edit.start], edit.text)
        start = edit.end
    return "".join([*parts, text[start:end]])


def _holds(text: str, root: YamlNode, edits: list[_Edit], value: Any) -> bool:  # noqa: ANN401 - of YAML
    """Whether the document at *root* reads as *value* with its *edits*."""
    first = text.rfind("\n", 0, root.start) + 1
    last = max([root.end, *(edit.end for edit in edits)])
    try:
        found = read_nodes(_applied(text, edits, first, last), "")
    except UsageProblems:
        return False
    return len(found) == 1 and _same(plain_value(found[0]), value)


class _Change:
    """Collects the edits that make one value of another."""

    def __init__(self, text: str, newline: str) -> None:
        self.edits: list[_Edit] = []
        self._text = text
        self._newline = newline

    def whole(self, root: YamlNode, value: Any, end: int) -> None:  # noqa: ANN401 - of YAML
        """Write a document anew, in place of what is up to *end*."""
        column = self._column(root.start)
        before = self._text[root.start - column : root.start]
        if before.strip():
            # On the line of the marker between documents.
            self._replace(root.start, end, f"{self._newline}{self._written(value, 0)}")
        else:
            self._replace(root.start - column, end, self._written(value, 0))

    def kept(self, node: YamlNode, value: Any) -> bool:  # noqa: ANN401 - of YAML
        """Edit *node* to hold *value*; false, without edits, if it is to be written anew."""
        before = len(self.edits)
        try:
            self._node(node, value)
        except _CannotKeep:
            del self.edits[before:]
            return False
        return True

    def _node(self, node: YamlNode, value: Any) -> None:  # noqa: ANN401 - of YAML
        if node.aliased or node.flow or not node.pairs:
            raise _CannotKeep
        if isinstance(value, dict) and node.key_column >= 0:
            self._mapping(node, value)
        elif isinstance(value, list) and node.key_column < 0:
            self._list(node, value)
        else:
            raise _CannotKeep

    def _mapping(self, node: YamlNode, value: dict[Any, Any]) -> None:
        old = plain_value(node)
        pairs = {key.value: (key, each) for key, each in node.pairs or () if key is not None}
        if len(pairs) < len(node.pairs or ()) or not old.keys() <= value.keys():
            raise _CannotKeep
        added = {}
        for key, each in value.items():
            if key in old and _same(old[key], each):
                continue
            if key in pairs:
                key_node, value_node = pairs[key]
                if not self.kept(value_node, each):
                    written = self._written({key: each}, node.key_column)
                    self._replace(key_node.start, value_node.end, written)
            else:
                added[key] = each
        if added:
            self._insert(self._line_behind(node.end, node.key_column), added, node.key_column)

    def _list(self, node: YamlNode, value: list[Any]) -> None:
        items = [each for _, each in node.pairs or ()]
        old = [plain_value(each) for each in items]
        column = self._dash_column(node, items[0])
        by_place = len(old) == len(value) and not any(map(_name, old))
        number = 0
        new: list[Any] = []
        for each in value:
            if number == len(items) or not (by_place or _alike(old[number], each)):
                new.append(each)
                continue
            if new:
                self._insert(self._line_of(items[number].start), new, column)
                new = []
            item = items[number]
            if not _same(old[number], each) and not self.kept(item, each):
                self._replace(item.start, item.end, self._written(each, self._column(item.start)))
            number += 1
        if number < len(items):
            raise _CannotKeep  # one is gone, or they are in another order
        if new:
            self._insert(self._line_behind(node.end, column), new, column)

    def _column(self, at: int) -> int:
        return at - self._line_start(at)

    def _dash_column(self, node: YamlNode, item: YamlNode) -> int:
        """Where the items of a list begin, with their dashes; the list itself may begin with an anchor."""
        if self._text[node.start] == "-":
            return self._column(node.start)
        line = self._text[self._line_start(item.start) : item.start]
        return len(line) - len(line.lstrip(" "))

    def _line_start(self, at: int) -> int:
        return self._text.rfind("\n", 0, at) + 1

    def _written(self, value: Any, column: int) -> str:  # noqa: ANN401 - of YAML
        return write(value, " " * column).replace("\n", self._newline)

    def _replace(self, start: int, end: int, written: str) -> None:
        # What ends with a line, such as a block of text, leaves the line's end where it is.
        end = start + len(self._text[start:end].rstrip("\r\n"))
        # The last line needs an end, which may be a part of its value.
        written += self._newline * (end == len(self._text))
        self.edits.append(_Edit(start, end, written))

    def _insert(self, at: int, value: Any, column: int) -> None:  # noqa: ANN401 - of YAML
        lines = f"{' ' * column}{self._written(value, column)}{self._newline}"
        if at == len(self._text) and not self._text.endswith("\n"):
            lines = f"{self._newline}{lines}"
        self.edits.append(_Edit(at, at, lines))

    def _line_of(self, at: int) -> int:
        """The beginning of the line of an item, before its comments."""
        start = self._line_start(at)
        while start:
            above = self._line_start(start - 1)
            if not self._text[above:start].lstrip(" ").startswith("#"):
                break
            start = above
        return start

    def _line_behind(self, at: int, column: int) -> int:
        """The beginning of the line behind *at*, and behind comments as deep as *column*."""
        text = self._text
        if at == 0 or text[at - 1] != "\n":
            at = text.find("\n", at) + 1 or len(text)
        while at < len(text):
            end = text.find("\n", at) + 1 or len(text)
            line = text[at:end]
            if not line.lstrip(" ").startswith("#") or len(line) - len(line.lstrip(" ")) < column:
                break
            at = end
        return at


def _name(item: Any) -> str:  # noqa: ANN401 - of YAML
    found = item.get("name") if isinstance(item, dict) else None
    return found if isinstance(found, str) else ""


def _alike(one: Any, other: Any) -> bool:  # noqa: ANN401 - of YAML
    """Whether two items of a list are the same one: by their names, or as values."""
    return _name(one) == _name(other) if _name(one) else _same(one, other)
