"""Rules of nftables: whether their conditions hold, and what their statements do.

Statements are evaluated one after the other. One that fails ends the rule, and what those before
it did stays. A field that the packet does not have fails in either sense: ``ip daddr != 10.0.0.1``
is false of a packet of IPv6, ``meta skuid != 0`` of one without a socket.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from istio_iptables.errors import CannotTell
from istio_iptables.netfilter.extensions import Effect, Next, Situation
from istio_iptables.netfilter.extensions.mark import mark_text
from istio_iptables.netfilter.fieldvalues import (
    WHOLE_MARK,
    address_number,
    number,
    option_number,
    protocol_number,
)
from istio_iptables.netfilter.model import Family, Target
from istio_iptables.netfilter.nftrules import split_elements, split_verdicts
from istio_iptables.netfilter.packet import is_link_local
from istio_iptables.netfilter.questions import (
    ManyMarks,
    among,
    has_address,
    has_bits,
    is_many,
    named,
    same,
)
from istio_iptables.netfilter.sets import Intervals, names_from, one_number
from istio_iptables.trace.matches import MatchResult
from istio_iptables.trace.targets import target_effect

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from istio_iptables.netfilter.nftrules import NftRule, Statement
    from istio_iptables.netfilter.packet import Packet

__all__ = ["conditions", "effect", "run"]


class _Absent:
    """What a field is that the packet does not have: no condition on it holds."""


_ABSENT = _Absent()
#: A number, a word, None for what can't be known from here.
_Value = int | str | _Absent | None

_SENDING = frozenset({"OUTPUT", "POSTROUTING"})
_PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132, "dccp": 33, "udplite": 136}
_WITH_LISTENERS = Intervals.of([(6, 6), (17, 17)])
_OF_FAMILY = {"ip": Family.IPV4, "ip6": Family.IPV6}


def conditions(rule: NftRule, situation: Situation) -> list[MatchResult]:
    """Each condition of *rule*, for saying why it did not match."""
    return [
        MatchResult(each.text, _holds(each, rule, situation), _has(each, situation))
        for each in rule.statements
        if each.field or not (each.target or each.harmless)
    ]


def run(rule: NftRule, situation: Situation) -> tuple[bool | None, Packet]:
    """Whether *rule* matches, and the packet behind it if it does not.

    False as soon as one condition fails, None if that depends; what was done before a condition
    that fails stays.
    """
    answer: bool | None = True
    packet = left = situation.packet
    *_, last = rule.statements or (None,)
    for each in rule.statements:
        now = situation if packet is situation.packet else situation._replace(packet=packet)
        holds = _holds(each, rule, now)
        if holds is not True:
            # Which of what was done before was done may depend on what can't be known.
            before = situation.packet
            known = answer or packet is before or all(map(same, packet, before))
            left = packet if known else _unmarked(packet)
            if holds is False:
                return False, left
            answer = None
        if each is not last:
            done = _done(each, rule, now, ())
            packet = packet if done is None else done.packet
    return answer, left


def _unmarked(packet: Packet) -> Packet:
    """The packet, whose marks may be others."""
    return packet._replace(mark=None, connmark=None if packet.tracked else packet.connmark)


def effect(rule: NftRule, situation: Situation, chains: Container[str]) -> Effect:
    """What *rule* does to the packet, which it matches."""
    whole = Effect(Next.CONTINUE, situation.packet)
    for each in rule.statements:
        now = situation._replace(packet=whole.packet)
        done = _done(each, rule, now, chains)
        if done is not None:
            whole = done._replace(
                change=", ".join(filter(None, (whole.change, done.change))),
                takes=whole.takes or done.takes,
                to_port=done.to_port if done.takes else whole.to_port,
                translated=whole.translated or done.translated,
                verdict=done.verdict or whole.verdict,
                taken_by=done.verdict if done.takes else whole.taken_by,
            )
        if whole.next is not Next.CONTINUE:
            break
    if whole.taken_by and whole.next is Next.ACCEPT:
        return whole._replace(verdict=whole.taken_by)
    return whole


def _done(
    each: Statement, rule: NftRule, situation: Situation, chains: Container[str]
) -> Effect | None:
    """What one statement does; None for nothing."""
    packet = situation.packet
    target = each.target
    if each.operator == "vmap":
        mapped = _mapped(each, rule, situation)
        target = mapped[0] if mapped else None
    if target is None:
        return None if each.harmless else _unknown(each, rule, packet)
    other_family = each.field == "family" and not _is_of_family(each, situation)
    if target.name == "CONTINUE" or other_family:
        # What is for the other family lets the rule go on, unlike a condition.
        return None
    if target.name == "SET-FIELD":
        return Effect(Next.CONTINUE, _set_field(target, packet), verdict=target.name)
    if target.option("--zone") and packet.settled and packet.state == "UNTRACKED":
        # Unlike iptables it has the packet tracked again.
        return Effect(Next.UNKNOWN, packet, _UNKNOWN, verdict="ct zone")
    done = target_effect(target, situation, chains)
    if target.name == "TPROXY":
        # It marks nothing, and other statements follow.
        change = f"to the listener on port {done.to_port}"
        return done._replace(next=Next.CONTINUE, packet=packet, change=change)
    return done


def _unknown(each: Statement, rule: NftRule, packet: Packet) -> Effect | None:
    """What a statement may do of which nothing is known; None for a mere condition."""
    if each.field and each.operator != "vmap":
        return None
    if each is rule.statements[-1] or "vmap" in each.text:
        name = each.text.partition(" ")[0]
        return Effect(Next.UNKNOWN, _unmarked(packet), _UNKNOWN, verdict=name)
    return Effect(Next.CONTINUE, _unmarked(packet))


_UNKNOWN = "what it does can't be known from here"
_SET = {
    "saddr": {"source": None},
    "daddr": {"destination": None},
    "sport": {"source_port": None},
    "dport": {"destination_port": None},
}


def _set_field(target: Target, packet: Packet) -> Packet:
    """The packet with another value somewhere in its header: what it is then is not computed."""
    changes: Mapping[str, None] = _SET.get(target.options[0].value.rpartition(" ")[2], {})
    return packet._replace(**changes)  # type: ignore[arg-type]


# Conditions.


def _holds(each: Statement, rule: NftRule, situation: Situation) -> bool | None:
    """Whether a statement lets the rule go on; None if that can't be known from here."""
    if not each.field:
        return True if each.target or each.harmless else None
    if not each.operator:
        return _can_be_done(each, situation)
    value = _value(each.field, situation)
    if value is _ABSENT:
        return False
    if each.operator != "vmap":
        return _compare(each, rule, value, situation.packet)
    mapped = _mapped(each, rule, situation)
    return mapped if mapped is None else bool(mapped)


