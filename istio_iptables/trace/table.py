"""One packet through one table: the rules it matches, up to a verdict or the policy."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.netfilter.extensions import Effect, Next, Situation
from istio_iptables.netfilter.nftrules import NftRule
from istio_iptables.netfilter.questions import ManyNumbers, same
from istio_iptables.trace import nftables
from istio_iptables.trace.cells import Cell, Kept
from istio_iptables.trace.matches import MatchResult, conditions, matches
from istio_iptables.trace.targets import effect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from istio_iptables.netfilter.model import Chain, Rule
    from istio_iptables.netfilter.packet import Packet, Surroundings

__all__ = [
    "MAX_STEPS",
    "Assumption",
    "Called",
    "End",
    "Miss",
    "Tie",
    "TraceStep",
    "Translation",
    "Walk",
    "Way",
]

#: How many rules a way may match in all; a circle of jumps, which only a file can have, is endless.
MAX_STEPS = 5000


class End(Enum):
    """Where a packet ends; the value is its name in JSON."""

    SENT = "sent"
    DELIVERED = "delivered"
    FORWARDED = "forwarded"
    DROPPED = "dropped"
    #: A target that can't be followed has it, or it matches more rules than are followed.
    UNKNOWN = "unknown"
    #: The kernel has no route for it: it is not sent at all.
    UNROUTED = "unrouted"


class Miss(NamedTuple):
    """A rule that did not match, and its conditions."""

    table: str
    chain: str
    number: int
    rule: Rule
    conditions: tuple[MatchResult, ...]


class TraceStep(NamedTuple):
    """One rule that the packet matched, or the policy it met (*number* and *rule* are None)."""

    hook: str
    table: str
    chain: str
    number: int | None
    rule: Rule | None
    #: What came of it: ``RETURN``, the chain jumped to, ``REDIRECT``, the policy ...
    verdict: str
    #: What it changed about the packet, for people; "" for nothing.
    change: str = ""
    #: 2 when the packet comes back over loopback.
    journey: int = 1
    #: The rules that were asked in vain since the step before, when wanted.
    misses: tuple[Miss, ...] = ()
    #: False for a rule that may not have matched, where that makes no difference to the packet.
    certain: bool = True
    #: Where the chain that the kernel called stands among all of this hook, and of which kind it is:
    #: ``nat``, ``filter`` or ``route``.
    priority: int = 0
    kind: str = "filter"

    @property
    def place(self) -> str:
        """Where it stands: ``nat ISTIO_OUTPUT 3``, or ``nat OUTPUT policy``."""
        return f"{self.table} {self.chain} {'policy' if self.number is None else self.number}"

    @property
    def text(self) -> str:
        """The rule as iptables-save or nft prints it, or the policy."""
        if self.rule is not None:
            return self.rule.line(self.chain)
        native = " " in self.table
        return self.verdict.lower() if native else f"-P {self.chain} {self.verdict}"


class Tie(NamedTuple):
    """Chains of one priority in several tables: which of them the kernel asks first is not known."""

    hook: str
    chains: tuple[str, ...]


class Assumption(NamedTuple):
    """An answer that an outcome rests on: whether something unknown is so."""

    #: The rule's place, such as ``nat PREROUTING 1``; "" for what no rule asks.
    place: str
    text: str
    answer: bool
    #: What the order of chains is assumed of; None for anything else.
    tie: Tie | None = None


class Translation(NamedTuple):
    """Where nat has sent a connection, and what took it there."""

    destination: str | None
    port: int | None
    taken_by: str
    to_port: int | None


class Way(NamedTuple):
    """How far a packet has come on one of the ways that it may take."""

    packet: Packet
    steps: tuple[TraceStep, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    end: End | None = None
    #: How it was handed to a local port that it had not asked for: REDIRECT, TPROXY or "".
    taken_by: str = ""
    to_port: int | None = None
    #: Whether a policy route delivers the packet here because of its mark.
    by_mark: bool = False
    #: Where the packet leaves after OUTPUT; its hooks still see the interface from before.
    next_interface: str | None = ""
    #: Which halves of nat the connection has been through.
    destination_done: bool = False
    source_done: bool = False
    translated: bool = False
    #: What nat does to this packet without asking a rule, because it did so to the first one.
    kept: Translation | None = None
    journey: int = 1
    misses: tuple[Miss, ...] = ()
    #: The mark by which the packet was routed last.
    routed_mark: int | None = 0
    #: The interface that the sender's socket is bound to; "" if none.
    bound_to: str = ""
    #: Why the kernel has no route for it; "" if there is one, or nothing is known of it.
    refused: str = ""
    #: The hooks that the packet has come to.
    hooks: tuple[str, ...] = ()

    def assuming(self, place: str, text: str, *, answer: bool) -> Way:
        """This way, if the answer to something unknown is *answer*."""
        return self._replace(assumptions=(*self.assumptions, Assumption(place, text, answer)))


class Called(NamedTuple):
    """A chain that the kernel calls at a hook."""

    table: str
    chain: str
    #: ``nat``, ``filter`` or ``route``.
    kind: str
    priority: int


class _Frame(NamedTuple):
    """A place in a chain to go on from: behind its first *number* rules."""

    chain: Chain
    number: int


class _Found(NamedTuple):
    """The rule that a search came to; None at the end of the chain."""

    rule: Rule | None
    number: int
    #: The conditions that can't be decided; "" when the rule matches for sure.
    unknown: str
    misses: tuple[Miss, ...]
    #: The packet as it comes to the rule: one of nftables changes it before it fails.
    packet: Packet
    #: The packet behind the rule, if it does not match.
    left: Packet


def _conditions(rule: Rule, situation: Situation) -> list[MatchResult]:
    if isinstance(rule, NftRule):
        return nftables.conditions(rule, situation)
    return conditions(rule, situation)


class Walk:
    """A table at one hook, ready to be gone through."""

    def __init__(
        self,
        *,
        hook: str,
        called: Called,
        chains: Mapping[str, Chain],
        world: Surroundings,
        misses: bool,
    ) -> None:
        self._hook, self._table, self._chains = hook, called.table, chains
        self._called = called
        self._world = world
        self._with_misses = misses
        self._pending: list[tuple[Way, tuple[_Frame, ...]]] = []

    def ways(self, way: Way) -> Iterator[Way]:
        """The ways through the table: one, unless something can't be decided."""
        self._pending = [(way, (_Frame(self._chains[self._called.chain], 0),))]
        while self._pending:
            yield self._follow(*self._pending.pop())

    def _follow(self, way: Way, frames: tuple[_Frame, ...]) -> Way:
        """Follow one way to its verdict; ways that branch off are left pending."""
        while frames:
            *callers, (chain, number) = frames
            found = self._next_match(way, chain, number)
            way = way._replace(misses=way.misses + found.misses, packet=found.packet)
            if found.rule is None:
                frames = tuple(callers)
                continue
            here = (*callers, _Frame(chain, found.number))
            done = self._effect(found.rule, way)
            if found.unknown and done.next is Next.CONTINUE and _changes_nothing(way, found, done):
                # Whether it was logged or counted, the packet goes on as it is.
                way = self._take_step(way, chain.name, found, done, certain=False)
                frames = here
                continue
            if found.unknown:
                place = f"{self._table} {chain.name} {found.number}"
                other = way.assuming(place, found.unknown, answer=False)
                self._pending.append((other._replace(packet=found.left), here))
                way = way.assuming(place, found.unknown, answer=True)
            way = self._take_step(way, chain.name, found, done)
            if done.next is Next.ACCEPT:
                return way
            if done.next is Next.DROP:
                return way._replace(end=End.DROPPED)
            if len(way.steps) > MAX_STEPS:
                return way._replace(end=End.UNKNOWN)
            if done.next is Next.UNKNOWN:
                place = f"{self._table} {chain.name} {found.number}"
                text = f"-j {done.verdict} lets the packet go on"
                self._pending.append((way.assuming(place, text, answer=True), here))
                return way.assuming(place, text, answer=False)._replace(end=End.UNKNOWN)
            frames = self._onward(done, tuple(callers), here)
        # Out of a built-in chain, at its end or by RETURN, there is only its policy.
        name = self._called.chain
        policy = self._chains[name].policy or "ACCEPT"
        met = Effect(Next.ACCEPT, way.packet, verdict=policy)
        way = self._take_step(way, name, None, met)
        return way if policy == "ACCEPT" else way._replace(end=End.DROPPED)

    def _onward(
        self, done: Effect, callers: tuple[_Frame, ...], here: tuple[_Frame, ...]
    ) -> tuple[_Frame, ...]:
        """Where the packet goes on in this table."""
        if done.next is Next.RETURN:
            return callers
        if done.next is Next.JUMP:
            return (*here, _Frame(self._chains[done.verdict], 0))
        if done.next is Next.GOTO:
            return (*callers, _Frame(self._chains[done.verdict], 0))
        return here

    def _effect(self, rule: Rule, way: Way) -> Effect:
        situation = self._situation(way)
        if isinstance(rule, NftRule):
            return nftables.effect(rule, situation, self._chains)
        return effect(rule, situation, self._chains)

    def _situation(self, way: Way) -> Situation:
        return Situation(way.packet, self._hook, self._world, way.translated)

    def _next_match(self, way: Way, chain: Chain, number: int) -> _Found:
        """The next rule of *chain*, behind its first *number*, that matches or may."""
        situation = self._situation(way)
        protocol = way.packet.protocol
        if isinstance(protocol, ManyNumbers) and isinstance(protocol.about, Cell):
            return self._next_match_for(protocol.about, situation, chain, number)
        misses: list[Miss] = []
        rules = chain.rules
        for at in range(number, len(rules)):
            rule = rules[at]
            holds, left = _run(rule, situation)
            if holds is False:
                if self._with_misses:
                    about = tuple(_conditions(rule, situation))
                    misses.append(Miss(self._table, chain.name, at + 1, rule, about))
                if left is not situation.packet:
                    situation = situation._replace(packet=left)
                continue
            unknown = _unknown(holds, rule, situation)
            return _Found(rule, at + 1, unknown, tuple(misses), situation.packet, left)
        return _Found(None, 0, "", tuple(misses), situation.packet, situation.packet)

    def _next_match_for(
        self, cell: Cell, situation: Situation, chain: Chain, number: int
    ) -> _Found:
        """As ``_next_match``, for all packets of *cell*: a stretch of rules is asked at once."""
        packet, rules = situation.packet, chain.rules
        lists = cell.memory.stretches(chain, packet.family)
        at = number
        while at < len(rules):
            stretch = lists.get(at)
            places: Sequence[int] = (at,)
            group = None
            if stretch is not None:
                places, group = stretch.asked(packet)
                at = stretch.last
            else:
                at += 1
            for place in places:
                if place < number:
                    continue
                rule = rules[place]
                if stretch is not None and group is not None:
                    rule = stretch.rules[place - stretch.first]
                holds, left = _run(rule, situation)
                if holds is False:
                    if left is not situation.packet:
                        situation = situation._replace(packet=left)
                    continue
                if stretch is not None and group is not None:
                    kept = Kept(stretch, group, places.index(place))
                    cell.kept[self._table, chain.name, place + 1] = kept
                unknown = _unknown(holds, rule, situation)
                return _Found(rules[place], place + 1, unknown, (), situation.packet, left)
        return _Found(None, 0, "", (), situation.packet, situation.packet)

    def _take_step(
        self, way: Way, chain: str, found: _Found | None, done: Effect, *, certain: bool = True
    ) -> Way:
        """The way with one more step on it."""
        step = TraceStep(
            self._hook,
            self._table,
            chain,
            found.number if found else None,
            found.rule if found else None,
            done.verdict,
            done.change,
            way.journey,
            way.misses,
            certain,
            self._called.priority,
            self._called.kind,
        )
        before = way.packet
        way = way._replace(packet=done.packet, steps=(*way.steps, step), misses=())
        # The socket that TPROXY gave the packet stays its socket, whatever nat writes into it.
        if done.takes and way.taken_by != "TPROXY":
            way = way._replace(taken_by=done.taken_by or done.verdict, to_port=done.to_port)
        # A mapping to what was there already is none to the kernel.
        after = done.packet
        if not done.translated or (
            same(before.destination, after.destination, after.family)
            and same(before.destination_port, after.destination_port)
        ):
            return way
        return way._replace(translated=True)


def _run(rule: Rule, situation: Situation) -> tuple[bool | None, Packet]:
    """Whether *rule* matches, and the packet behind it if it does not."""
    if isinstance(rule, NftRule):
        return nftables.run(rule, situation)
    return matches(rule, situation), situation.packet


def _unknown(holds: bool | None, rule: Rule, situation: Situation) -> str:  # noqa: FBT001 - it is data
    """The conditions of a rule that can't be decided; "" when it matches for sure."""
    if holds is not None:
        return ""
    return " ".join(each.text for each in _conditions(rule, situation) if each.holds is None)


def _changes_nothing(way: Way, found: _Found, done: Effect) -> bool:
    """Whether the packet is as it was behind a rule, whether that matches or not."""
    packets = found.left, done.packet
    return not done.takes and all(all(map(same, way.packet, each)) for each in packets)
