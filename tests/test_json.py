"""docs/json.md and the JSON of the program have the same fields, in every object."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from istio_iptables.commands.root import root
from istio_iptables.errors import ExitStatus, KernelRefused
from istio_iptables.lab import envoy
from tests.namespaces import Step, inside, why_not
from tests.program import run

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT = Path(__file__).parents[1] / "docs" / "json.md"

RULES = "The rules: `--dry-run --format json`"
SEVERAL = "Several namespaces: `--json`"

#: The fields whose objects have a table, by the title of their own; a field of many names (a
#: setting's, a condition's) stands for each of its objects.
DRY_RUN = {
    "settings": "field of a setting",
    "families": "field of a family",
    "tables": "field of a table",
    "chains": "field of a chain",
    "rules": "field of a rule",
    "source": "field of a condition",
    "destination": "field of a condition",
    "in_interface": "field of a condition",
    "out_interface": "field of a condition",
    "protocol": "field of a condition",
    "matches": "field of a match or target",
    "target": "field of a match or target",
    "options": "field of an option",
    "routes": "field of a route",
    "addresses": "field of an address",
}
NATIVE = {name: DRY_RUN[name] for name in ("settings", "routes", "addresses")} | {
    "nftables": "field of a native table",
    "chains": "field of a native chain",
    "hook": "field of a hook",
    "rules": "field of a native rule",
}
DIFF = {"differences": "field of a difference"}
RULES_OF = DIFF | {"rules_of": "field of what the rules are of"}
DESCRIBE = {"rules": "field of a described rule", "unexplained": "field of what is unexplained"}
EXPLAIN = {
    "packet": "field of a packet",
    "path": "field of a step",
    "outcomes": "field of an outcome",
    "if": "field of an answer",
    "unless": "field of a chain that is not followed",
    "findings": "field of a finding",
}
MATRIX = {"classes": "field of a class", "conditions": "field of a class's condition"}
LAB = {
    "paths": "field of a path",
    "request": "field of a request",
    "legs": "field of a leg",
    "path": "field of a leg's rule",
    "predicted": "field of what is seen",
    "seen": "field of what is seen",
    "rules": "field of a count",
    "listeners": "field of a listener",
}


def documented(section: str) -> dict[str, set[str]]:
    """The fields of each table of a section, by the table's title."""
    text = DOCUMENT.read_text(encoding="utf-8")
    (found,) = re.findall(
        rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE
    )
    tables: dict[str, set[str]] = {}
    for title, rows in re.findall(
        r"^\| (field[^|]*) \| holds \|\n\|---\|---\|\n((?:\|.*\n)+)", found, re.MULTILINE
    ):
        names = [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in rows.splitlines()]
        tables[title] = {name for each in names for name in each}
        assert sum(map(len, names)) == len(tables[title]), title
    return tables


def printed(value: object, title: str, titles: dict[str, str]) -> Iterator[tuple[str, set[str]]]:
    """The fields of *value* and of every object in it, each under its table's title."""
    if isinstance(value, list):
        for each in value:
            yield from printed(each, title, titles)
    elif isinstance(value, dict):
        yield title, set(value)
        for name, held in value.items():
            if name == "settings":
                for setting in held.values():
                    yield from printed(setting, titles[name], titles)
            elif name == "environment":
                # Names of variables.
                assert all(isinstance(each, str) for each in held.values())
            elif name in titles:
                yield from printed(held, titles[name], titles)
            else:
                assert not isinstance(held, dict), name
                assert not isinstance(held, list) or not any(
                    isinstance(each, dict) for each in held
                )


def check(section: str, title: str, titles: dict[str, str], *documents: Any) -> None:
    """Every object has the fields of its table, and every table is of an object that is there."""
    tables = documented(section)
    found: dict[str, set[str]] = {}
    for each in documents:
        assert each["version"] == 1
        for name, fields in printed(each, title, titles):
            assert fields == tables[name], name
            found[name] = fields
    assert found.keys() == {title, *titles.values()}
    assert found.keys() <= tables.keys()


def loaded(arguments: list[str]) -> Any:
    """The JSON that the program prints."""
    return json.loads(run(arguments).out)


def with_json() -> list[str]:
    """The commands that have --json; "" is the program's own."""
    top = click.Context(root)
    commands = {"": root} | {name: root.get_command(top, name) for name in root.list_commands(top)}
    return [
        name
        for name, command in commands.items()
        if command and any("--json" in option.opts for option in command.params)
    ]


#: What a command needs on its line; most look at the rules of a file.
LINES = {
    "": ["-i", "*", "--ip-family", "ipv4"],
    "clean": [],
    "compare": ["RULES", "RULES"],
    "diff": ["--against", "RULES"],
    "lab": ["--path", "client-app"],
}


@pytest.mark.parametrize("name", with_json())
def test_each_command_is_documented(name: str) -> None:
    """In a section of its own, but for installing and removing, which tell of namespaces."""
    tables = documented(f"`{name} --json`" if name not in {"", "clean"} else SEVERAL)
    assert "version" in tables["field"]


@pytest.mark.kernel
@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize("name", with_json())
def test_each_command_prints_the_same_envelope(name: str, tmp_path: Path) -> None:
    """One object, its version first, spelled alike; the exit status is that of the text."""
    path = tmp_path / "rules"
    path.write_text(run(["-n", "-i", "*", "--ip-family", "ipv4"]).out)
    words = [
        str(path) if each == "RULES" else each for each in LINES.get(name, ["--rules", "RULES"])
    ]
    command = [sys.executable, "-m", "istio_iptables", *([name] if name else []), *words]
    text, done = inside([Step(command), Step([*command, "--json"])])
    assert done.status == text.status, done.err
    document = json.loads(done.out)
    assert next(iter(document.items())) == ("version", 1)
    assert done.out == json.dumps(document, indent=2) + "\n"
    assert text.out != done.out


