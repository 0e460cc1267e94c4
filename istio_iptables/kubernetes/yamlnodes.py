"""YAML text to nodes that know their value and their place in it; YAML 1.1 as Kubernetes' Go library reads it."""

from __future__ import annotations

import re
from base64 import b64decode
from contextlib import suppress
from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING, Any

import yaml

from istio_iptables.errors import UsageProblems
from istio_iptables.text import clip, excerpt

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["YamlNode", "between_quotes", "plain_value", "read_nodes", "resolve"]

#: Written in C, as a port of the library that Go's was ported from: eight times as fast.
_Parser: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
#: An alias may stand for a document many times; no manifest has as many values.
_MOST_VALUES = 1_000_000
_DEEPEST = 100

_WORDS: dict[str, Any] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "off", "Off", "OFF"), False),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("~", "null", "Null", "NULL", ""), None),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_INTEGER = re.compile(
    r"[-+]?(?:(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+)|0([0-7]+)|(0|[1-9][0-9]*))"
)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_FIRST = frozenset("-+.0123456789")
#: What Go has whole numbers for; a larger one is a float there.
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
_LONGEST = len(f"-{2**64:#b}")
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset({f"{_TAG}{each}" for each in ("int", "float", "bool", "null")})
_MERGE = f"{_TAG}merge"


class YamlNode:
    """A value of a text, and where in the text it stands."""

    __slots__ = ("aliased", "end", "flow", "key_column", "pairs", "start", "value")

    def __init__(self, start: int, end: int) -> None:
        #: Letters of the text, counted from its beginning.
        self.start = start
        self.end = end
        #: Of a scalar; of a collection that of ``plain_value``.
        self.value: Any = None
        #: Of a collection: the node of each key, None in a list, and of its value; else None.
        self.pairs: list[tuple[YamlNode | None, YamlNode]] | None = None
        self.flow = False
        #: Whether an alias stands for it, so that others are told by the same text.
        self.aliased = False
        #: Where on their lines the keys of a mapping begin; a list has -1.
        self.key_column = -1


def plain_value(node: YamlNode) -> Any:  # noqa: ANN401 - of YAML
    """The value of *node*, which shares nothing with another."""
    if node.pairs is None:
        # Only as a key it merges.
        return "<<" if node.value is _Merge else node.value
    if node.key_column < 0:
        return [plain_value(each) for _, each in node.pairs]
    found: dict[Any, Any] = {}
    for key, each in node.pairs:
        if key is None:
            continue
        if key.value is _Merge:
            # Go's library has << stand over what is before it too.
            for layer in reversed(each.pairs or []) if each.key_column < 0 else [(None, each)]:
                found |= plain_value(layer[1])
        else:
            found[key.value] = plain_value(each)
    return found


class _Merge:
    """The key ``<<``."""


def read_nodes(text: str, name: str, doubles: list[str] | None = None) -> list[YamlNode]:
    """The documents of YAML or JSON *text*; raises UsageProblems for no YAML, which *name* is called.

    A line is added to *doubles* for each key that a mapping has twice.
    """
    try:
        return list(_Reader(text, name, doubles).documents())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        reason = error.problem or error.context or "is no YAML"
        raise UsageProblems([f"{name}: {line}{clip(reason)}"]) from error
    except UnicodeEncodeError as error:
        raise UsageProblems([f"{name}: is no UTF-8"]) from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise UsageProblems([f"{name}: {clip(' '.join(str(error).split()))}"]) from error
    except RecursionError as error:
        raise UsageProblems([f"{name}: is nested too deep"]) from error


