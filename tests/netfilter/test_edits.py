"""Edits: how one table becomes another while a foreign rules keep their bytes and places."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_iptables.netfilter.edits import (
    Action,
    Edit,
    apply,
    edits,
    restore_lines,
    undo,
)
from istio_iptables.netfilter.model import (
    BUILT_IN_CHAINS,
    Chain,
    Match,
    Option,
    Rule,
    Table,
    Target,
)
from istio_iptables.netfilter.ownership import Owned, Position
from tests.strategies import kernel_rules, tables

ACCEPT, DROP, RETURN = map(Target, ("ACCEPT", "DROP", "RETURN"))

#: Built-in chains of nat that hold rules of ours in these tests.
SHARED = ("PREROUTING", "OUTPUT")
#: Chains that are ours altogether.
OWN = ("ISTIO_A", "ISTIO_B", "ISTIO_C")

# A rule of ours in a shared chain jumps to one of our chains; here its name tells its place, too.
_head, _tail = (
    st.integers(1, 3).map(
        lambda mark, name=name: Rule(  # type: ignore[misc]  # mypy can't infer a lambda's default
            matches=(Match("mark", (Option("--mark", (hex(mark),)),)),),
            target=Target(name),
            inserted=name == "ISTIO_HEAD",
        )
    )
    for name in ("ISTIO_HEAD", "ISTIO_TAIL")
)


def is_ours(rule: Rule) -> bool:
    """Whether a rule in a shared chain is ours."""
    return rule.target is not None and rule.target.name.startswith("ISTIO_")


@st.composite
def wanted_tables(draw: st.DrawFn) -> Table:
    """Our part of nat: rules at the head and at the end of shared chains, and chains of our own."""
    shared = {
        chain: (*draw(st.lists(_head, max_size=3)), *draw(st.lists(_tail, max_size=3)))
        for chain in SHARED
    }
    own = draw(st.sets(st.sampled_from(OWN)))
    verdicts = st.sampled_from((RETURN, ACCEPT, Target("REDIRECT"))).map(lambda t: Rule(target=t))
    chains = [Chain(name, "ACCEPT", shared.get(name, ())) for name in BUILT_IN_CHAINS["nat"]]
    chains += (
        Chain(name, None, tuple(draw(st.lists(verdicts, max_size=3)))) for name in sorted(own)
    )
    return Table("nat", tuple(chains))


class Live(NamedTuple):
    """A table with foreign rules and perhaps ours, and what is ours in it."""

    table: Table
    ours: Owned


def seen(table: Table) -> Live:
    """The table, with ours told by the names we use here."""
    ours = {
        chain.name: numbers
        for chain in table.chains
        if chain.name in SHARED
        and (
            numbers := {
                number: Position.HEAD if rule.target == Target("ISTIO_HEAD") else Position.TAIL
                for number, rule in enumerate(chain.rules)
                if is_ours(rule)
            }
        )
    }
    own = tuple(chain.name for chain in table.chains if chain.name in OWN)
    return Live(table, Owned(own, ours))


def steps_to(live: Live, wanted: Table | None) -> tuple[Edit, ...]:
    """The edits from *live* to *wanted*."""
    return edits("nat", live.table, wanted, live.ours)


@st.composite
def lives(draw: st.DrawFn) -> Live:
    """What a machine may hold: foreign rules with an older version of ours among them."""
    foreign = draw(tables("nat", kernel_rules))
    table = apply(foreign, edits("nat", foreign, draw(wanted_tables())))
    # Others go on writing rules after us, at any place.
    chains = []
    for chain in table.chains:
        found = list(chain.rules)
        if chain.name in SHARED:
            for rule in draw(st.lists(kernel_rules, max_size=2)):
                found.insert(draw(st.integers(0, len(found))), rule)
        chains.append(chain._replace(rules=tuple(found)))
    return seen(table._replace(chains=tuple(chains)))


def foreign_in(table: Table) -> dict[str, list[str]]:
    """The texts of what is not ours, chain by chain, in order."""
    return {
        chain.name: [rule.text for rule in chain.rules if not is_ours(rule)]
        for chain in table.chains
        if chain.name not in OWN
    }


def ours_in(table: Table) -> dict[str, list[str]]:
    """The texts of what is ours, chain by chain, in order."""
    return {
        chain.name: [rule.text for rule in chain.rules if is_ours(rule) or chain.name in OWN]
        for chain in table.chains
        if chain.name in (*SHARED, *OWN)
    }


class TestLaws:
    """What is true whatever is there and whatever is wanted."""

    @given(lives(), wanted_tables())
    def test_ours_is_what_is_wanted(self, live: Live, wanted: Table) -> None:
        """After the steps, our chains and our rules in shared chains are the wanted ones."""
        assert ours_in(apply(live.table, steps_to(live, wanted))) == ours_in(wanted)

    @given(lives(), st.one_of(st.none(), wanted_tables()))
    def test_foreign_rules_stay(self, live: Live, wanted: Table | None) -> None:
        """A foreign rules keep their text and order, and the chains their head."""
        after = apply(live.table, steps_to(live, wanted))
        assert foreign_in(after) == foreign_in(live.table)
        heads = {chain.name: (chain.policy, chain.counters) for chain in live.table.chains}
        for chain in after.chains:
            assert heads.get(chain.name, (None, (0, 0))) == (chain.policy, chain.counters)

    @given(lives(), wanted_tables())
    def test_what_is_inserted_comes_first(self, live: Live, wanted: Table) -> None:
        """New rules for the head stand before everything else of their chain."""
        steps = steps_to(live, wanted)
        touched = {step.chain for step in steps}
        for chain in apply(live.table, steps).chains:
            if chain.name in SHARED and chain.name in touched:
                there = wanted.chain(chain.name)
                assert there is not None
                head = [rule for rule in there.rules if rule.inserted]
                assert list(chain.rules[: len(head)]) == head

    @given(lives(), wanted_tables())
    def test_new_rules_take_the_place_of_the_old(self, live: Live, wanted: Table) -> None:
        """As many foreign rules stand before our end rules as stood before the last of the old ones."""
        after = apply(live.table, steps_to(live, wanted))
        for name in SHARED:
            before, now = (
                next(chain for chain in table.chains if chain.name == name).rules
                for table in (live.table, after)
            )
            old, new = (
                [number for number, rule in enumerate(found) if rule.target == Target("ISTIO_TAIL")]
                for found in (before, now)
            )
            if old and new:
                count_old = sum(not is_ours(rule) for rule in before[: old[-1]])
                count_new = sum(not is_ours(rule) for rule in now[: new[-1]])
                assert count_new == count_old

    @given(lives(), st.one_of(st.none(), wanted_tables()))
    def test_doing_it_twice_is_doing_it_once(self, live: Live, wanted: Table | None) -> None:
        """Where everything is as wanted there is nothing to do."""
        after = seen(apply(live.table, steps_to(live, wanted)))
        assert steps_to(after, wanted) == ()

    @given(tables("nat", kernel_rules), wanted_tables())
    def test_install_then_remove_leaves_no_trace(self, foreign: Table, wanted: Table) -> None:
        """What was installed over foreign rules goes away without a trace."""
        installed = apply(foreign, steps_to(seen(foreign), wanted))
        assert apply(installed, steps_to(seen(installed), None)) == foreign

    @given(wanted_tables())
    def test_on_an_empty_table(self, wanted: Table) -> None:
        """With nothing there the result is the wanted table itself."""
        empty = Table("nat", tuple(Chain(name, "ACCEPT") for name in BUILT_IN_CHAINS["nat"]))
        assert apply(empty, edits("nat", empty, wanted)) == wanted
        assert edits("nat", None, wanted) == edits("nat", empty, wanted)

    @given(lives(), st.one_of(st.none(), wanted_tables()))
    def test_undo(self, live: Live, wanted: Table | None) -> None:
        """The steps back lead to the rules that were there, in every chain."""
        steps = steps_to(live, wanted)
        back = apply(apply(live.table, steps), undo(live.table, steps))
        assert {chain.name: chain.rules for chain in back.chains} == {
            chain.name: chain.rules for chain in live.table.chains
        }

    @given(lives(), st.one_of(st.none(), wanted_tables()))
    def test_by_text_hits_the_same_rule(self, live: Live, wanted: Table | None) -> None:
        """Deleting by text takes one of ours, however many rules of that text there are."""
        steps = steps_to(live, wanted)
        foreign = {name: set(texts) for name, texts in foreign_in(live.table).items()}
        for step in steps:
            if step.action is Action.DELETE and step.by_text:
                assert step.rule.text not in foreign[step.chain]


def nat(*chains: Chain) -> Table:
    """A nat table of these chains."""
    return Table("nat", chains)


IMPOSSIBLE: list[tuple[Edit, str]] = [
    (Edit(Action.APPEND, "NO"), "there is no chain NO"),
    (Edit(Action.DELETE_CHAIN, "NO"), "there is no chain NO"),
    (Edit(Action.DELETE_CHAIN, "MINE"), "chain MINE is not empty"),
    (Edit(Action.INSERT, "MINE", position=3), "chain MINE has no rule number 3"),
    (Edit(Action.DELETE, "MINE", position=2), "chain MINE has no rule number 2"),
    (Edit(Action.DELETE, "MINE", position=0), "chain MINE has no rule number 0"),
]


@pytest.mark.parametrize(("step", "reason"), IMPOSSIBLE)
def test_what_the_kernel_would_refuse(step: Edit, reason: str) -> None:
    """A step that the kernel would refuse is refused."""
    with pytest.raises(ValueError, match=reason):
        apply(nat(Chain("MINE", rules=(Rule(target=DROP),))), (step,))


def test_the_lines_of_a_transaction() -> None:
    """Each step is a line of iptables-restore, in its order."""
    drop = Rule(target=DROP)
    steps = (
        Edit(Action.RESET, "ISTIO_A"),
        Edit(Action.DELETE, "OUTPUT", drop, 2),
        Edit(Action.DELETE, "OUTPUT", drop, 1, by_text=True),
        Edit(Action.INSERT, "OUTPUT", drop, 1),
        Edit(Action.APPEND, "ISTIO_A", drop),
        Edit(Action.DELETE_CHAIN, "ISTIO_B"),
    )
    assert restore_lines("nat", steps) == [
        "*nat",
        ":ISTIO_A - [0:0]",
        "-D OUTPUT 2",
        "-D OUTPUT -j DROP",
        "-I OUTPUT 1 -j DROP",
        "-A ISTIO_A -j DROP",
        "-X ISTIO_B",
        "COMMIT",
    ]


def test_a_foreign_jump_to_a_chain_that_goes() -> None:
    """A foreign chain that jumps to a chain of ours loses that rule with the chain."""
    jump, keep = Rule(target=Target("ISTIO_A")), Rule(target=DROP)
    live = nat(
        Chain("OUTPUT", "ACCEPT"), Chain("ISTIO_A"), Chain("THEIRS", rules=(jump, keep, jump))
    )
    steps = edits("nat", live, None, Owned(("ISTIO_A",)))
    assert apply(live, steps) == nat(Chain("OUTPUT", "ACCEPT"), Chain("THEIRS", rules=(keep,)))


def test_unchanged_chains_are_not_touched() -> None:
    """Only the chain that differs is emptied and filled: the others keep their counters."""
    one, two = Chain("ISTIO_A", rules=(Rule(target=DROP),)), Chain("ISTIO_B")
    live = nat(one, two)
    wanted = nat(one, two._replace(rules=(Rule(target=RETURN),)))
    assert [(step.action, step.chain) for step in edits("nat", live, wanted, Owned(OWN[:2]))] == [
        (Action.RESET, "ISTIO_B"),
        (Action.APPEND, "ISTIO_B"),
    ]


def test_a_rule_with_lines_in_its_comment_is_written_on_one() -> None:
    """Each line is a command to iptables-restore; to delete such a rule its number is enough."""
    rule = Rule(verbatim='-m comment --comment "a\n-A OUTPUT -j DROP\n" -j ISTIO_A')
    lines = restore_lines(
        "nat",
        [
            Edit(Action.DELETE, "OUTPUT", rule, 3, by_text=True),
            Edit(Action.APPEND, "OUTPUT", rule),
            Edit(Action.INSERT, "OUTPUT", rule, 1),
        ],
    )
    assert lines == [
        "*nat",
        "-D OUTPUT 3",
        '-A OUTPUT -m comment --comment "a -A OUTPUT -j DROP " -j ISTIO_A',
        '-I OUTPUT 1 -m comment --comment "a -A OUTPUT -j DROP " -j ISTIO_A',
        "COMMIT",
    ]
