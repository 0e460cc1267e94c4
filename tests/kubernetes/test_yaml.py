"""YAML as Kubernetes reads it, written again, and changed without a loss of what stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes.manifest import read_documents
from istio_iptables.kubernetes.yamledit import rewritten
from istio_iptables.kubernetes.yamlnodes import read_nodes
from istio_iptables.kubernetes.yamltext import write
from tests.program import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_it_is_read_as_kubernetes_does() -> None:
    """YAML 1.1 words for yes and no; no times, and no numbers with colons; out of range is a text."""
    text = (
        "[yes, off, y, On, 2024-01-01, 1:30, 010, 08, 0o17, 0b11, -0x1f, 1_000, +1e3, 1.5, ~, 'yes',"
        " .5, ._5, 18446744073709551616, 1e999, !!str 1, !!binary YQ==, ! 1]"
    )
    assert read_documents(text, "x") == [
        [
            *(True, False, True, True, "2024-01-01", "1:30", 8, 8.0, 15, 3, -31, 1000, 1000.0),
            *(1.5, None, "yes", 0.5, "._5", 18446744073709551616.0, "1e999", "1", "a", "1"),
        ]
    ]


def test_a_key_twice_and_merged_keys() -> None:
    """The last one counts, of merged ones too, as in Go's library; the line is told."""
    doubles: list[str] = []
    text = "a: 1\nb: &b {c: 1, d: 1}\na: 2\ne: {d: 0, <<: *b, c: 3}\nf: {<<: [{c: 5}, *b]}\n"
    found = {"a": 2, "b": {"c": 1, "d": 1}, "e": {"d": 1, "c": 3}, "f": {"c": 5, "d": 1}}
    assert read_documents(text, "x", doubles) == [found]
    assert doubles == [
        "x: line 3: a is there twice: the last one counts here, and Kubernetes may refuse it"
    ]


def test_an_alias_as_a_key_and_a_merge_that_is_none() -> None:
    """A key that an alias stands for is told by what it is; ``<<`` is a text where it is no key."""
    doubles: list[str] = []
    text = "a: &x k\nb: {*x : 1, k: 2, *x : 3}\nc: [<<, {d: <<}]\n"
    assert read_documents(text, "x", doubles) == [
        {"a": "k", "b": {"k": 3}, "c": ["<<", {"d": "<<"}]}
    ]
    assert [each.partition(" is there")[0] for each in doubles] == ["x: line 2: k"] * 2


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"k{n}: &k{n} [{','.join([f'*k{n - 1}' if n else '*a'] * 10)}]" for n in range(8)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [*a]", "line 1: found undefined alias 'a'"),
        ("[" * 2000, "line 1: exceeded maximum nesting depth"),
        ("- " * 200_000, "is nested too deep"),
        ("{a: !!python/name:os.system }", "line 1: a value has the tag"),
        ("a: !!set {b}", "line 1: a value has the tag"),
        ("a: b: c", "line 1: mapping values are not allowed"),
        ("x: 1\n\ta: 1", "line 2: found a tab character that violates indentation"),
        ("? [1]\n: 2", "line 1: a key is no text"),
        ("a: 1\nb: *b", "line 2: found undefined alias 'b'"),
        ("a: .inf", "line 1: .inf is no value of JSON"),
        ("a: {<<: 1}", "line 1: << is given no mapping to merge"),
        ("&a [1]\n---\nc: [*a]", "line 3: found undefined alias 'a'"),
        ("a: \udcff", "is no UTF-8"),
        ('a: "\\ud800"', "line 1: found invalid Unicode character escape code"),
        (f"a: {'9' * 5000}\nb: '", "line 2: found unexpected end of stream"),
        (BOMB, "holds too many values"),
    ],
)
def test_what_is_no_manifest(tmp_path: Path, text: str, reason: str) -> None:
    """Loops, depth, bombs, other tags: one line that says where and why, and no traceback."""
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    for words in (["inject", "-f"], ["--dry-run", "--pod"]):
        result = run([*words, str(path)])
        assert (result.status, result.out) == (2, "")
        (line,) = result.err.splitlines()
        assert line.startswith(f"istio-iptables: error: {path}: {reason}")


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
TEXTS = st.text() | st.sampled_from(
    ["y", "1e3", "1:30", "2024-01-01", "010", "08", "0o7", "0x1F", "", "~", "<<", "=", ".5", "off"]
)
LEAVES = SCALARS | TEXTS


