"""A rule of nftables, read from its text: statements, one after the other.

What is not understood stays word for word, as a statement of which nothing is known.
"""

from __future__ import annotations

import re
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from istio_iptables.netfilter.model import Counters, Match, Option, Rule, Target, Term
from istio_iptables.netfilter.nftnames import usual

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["NftRule", "Statement", "split_elements", "split_verdicts", "statements"]


class Statement(NamedTuple):
    """One statement of a rule: a condition, something that is done, or both.

    Nothing is known of one that has neither a field nor a target and is not *harmless*.
    """

    #: As nft lists it; a counter without its numbers.
    text: str
    #: What a condition looks at, such as ``ip daddr``; "" for none.
    field: str = ""
    #: ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``; ``vmap`` for a verdict map.
    operator: str = ""
    #: What the field is compared with, word by word; ``@name`` is a set or map of the table.
    values: tuple[str, ...] = ()
    #: The bits of the field that are looked at; "" for all.
    mask: str = ""
    #: What is done, in the words of iptables where it has some; else None.
    target: Target | None = None
    #: The verdicts of a map that stands in the rule, one for each of *values*.
    verdicts: tuple[Target, ...] = ()
    #: It is no condition, and the packet goes on as it is: a counter, a log, a comment.
    harmless: bool = False


class NftRule(Rule):
    """A rule of nftables; it keeps its text alone, and is read when somebody asks.

    The tuple holds the text, the reason, the counters and the objects of its table.
    """

    __slots__ = ()

    def __new__(
        cls,
        text: str,
        reason: str = "",
        counters: Counters | None = None,
        objects: Mapping[str, str] = MappingProxyType({}),
    ) -> Self:
        """The rule of *text*, in which a counter has no numbers."""
        return tuple.__new__(cls, (text, reason, counters, objects))

    text = verbatim = property(lambda self: tuple.__getitem__(self, 0))
    reason = property(lambda self: tuple.__getitem__(self, 1))
    counters = property(lambda self: tuple.__getitem__(self, 2))
    #: What else the table has: the sets that the rule may name.
    objects = property(lambda self: tuple.__getitem__(self, 3))
    inserted = property(lambda _: False)
    fragment = property(lambda _: None)

    @property
    def statements(self) -> tuple[Statement, ...]:
        """What the rule says, one statement after the other."""
        return statements(self.text)

    def line(self, chain: str) -> str:  # noqa: ARG002 - nft lists a rule without it
        """The rule as nft lists it."""
        return str(self.text)

    # What those ask for who know the rules of iptables.

    source = property(lambda self: self._term("ip saddr", "ip6 saddr"))
    destination = property(lambda self: self._term("ip daddr", "ip6 daddr"))
    in_interface = property(lambda self: self._term("iifname"))
    out_interface = property(lambda self: self._term("oifname"))

    @property
    def protocol(self) -> Term | None:
        """The protocol that the rule is for, also where only a port tells it."""
        found = self._term("meta l4proto", "ip protocol", "ip6 nexthdr")
        if found is not None:
            return found
        of_ports = (each.field.partition(" ")[0] for each in self.statements)
        return next((Term(name) for name in of_ports if name in {"tcp", "udp"}), None)

    @property
    def matches(self) -> tuple[Match, ...]:
        """The conditions on ports and owners."""
        found = []
        for each in self.statements:
            name = _AS_OPTIONS.get(each.field)
            if name is not None and each.operator in {"==", "!="} and len(each.values) == 1:
                value = each.values[0].replace("-", ":") if "port" in name[1] else each.values[0]
                option = Option(name[1], (value,), each.operator == "!=")
                found.append(Match(name[0], (option,)))
        return tuple(found)

    @property
    def target(self) -> Target | None:
        """What is done last; None for a rule that only counts."""
        targets = [each.target for each in self.statements if each.target is not None]
        return targets[-1] if targets else None

    @property
    def targets(self) -> tuple[Target, ...]:
        """All that is done, by the verdict maps in the rule as well."""
        return tuple(
            target
            for each in self.statements
            for target in (each.target, *each.verdicts)
            if target is not None
        )

    def _term(self, *fields: str) -> Term | None:
        for each in self.statements:
            if (
                each.field in fields
                and each.operator in {"==", "!="}
                and len(each.values) == 1
                and not each.values[0].startswith("@")
            ):
                return Term(each.values[0].strip('"'), each.operator == "!=")
        return None

    @classmethod
    def read(cls, line: str, objects: Mapping[str, str] = MappingProxyType({})) -> NftRule:
        """The rule of a line of nft's listing, of whose counters the first one's numbers are kept."""
        parts = line.split('"')
        counters = None
        for number in range(0, len(parts), 2):
            found = _COUNTED.search(parts[number])
            if found is not None:
                counters = counters or Counters(int(found[1]), int(found[2]))
                parts[number] = _COUNTED.sub("counter", parts[number])
        return cls(usual('"'.join(parts)), counters=counters, objects=objects)

    def __iter__(self) -> Iterator[Any]:
        return iter((*self.header, self.matches, self.target, self.reason, False, self.counters))

    def __repr__(self) -> str:
        return f"NftRule({self.text!r})"

    def _replace(self, **changes: Any) -> NftRule:  # noqa: ANN401
        text, reason, counters, objects = tuple.__iter__(self)
        known = {"text": text, "reason": reason, "counters": counters, "objects": objects}
        return NftRule(**(known | changes))