def _can_be_done(each: Statement, situation: Situation) -> bool | None:
    """Whether the packet has what a statement needs that does something."""
    if each.field == "tproxy":
        return _is_of_family(each, situation) and _finds_listener(each, situation)
    # Without a connection there is no value to take from it, without TCP no port to set.
    return _value(each.field, situation) is not _ABSENT


def _is_of_family(each: Statement, situation: Situation) -> bool:
    """Whether a statement that names a family is about the packet's."""
    return not each.values or _OF_FAMILY[each.values[0]] is situation.packet.family


def _finds_listener(each: Statement, situation: Situation) -> bool | None:
    """Whether TPROXY finds a socket: without it the rule ends, and the packet goes on."""
    packet = situation.packet
    if not among(packet.protocol, _WITH_LISTENERS):
        return False
    ask = situation.world.listens
    port = option_number(each.target.option("--on-port")) if each.target else None
    wanted = port or packet.destination_port
    if ask is None:
        return True
    found = None if wanted is None else ask(packet.protocol, wanted, packet.family)
    # Without a listener there may be the socket of the packet's connection.
    return found if found or among(packet.state, named("NEW")) else None


def _compare(each: Statement, rule: NftRule, value: _Value, packet: Packet) -> bool | None:
    words = _words(each, rule)
    if value is None or words is None or isinstance(value, _Absent):
        return None
    if value is _ELSEWHERE and set(words) != {"local"}:
        return None
    mask = number(each.mask) if each.mask else WHOLE_MARK
    if mask is None:
        return None
    members = _members(each.field, words)
    if each.operator in _ORDERS:
        limit = members.only
        if limit is None:
            return None
        return _is_among(value, _ORDERS[each.operator](limit), mask if each.mask else None, packet)
    found = members.holds(value, mask if each.mask else None, packet)
    return None if found is None else found is (each.operator == "==")


def _is_among(value: int | str, wanted: Intervals, mask: int | None, packet: Packet) -> bool:
    """Whether a number, or the number of an address, is among *wanted* behind *mask*."""
    if isinstance(value, str):
        return bool(has_address(value, wanted, packet.family))
    if isinstance(value, ManyMarks):
        mask = WHOLE_MARK if mask is None else mask
        if any(end != first + 1 for first, end in wanted.pairs()):
            message = "marks are compared with a range: packets can't be told apart by it"
            raise CannotTell(message)
        return any(has_bits(value, first, mask) for first, _ in wanted.pairs())
    if mask is None:
        return among(value, wanted)
    if is_many(value):
        message = "bits of a field that is no mark: packets can't be told apart by them"
        raise CannotTell(message)
    return value & mask in wanted