@pytest.mark.parametrize("name", with_json())
def test_a_mistake_is_no_document(name: str) -> None:
    """Clear lines on stderr and nothing on stdout, as without --json."""
    result = run([*([name] if name else []), "--json", "--bogus"])
    assert result.status == ExitStatus.USAGE
    assert len(result.errors) == 1
    assert result.out == ""


def test_dry_run() -> None:
    """Settings, rules, routes and addresses."""
    arguments = ["-i", "*", "-b", "*", "-m", "TPROXY", "-c", "eth1", "--ip-family", "dual"]
    check(
        RULES,
        "field",
        DRY_RUN,
        loaded(["-n", "--format", "json", *arguments]),
    )


def test_native_dry_run() -> None:
    """Settings, native tables, routes and addresses."""
    arguments = ["-i", "*", "-b", "*", "-m", "TPROXY", "--ip-family", "dual"]
    document = loaded(["-n", "--native-nftables", "--format", "json", *arguments])
    assert document["families"] == []
    check(
        RULES,
        "field with `--native-nftables`",
        NATIVE,
        document,
    )


def test_diff(tmp_path: Path) -> None:
    """Differences, and a golden file's."""
    path = tmp_path / "rules"
    path.write_text("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n")
    check("`diff --json`", "field", DIFF, loaded(["diff", "--against", str(path), "--json"]))
    golden = loaded(["diff", "--golden", str(path), "--json"])
    assert set(golden) == documented("`diff --json`")["field with `--golden`"]


def test_diff_without_settings(tmp_path: Path) -> None:
    """What rules of other settings are."""
    path = tmp_path / "rules"
    path.write_text(run(["-n", "-i", "*", "--ip-family", "ipv4"]).out)
    title = "field where no settings are given, and others explain the rules better"
    document = loaded(["diff", "--against", str(path), "--json"])
    check("`diff --json`", title, RULES_OF, document)


def test_describe(tmp_path: Path) -> None:
    """Rules with and without counters, with variables, and with something unexplained."""
    path = tmp_path / "rules"
    text = run(["-n", "--ip-family", "ipv4"], {"ISTIO_OUTBOUND_OWNER_GROUPS": "7"}).out
    path.write_text(text.replace("-A OUTPUT", "[1:60] -A OUTPUT -j ACCEPT\n-A OUTPUT"))
    document = loaded(["describe", "--rules", str(path), "--json"])
    assert document["environment"] == {"ISTIO_OUTBOUND_OWNER_GROUPS": "7"}
    check("`describe --json`", "field", DESCRIBE, document)


def test_check(tmp_path: Path) -> None:
    """The faults of a text."""
    path = tmp_path / "rules"
    path.write_text("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n")
    titles = {"findings": "field of a check finding"}
    check("`check --json`", "field", titles, loaded(["check", "--rules", str(path), "--json"]))


#: A chain that iptables does not show, in a namespace of its own.
_LIVE = """
ip link set lo up
nft 'add table netdev x'
nft 'add chain netdev x i { type filter hook ingress device lo priority -150; }'
nft 'add rule netdev x i tcp dport 9 drop'
iptables-legacy -t nat -A OUTPUT -p tcp -j REDIRECT --to-ports 15001
exec "$@"
"""


@pytest.mark.kernel
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_explain(tmp_path: Path) -> None:
    """Packets with more than one way to go, through rules with a fault, and a chain beside them."""
    text = run(["-n", "-i", "*", "--ip-family", "ipv4"]).out
    unknown = "-A OUTPUT -m statistic --mode nth --every 2 -j ACCEPT"
    path = tmp_path / "rules"
    path.write_text(text.replace("-A OUTPUT", f"{unknown}\n-A OUTPUT"))
    asked = ["explain", "-i", "*", "--rules", str(path), "--json"]
    program = [sys.executable, "-m", "istio_iptables", "explain", "--ip-family=ipv4", "--json"]
    live = subprocess.run(
        ["unshare", "--net", "sh", "-ec", _LIVE, "sh", *program, "--live"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    check(
        "`explain --json`",
        "field",
        EXPLAIN,
        *(loaded([*asked, "--uid", uid]) for uid in ("1000", "1337")),
        json.loads(live.stdout),
    )


def test_matrix() -> None:
    """Classes, and their conditions."""
    arguments = ["matrix", "-i", "*", "--ip-family", "ipv4", "--json"]
    check("`matrix --json`", "field", MATRIX, loaded(arguments))


def test_compare() -> None:
    """Classes with what becomes of a packet on both sides; differences are those of diff."""
    arguments = ["compare", "-i '*' --ip-family ipv4", "-i 10.0.0.0/8 --ip-family ipv4", "--json"]
    found = loaded(arguments)
    assert set(found["differences"][0]) == documented("`diff --json`")["field of a difference"]
    tables = documented("`compare --json`")
    assert set(found) == tables["field"]
    for each in found["classes"]:
        assert set(each) == tables["field of a diverging class"]
        assert set(each["a"]) == set(each["b"]) == tables["field of an answer of a side"]


@pytest.mark.kernel
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_lab() -> None:
    """A path through the lab."""
    try:
        envoy.find()
    except KernelRefused as error:
        pytest.skip(error.lines[0])
    done = subprocess.run(
        [sys.executable, "-m", "istio_iptables", "lab", "--path", "client-app", "--json"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    check("`lab --json`", "field", LAB, json.loads(done.stdout))
