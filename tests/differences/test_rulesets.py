"""What differs between two rulesets: each kind of difference, and every mutation of a plan."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from istio_iptables.differences.rulesets import ChangeKind, Difference, diff_network, diff_rulesets
from istio_iptables.istio.ownership import find_owned
from istio_iptables.istio.plan import build
from istio_iptables.netfilter.model import Chain, Family, Rule, Ruleset, Table, is_built_in
from istio_iptables.netfilter.plan import DesiredState, InterfaceAddress, PolicyRoute
from istio_iptables.netfilter.savefile import parse, parse_rule, render
from tests.strategies import configs, rulesets

if TYPE_CHECKING:
    import random

    from istio_iptables.settings.config import Config

MUTATIONS = int(os.environ.get("ISTIO_IPTABLES_MUTATIONS", "1300"))

WANTED = [
    "-p tcp -m tcp --dport 1 -j RETURN",
    "-p tcp -m tcp --dport 2 -j RETURN",
    "-d 10.0.0.0/8 -j ISTIO_B",
    "-m owner --uid-owner 1337 -j RETURN",
]


def ruleset(rules: list[str], head: tuple[str, ...] = ("-j ISTIO_A",)) -> Ruleset:
    """A nat table that jumps from OUTPUT to a chain of ours with these rules."""
    return Ruleset(
        Family.IPV4,
        (
            Table(
                "nat",
                (
                    Chain("OUTPUT", "ACCEPT", tuple(map(parse_rule, head))),
                    Chain("ISTIO_A", None, tuple(map(parse_rule, rules))),
                ),
            ),
        ),
    )


def compared(live: list[str], wanted: list[str] | None = None) -> list[Difference]:
    """The differences of two chains of ours."""
    return list(diff_rulesets((ruleset(live),), (ruleset(wanted or WANTED),), find_owned))


def short(found: list[Difference]) -> list[tuple[str, int | None, int | None]]:
    """Kind and numbers of differences."""
    return [(each.kind.value, each.live_number, each.wanted_number) for each in found]


def test_the_same_rules_differ_in_nothing() -> None:
    """Counters, comments and spelling are no difference."""
    loose = [
        "-p tcp --dport 0x1 -j RETURN",
        "-p 6 -m tcp --dport 2:2 -j RETURN",
        "-d 10.1.2.3/255.0.0.0 -j ISTIO_B",
        "-m owner --uid-owner 1337-1337 -j RETURN",
    ]
    assert not compared(loose)


def test_a_missing_rule_is_told_with_its_place_and_reason() -> None:
    """The number is the one that the rule should have."""
    wanted = ruleset(WANTED)
    table = wanted.tables[0]
    reasoned = table.chains[1].rules[1]._replace(reason="Because.")
    rules = (table.chains[1].rules[0], reasoned, *table.chains[1].rules[2:])
    wanted = Ruleset(
        Family.IPV4,
        (table._replace(chains=(table.chains[0], table.chains[1]._replace(rules=rules))),),
    )
    (found,) = diff_rulesets((ruleset([WANTED[0], *WANTED[2:]]),), (wanted,), find_owned)
    assert found.lines == (
        "missing: IPv4 nat ISTIO_A rule 2: -A ISTIO_A -p tcp -m tcp --dport 2 -j RETURN",
        "    Because.",
    )


def test_an_extra_rule_is_told_where_it_stands() -> None:
    """The number is the one that it has."""
    assert short(compared([*WANTED[:3], "-j ACCEPT", WANTED[3]])) == [("extra", 4, None)]


def test_a_moved_rule_is_told_with_both_places() -> None:
    """One rule that moved is one difference, and not all rules between."""
    (found,) = compared([*WANTED[1:], WANTED[0]])
    assert found.line == (
        "moved: IPv4 nat ISTIO_A rule 4 (should be 1): -A ISTIO_A -p tcp -m tcp --dport 1 -j RETURN"
    )


def test_a_changed_rule_is_told_with_the_part_that_changed() -> None:
    """The part, not the whole rule."""
    changed = [WANTED[0], "-p tcp -m tcp ! --dport 2 -j RETURN", *WANTED[2:]]
    (found,) = compared(changed)
    assert found.kind is ChangeKind.CHANGED
    assert found.details == (
        "-m tcp ! --dport 2 instead of -m tcp --dport 2",
        "should be -A ISTIO_A -p tcp -m tcp --dport 2 -j RETURN",
    )


@pytest.mark.parametrize(
    ("live", "wanted", "told"),
    [
        ("-p tcp -j RETURN", "-p tcp -d 10.0.0.0/8 -j RETURN", "-d 10.0.0.0/8 is missing"),
        ("-p tcp -i lo -j RETURN", "-p tcp -j RETURN", "-i lo is extra"),
        ("-p tcp -j RETURN", "-p tcp -g RETURN", "-j RETURN instead of -g RETURN"),
        ("-p tcp -m set -j RETURN", "-p tcp -j RETURN", "-m set is extra"),
        (
            "-p tcp -j REDIRECT --to-ports 1",
            "-p tcp -j REDIRECT --to-ports 2",
            "--to-ports 1 instead of --to-ports 2",
        ),
    ],
)
def test_each_part_of_a_rule_can_be_what_changed(live: str, wanted: str, told: str) -> None:
    """Conditions, matches and targets are compared one by one."""
    (found,) = compared([live], [wanted])
    assert found.details[0] == told


def test_unlike_rules_are_missing_and_extra() -> None:
    """What has little in common was not changed from one to the other."""
    found = compared(["-m set --match-set a src -j DROP"], ["-p tcp -d 10.0.0.0/8 -j ISTIO_B"])
    assert short(found) == [("missing", None, 1), ("extra", 1, None)]


def test_repeated_rules_are_counted() -> None:
    """A rule that is there once too often, or not often enough, is told."""
    twice = [WANTED[0], WANTED[0], *WANTED[1:]]
    assert short(compared(twice)) == [("extra", 2, None)]
    assert short(compared(WANTED, twice)) == [("missing", None, 2)]


def test_a_foreign_rule_before_ours_is_told() -> None:
    """It decides first; behind ours it changes nothing about what is ours."""
    ours = ruleset(WANTED)
    before = ruleset(WANTED, ("-d 1.2.3.4/32 -j ACCEPT", "-j ISTIO_A"))
    behind = ruleset(WANTED, ("-j ISTIO_A", "-d 1.2.3.4/32 -j ACCEPT"))
    (found,) = diff_rulesets((before,), (ours,), find_owned)
    assert found.lines == (
        "foreign: IPv4 nat OUTPUT rule 1: -A OUTPUT -d 1.2.3.4/32 -j ACCEPT",
        "    is evaluated before our rule 2: -A OUTPUT -j ISTIO_A",
    )
    assert not diff_rulesets((behind,), (ours,), find_owned)


def test_another_policy_is_told() -> None:
    """A policy is nobody's rule, and decides all the same."""
    ours = ruleset(WANTED)
    table = ours.tables[0]
    chains = (table.chains[0]._replace(policy="DROP"), table.chains[1])
    live = Ruleset(Family.IPV4, (table._replace(chains=chains),))
    (found,) = diff_rulesets((live,), (ours,), find_owned)
    assert (found.kind, found.text, found.details) == (
        ChangeKind.FOREIGN,
        ":OUTPUT DROP",
        ("the policy was ACCEPT",),
    )


