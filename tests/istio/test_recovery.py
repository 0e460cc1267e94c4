"""Settings from rules: the inverse of the plan, and what it does where rules were touched."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from istio_iptables.api.recovering import Recovered, recover
from istio_iptables.istio.native import build_native
from istio_iptables.istio.plan import build
from istio_iptables.istio.recovery import all_texts
from istio_iptables.istio.rules import rules
from istio_iptables.netfilter import formats
from istio_iptables.netfilter.documents import rulesets
from istio_iptables.netfilter.model import Chain, Family, Rule, Ruleset, each_table
from istio_iptables.netfilter.native import text as native_text
from istio_iptables.netfilter.nftlisting import families, planned_tables
from istio_iptables.netfilter.savefile import parse_rule
from tests.golden import Case, cases
from tests.program import run
from tests.strategies import configs

if TYPE_CHECKING:
    from istio_iptables.settings.config import Config

CASES = [each for each in cases() if each.format in {"save", "annotated"}]
NATIVE = [each for each in CASES if "--native-nftables" in each.arguments]


def chains(found: tuple[Ruleset, ...]) -> list[tuple[int, int, int]]:
    """Where each chain with rules is: the numbers of its ruleset, its table, and its own."""
    return [
        (a, b, c)
        for a, ruleset in enumerate(found)
        for b, table in enumerate(ruleset.tables)
        for c, chain in enumerate(table.chains)
        if chain.rules
    ]


def changed(
    found: tuple[Ruleset, ...], place: tuple[int, int, int], new: tuple[Rule, ...]
) -> tuple[Ruleset, ...]:
    """The rulesets, with other rules in one chain."""
    a, b, c = place
    table = found[a].tables[b]
    chain = table.chains[c]._replace(rules=new)
    table = table._replace(chains=(*table.chains[:c], chain, *table.chains[c + 1 :]))
    ruleset = found[a]._replace(tables=(*found[a].tables[:b], table, *found[a].tables[b + 1 :]))
    return (*found[:a], ruleset, *found[a + 1 :])


def chain_at(found: tuple[Ruleset, ...], place: tuple[int, int, int]) -> Chain:
    """The chain at a place of ``chains``."""
    a, b, c = place
    return found[a].tables[b].chains[c]


def left(found: Recovered) -> list[str]:
    """What is unexplained, foreign rules of built-in chains left out."""
    return [each.line for each in found.differences if each.kind.value != "foreign"]


@settings(deadline=None)
@given(configs())
def test_the_settings_of_rules_build_the_same_rules(config: Config) -> None:
    """For every configuration, to the byte, routes and addresses too."""
    state = build(config)
    found = recover(state.rulesets, state.routes)
    assert formats.save(found.plan.state) == formats.save(state), shlex.join(found.arguments)
    assert not found.differences
    assert found.ours


@settings(deadline=None)
@given(config=configs(), like=st.booleans(), sets=st.booleans())
def test_the_settings_of_native_rules_build_the_same_rules(
    *, config: Config, like: bool, sets: bool
) -> None:
    """For every configuration, with sets and without, to the byte, routes and addresses too."""
    config = config._replace(native_nftables=True, nft_like_iptables=like, nft_sets=sets)
    state = build(config)
    native = build_native(config, state)
    found = recover(families(planned_tables(native)), state.routes)
    assert not found.differences, shlex.join(found.arguments)
    again = build_native(found.plan.config, found.plan.state)
    assert native_text(again, "save") == native_text(native, "save"), shlex.join(found.arguments)
    assert found.ours


@settings(deadline=None)
@given(configs())
def test_settings_are_recovered_in_one_form(config: Config) -> None:
    """What describes the rules of a description is the same description."""
    state = build(config)
    first = recover(state.rulesets, state.routes)
    again = recover(first.plan.state.rulesets, first.plan.state.routes)
    assert (again.arguments, again.environment, again.nameservers) == (
        first.arguments,
        first.environment,
        first.nameservers,
    )


@given(configs())
def test_every_text_of_a_rule_can_be_read_back(config: Config) -> None:
    """No rule is made from a text that the recovery does not know.

    Those of ``-i '*'`` have the form of every network's; that of included groups grows with them.
    """
    known = {
        *all_texts(),
        "-t nat -A ISTIO_OUTPUT -j ISTIO_REDIRECT",
        "-t nat -I PREROUTING -i {virtual_interfaces} -j ISTIO_REDIRECT",
    }
    for family in Family:
        for text, _, _ in rules(config, family):
            assert text in known or "-m owner ! --gid-owner" in text, text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_golden_cases(case: Case) -> None:
    """The command line that is recovered from a golden text prints that text, in its folder."""
    found = recover(rulesets(case.expected, None))
    assert not found.differences
    arguments = [*found.arguments, "--dry-run", "--format", case.format]
    result = run(arguments, found.environment, case.folder)
    assert (result.status, rules_alone(result.out)) == (0, rules_alone(case.expected)), arguments


def rules_alone(printed: str) -> str:
    """The text without the reasons: where a set is of merged items, they name those."""
    return "".join(
        line for line in printed.splitlines(keepends=True) if not line.strip().startswith("# ")
    )


@pytest.mark.parametrize("case", NATIVE, ids=lambda case: case.name)
def test_native_rules_that_are_gone_one_by_one(case: Case) -> None:
    """Without any one of its rules a golden text has the same settings, or leaves one unexplained."""
    listed = case.expected.splitlines(keepends=True)
    numbers = [at for at, line in enumerate(listed) if " counter" in line or "\tcounter" in line]
    for number in numbers[:: max(1, len(numbers) // 5)]:
        touched = "".join(listed[:number] + listed[number + 1 :])
        found = recover(rulesets(touched, None))
        assert len(left(found)) <= 1, (listed[number], found.arguments)


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("name", ["documented", "native-documented"])
def test_rules_that_are_there_several_times(name: str, times: int) -> None:
    """The settings are those of one copy; the others are unexplained, and it is said."""
    (case,) = (each for each in CASES if each.name == name)
    once = rulesets(case.expected, None)
    found = tuple(
        each._replace(
            tables=tuple(
                table._replace(
                    chains=tuple(
                        chain._replace(rules=chain.rules * times) for chain in table.chains
                    )
                )
                for table in each.tables
            )
        )
        for each in once
    )
    recovered = recover(found)
    assert recovered.arguments == recover(once).arguments
    assert len(left(recovered)) == (times - 1) * sum(
        table.rule_count for _, table in each_table(once)
    )
    (sign,) = recovered.signs
    assert sign.startswith(f"every rule of ours is there {times} times: ")
    assert not recover(once).signs


def test_rules_of_an_older_istio() -> None:
    """Its jump for TCP alone is told as what it is."""
    (case,) = (each for each in CASES if each.name == "documented")
    older = case.expected.replace("-A OUTPUT -j", "-A OUTPUT -p tcp -j")
    recovered = recover(rulesets(older, None))
    assert len(left(recovered)) == 1
    assert "Istio 1.24 and older" in recovered.signs[0]


FOREIGN = [
    "-p tcp -m tcp --dport 9999 -j RETURN",
    "-m owner --uid-owner 42 -j RETURN",
    "-m owner --gid-owner 42 -j RETURN",
    "-d 198.18.0.0/15 -j RETURN",
    "-j ACCEPT",
    "-p tcp -m tcp --dport http -j RETURN",
    "-p udp -m udp --dport 53 -j ACCEPT",
]


#: More of them take minutes: a search builds many rulesets.
TOUCHED = int(os.environ.get("RECOVERY_EXAMPLES", "40"))


#: Shrinking an example would take minutes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


@settings(deadline=None, max_examples=TOUCHED, derandomize=TOUCHED < 1000, phases=PHASES)
@given(configs(), st.data())
def test_one_touched_rule_leaves_no_more_than_one_unexplained(
    config: Config, data: st.DataObject
) -> None:
    """A rule deleted, moved, put in twice or by others: settings are found that leave only that."""
    found = build(config).rulesets
    place = data.draw(st.sampled_from(chains(found)))
    there = chain_at(found, place).rules
    number = data.draw(st.integers(0, len(there) - 1))
    way = data.draw(st.sampled_from(("delete", "move", "double", "insert")))
    new = list(there)
    if way == "delete":
        del new[number]
    elif way == "move":
        new.insert(data.draw(st.integers(0, len(there) - 1)), new.pop(number))
    elif way == "double":
        new.insert(data.draw(st.integers(0, len(there))), there[number])
    else:
        family = found[place[0]].family
        texts = [each for each in FOREIGN if family is Family.IPV4 or "198.18" not in each]
        new.insert(number, parse_rule(data.draw(st.sampled_from(texts))))
    assert len(left(recover(changed(found, place, tuple(new))))) <= 1
