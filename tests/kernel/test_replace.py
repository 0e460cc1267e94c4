"""Replacing one configuration by another: it ends as if the other had been the first."""

from __future__ import annotations

from functools import cache
from itertools import permutations

import pytest

from istio_iptables.netfilter.model import Family
from tests.kernel.configurations import CONFIGURATIONS, UNLIKE
from tests.kernel.foreign import LAYOUTS, Chains, add_around, chains, is_ours, load_layout, place_of
from tests.kernel.sandbox import State, install, planned, run, state
from tests.namespaces import BACKENDS, sandbox

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

NAMES = tuple(CONFIGURATIONS)


@cache
def fresh(name: str, backend: str) -> State:
    """What an install into an empty namespace ends like."""
    with sandbox():
        assert install(backend, *CONFIGURATIONS[name]).status == 0
        return state(backends=(backend,))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first", NAMES[:-1])
def test_every_pair_ends_like_a_fresh_install(first: str, backend: str) -> None:
    """From this configuration to each later one of the list, and back: rules, routes, addresses."""
    install(backend, *CONFIGURATIONS[first])
    for second in NAMES[NAMES.index(first) + 1 :]:
        for old, new in ((first, second), (second, first)):
            result = install(backend, *CONFIGURATIONS[new], "--reconcile")
            assert (result.status, result.errors) == (0, []), f"{old} -> {new}"
            assert state(backends=(backend,)) == fresh(new, backend), f"{old} -> {new}"


def expected(live: Chains, old: dict[str, str], new: dict[str, str]) -> Chains:
    """What a replace has to make of *live*, in which foreign rules stand around those of *old*."""
    result: Chains = {}
    for table in dict.fromkeys([*live, *new]):
        found = result[table] = {}
        for chain, rules in live.get(table, {}).items():
            if is_ours(table, chain):
                continue
            before, after = place_of(old, table, chain), place_of(new, table, chain)
            if before == after:
                found[chain] = rules
                continue
            ours = [*before.head, *before.tail]
            foreign = [rule for rule in rules if rule not in ours]
            last = rules.index(before.tail[-1]) if before.tail else len(rules)
            front = [rule for rule in rules[:last] if rule not in ours]
            found[chain] = [*after.head, *front, *after.tail, *foreign[len(front) :]]
    return result


#: Those that put rules into built-in chains in different ways.
_PLACED = ("dual", "tproxy", "virtual-and-excluded", "everything")
_MORE = (*_PLACED, "exclude-interfaces-tproxy", "virtual-interfaces", "nothing-inbound")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["none", *LAYOUTS])
def test_foreign_rules_keep_their_bytes_and_places(layout: str, backend: str) -> None:
    """Before and behind ours, in built-in chains and their own: only our rules are exchanged."""
    names = _MORE if (layout, backend) == ("none", "legacy") else _PLACED
    for first, second in permutations(names, 2):
        with sandbox():
            _replace_among_foreign_rules(layout, backend, first, second)


def _replace_among_foreign_rules(layout: str, backend: str, first: str, second: str) -> None:
    old, new = CONFIGURATIONS[first], CONFIGURATIONS[second]
    if layout != "none":
        load_layout(layout, backend)
    assert install(backend, *old).status == 0
    add_around(backend)
    live = {family: chains(backend, family) for family in Family}
    result = install(backend, *new, "--reconcile")
    assert (result.status, result.errors) == (0, []), f"{first} -> {second}"
    for family in Family:
        now = chains(backend, family)
        ours = {t: {c: r for c, r in cs.items() if is_ours(t, c)} for t, cs in now.items()}
        theirs = {t: {c: r for c, r in cs.items() if not is_ours(t, c)} for t, cs in now.items()}
        wanted = expected(live[family], planned(*old)[family], planned(*new)[family])
        assert {t: c for t, c in theirs.items() if t in wanted} == wanted, f"{first} -> {second}"
        for table, text in planned(*new)[family].items():
            for chain, rules in ours[table].items():
                lines = [f"-A {chain} {rule}" for rule in rules]
                assert [x for x in text.splitlines() if x.startswith(f"-A {chain} ")] == lines


@pytest.mark.parametrize(("first", "second"), UNLIKE)
@pytest.mark.parametrize("to", BACKENDS)
def test_rules_in_the_other_backend_are_taken_along(first: str, second: str, to: str) -> None:
    """Installed in one backend and asked for in the other: told, and then moved by --reconcile."""
    origin = BACKENDS[1 - BACKENDS.index(to)]
    install(origin, *CONFIGURATIONS[first])
    result = install(to, *CONFIGURATIONS[second])
    assert result.status == 1
    assert any(f"in the {origin} backend" in line for line in result.errors)
    assert install(to, *CONFIGURATIONS[second], "--reconcile").status == 0
    assert state() == fresh(second, to)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_replace_by_the_same_does_nothing(backend: str) -> None:
    """--reconcile over rules that are as asked for says that there is nothing to do."""
    install(backend, *CONFIGURATIONS["everything"])
    result = run(*CONFIGURATIONS["everything"], "--reconcile")
    assert result.status == 0
    assert "nothing to do" in result.err


def test_a_virtual_interface_without_destinations_comes_and_goes() -> None:
    """-k without -i leaves only a bare RETURN behind, which a replace finds at the head."""
    for flags in (
        ("-k", "net1"),
        ("-k", "net1", "-c", "eth0"),
        ("-i", "*", "-k", "+"),
        ("-c", "+"),
    ):
        with sandbox():
            assert install("legacy", *flags, "--ip-family", "dual").status == 0
            assert install("legacy", *CONFIGURATIONS["dual"], "--reconcile").status == 0
            assert state(backends=("legacy",)) == fresh("dual", "legacy"), flags