def test_missing_and_extra_chains_are_told_with_their_rules() -> None:
    """An empty chain of ours is a difference too."""
    live, wanted = ruleset(WANTED), ruleset(WANTED)
    more = live.tables[0]._replace(chains=(*live.tables[0].chains, Chain("ISTIO_X")))
    live = Ruleset(Family.IPV4, (more,))
    (extra,) = diff_rulesets((live,), (wanted,), find_owned)
    (missing,) = diff_rulesets((wanted,), (live,), find_owned)
    assert extra.line == "extra: IPv4 nat ISTIO_X: -N ISTIO_X"
    assert missing.line == "missing: IPv4 nat ISTIO_X: -N ISTIO_X"


def test_nothing_there_is_everything_missing() -> None:
    """Every rule is told, tables in the order in which a packet meets them."""
    found = diff_rulesets((), (ruleset(WANTED),), find_owned)
    assert [each.kind for each in found] == [ChangeKind.MISSING] * 6


def test_routes_and_addresses_are_compared_too() -> None:
    """They belong to the plan like the rules."""
    route = PolicyRoute(Family.IPV4, 1337, 133, "Because.")
    address = InterfaceAddress(Family.IPV6, "::6", 128, "lo")
    found = diff_network(DesiredState((), (route,)), DesiredState((), (), (address,)))
    assert [each.line for each in found] == [
        "missing: IPv6: ip -6 addr add ::6/128 dev lo",
        "extra: IPv4: ip -4 rule add fwmark 0x539 lookup 133",
        "extra: IPv4: ip -4 route add local default dev lo table 133",
    ]
    assert not diff_network(
        DesiredState((), (route,), (address,)), DesiredState((), (route,), (address,))
    )