_LAST_NUMBER = 1 << 128
_ORDERS: dict[str, Callable[[int], Intervals]] = {
    "<": lambda limit: Intervals((0, limit) if limit else ()),
    "<=": lambda limit: Intervals((0, limit + 1)),
    ">": lambda limit: Intervals((limit + 1, _LAST_NUMBER)),
    ">=": lambda limit: Intervals((limit, _LAST_NUMBER)),
}


def _words(each: Statement, rule: NftRule) -> tuple[str, ...] | None:
    """What a field is compared with; None where a set does not tell."""
    if len(each.values) == 1 and each.values[0].startswith("@"):
        return _elements(rule.objects.get(f"set {each.values[0][1:]}"))
    return each.values


@lru_cache(maxsize=64)
def _elements(text: str | None) -> tuple[str, ...] | None:
    """The elements of a set or map that is listed so; None for one that changes by itself."""
    if text is None:
        return None
    parts = text.split("; ")
    if any(
        part.startswith("flags ") and set(part[6:].split(",")) & {"dynamic", "timeout"}
        for part in parts
    ):
        return None
    listed = next((part for part in parts if part.startswith("elements = ")), "")
    found = split_elements(listed.removeprefix("elements = "))
    # What else an element has tells nothing.
    return found and tuple(re.split(" (?:counter|comment) ", each)[0] for each in found)


def _verdicts(each: Statement, rule: NftRule) -> tuple[tuple[str, ...], tuple[Target, ...]] | None:
    """The values of a verdict map and their verdicts; None where it does not tell."""
    if not each.values[0].startswith("@"):
        return each.values, each.verdicts
    found = _elements(rule.objects.get(f"map {each.values[0][1:]}"))
    return None if found is None else split_verdicts(found)


def _mapped(each: Statement, rule: NftRule, situation: Situation) -> tuple[Target, ...] | None:
    """The verdict that a map has for the packet, if any; None for one that can't be known."""
    value, pairs = _value(each.field, situation), _verdicts(each, rule)
    if value is None or value is _ELSEWHERE or pairs is None or isinstance(value, _Absent):
        return None
    for word, target in zip(*pairs, strict=True):
        holds = _members(each.field, (word,)).holds(value, None, situation.packet)
        if holds is None:
            return None
        if holds:
            return (target,)
    return ()


# Values.


class _Members:
    """What a field may be: ranges of numbers, or words."""

    def __init__(self, field: str, words: tuple[str, ...]) -> None:
        self._known = True
        ranges: list[tuple[int, int]] = []
        texts = Intervals()
        read = _reader(field)
        for word in words:
            if read is None:
                texts = texts.join(_word(field, word))
                continue
            found = read(word)
            if found is None:
                self._known = False
            else:
                ranges.append(found)
        self._numbers = texts if read is None else Intervals.of(ranges)
        self._is_words = read is None

    def holds(self, value: int | str, mask: int | None, packet: Packet) -> bool | None:
        """Whether *value* is one of them; None where one of them could not be read."""
        if self._is_words:
            return among(value, self._numbers)
        found = _is_among(value, self._numbers, mask, packet)
        return True if found else (False if self._known else None)

    @property
    def only(self) -> int | None:
        """The only number that it is; None for another."""
        ends = self._numbers.ends
        one = not self._is_words and self._known and len(ends) == 2  # noqa: PLR2004 - a range
        return ends[0] if one and ends[1] == ends[0] + 1 else None


@lru_cache(maxsize=1 << 16)
def _members(field: str, words: tuple[str, ...]) -> _Members:
    return _Members(field, words)


def _word(field: str, text: str) -> Intervals:
    """The names that a word stands for; a ``*`` at the end of a name stands for any rest."""
    if not text.startswith('"'):
        return named(text.upper() if field == "ct state" else text)
    text = text.strip('"')
    if text.endswith("\\*"):
        return named(f"{text[:-2]}*")
    return names_from(text[:-1]) if text.endswith("*") else named(text)


def _reader(field: str) -> Callable[[str], tuple[int, int] | None] | None:
    """How the values of a field are read as ranges of numbers; None for a field of words."""
    if field in _WORDS:
        return None
    if field.endswith("addr"):
        family = Family.IPV4 if "ip " in field else Family.IPV6
        return lambda word: _networks(word, family)
    if field in {"meta l4proto", "ip protocol", "ip6 nexthdr"}:
        return _protocols
    return _numbers


#: The fields whose values are words.
_WORDS = frozenset(
    {"iifname", "oifname", "iif", "oif", "ct state", "meta nfproto", "meta protocol"}
    | {"fib daddr type", "fib saddr type"}
)


