"""What an install decides, without a kernel: which backend, which tables differ, and what it may know."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

import istio_iptables
from istio_iptables.errors import KernelRefused
from istio_iptables.istio.ownership import OWNERSHIP, find_owned
from istio_iptables.kernel.backend import Reading
from istio_iptables.kernel.detect import prefer
from istio_iptables.kernel.steps import Step, carry_out
from istio_iptables.kernel.tablechange import TableChange, compare_table
from istio_iptables.netfilter.edits import Action, apply
from istio_iptables.netfilter.model import BUILT_IN_CHAINS, Chain, Family, Ruleset, Table
from istio_iptables.netfilter.savefile import parse

if TYPE_CHECKING:
    from istio_iptables.kernel.backend import Backend

KERNEL = Path(istio_iptables.__file__).parent / "kernel"


def imports(path: Path, *, at_once: bool) -> set[str]:
    """The modules of ours that a module imports; only those it can't be loaded without if *at_once*."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{each.name}" for each in node.names}
    return {name for name in found if name.startswith("istio_iptables.")}


@pytest.mark.parametrize("path", sorted(KERNEL.rglob("*.py")), ids=lambda path: path.stem)
def test_the_kernel_package_knows_no_istio(path: Path) -> None:
    """What is ours, and what is planned, is handed in."""
    rooms = {name.split(".")[1] for name in imports(path, at_once=False)}
    assert not rooms & {"istio", "settings", "commands", "cli", "lab"}


def test_the_kernel_package_has_no_circle() -> None:
    """Its modules can be put in an order in which each needs only those before it."""
    waiting = {
        f"istio_iptables.kernel.{path.stem}": imports(path, at_once=True)
        for path in KERNEL.glob("*.py")
        if path.stem != "__init__"
    }
    while waiting:
        free = [name for name, needed in waiting.items() if not needed & waiting.keys()]
        assert free, waiting
        for name in free:
            del waiting[name]


NOTHING: tuple[Reading, ...] = (Reading(Ruleset(Family.IPV4)), Reading(Ruleset(Family.IPV6)))
RULES = (*NOTHING[:1], Reading(Ruleset(Family.IPV6), holds_rules=True))
OURS = (Reading(Ruleset(Family.IPV4), holds_rules=True, holds_ours=True), *NOTHING[1:])


@pytest.mark.parametrize(
    ("legacy", "nft", "has_legacy", "name", "reason"),
    [
        ((), (), True, "legacy", "no table holds rules yet"),
        ((), (), False, "nft", "has no legacy tables"),
        (NOTHING, NOTHING, True, "legacy", "no table holds rules yet"),
        (RULES, NOTHING, True, "legacy", "its tables hold rules"),
        (NOTHING, RULES, True, "nft", "its tables hold rules"),
        ((), OURS, False, "nft", "its tables hold rules"),
        (RULES, RULES, True, "legacy", "both backends hold rules in this namespace"),
        (RULES, OURS, True, "nft", "ours are in this one"),
        (OURS, RULES, True, "legacy", "ours are in this one"),
        (OURS, OURS, True, "legacy", "ours are in this one"),
    ],
)
def test_which_backend(
    legacy: tuple[Reading, ...],
    nft: tuple[Reading, ...],
    has_legacy: bool,  # noqa: FBT001 - a case
    name: str,
    reason: str,
) -> None:
    """The one whose tables hold rules; of two the one that holds ours; else legacy."""
    chosen, why = prefer(legacy, nft, has_legacy=has_legacy)
    assert (chosen, reason in why) == (name, True)


MANGLE = """*mangle
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:ISTIO_DIVERT - [0:0]
-A PREROUTING -p tcp -m mark --mark 0x539 -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff
-A PREROUTING -p tcp -j ISTIO_DIVERT
-A OUTPUT -p tcp -m mark --mark 0x539 -j RETURN
-A OUTPUT -p tcp -m connmark --mark 0x539 -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
-A ISTIO_DIVERT -j MARK --set-xmark 0x539/0xffffffff
COMMIT
"""