@given(rulesets())
def test_a_ruleset_does_not_differ_from_itself(ruleset: Ruleset) -> None:
    """Whatever is in it, and read back from its text too."""
    assert not diff_rulesets((ruleset,), (ruleset,))
    assert not diff_rulesets((parse(render(ruleset), ruleset.family),), (ruleset,))


@given(rulesets(), rulesets())
def test_no_difference_means_the_same_rules(left: Ruleset, right: Ruleset) -> None:
    """Nothing is overlooked: two rulesets without differences say the same."""
    right = right._replace(family=left.family)
    if not diff_rulesets((left,), (right,)):
        again = diff_rulesets((right,), (left,))
        assert not again


def mutated(live: list[Ruleset], chance: random.Random) -> str:
    """Change one thing about one rule of ours, in place; what was done, or "" for nothing.

    A rule of a foreign behind ours is none of them: it is not what diff is about.
    """
    places = [
        (r, t, c)
        for r, ruleset in enumerate(live)
        for t, table in enumerate(ruleset.tables)
        for c, chain in enumerate(table.chains)
        if chain.rules
    ]
    r, t, c = chance.choice(places)
    table = live[r].tables[t]
    chain = table.chains[c]
    rules = list(chain.rules)
    at = chance.randrange(len(rules))
    kind = chance.choice(("delete", "insert", "move", "alter"))
    if kind == "delete":
        done = f"delete {rules.pop(at).text}"
    elif kind == "insert":
        rule = parse_rule(
            chance.choice(
                ("-d 203.0.113.9/32 -j RETURN", "-p udp -j DROP", rules[at].text, "-j ACCEPT")
            )
        )
        if chain.policy is not None and rule.text == "-j RETURN":
            # What comes behind ours in a built-in chain is a foreign rule, and of two such rules
            # (one of -k + is the plan's) the second is never reached.
            return ""
        rules.insert(at, rule)
        done = f"insert {rule.text}"
    elif kind == "move":
        to = chance.randrange(len(rules))
        rule = rules.pop(at)
        rules.insert(to, rule)
        done = f"move {rule.text}"
    else:
        rules[at] = altered(rules[at], chance)
        done = f"alter to {rules[at].text}"
    if tuple(rules) == chain.rules:
        return ""
    chains = (
        *table.chains[:c],
        chain._replace(rules=tuple(rules)),
        *table.chains[c + 1 :],
    )
    tables = (*live[r].tables[:t], table._replace(chains=chains), *live[r].tables[t + 1 :])
    live[r] = live[r]._replace(tables=tables)
    return f"{table.name} {chain.name} {at + 1}: {done}"


