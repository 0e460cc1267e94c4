"""JSON patches: an independent reader makes of them what they were made for, and they are small."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_iptables.webhook.patch import json_patch

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 1.0, "", "a", "~", "/", "~1", "-", "0"]),
    st.text(max_size=3),
)
_KEYS = st.sampled_from(["name", "a", "b~", "c/d", "", "0", "-", "~01"])
VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(_KEYS, inner, max_size=4)),
    max_leaves=20,
)


def applied(before: Any, patch: list[dict[str, Any]]) -> str:
    """What becomes of *before*, as text: 1, 1.0 and true are not the same there."""
    return json.dumps(jsonpatch.apply_patch(copy.deepcopy(before), patch), sort_keys=True)


@given(VALUES, VALUES)
def test_makes_one_of_the_other(before: Any, after: Any) -> None:
    """Whatever both are, and the patch is written as text between."""
    patch = json.loads(json.dumps(json_patch(before, after)))
    assert applied(before, patch) == json.dumps(after, sort_keys=True)


@given(VALUES)
def test_nothing_for_nothing(value: Any) -> None:
    """The same document needs no operation."""
    assert json_patch(value, copy.deepcopy(value)) == []


@given(st.lists(st.text(max_size=3), unique=True, min_size=1), st.booleans(), st.data())
def test_one_item_is_one_operation(names: list[str], named: bool, data: st.DataObject) -> None:  # noqa: FBT001 - hypothesis calls it
    """An item more or less is said in one operation, wherever it stands."""
    longer = [{"name": name, "a": [name]} if named else [name, 1] for name in names]
    at = data.draw(st.integers(0, len(longer) - 1))
    shorter = [*longer[:at], *longer[at + 1 :]]
    assert json_patch(shorter, longer) == [{"op": "add", "path": f"/{at}", "value": longer[at]}]
    assert json_patch(longer, shorter) == [{"op": "remove", "path": f"/{at}"}]


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        (
            {"containers": [{"name": "app", "image": "a"}]},
            {"containers": [{"name": "proxy"}, {"name": "app", "image": "b"}]},
            [
                {"op": "add", "path": "/containers/0", "value": {"name": "proxy"}},
                {"op": "replace", "path": "/containers/1/image", "value": "b"},
            ],
        ),
        ({"a/b": 1, "c~": 2}, {"a/b": 2}, [("replace", "/a~1b"), ("remove", "/c~0")]),
        ([{"name": "a", "v": 1}], [{"name": "b", "v": 2}], [("replace", "/0")]),
        ({"x": True}, {"x": 1}, [("replace", "/x")]),
        (["a", "b", "c"], ["c"], [("remove", "/0"), ("remove", "/0")]),
    ],
)
def test_is_as_small_as_can_be(before: Any, after: Any, wanted: list[Any]) -> None:
    """A container more is one operation, and one that changed is told from another one."""
    patch = json_patch(before, after)
    if isinstance(wanted[0], tuple):
        assert [(each["op"], each["path"]) for each in patch] == wanted
    else:
        assert patch == wanted


def test_long_lists_are_replaced() -> None:
    """They are not compared item by item, which would take longer than a review may."""
    before = [{"name": str(number)} for number in range(3000)]
    after = [{"name": "x"}, *before]
    assert [each["path"] for each in json_patch({"a": before}, {"a": after})] == ["/a"]
    assert json_patch({"a": before}, {"a": list(before)}) == []