def table(text: str) -> Table:
    """The only table of a text."""
    (found,) = parse(text, Family.IPV4).tables
    return found


def change(live: Table | None, wanted: Table | None) -> TableChange:
    """What is to happen to a table, of whatever backend."""
    nobody = cast("Backend", None)
    return compare_table(TableChange(nobody, Family.IPV4, "mangle", live, wanted, find_owned))


def test_a_table_that_is_not_there_is_made() -> None:
    """All of it is missing, and nothing of ours has to go."""
    wanted = table(MANGLE)
    found = change(None, wanted)
    assert not found.owned
    empty = Table("mangle", tuple(map(Chain, BUILT_IN_CHAINS["mangle"])))
    assert find_owned(apply(empty, found.edits)) == find_owned(wanted)
    assert {each.kind.value for each in found.differences()} == {"missing"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("--set-xmark 0x539/0xffffffff", "--set-mark 0x539"),
        (" --nfmask 0xffffffff --ctmask 0xffffffff", ""),
        ("-A OUTPUT -p tcp -m mark", "-A OUTPUT -d 10.0.0.1/32 -j DROP\n-A OUTPUT -p tcp -m mark"),
    ],
    ids=["the same", "another spelling", "of shared rules", "a foreign rule"],
)
def test_nothing_changes_where_nothing_differs(old: str, new: str) -> None:
    """Other spellings, and rules of others, are no difference."""
    found = change(table(MANGLE.replace(old, new) if old else MANGLE), table(MANGLE))
    assert (found.edits, list(found.differences())) == ((), [])
    assert found.owned


def test_an_older_spelling_is_replaced_as_ours() -> None:
    """What is recognised in its one spelling is what the steps take away."""
    live = table(
        MANGLE.replace("--mark 0x539", "--mark 0x53a").replace(
            "xmark 0x539/0xffffffff", "mark 0x53a"
        )
    )
    found = change(live, table(MANGLE))
    after = apply(live, found.edits)
    for name in ("PREROUTING", "OUTPUT", "ISTIO_DIVERT"):
        before, now = table(MANGLE).chain(name), after.chain(name)
        assert before is not None
        assert now is not None
        assert now.rules == before.rules


def test_without_a_plan_all_of_ours_goes() -> None:
    """Clean is installing nothing: each difference is one too much, and foreign rules stay."""
    foreign = "-A OUTPUT -d 10.0.0.1/32 -j DROP"
    live = table(MANGLE.replace("COMMIT", f"{foreign}\nCOMMIT"))
    found = change(live, None)
    assert {each.kind.value for each in found.differences()} == {"extra"}
    after = apply(live, found.edits)
    rules = [f"-A {chain.name} {rule.text}" for chain in after.chains for rule in chain.rules]
    assert (rules, find_owned(after).own_chains) == ([foreign], ())
    assert found.edits[-1].action is Action.DELETE_CHAIN


def test_the_marks_of_policy_routes() -> None:
    """They are read from the rules, whatever the flags were."""
    assert OWNERSHIP.route_marks(table(MANGLE)) == (0x539,)
    assert OWNERSHIP.route_marks(Table("mangle")) == ()


def test_steps_are_taken_back_in_reverse() -> None:
    """Also the one that failed, which may be half done."""
    done: list[str] = []

    def fail() -> None:
        message = "refused"
        raise KernelRefused(message)

    steps = [
        Step("first", lambda: done.append("1"), lambda: done.append("-1")),
        Step("second", fail, lambda: done.append("-2")),
        Step("third", lambda: done.append("3"), lambda: done.append("-3")),
    ]
    with pytest.raises(KernelRefused) as raised:
        carry_out(steps, lambda: done.append("told"))
    assert done == ["1", "-2", "-1"]
    assert raised.value.lines == ("refused", "everything that was changed before was put back")