def altered(rule: Rule, chance: random.Random) -> Rule:
    """The rule with one part changed to something that means something else."""
    rule = rule._replace(verbatim="")
    ways = [rule._replace(in_interface=None, source=parse_rule("-s 198.51.100.0/24 -j A").source)]
    for name in ("source", "destination", "in_interface", "out_interface", "protocol"):
        term = getattr(rule, name)
        if term is not None:
            others: tuple[dict[str, Any], ...] = (
                {name: None},
                {name: term._replace(negated=not term.negated)},
            )
            ways += [rule._replace(**other) for other in others]
    for number, match in enumerate(rule.matches):
        for place, option in enumerate(match.options):
            flipped = option._replace(negated=not option.negated)
            options = (*match.options[:place], flipped, *match.options[place + 1 :])
            changed = match._replace(options=options)
            ways += [
                rule._replace(
                    matches=(*rule.matches[:number], changed, *rule.matches[number + 1 :])
                ),
                rule._replace(matches=(*rule.matches[:number], *rule.matches[number + 1 :])),
            ]
    if rule.target is not None:
        ways.append(rule._replace(target=rule.target._replace(name="NFQUEUE")))
        for option in rule.target.options:
            if option.name in {"--to-ports", "--zone", "--on-port"}:
                ways.append(
                    rule._replace(
                        target=rule.target._replace(options=(option._replace(values=("9",)),))
                    )
                )
    return chance.choice([each for each in ways if each.text != rule.text])


def respelt(ruleset: Ruleset, chance: random.Random) -> Ruleset:
    """The same rules as text of another iptables: counters, older words, netmasks."""
    text = render(ruleset)
    replacements = [
        ("-m tcp --dport", "--dport"),
        ("--to-ports", "--to-port"),
        ("--set-xmark 0x539/0xffffffff", "--set-mark 1337"),
        (" --nfmask 0xffffffff --ctmask 0xffffffff", ""),
        ("RELATED,ESTABLISHED", "ESTABLISHED,RELATED"),
        ("/32 ", " "),
        ("-A ", "[5:300] -A "),
    ]
    for old, new in chance.sample(replacements, chance.randint(0, len(replacements))):
        text = text.replace(old, new)
    return parse(text, ruleset.family)


@settings(
    max_examples=max(1, MUTATIONS // 20), database=None, suppress_health_check=list(HealthCheck)
)
@given(configs(), st.randoms(use_true_random=False))
def test_every_mutation_of_a_plan_is_found(config: Config, chance: random.Random) -> None:
    """A deleted, inserted, moved or altered rule is told; an unchanged plan never is."""
    plan = build(config)
    same = tuple(respelt(each, chance) for each in plan.rulesets)
    assert not diff_rulesets(same, plan.rulesets, find_owned)
    for _ in range(20):
        live = [respelt(each, chance) for each in plan.rulesets]
        done = mutated(live, chance)
        if done:
            assert diff_rulesets(live, plan.rulesets, find_owned), done


def test_cost_grows_with_the_rules_and_not_with_their_square() -> None:
    """20,000 rules in another order take seconds at most, not minutes."""
    rules = tuple(
        Rule(destination=parse_rule(f"-d 10.{n >> 8}.{n & 255}.0/24 -j A").destination)
        for n in range(20000)
    )
    shuffled = list(rules)
    shuffled.sort(key=lambda rule: sum(map(ord, rule.text)) * 7919 % 1009)
    left, right = (
        Ruleset(Family.IPV4, (Table("nat", (Chain("A", None, tuple(each)),)),))
        for each in (rules, shuffled)
    )
    start = time.process_time()
    assert len(diff_rulesets((left,), (right,))) > 10000
    assert time.process_time() - start < 10
    assert not is_built_in("nat", "A")