def _numbers(word: str) -> tuple[int, int] | None:
    first, dash, last = word.partition("-")
    low, high = number(first), number(last if dash else first)
    return None if low is None or high is None else (low, high)


def _protocols(word: str) -> tuple[int, int] | None:
    found = protocol_number(word)
    return _numbers(word) if found is None else (found, found)


def _networks(word: str, family: Family) -> tuple[int, int] | None:
    first, dash, last = word.partition("-")
    base, slash, length = first.partition("/")
    low, bits = address_number(base, family), number(length) if slash else family.bits
    if low is None or bits is None or bits > family.bits:
        return None
    if dash:
        high = address_number(last, family)
        return None if high is None else (low, high)
    hosts = (1 << family.bits - bits) - 1
    return (low & ~hosts, low | hosts)


# Fields.


def _value(field: str, situation: Situation) -> _Value:
    """What the packet has of a field."""
    packet = situation.packet
    ask = _FIELDS.get(field)
    first = field.partition(" ")[0]
    if first in _OF_FAMILY and _OF_FAMILY[first] is not packet.family:
        return _ABSENT
    if first in _PROTOCOLS and not among(packet.protocol, one_number(_PROTOCOLS[first])):
        return _ABSENT
    if first == "ct" and field != "ct state" and not packet.tracked:
        return _ABSENT
    return ask(situation) if ask else None


def _owner(situation: Situation, owner: int | None) -> _Value:
    packet = situation.packet
    if situation.hook not in _SENDING:
        return None
    # The kernel's own packets have no socket.
    return _ABSENT if packet.uid is None and packet.gid is None else owner


_ELSEWHERE = "not local"


def _kind(situation: Situation, address: str | None) -> _Value:
    """``local``, or that it is not: of what kind another address is needs the routes."""
    family = situation.packet.family
    if address is None or (family is Family.IPV6 and is_link_local(address, family)):
        # Such an address is looked for at one interface alone, and which one depends on the hook.
        return None
    local = situation.world.is_local(address, family)
    return {True: "local", False: _ELSEWHERE, None: None}[local]


def _port(packet: Packet, port: int | None) -> int | None:
    return port if packet.has_ports else None


def _connmark(packet: Packet) -> int | None:
    # Behind a zone that raw has set it is the mark of what that has made, not the connection's.
    return None if packet.early_state else packet.connmark


_FIELDS: dict[str, Callable[[Situation], _Value]] = {
    **{f"{name} saddr": lambda s: s.packet.source for name in _OF_FAMILY},
    **{f"{name} daddr": lambda s: s.packet.destination for name in _OF_FAMILY},
    **{
        f"{name} sport": lambda s: _port(s.packet, s.packet.source_port)
        for name in ("tcp", "udp", "th", "sctp", "dccp", "udplite")
    },
    **{
        f"{name} dport": lambda s: _port(s.packet, s.packet.destination_port)
        for name in ("tcp", "udp", "th", "sctp", "dccp", "udplite")
    },
    **{
        name: lambda s: s.packet.protocol for name in ("meta l4proto", "ip protocol", "ip6 nexthdr")
    },
    "meta nfproto": lambda s: s.packet.family.value,
    "meta protocol": lambda s: "ip" if s.packet.family is Family.IPV4 else "ip6",
    "iifname": lambda s: s.packet.in_interface,
    "oifname": lambda s: s.packet.out_interface,
    "iif": lambda s: s.packet.in_interface,
    "oif": lambda s: s.packet.out_interface,
    "meta mark": lambda s: s.packet.mark,
    "ct mark": lambda s: _connmark(s.packet),
    "ct state": lambda s: s.packet.seen_state,
    "meta skuid": lambda s: _owner(s, s.packet.uid),
    "meta skgid": lambda s: _owner(s, s.packet.gid),
    "fib daddr type": lambda s: _kind(s, s.packet.destination),
    "fib saddr type": lambda s: _kind(s, s.packet.source),
}


def _has(each: Statement, situation: Situation) -> str:
    """What the packet has of a field, in words."""
    if each.field == "tproxy":
        return "no listener, or not its family"
    value = _value(each.field, situation) if each.field and each.operator else None
    if isinstance(value, _Absent):
        return "the packet has none"
    if value is None:
        return "it can't be known from here"
    if each.field.endswith("mark"):
        return mark_text(value & WHOLE_MARK if isinstance(value, int) else None)
    packet = situation.packet
    source, destination = packet.endpoints
    words: dict[str, str] = {
        "saddr": f"source {source}",
        "daddr": f"destination {destination}",
        "sport": f"source {source}",
        "dport": f"destination {destination}",
        "l4proto": f"protocol {packet.protocol_name}",
    }
    return words.get(each.field.rpartition(" ")[2], f"it is {str(value).lower() or 'none'}")