def _trees(keys: st.SearchStrategy[str], leaves: int = 10) -> st.SearchStrategy[Any]:
    return st.recursive(
        LEAVES,
        lambda each: st.lists(each, max_size=4) | st.dictionaries(keys, each, max_size=4),
        max_leaves=leaves,
    )


def _same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


@given(_trees(TEXTS).filter(lambda tree: tree is not None))
@example(["-.inf", ".nan", "a\x85b", "\u2028", " lead\nx", "x\n\n", "\ufeff", "\x00", "\U0001f600"])
@example({"k" * 300: "x y " * 100, "a\nb": "c\n"})
def test_what_is_written_is_read_again(tree: Any) -> None:
    """No text becomes a number or a boolean on its way, for Kubernetes nor for PyYAML."""
    text = f"{write(tree)}\n"
    assert _same(read_documents(text, "x"), [tree])
    if "<<" not in text and "=" not in text:
        assert yaml.safe_load(text) == tree


KEYS = st.sampled_from(["a", "b", "name", "c d", "on", "é"])
MAPPINGS = st.dictionaries(KEYS, _trees(KEYS, 6), min_size=1, max_size=4)


@st.composite
def _texts(draw: st.DrawFn) -> str:
    """A mapping as somebody may have written it: styles, comments, blank lines, line ends."""
    tree = draw(MAPPINGS)
    text = yaml.safe_dump(
        tree,
        default_flow_style=draw(st.sampled_from([False, False, None, True])),
        allow_unicode=draw(st.booleans()),
        indent=draw(st.integers(2, 4)),
        sort_keys=False,
    )
    lines = text.splitlines(keepends=True)
    for number in range(len(lines)):
        # Where a comment would be read as text, this is another text.
        comment = draw(st.sampled_from(["", "", "", "# comment\n", "    # deep\n", "\n"]))
        lines[number] = comment + lines[number]
    text = "".join(lines)
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return draw(st.sampled_from(["", "", "# first\n", "\ufeff", "--- # one\n"])) + text


def _changed(draw: Callable[[st.SearchStrategy[Any]], Any], value: Any) -> Any:
    """*value* with something else in it somewhere."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: _changed(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], _changed(draw, value[place]), *value[place + 1 :]]
    if isinstance(value, dict):
        return {**value, draw(KEYS): draw(_trees(KEYS, 3))}
    if isinstance(value, list):
        place = draw(st.integers(0, len(value)))
        return [*value[:place], draw(_trees(KEYS, 3)), *value[place:]]
    return draw(_trees(KEYS, 3))


@given(st.data(), st.lists(_texts(), min_size=1, max_size=3))
def test_a_changed_text_has_the_new_values(data: st.DataObject, texts: list[str]) -> None:
    """And each document that does not change has its bytes, the others on either side of it."""
    marks = ["--- # next\n"] * (len(texts) - 1)
    text = "".join(a + b for a, b in zip(texts, [*marks, ""], strict=True)).replace("\ufeff", "")
    try:
        nodes = read_nodes(text, "x")
    except UsageProblems:
        return
    old = read_documents(text, "x")
    if not all(isinstance(each, dict) for each in old):
        return
    assert rewritten(text, nodes, old) == (text, [])
    new = [data.draw(st.booleans()) for _ in old]
    values = [
        _changed(data.draw, each) if asked else each for each, asked in zip(old, new, strict=True)
    ]
    found, _ = rewritten(text, nodes, values)
    assert _same(read_documents(found, "x"), values)
    for node, asked in zip(nodes, new, strict=True):
        if not asked:
            assert text[node.start : node.end] in found


COMMENTED = """\
# who
kind: x   # behind
on: yes

