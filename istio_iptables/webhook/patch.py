"""JSON patches (RFC 6902): what makes one JSON document of another."""

from __future__ import annotations

import json
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["json_patch"]

#: Items of two lists that are compared with each other; of more, the list is replaced as a whole.
_MOST_PAIRS = 250_000


def json_patch(before: Any, after: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - of JSON
    """The operations that make *after* of *before*: add, replace and remove, in the order of *before*."""
    return list(_changes("", before, after))


def _operation(kind: str, path: str, *value: Any) -> dict[str, Any]:  # noqa: ANN401 - of JSON
    return {"op": kind, "path": path, **({"value": value[0]} if value else {})}


def _changes(path: str, before: Any, after: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - of JSON
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _changes_of_mapping(path, before, after)
    elif isinstance(before, list) and isinstance(after, list):
        yield from _changes_of_list(path, before, after)
    elif type(before) is not type(after) or before != after:
        yield _operation("replace", path, after)


def _changes_of_mapping(
    path: str, before: dict[str, Any], after: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    for key in {**before, **after}:
        place = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
        if key not in after:
            yield _operation("remove", place)
        elif key not in before:
            yield _operation("add", place, after[key])
        else:
            yield from _changes(place, before[key], after[key])


def _changes_of_list(path: str, before: list[Any], after: list[Any]) -> Iterator[dict[str, Any]]:
    if len(before) * len(after) > _MOST_PAIRS:
        if json.dumps(before) != json.dumps(after):
            yield _operation("replace", path, after)
        return
    names = [_name(each) for each in before], [_name(each) for each in after]
    matcher = SequenceMatcher(None, *names, autojunk=False)
    # Each operation is on the list as those before it have left it: up to place it is as in *after*.
    for kind, first, last, place, end in matcher.get_opcodes():
        pairs = min(last - first, end - place)
        for number in range(pairs):
            at = f"{path}/{place + number}"
            yield from _smaller(at, before[first + number], after[place + number])
        for number in range(place + pairs, end):
            yield _operation("add", f"{path}/{number}", after[number])
        if kind != "equal":
            for _ in range(first + pairs, last):
                yield _operation("remove", f"{path}/{place + pairs}")


def _smaller(path: str, before: Any, after: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - of JSON
    """The changes of an item, or another item in its place if that is less to say."""
    changes = list(_changes(path, before, after))
    whole = [_operation("replace", path, after)]
    return changes if len(changes) <= 1 or len(str(changes)) <= len(str(whole)) else whole


def _name(item: Any) -> str:  # noqa: ANN401 - of JSON
    """What an item is known by in another list: its name if it has one, else all of it."""
    if isinstance(item, dict) and isinstance(item.get("name"), str):
        return f"name {item['name']}"
    return json.dumps(item)
