"""Templates of a pod: YAML files beside this one, with marks where a pod's own texts go.

- ``<annotation NAME>``, ``<label NAME>``, ``<value PATH>`` (Helm), ``<mesh PATH>``, ``<metadata NAME>``
  (an entry of proxyMetadata) and other names (marks.py) are looked up; with ``or`` the first that there
  is, and ``'text'`` is a text. A mark alone is replaced with the value, whatever its type; in a list, a
  list's items go in one by one. ``<filled ...>`` is nothing if it is empty, false or 0, and
  ``<number ...>`` a number, and nothing if it is 0.
- What a mark finds nothing for is left out: the key, the item, the text it stands in.
- A mapping with ``if`` is left out unless all that it names are there, and with ``unless`` if one is;
  ``NAME = text`` compares, ``has NAME`` takes an empty text for there. ``then`` stands for the mapping,
  and so does the first of ``first`` that is not left out.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import yaml

from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes.manifest import as_text
from istio_iptables.kubernetes.yamlnodes import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["fill", "template"]

_MARK = re.compile(r"<([^<>]+)>")
_EMPTY: tuple[object, ...] = (None, "", {}, [])
#: What is left out; null is a value of YAML too, and is left out as well.
_NOTHING = None


@cache
def template(name: str) -> dict[str, Any]:
    """The template *name* as it is written."""
    text = files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def fill(node: Any, look: Callable[[str], Any]) -> Any:  # noqa: ANN401 - of YAML
    """*node* of a template with its marks replaced; *look* finds what a name stands for, or None."""
    if isinstance(node, str):
        return _fill_text(node, look)
    if isinstance(node, list):
        items: list[Any] = []
        for each in node:
            found = fill(each, look)
            if isinstance(found, list):
                items += found
            elif found is not _NOTHING:
                items.append(found)
        return items or _NOTHING
    if isinstance(node, dict):
        return _fill_mapping(node, look)
    return node


def _fill_mapping(node: dict[str, Any], look: Callable[[str], Any]) -> Any:  # noqa: ANN401 - of YAML
    for key, wanted in (("if", True), ("unless", False)):
        asked = node.get(key, [])
        for each in asked if isinstance(asked, list) else [asked]:
            if _holds(each, look) != wanted:
                return _NOTHING
    if "then" in node:
        return fill(node["then"], look)
    if "first" in node:
        filled = (fill(each, look) for each in node["first"])
        return next((each for each in filled if each is not _NOTHING), _NOTHING)
    found = {k: fill(each, look) for k, each in node.items() if k not in {"if", "unless"}}
    return {key: each for key, each in found.items() if each is not _NOTHING}


def _fill_text(text: str, look: Callable[[str], Any]) -> Any:  # noqa: ANN401 - of YAML
    if whole := _MARK.fullmatch(text):
        return _find(whole[1], look)
    found = [_find(mark, look) for mark in _MARK.findall(text)]
    if any(each is _NOTHING for each in found):
        return _NOTHING
    texts = iter(found)
    return _MARK.sub(lambda _: as_text(next(texts)), text)


def _find(expression: str, look: Callable[[str], Any]) -> Any:  # noqa: ANN401 - of YAML
    how, _, rest = expression.partition(" ")
    found = _first(rest if how in {"filled", "number"} else expression, look)
    if how == "number" and found is not _NOTHING:
        # The template writes it without quotes: 010 is 8.
        number = resolve(found) if isinstance(found, str) else found
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 31:
            raise UsageProblems([f"{rest}: {as_text(found)} is no number"])
        found = number
    return found if found or how not in {"filled", "number"} else _NOTHING


def _first(expression: str, look: Callable[[str], Any]) -> Any:  # noqa: ANN401 - of YAML
    for each in expression.split(" or "):
        if each.startswith("'"):
            return each[1:-1]
        found = look(each)
        if found not in _EMPTY or (found == "" and each.startswith("annotation ")):
            return found
    return _NOTHING


def _holds(condition: str, look: Callable[[str], Any]) -> bool:
    expression, equals, wanted = condition.partition(" = ")
    if condition.startswith("has "):
        return _first(condition.removeprefix("has "), look) is not _NOTHING
    found = _first(expression, look)
    return as_text(found) == wanted if equals else bool(found)