class _Reader:
    """One text's events, read to nodes."""

    def __init__(self, text: str, name: str, doubles: list[str] | None) -> None:
        # A mark of the order of bytes is no part of the text, but counts as a letter of it.
        self._before = len(text) - len(text.removeprefix("\ufeff"))
        self._events: Iterator[Any] = yaml.parse(text[self._before :], Loader=_Parser)
        self._name = name
        self._doubles = doubles
        self._anchors: dict[str, YamlNode] = {}
        self._count = 0

    def documents(self) -> Iterator[YamlNode]:
        """The root of each document, empty ones left out."""
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors = {}
                root = self._node(next(self._events), 0)
                if root.pairs is not None or root.value is not None:
                    yield root

    def _node(self, event: Any, depth: int) -> YamlNode:  # noqa: ANN401 - of PyYAML
        self._count += 1
        if depth > _DEEPEST or self._count > _MOST_VALUES:
            message = "is nested too deep" if depth > _DEEPEST else "holds too many values"
            raise ValueError(message)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        node = YamlNode(event.start_mark.index + self._before, event.end_mark.index + self._before)
        if isinstance(event, yaml.ScalarEvent):
            node.value = _scalar(event)
            if isinstance(node.value, float) and not isfinite(node.value):
                message = f"{clip(event.value)} is no value of JSON"
                raise _mistake(event, message)
            if event.anchor is not None:
                self._anchors[event.anchor] = node
            return node
        node.pairs = []
        node.flow = bool(event.flow_style)
        mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in {None, "!", f"{_TAG}{'map' if mapping else 'seq'}"}:
            raise _tagged(event)
        if mapping:
            self._read_mapping(node, event, depth)
        else:
            self._read_list(node, depth)
        if event.anchor is not None:
            # Known from its end on: nothing is in itself.
            self._anchors[event.anchor] = node
        return node

    def _read_list(self, node: YamlNode, depth: int) -> None:
        pairs: list[tuple[YamlNode | None, YamlNode]] = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                node.end = self._end(node, pairs, event)
                break
            pairs.append((None, self._node(event, depth + 1)))
        node.pairs = pairs

    def _read_mapping(self, node: YamlNode, start: Any, depth: int) -> None:  # noqa: ANN401 - of PyYAML
        node.key_column = start.start_mark.column
        pairs: list[tuple[YamlNode | None, YamlNode]] = []
        seen: set[Any] = set()
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                node.end = self._end(node, pairs, event)
                break
            key = self._node(event, depth + 1)
            if key.pairs is not None:
                raise _mistake(event, "a key is no text")
            if not pairs:
                # The mapping itself begins with its anchor, if it has one.
                node.key_column = event.start_mark.column
            value = self._node(next(self._events), depth + 1)
            if key.value is _Merge and not _merges(value):
                raise _mistake(event, "<< is given no mapping to merge")
            if key.value in seen and key.value is not _Merge and self._doubles is not None:
                line = event.start_mark.line + 1
                # An alias has no text of its own.
                written = str(getattr(event, "value", key.value))
                self._doubles.append(
                    f"{self._name}: line {line}: {clip(written)} is there twice: the last"
                    " one counts here, and Kubernetes may refuse it"
                )
            seen.add(key.value)
            pairs.append((key, value))
        node.pairs = pairs

    def _end(
        self,
        node: YamlNode,
        pairs: list[tuple[YamlNode | None, YamlNode]],
        event: Any,  # noqa: ANN401 - of PyYAML
    ) -> int:
        """Where a collection ends: in block style the parser says where the next one begins."""
        if node.flow or not pairs:
            return int(event.end_mark.index) + self._before
        return pairs[-1][1].end

    def _alias(self, event: Any) -> YamlNode:  # noqa: ANN401 - of PyYAML
        found = self._anchors.get(event.anchor)
        if found is None:
            raise _mistake(event, f"found undefined alias {event.anchor!r}")
        self._count += _size(found, _MOST_VALUES - self._count)
        node = YamlNode(event.start_mark.index + self._before, event.end_mark.index + self._before)
        node.value, node.pairs, node.key_column = found.value, found.pairs, found.key_column
        found.aliased = node.aliased = node.flow = True
        return node


def _merges(value: YamlNode) -> bool:
    if value.pairs is None:
        return False
    return value.key_column >= 0 or all(
        each.pairs is not None and each.key_column >= 0 for _, each in value.pairs
    )


def _size(node: YamlNode, most: int) -> int:
    """How many values *node* has; raises ValueError for more than *most*."""
    count, left = 0, [node]
    while left:
        each = left.pop()
        count += 1
        if count > most:
            message = "holds too many values"
            raise ValueError(message)
        left += [value for _, value in each.pairs or ()]
    return count


def _mistake(event: Any, message: str) -> yaml.MarkedYAMLError:  # noqa: ANN401 - of PyYAML
    return yaml.MarkedYAMLError(problem=message, problem_mark=event.start_mark)


def _tagged(event: Any) -> yaml.MarkedYAMLError:  # noqa: ANN401 - of PyYAML
    return _mistake(event, f"a value has the tag {event.tag!r}, which is none of JSON's")


def _scalar(event: Any) -> Any:  # noqa: ANN401 - of YAML
    text: str = event.value
    if event.tag is None:
        return resolve(text) if event.implicit[0] else text
    if event.tag in {"!", f"{_TAG}str"}:
        return text
    if event.tag in _PLAIN_TAGS:
        return resolve(text)
    if event.tag == f"{_TAG}binary":
        try:
            return b64decode(text, validate=True).decode()
        except ValueError as error:
            raise _mistake(event, "a value with the tag !!binary is no text in base64") from error
    if event.tag == _MERGE:
        return _Merge
    raise _tagged(event)


@lru_cache(4096)
def resolve(text: str) -> Any:  # noqa: ANN401 - of YAML
    """What a text without quotes is."""
    if text in _WORDS:
        return _WORDS[text]
    if text == "<<":
        return _Merge
    if text[0] not in _FIRST:
        return text
    digits = text if text[0] == "." else text.replace("_", "")
    if (found := _INTEGER.fullmatch(digits)) and len(digits) <= _LONGEST:
        with_base, octal, _ = found.groups()
        number = int(digits, 0) if with_base else int(digits, 8 if octal else 10)
        if _SMALLEST <= number <= _LARGEST:
            return number
    if not _FLOAT.fullmatch(digits):
        return text
    found_float = float(digits)
    return found_float if isfinite(found_float) else text


def between_quotes(text: str, name: str) -> str:
    """*text* as it is read where a template has it between double quotes; raises UsageProblems if it can't be.

    *name* is what a message calls it.
    """
    if text.isprintable() and not {'"', "\\"} & set(text):
        return text
    with suppress(UsageProblems):
        found = [each.value for each in read_nodes(f'"{text}"', name)]
        if len(found) == 1 and isinstance(found[0], str):
            return found[0]
    message = f"{name}: {excerpt(text)} can't stand between the double quotes of Istio's template"
    raise UsageProblems([message])