_COUNTED = re.compile(r"(?<![^ ])counter packets (\d{1,20}) bytes (\d{1,20})(?![^ ])")

_AS_OPTIONS = {
    "tcp dport": ("tcp", "--dport"),
    "tcp sport": ("tcp", "--sport"),
    "udp dport": ("udp", "--dport"),
    "udp sport": ("udp", "--sport"),
    "meta skuid": ("owner", "--uid-owner"),
    "meta skgid": ("owner", "--gid-owner"),
}


# Words.

_TOKEN = re.compile(r'"[^"]*"?|[{},]|[^\s{},"]+')


class _Words:
    """The words of a rule, and how far they have been read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._found = list(_TOKEN.finditer(text))
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self._found)

    def peek(self, ahead: int = 0) -> str:
        """The next word, or one behind it; "" behind the last."""
        place = self.at + ahead
        return self._found[place][0] if place < len(self._found) else ""

    def take(self) -> str:
        """The next word; raises _Unreadable behind the last."""
        word = self.peek()
        if not word:
            raise _Unreadable
        self.at += 1
        return word

    def skip(self, *words: str) -> bool:
        """Take the next words if they are these."""
        found = all(self.peek(number) == word for number, word in enumerate(words))
        self.at += len(words) * found
        return found

    def since(self, start: int, end: int | None = None) -> str:
        """The text from the word of one number up to where was read, or to another."""
        end = self.at if end is None else end
        if start >= end:
            return ""
        return self._text[self._found[start].start() : self._found[end - 1].end()]

    @property
    def last(self) -> int:
        """The number behind the last word."""
        return len(self._found)


class _Unreadable(Exception):
    """A statement is none of those that are known."""


@lru_cache(maxsize=1 << 16)
def statements(text: str) -> tuple[Statement, ...]:
    """The statements of a rule's *text*, in order; what is not understood is one of its own."""
    words = _Words(text)
    found: list[Statement] = []
    while words:
        start = words.at
        try:
            statement = _statement(words)
        except _Unreadable:
            words.at = start
            found += _unknown(words)
        else:
            found.append(statement._replace(text=statement.text or words.since(start)))
    return tuple(found)


def _unknown(words: _Words) -> Iterator[Statement]:
    """All words up to a verdict or comment at the end: who knows where a statement ends."""
    start, end = words.at, words.last
    comment = end - start > 1 and words.peek(end - start - 2) == "comment"
    end -= 2 * comment
    verdict = _VERDICTS.get(words.peek(end - start - 1)) if end - start > 1 else None
    jump = words.peek(end - start - 2) if end - start > 2 else ""  # noqa: PLR2004 - behind one word
    if verdict is not None:
        end -= 1
    elif jump in {"jump", "goto"}:
        end -= 2
    yield Statement(words.since(start, end))
    words.at = end


def _statement(words: _Words) -> Statement:
    word = words.take()
    read = _READERS.get(word)
    if read is not None:
        return read(words)
    if word in _VERDICTS:
        return Statement("", target=_VERDICTS[word])
    words.at -= 1
    return _about_field(words)


# Conditions.

