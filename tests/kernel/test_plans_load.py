"""Drawn plans, drawn edits and single items against the kernel: our text is what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from istio_iptables.istio.plan import build
from istio_iptables.netfilter import formats, savefile
from istio_iptables.netfilter.edits import apply, edits, restore_lines
from istio_iptables.netfilter.model import Chain, Family, Table
from istio_iptables.netfilter.ownership import Owned
from istio_iptables.settings.converters import Names, parse
from istio_iptables.settings.declarations import ValueKind
from tests.namespaces import BACKENDS, Step, inside, program, rules_of
from tests.netfilter.test_edits import seen, wanted_tables
from tests.strategies import configs, kernel_rules, tables

if TYPE_CHECKING:
    from istio_iptables.settings.config import Config

pytestmark = pytest.mark.kernel

# One namespace for a batch of plans: starting one costs as much as loading ten.
BATCH = 8
FEW = settings(max_examples=12, suppress_health_check=list(HealthCheck))

FLUSHED = "".join(f"*{table}\nCOMMIT\n" for table in ("raw", "mangle", "nat"))


@pytest.mark.parametrize("backend", BACKENDS)
@FEW
@given(batch=st.lists(configs(), min_size=1, max_size=BATCH))
def test_every_plan_loads_and_is_saved_as_its_text(backend: str, batch: list[Config]) -> None:
    """Whatever the settings are: the restore text loads, and iptables-save says the save text."""
    steps, expected = [], []
    for plan in map(build, batch):
        for ruleset in plan.rulesets:
            restore = program(ruleset.family, backend, "restore")
            text = formats.restore(plan.only(ruleset.family))
            steps += [
                Step([restore], FLUSHED),
                Step([restore, "--noflush", "--test"], text),
                Step([restore, "--noflush"], text),
                Step([program(ruleset.family, backend, "save")]),
            ]
            expected.append(rules_of(savefile.render(ruleset)))
    done = inside(steps)
    assert [each for each in done if each.status != 0] == []
    assert [rules_of(each.out) for each in done[3::4]] == expected


#: The chains that our rules in shared chains jump to.
JUMPED = ("ISTIO_HEAD", "ISTIO_TAIL")


def _with_jumped(wanted: Table) -> Table:
    return wanted._replace(chains=(*wanted.chains, *map(Chain, JUMPED)))


@st.composite
def changes(draw: st.DrawFn) -> tuple[Table, Table | None]:
    """A table with foreign rules and an older version of ours, and what is wanted instead."""
    versions = wanted_tables().map(_with_jumped)
    foreign = draw(tables("nat", kernel_rules))
    live = apply(foreign, edits("nat", foreign, draw(versions)))
    return live, draw(st.none() | versions)


@pytest.mark.parametrize("backend", BACKENDS)
@FEW
@given(batch=st.lists(changes(), min_size=1, max_size=BATCH))
def test_the_kernel_does_what_edits_say(
    backend: str, batch: list[tuple[Table, Table | None]]
) -> None:
    """A transaction of edits leaves in the kernel what they leave in the value."""
    restore = program(Family.IPV4, backend, "restore")
    steps, expected = [], []
    for live, wanted in batch:
        ours = seen(live).ours
        change = edits("nat", live, wanted, Owned((*ours.own_chains, *JUMPED), ours.shared))
        before = savefile.render_table(live)
        steps += [
            Step([restore], "\n".join(before) + "\n"),
            Step([restore, "--noflush"], "\n".join(restore_lines("nat", change)) + "\n"),
            Step([program(Family.IPV4, backend, "save"), "-t", "nat"]),
        ]
        expected.append(apply(live, change))
    done = inside(steps)
    assert [each for each in done if each.status != 0] == []
    for saved, table in zip(done[2::3], expected, strict=True):
        there = savefile.parse(saved.out, Family.IPV4).table("nat")
        assert there is not None
        assert {chain.name: chain.rules for chain in there.chains} == {
            chain.name: chain.rules for chain in table.chains
        }


NAMES = Names({"root": 0}.get, {"root": 0}.get)

# An item as a user writes it, and where iptables itself takes it.
ITEMS: list[tuple[ValueKind, Family, str, list[str]]] = [
    (
        ValueKind.PORTS,
        Family.IPV4,
        "-p tcp --dport",
        [
            "0",
            "0:0",
            ":0",
            "0:90",
            "80",
            "80:90",
            "80:80",
            ":79",
            "60000:",
            "65535",
            "1:65535",
            "65535:",
        ],
    ),
    (
        ValueKind.CIDRS,
        Family.IPV4,
        "-d",
        ["10.96.0.1/24", "0.0.0.0/1", "255.255.255.255/32", "127.0.0.1/8", "1.2.3.4/31"],
    ),
    (
        ValueKind.CIDRS,
        Family.IPV6,
        "-d",
        [
            "fd00::1/64",
            "FD00::/8",
            "::1/128",
            "::6/128",
            "::/128",
            "::ffff:10.0.0.0/104",
            "::ffff:0:0/96",
            "::ffff:1.2.3.4/100",
            "::10.0.0.1/128",
            "::1:2/128",
            "::1:2:3/128",
            "1:0:0:2::/64",
            "1:0:2:3:4:5:6:7/128",
            "0:0:0:0:1::/80",
            "2001:db8:0:0:1:0:0:1/128",
            "64:ff9b::1.2.3.4/96",
            "::ffff:0:1.2.3.4/128",
        ],
    ),
    (
        ValueKind.UIDS,
        Family.IPV4,
        "-m owner --uid-owner",
        ["0", "1337", "4294967294", "1000-1999", "1000:1999", "5-5", "0-4294967294", "root"],
    ),
    (
        ValueKind.GIDS,
        Family.IPV4,
        "-m owner --gid-owner",
        ["0", "1337", "1000-1999", "5:5", "root"],
    ),
    (
        ValueKind.INTERFACES,
        Family.IPV4,
        "-i",
        [
            "eth0",
            "br+",
            "++",
            "e+h",
            "eth0.100",
            "a#b",
            "$x",
            "e*",
            "abcdefghijklmn+",
            "ünïc",
            "%d",
        ],
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kind", "family", "option", "items"), ITEMS, ids=lambda each: getattr(each, "name", "")
)
def test_an_item_is_spelled_as_the_kernel_spells_it(
    kind: ValueKind, family: Family, option: str, items: list[str], backend: str
) -> None:
    """An item given to iptables as the user wrote it is saved as our text has it."""
    chain = "PREROUTING" if kind is ValueKind.INTERFACES else "OUTPUT"
    tool = [program(family, backend), "-t", "nat"]
    steps = [Step([*tool, "-A", chain, *option.split(), item, "-j", "RETURN"]) for item in items]
    *added, saved = inside([*steps, Step([program(family, backend, "save")])])
    assert [each for each in added if each.status != 0] == []
    rules = [line for line in saved.out.splitlines() if line.startswith("-A")]
    name = option.rpartition(" ")[2]
    for item, rule in zip(items, rules, strict=True):
        values, faults = cast("tuple[tuple[object], list[object]]", parse(kind, item, NAMES))
        assert not faults
        assert f" {name} {values[0]} -j RETURN" in rule, item


# What is refused although iptables would take it, or would take it for something else.
TAKEN_OTHERWISE: list[tuple[ValueKind, str, str, str]] = [
    # To iptables both are octal; the proxy's user they are not.
    (ValueKind.UIDS, "-m owner --uid-owner", "01337", "-m owner --uid-owner 735"),
    (ValueKind.UIDS, "-m owner --uid-owner", "0x10", "-m owner --uid-owner 16"),
    # Every port is no condition at all; 0:65535 says so, and is taken (golden/every-port).
    (ValueKind.PORTS, "-p tcp --dport", ":", "-p tcp -m tcp -j"),
    # A service's name depends on /etc/services.
    (ValueKind.PORTS, "-p tcp --dport", "0x50", "--dport 80"),
    # Go's reader of CIDRs, and so Istio, takes none of these.
    (ValueKind.CIDRS, "-d", "10/8", "-d 10.0.0.0/8"),
    (ValueKind.CIDRS, "-d", "10.0.0.1/255.0.0.0", "-d 10.0.0.0/8"),
]


@pytest.mark.parametrize(("kind", "option", "item", "saved_as"), TAKEN_OTHERWISE)
def test_refused_although_iptables_takes_it(
    kind: ValueKind, option: str, item: str, saved_as: str
) -> None:
    """What iptables reads as something else than it looks like is refused."""
    _, faults = parse(kind, item, NAMES)
    assert faults
    added, saved = inside(
        [
            Step(["iptables-legacy", "-A", "OUTPUT", *option.split(), item, "-j", "RETURN"]),
            Step(["iptables-legacy-save"]),
        ]
    )
    assert added.status == 0
    assert saved_as in saved.out