list:
    # the first
    - name: one   # of two
      value: 010
    # the second
    - name: "two"
      script: |
        # no comment
        a

    # behind the list
anchored: &it
  a: 1
other: *it
empty: # nothing yet
flow: {a: 1, b: [1, 2]}  # flow
# the end
"""


def test_comments_stay() -> None:
    """Beside what is added, changed and put before; quotes, numbers, anchors and blank lines too."""
    (value,) = read_documents(COMMENTED, "x")
    one, two = value["list"]
    value |= {
        "list": [{"name": "zero"}, one, {"name": "half"}, {**two, "more": [1]}, {"name": "three"}],
        "empty": {"a": "on"},
        "flow": {**value["flow"], "c": None},
        "new": "010",
    }
    found, lost = rewritten(COMMENTED, read_nodes(COMMENTED, "x"), [value])
    assert lost == []
    assert (
        found
        == """\
# who
kind: x   # behind
on: yes

list:
    - name: zero
    # the first
    - name: one   # of two
      value: 010
    - name: half
    # the second
    - name: "two"
      script: |
        # no comment
        a

      more:
      - 1
    # behind the list
    - name: three
anchored: &it
  a: 1
other: *it
empty:
  a: 'on' # nothing yet
flow:
  a: 1
  b:
  - 1
  - 2
  c: null  # flow
# the end
new: '010'
"""
    )


ANCHORED = """\
x: &x {b: 1}
--- # next
labels: &labels
  a: 1 # here
list: &list
- name: one
  value: 1
other: &other {c: 1, # there
               d: 2}
"""


def test_anchors_and_aliases() -> None:
    """An anchor alone is in nobody's way; where an alias stands for what changes, all is written anew."""
    values = [
        {"x": {"b": 1}},
        {
            "labels": {"a": 1, "b": "yes"},
            "list": [{"name": "zero"}, {"name": "one", "value": 2}, {"name": "two"}],
            "other": {"c": 1, "d": 3},
        },
    ]
    found, lost = rewritten(ANCHORED, read_nodes(ANCHORED, "x"), values)
    assert (
        found
        == """\
x: &x {b: 1}
--- # next
labels: &labels
  a: 1 # here
  b: 'yes'
list: &list
- name: zero
- name: one
  value: 2
- name: two
other:
  c: 1
  d: 3
"""
    )
    assert lost == [8]
    text = "a: 1\n---\n# here\nx: &x {b: 1} # this\nz: *x # there\n--- # next\nb: 1 # b\n"
    values = [{"a": 1}, {"x": {"b": 1}, "z": {"b": 2}}, {"b": 1}]
    found, lost = rewritten(text, read_nodes(text, "x"), values)
    assert found == text.replace(" *x", "\n  b: 2")
    assert lost == []
    values = [{"a": 1}, {"x": {"b": 2}, "z": {"b": 1}}, {"b": 1}]
    found, lost = rewritten(text, read_nodes(text, "x"), values)
    assert (found, lost) == (
        "a: 1\n---\n# here\nx:\n  b: 2\nz:\n  b: 1 # there\n--- # next\nb: 1 # b\n",
        [4],
    )


@pytest.mark.parametrize("end", ["", "\n", "\n--- {c: 1}\n"])
def test_a_comment_behind_a_block_of_text(end: str) -> None:
    """It is not made a part of the text."""
    text = "{a: 1} # this" + end
    nodes = read_nodes(text, "x")
    values = [{"a": "x\ny\n"}, {"c": 1}][: len(nodes)]
    found, lost = rewritten(text, nodes, values)
    assert (read_documents(found, "x"), lost) == (values, [1])