#: How a field begins, and of how many words it is.
_FIELD_WORDS = {
    **dict.fromkeys(("iif", "oif", "iifname", "oifname", "iifgroup", "oifgroup", "mark"), 1),
    **dict.fromkeys(("skuid", "skgid", "iiftype", "oiftype", "rtclassid"), 1),
    **dict.fromkeys(("meta", "ip", "ip6", "tcp", "udp", "udplite", "th", "sctp", "dccp"), 2),
    **dict.fromkeys(("icmp", "icmpv6", "igmp", "ether", "vlan", "arp", "ah", "esp", "comp"), 2),
    **dict.fromkeys(("ct", "socket", "rt"), 2),
}
#: What nft lists with another word before it, or once did.
_SHORT = {
    "mark": "meta mark",
    "skuid": "meta skuid",
    "skgid": "meta skgid",
    "meta iif": "iif",
    "meta oif": "oif",
    "meta iifname": "iifname",
    "meta oifname": "oifname",
}
_OPERATORS = frozenset({"==", "!=", "<", "<=", ">", ">=", "eq", "ne", "lt", "le", "gt", "ge"})
_COMPUTING = frozenset({"&", "|", "^", "<<", ">>"})
_PLAIN_OPERATORS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def _field(words: _Words) -> str:
    """What a condition looks at."""
    first = words.take()
    if first == "fib":
        return f"fib {_fib(words)}"
    count = _FIELD_WORDS.get(first)
    if count is None:
        raise _Unreadable
    parts = [first, *(words.take() for _ in range(count - 1))]
    if first == "ct" and parts[-1] in {"original", "reply"}:
        parts.append(words.take())
        if parts[-1] in {"ip", "ip6"}:
            parts.append(words.take())
    elif parts[-1] == "option":
        parts += (words.take(), words.take())
    name = " ".join(parts)
    return _SHORT.get(name, name)


def _fib(words: _Words) -> str:
    parts = [words.take()]
    while words.skip("."):
        parts.append(words.take())
    return f"{' . '.join(parts)} {words.take()}"


def _about_field(words: _Words) -> Statement:
    """A condition, a verdict map, or another value for a field."""
    field = _field(words)
    several = False
    while words.skip("."):
        _field(words)
        several = True
    if several:
        # Fields together with values together: a condition of which nothing is known.
        field = "."
    if words.skip("set"):
        return _set_field(field, words)
    if words.skip("vmap"):
        return _verdict_map(field, words)
    mask = words.take() if words.skip("&") else ""
    operator = words.take() if words.peek() in _OPERATORS else "=="
    values = _values(words, several=several)
    if words.skip("/"):
        mask = ",".join(_list(words))
    if words.peek() in _COMPUTING:
        raise _Unreadable
    operator = _PLAIN_OPERATORS.get(operator, operator)
    return Statement("", field, operator, values, mask)


def _list(words: _Words) -> list[str]:
    found = [words.take()]
    while words.skip(","):
        found.append(words.take())
    return found


def _values(words: _Words, *, several: bool = False) -> tuple[str, ...]:
    if words.peek() == "{":
        return tuple(" ".join(each) for each in _braced(words))
    found = _list(words)
    while several and words.skip("."):
        found.append(words.take())
    if not all(map(_is_value, found)):
        raise _Unreadable
    return tuple(found)


def _is_value(word: str) -> bool:
    return word[0] not in "|^&<>{}"


def _braced(words: _Words) -> Iterator[list[str]]:
    """The elements between braces, each as its words."""
    words.take()
    element: list[str] = []
    while not words.skip("}"):
        if words.skip(","):
            yield element
            element = []
            continue
        if words.peek() == "{":
            raise _Unreadable
        element.append(words.take())
    if element:
        yield element


def split_elements(text: str) -> tuple[str, ...] | None:
    """The elements of ``{ a, b : c }``, each as nft lists it; None if they can't be read."""
    words = _Words(text)
    try:
        found = tuple(" ".join(each) for each in _braced(words)) if words else ()
    except _Unreadable:
        return None
    return None if words else found


def _verdict_map(field: str, words: _Words) -> Statement:
    if words.peek() != "{":
        return Statement("", field, "vmap", (words.take(),))
    values, verdicts = [], []
    for element in _braced(words):
        value, verdict = _map_element(" ".join(element))
        values.append(value)
        verdicts.append(verdict)
    return Statement("", field, "vmap", tuple(values), verdicts=tuple(verdicts))


@lru_cache(maxsize=64)
def split_verdicts(
    elements: tuple[str, ...],
) -> tuple[tuple[str, ...], tuple[Target, ...]] | None:
    """The values of a verdict map's elements and their verdicts; None if they can't be read."""
    try:
        pairs = [_map_element(each) for each in elements]
    except _Unreadable:
        return None
    return tuple(value for value, _ in pairs), tuple(verdict for _, verdict in pairs)


def _map_element(text: str) -> tuple[str, Target]:
    """The value and the verdict of ``80 : accept``."""
    value, _, rest = text.rpartition(" : ")
    verdict = statements(rest)
    # A counter in an element changes nothing.
    value = value.partition(" counter ")[0]
    if not value or len(verdict) != 1 or verdict[0].target is None:
        raise _Unreadable
    return value, verdict[0].target


# What is done.

_VERDICTS = {name: Target(name.upper()) for name in ("accept", "drop", "return", "continue")}
#: A target of which nothing is known, as of one that iptables does not show.
_ANYTHING = Target("native-nftables")


def _counter(words: _Words) -> Statement:
    if words.skip("name"):
        words.take()
        return Statement("", harmless=True)
    if words.skip("packets"):
        words.take()
        if not words.skip("bytes"):
            raise _Unreadable
        words.take()
    return Statement("counter", harmless=True)


def _comment(words: _Words) -> Statement:
    words.take()
    return Statement("", harmless=True)


_LOG_VALUES = frozenset({"prefix", "group", "snaplen", "queue-threshold", "level"})


def _log(words: _Words) -> Statement:
    while words.peek() in _LOG_VALUES or words.peek() == "flags":
        if words.take() != "flags":
            words.take()
            continue
        # "flags tcp sequence,options" as against "flags all".
        if words.peek() in {"tcp", "ip"} and words.peek(1) in {"sequence", "options"}:
            words.take()
        _list(words)
    return Statement("", target=Target("LOG"))


def _jump(words: _Words) -> Statement:
    return Statement("", target=Target(words.take()))


def _goto(words: _Words) -> Statement:
    return Statement("", target=Target(words.take(), goto=True))


_NAT_FLAGS = {"random": "--random", "fully-random": "--random-fully", "persistent": "--persistent"}


def _nat_options(words: _Words, name: str) -> Iterator[Option]:
    """Where nat sends, as an option of this *name*, and the flags."""
    if words.skip("to"):
        where = words.take()
        if words.peek() in {".", "map", "-"} or not _ENDPOINT(where):
            raise _Unreadable
        yield Option(name, (where.removeprefix(":"),))
    while words.peek() in _NAT_FLAGS or words.peek() == ",":
        word = words.take()
        if word != ",":
            yield Option(_NAT_FLAGS[word])


#: An address, a network or a range of addresses, ports behind a colon; or the ports alone.
_ENDPOINT = re.compile(
    r"(?:\[[0-9a-fA-F:.]+\](?::\d+(?:-\d+)?)?|[0-9.]+(?:[-/][0-9.]+)?(?::\d+(?:-\d+)?)?"
    r"|[0-9a-fA-F:.]*::?[0-9a-fA-F:.]*(?:[-/][0-9a-fA-F:.]+)?|:\d+(?:-\d+)?)"
).fullmatch


def _redirect(words: _Words) -> Statement:
    return Statement("", target=Target("REDIRECT", tuple(_nat_options(words, "--to-ports"))))


def _masquerade(words: _Words) -> Statement:
    return Statement("", target=Target("MASQUERADE", tuple(_nat_options(words, "--to-ports"))))


def _family_word(words: _Words) -> tuple[str, ...]:
    """The family of the address that follows, as the field that only its packets have."""
    return (words.take(),) if words.peek() in {"ip", "ip6"} else ()


def _address_nat(name: str, option: str) -> Callable[[_Words], Statement]:
    def read(words: _Words) -> Statement:
        family = _family_word(words)
        if words.skip("prefix"):
            raise _Unreadable
        options = tuple(_nat_options(words, option))
        # A network is NETMAP's in iptables, where nothing says "prefix" it is a range.
        target = Target(name, options)
        if any("/" in value or "-" in value.partition(":")[0] for value in _values_of(options)):
            target = target._replace(options=())
        return Statement("", field="family" * bool(family), values=family, target=target)

    return read


def _values_of(options: tuple[Option, ...]) -> Iterator[str]:
    for option in options:
        yield from option.values


def _tproxy(words: _Words) -> Statement:
    family = _family_word(words)
    if not words.skip("to"):
        raise _Unreadable
    where = words.take()
    if not _ENDPOINT(where):
        raise _Unreadable
    address, port = where, "0"
    if where.startswith("["):
        address, _, rest = where[1:].partition("]")
        port = rest.removeprefix(":") or "0"
    elif where.count(":") == 1:
        address, _, port = where.partition(":")
    options = (Option("--on-port", (port,)), *((Option("--on-ip", (address,)),) * bool(address)))
    return Statement("", field="tproxy", values=family, target=Target("TPROXY", options))


def _reject(words: _Words) -> Statement:
    if words.skip("with"):
        kind = words.take()
        if kind == "tcp":
            words.take()
        else:
            words.skip("type")
            words.take()
    return Statement("", target=Target("REJECT"))


def _notrack(_: _Words) -> Statement:
    return Statement("", target=Target("CT", (Option("--notrack"),)))


def _limit(words: _Words) -> Statement:
    """How often, which nobody knows from here: a condition."""
    if words.skip("name"):
        words.take()
        return Statement("", "limit", "==")
    if not words.skip("rate"):
        raise _Unreadable
    words.skip("over")
    if "/" not in words.take():
        words.take()
    if words.skip("burst"):
        words.take()
        words.take()
    return Statement("", "limit", "==")


def _set_statement(words: _Words) -> Statement:
    """``add @seen { ip saddr }``: the packet goes on, unless the set has no room."""
    if not words.peek().startswith("@"):
        raise _Unreadable
    words.take()
    depth = 0
    while True:
        word = words.take()
        depth += (word == "{") - (word == "}")
        if not depth:
            return Statement("", "set", "==")


def _queue(words: _Words) -> Statement:
    """To a program of somebody's, which is where the packet ends here."""
    while words and words.peek() != "comment":
        words.take()
    return Statement("", target=Target("NFQUEUE"))


_READERS: dict[str, Callable[[_Words], Statement]] = {
    "counter": _counter,
    "comment": _comment,
    "log": _log,
    "jump": _jump,
    "goto": _goto,
    "redirect": _redirect,
    "masquerade": _masquerade,
    "dnat": _address_nat("DNAT", "--to-destination"),
    "snat": _address_nat("SNAT", "--to-source"),
    "tproxy": _tproxy,
    "reject": _reject,
    "notrack": _notrack,
    "limit": _limit,
    "queue": _queue,
    "add": _set_statement,
    "delete": _set_statement,
    "update": _set_statement,
}


def _set_field(field: str, words: _Words) -> Statement:
    """Another value for a field, in the words of iptables where it has some."""
    start = words.at
    if field in {"meta mark", "ct mark"}:
        return Statement("", target=_set_mark(field, words), field=_needs(words, start))
    value = words.take()
    if value in _FIELD_WORDS or words.peek() in {"map", *_COMPUTING} or value == "{":
        raise _Unreadable
    if field in {"ct zone", "ct original zone", "ct reply zone"}:
        options = (Option("--zone", (value,)),) if field == "ct zone" else (Option("--zone"),)
        return Statement("", target=Target("CT", options))
    if field in {"meta nftrace", "meta priority", "meta pkttype"}:
        return Statement("", target=Target("TRACE" if field == "meta nftrace" else "CLASSIFY"))
    target = Target("SET-FIELD", (Option("--field", (field,)),))
    # nft has the rule ask for the protocol first, and does not list that.
    of_header = field.partition(" ")[0] not in {"meta", "ct"}
    return Statement("", field=field * of_header, target=target)


def _needs(words: _Words, start: int) -> str:
    """The field without which no value can be computed."""
    return "ct mark" if "ct mark" in words.since(start) else ""


def _set_mark(field: str, words: _Words) -> Target:
    """MARK, or CONNMARK for a connection's mark or a mark that comes from one."""
    own = "meta mark" if field == "meta mark" else "ct mark"
    operand = words.peek()
    if operand in {"meta", "ct", "mark"}:
        read = _field(words)
        if read not in {"meta mark", "ct mark"}:
            raise _Unreadable
        kept, value = 0xFFFFFFFF, 0
    else:
        read, kept, value = own, 0, _number(words.take())
    while words.peek() in {"&", "|", "^"}:
        sign, number = words.take(), _number(words.take())
        # All of it is (mark & kept) ^ value, as the kernel has it.
        if sign == "&":
            kept, value = kept & number, value & number
        elif sign == "|":
            kept, value = kept & ~number, value | number
        else:
            value ^= number
    if words.peek() in {"<<", ">>", "map"}:
        raise _Unreadable
    if read == own:
        mask = ~kept & 0xFFFFFFFF
        # The mask of --set-xmark is what is cleared; the value is turned over in it.
        options = (Option("--set-xmark", (f"{value:#x}/{mask:#x}",)),)
        return Target("MARK" if own == "meta mark" else "CONNMARK", options)
    if value:
        raise _Unreadable
    name = "--restore-mark" if own == "meta mark" else "--save-mark"
    source = "--ctmask" if own == "meta mark" else "--nfmask"
    masks = (Option(source, (f"{kept:#x}",)),) if kept != 0xFFFFFFFF else ()  # noqa: PLR2004
    return Target("CONNMARK", (Option(name), *masks))


def _number(word: str) -> int:
    try:
        return int(word, 0)
    except ValueError:
        raise _Unreadable from None
