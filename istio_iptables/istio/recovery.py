"""Rules back to the settings that make them: the texts of ``rules``, read the other way round.

Every rule that one of those texts may have made tells the values in it: one rule names a port, six
name a user of Envoy. ``read_settings`` gathers what the rules tell, for each setting the readings
that they allow, the likeliest first. Which of them is right is not decided here: whoever builds the
rules again sees it.

Where several settings make the same rules:

* what has no effect is not named (``-d`` without ``-b '*'``, what belongs to TPROXY under REDIRECT);
* ``-i '*'`` rather than every network there is; IPv4 networks before IPv6 ones;
* ``-c`` rather than ``-k`` for an interface that either may have spared;
* a captured network that was written as a loopback address leaves no trace but the rules that it
  leaves out: the first network that has such an address is written so, else ``::1/128`` is named;
* DNS servers are named without their order among the other family's; where only one of a family
  without rules explains the rules, it is ``2001:db8::53``.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections import Counter
from functools import cache, partial
from itertools import chain, dropwhile, pairwise, product
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.istio.native import PASS_IPV6
from istio_iptables.istio.ownership import NATIVE_NAMES, find_owned
from istio_iptables.istio.plan import Common, template
from istio_iptables.istio.rules import CHAIN_PREFIX, OUTPUT, common_values, rules
from istio_iptables.istio.translated import translated
from istio_iptables.netfilter.canonical import canonical
from istio_iptables.netfilter.model import HEADER_OPTIONS, Family, is_built_in
from istio_iptables.settings.config import FIELDS, StandIn, configure
from istio_iptables.settings.converters import LISTS, Names, parse
from istio_iptables.settings.declarations import ValueKind
from istio_iptables.settings.declarations import setting as declared
from istio_iptables.settings.sources import gather
from istio_iptables.settings.types import Network

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from istio_iptables.netfilter.model import Rule, Ruleset, Table

__all__ = ["SERVERS", "Readings", "all_texts", "read_settings"]

_NO_NAMES = Names(lambda _: None, lambda _: None)
#: The name under which ``Readings`` has the DNS servers, which are no setting but a file's.
SERVERS = "nameservers"
#: Each setting by name, and the texts that it may have had: the likeliest first.
Readings = dict[str, tuple[str, ...]]

#: A server that no rule of IPv4 names, for rules of DNS capture without one.
_SOME_SERVER = "2001:db8::53"
#: By the name of a value in a rule, the setting that it is of.
_SETTINGS = {field: name for name, field in FIELDS.items()}
#: What is in a rule for these values, whatever the settings.
_FIXED = ("passthrough", "any_address", "agent_dns_port", "outbound_mark")
#: The values that make no condition in a rule, by the option that would hold it.
_ANYTHING = {"-i": "+", "-o": "+", "--dport": "0:65535"}
_EVERYWHERE = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}

_BASE = {
    "dry_run": "true",
    "ip_family": "ipv4",
    "proxy_uid": "1",
    "proxy_gid": "1",
    "istio_exclude_interfaces": "c",
    "kube_virt_interfaces": "k",
    "istio_inbound_ports": "*",
    "istio_local_exclude_ports": "1",
    "istio_service_cidr": "10.0.0.0/8",
    "istio_service_exclude_cidr": "10.0.0.0/8",
    "istio_outbound_ports": "1",
    "istio_local_outbound_ports_exclude": "1",
    "istio_outbound_owner_groups_exclude": "1",
}
_LISTED = {"istio_inbound_ports": "1"}
_TPROXY = {"istio_inbound_interception_mode": "TPROXY"}
_DNS = {"redirect_dns": "true"}
_NO_GROUP = {"istio_outbound_owner_groups": ""}
_INVALID = {"drop_invalid": "true"}
_LIKE = {"native_nftables": "true", "nft_like_iptables": "true"}
_GROUP = {"istio_outbound_owner_groups": "1"}


#: A machine with one DNS server; nothing else is asked of it.
_MACHINE = StandIn(servers=("10.0.0.1",))


@cache
def _texts(*changes: tuple[tuple[str, str], ...]) -> dict[str, None]:
    """The texts of the rules that the settings of ``_BASE`` with *changes* make, in order."""
    values, _ = gather(_BASE | dict(chain(*changes)), {})
    config, _ = configure(values, _MACHINE)
    return dict.fromkeys(text for text, _, _ in rules(config, Family.IPV4))


def _texts_of(*changes: Mapping[str, str]) -> dict[str, None]:
    return _texts(*(tuple(each.items()) for each in changes))


@cache
def all_texts(*, native: bool = False) -> tuple[str, ...]:
    """Every text that ``rules`` has, in its order, but that of included groups, which grows with them.

    With *native* also those of ``nft_like_iptables``.
    """
    ways: tuple[tuple[Mapping[str, str], ...], ...]
    ways = ((_NO_GROUP, _INVALID), (), (_LISTED,), (_DNS,), (_TPROXY,), (_TPROXY, _LISTED))
    if native:
        ways = (*ways, (_LIKE, _GROUP), (_LIKE, _DNS), (_LIKE, _TPROXY))
    return tuple(_merged([tuple(_texts_of(*each)) for each in ways]))


class _Pattern(NamedTuple):
    """One form of a text: the values in it, and what is taken for those that make no condition."""

    text: str
    #: The place of the text's rules in their chain, compared with those of others.
    rank: int
    #: What stands before a value, the value's name, and what stands behind it; no name for a word
    #: that is always the same.
    slots: tuple[tuple[str, str, str], ...]
    left_out: tuple[tuple[str, str], ...]

    def values(self, words: Sequence[str]) -> dict[str, str] | None:
        """The values that *words* have in the places of the slots, or None."""
        found = dict(self.left_out)
        for (before, name, behind), word in zip(self.slots, words, strict=True):
            if not name:
                if word != before:
                    return None
            elif word.startswith(before) and word.endswith(behind):
                found[name] = word[len(before) : len(word) - len(behind)]
            else:
                return None
        return found


#: Where a rule is, and how it is built, whatever the values in it.
_Key = tuple[str, str, tuple[str, ...]]


class _Marked(dict[str, str]):
    """Values for the names in a text; a name that has none stands for itself, in brackets."""

    def __missing__(self, name: str) -> str:
        return f"<{name}>"


@cache
def _patterns(family: Family, *, native: bool) -> dict[_Key, list[_Pattern]]:
    """All forms of all texts, those of one shape in the order of the texts."""
    config, _ = configure(gather(_BASE, {})[0], _MACHINE)
    every = common_values(config, family)
    names = (*_FIXED, "loopback") if family is Family.IPV6 else _FIXED
    common = {name: every[name] if name in names else f"<{name}>" for name in every}
    found: dict[_Key, list[_Pattern]] = {}
    for rank, text in enumerate(all_texts(native=native)):
        _, table, _, name, _ = text.split(" ", 4)
        made = template(text.format_map(Common(common)), {})
        for choice in product(*(_choices(*each, family) for each in _varying(text))):
            left_out = tuple(each for each in choice if each)
            rule = made.rule("", _Marked(left_out))
            if native:
                # Nothing is left of a match whose ports are all.
                rule = rule._replace(matches=tuple(each for each in rule.matches if each.options))
            shape, words = _shape(rule)
            # What is put at the head of its chain stands before what was there.
            place = -1 - rank if " -I " in text else rank
            pattern = _Pattern(text, place, tuple(map(_slot, words)), left_out)
            found.setdefault((table, name, shape), []).append(pattern)
    return found


@cache
def _targets(table: str, chain: str, *, native: bool) -> frozenset[str]:
    """The targets of the texts of one chain."""
    start = f"-t {table} "
    return frozenset(
        text.partition(" -j ")[2].split()[0]
        for text in all_texts(native=native)
        if text.startswith(start) and text.split(" ", 4)[3] == chain
    )


def _varying(text: str) -> Iterator[tuple[str, str]]:
    """The options of *text* that make no condition for some value, each with the value's name."""
    words = text.split()
    for option, word in pairwise(words):
        if word.startswith("{") and (option in _ANYTHING or option in {"-d", "-s"}):
            name = word[1:-1]
            if name not in {"inbound_tunnel_port", "loopback", *_FIXED}:
                yield option, name


def _choices(option: str, name: str, family: Family) -> tuple[tuple[str, str] | None, ...]:
    return None, (name, _ANYTHING.get(option, _EVERYWHERE[family]))


def _slot(word: str) -> tuple[str, str, str]:
    before, _, rest = word.partition("<")
    name, _, behind = rest.partition(">")
    return before, name, behind


def _shape(rule: Rule) -> tuple[tuple[str, ...], list[str]]:
    """How a rule is built, and the words in it that may be values."""
    shape: list[str] = []
    words: list[str] = []
    for flag, term in zip(HEADER_OPTIONS, rule.header, strict=True):
        if term is not None:
            shape.append(f"!{flag}" if term.negated else flag)
            words.append(term.value)
    for part in (*rule.matches, rule.target):
        if part is None:
            continue
        shape.append(part.name)
        for option in part.options:
            shape.append(f"!{option.name}" if option.negated else option.name)
            shape.append(str(len(option.values)))
            words += option.values
    if rule.target is not None and rule.target.goto:
        shape.append("-g")
    return tuple(shape), words


#: What made a rule: each text that may have, and the values in it.
_Alternatives = list[tuple[_Pattern, dict[str, str]]]


def _in_order(ranks: Sequence[int | None]) -> set[int]:
    """The places of the longest sequence of ranks that never falls.

    The others are of rules that were moved, and say nothing about those behind them.
    """
    ends: list[int] = []
    lengths: list[int] = []
    for rank in ranks:
        at = -1 if rank is None else bisect_right(ends, rank)
        if rank is not None:
            ends[at : at + 1] = [rank]
        lengths.append(at)
    kept: set[int] = set()
    highest = ends[-1] if ends else 0
    wanted = len(ends) - 1
    for place in reversed(range(len(ranks))):
        rank = ranks[place]
        if rank is not None and lengths[place] == wanted and rank <= highest:
            kept.add(place)
            highest = rank
            wanted -= 1
    return kept


class _Evidence:
    """What the rules tell: for each family and text, the values of the rules that it made."""

    def __init__(self, rulesets: Iterable[Ruleset], *, owned: bool, native: bool) -> None:
        self._native = native
        self.seen: dict[tuple[Family, str], list[dict[str, str]]] = {}
        self.groups: list[str] = []
        #: The rules that were read, in order.
        self._read: list[tuple[Family, _Alternatives]] = []
        for ruleset in rulesets:
            for table in ruleset.tables:
                for each in _our_chains(table, owned=owned):
                    self._read_chain(ruleset.family, table.name, *each)
        self._decide()

    def _read_chain(self, family: Family, table: str, name: str, found: Iterable[Rule]) -> None:
        patterns = _patterns(family, native=self._native)
        read: list[_Alternatives] = []
        targets = _targets(table, name, native=self._native)
        for rule in found:
            if not (self._native or any(each in rule.text for each in targets)):
                # Others may have very many.
                continue
            plain = rule if self._native else _plain(rule, family)
            shape, words = _shape(plain)
            readings = [
                (pattern, values)
                for pattern in patterns.get((table, name, shape), ())
                if (values := pattern.values(words)) is not None
            ]
            if readings:
                read.append(readings)
            elif (table, name) == ("nat", OUTPUT) and (group := _included(plain)):
                self.groups.append(group)
        in_order = _in_order(
            [readings[0][0].rank if len(readings) == 1 else None for readings in read]
        )
        latest = min((each[0].rank for readings in read for each in readings), default=0)
        for place, readings in enumerate(read):
            if len(readings) > 1:
                # What would stand before what has been seen already is not meant.
                later = [each for each in readings if each[0].rank >= latest] or readings
                self._read.append((family, later))
                latest = max(latest, min(pattern.rank for pattern, _ in readings))
            else:
                self._read.append((family, readings))
                if place in in_order:
                    latest = max(latest, readings[0][0].rank)

    def _take(self, read: Iterable[tuple[Family, _Alternatives]]) -> None:
        self.seen = {}
        for family, ((pattern, values),) in read:
            self.seen.setdefault((family, pattern.text), []).append(values)

    def _decide(self) -> None:
        """Give each rule that may be of several texts to the first that still lacks one like it."""
        self._take(each for each in self._read if len(each[1]) == 1)
        names = {name for values in self.seen.values() for name in values[0]}
        owed = {name: Counter(_merged(self.sequences(name))) for name in names}
        given: Counter[tuple[Family, str, str]] = Counter()
        # A text that has made other rules is likelier than one that has made none.
        chosen = [
            next((each for each in readings if (family, each[0].text) in self.seen), readings[-1])
            for family, readings in self._read
        ]
        for number in self._order():
            family, readings = self._read[number]
            for pattern, values in readings[:-1]:
                known = [name for name in values if name in owed]
                # A value that no other rule tells: one rule has it, if there is one of the kind.
                most = min(
                    (owed[name][values[name]] for name in known),
                    default=0 if any(_is_list(name) for name in values) else 1,
                )
                key = (family, pattern.text, " ".join(values[name] for name in known))
                if given[key] < most:
                    given[key] += 1
                    chosen[number] = (pattern, values)
                    break
        families = (family for family, _ in self._read)
        self._take((family, [each]) for family, each in zip(families, chosen, strict=True))

    def _order(self) -> list[int]:
        """The rules that may be of several texts: from the last one where the first text's stand last."""
        forward: list[int] = []
        backward: list[int] = []
        for number, (_, readings) in enumerate(self._read):
            if len(readings) > 1:
                last = readings[0][0].rank > readings[-1][0].rank
                (backward if last else forward).append(number)
        return forward + backward[::-1]

    def sequences(self, name: str, family: Family | None = None) -> list[tuple[str, ...]]:
        """The values of this name, those that one text made in one family together.

        Texts that hold another varying value as well name a value over and over; they count only
        where there is no other.
        """
        plain, crossed = [], []
        for (of, text), values in self.seen.items():
            if family not in {None, of} or not values or name not in values[0]:
                continue
            found = [each[name] for each in values]
            if " -I " in text:
                found.reverse()
            others = set(values[0]) & {"outbound_cidrs", "virtual_interfaces"} - {name}
            if others:
                crossed.append(tuple(dict.fromkeys(found)))
            else:
                plain.append(tuple(found))
        return plain or crossed

    def count(self, texts: Collection[str]) -> int:
        """How many rules these texts made."""
        return sum(len(values) for (_, text), values in self.seen.items() if text in texts)

    def repeats(self, texts: Collection[str]) -> int:
        """How many rules one of these texts made in one family."""
        return max((len(each) for (_, text), each in self.seen.items() if text in texts), default=0)


def _plain(rule: Rule, family: Family) -> Rule:
    """The rule in its one spelling, with the bare ``-m tcp`` that is left of every port."""
    plain = canonical(rule, family)
    bare = tuple(each for each in rule.matches if not each.options and each.name in {"tcp", "udp"})
    return plain._replace(matches=(*bare, *plain.matches)) if bare else plain


def _is_list(name: str) -> bool:
    return declared(_SETTINGS.get(name, name)).kind in LISTS


def _our_chains(table: Table, *, owned: bool) -> Iterator[tuple[str, list[Rule]]]:
    """The chains that may hold rules of ours, and those rules.

    With *owned* these are the ones that are ours for sure; without it, all of a built-in chain.
    """
    shared = find_owned(table).shared if owned else {}
    for each in table.chains:
        if each.name.startswith(CHAIN_PREFIX):
            yield each.name, list(each.rules)
        elif is_built_in(table.name, each.name) and (not owned or each.name in shared):
            numbers = shared[each.name] if owned else range(len(each.rules))
            yield each.name, [each.rules[number] for number in numbers]


def _included(rule: Rule) -> str:
    """The groups of the one rule for all that are included, or ""."""
    options = [option for match in rule.matches for option in match.options]
    if (
        any(rule.header)
        or rule.target is None
        or rule.target.name != "RETURN"
        or not all(each.name == "--gid-owner" and each.negated for each in options)
    ):
        return ""
    return ",".join(option.value for option in options)


def _merged(sequences: Iterable[Sequence[str]]) -> list[str]:
    """One list of which all *sequences* are parts: each item as often as any of them has it."""
    longest, *others = sorted(sequences, key=len, reverse=True) or [()]
    merged = list(longest)
    for sequence in others:
        lacking = Counter(sequence) - Counter(merged)
        if not lacking:
            continue
        place = 0
        for item in sequence:
            if item in merged[place:]:
                place = merged.index(item, place) + 1
            elif lacking[item] > 0:
                lacking[item] -= 1
                merged.insert(place, item)
                place += 1
    return merged


def read_settings(
    rulesets: Sequence[Ruleset], tables: Mapping[int, int], *, owned: bool = True
) -> Readings:
    """What the rules tell about each setting; one that they tell nothing of is left out.

    Of each the first text is one that the setting can have; the others are found out when tried.

    *tables* are the routing tables by the marks that lead to them. Without *owned*, rules of
    built-in chains are read that are ours only if the settings say so.
    """
    native = _native_of_ours(rulesets)
    if native:
        # All that is in such a table is ours.
        rulesets, owned = translated(native), False
    found = _Evidence(rulesets, owned=owned, native=bool(native))
    families = [each for each in Family if any(family is each for family, _ in found.seen)]
    if not families:
        return {}
    readings: Readings = {}
    for name in {name for values in chain(*found.seen.values()) for name in values}:
        if name not in {"server", "outbound_cidrs", "outbound_cidrs_exclude"}:
            readings[_SETTINGS.get(name, name)] = tuple(_readings(found.sequences(name), name))
    name = "istio_inbound_ports"
    readings[name] = _inbound(found, readings.get(name, ()))
    readings |= _modes(found) | _networks(found, families)
    excluded = readings.get("istio_local_exclude_ports", ("",))
    tunnel = readings.get("inbound_tunnel_port", ())[:1]
    readings["istio_local_exclude_ports"] = (*excluded, *_with_tunnel(excluded[0], tunnel))
    if native:
        readings |= _native_modes(found, native)
    readings["ip_family"] = ("dual" if Family.IPV6 in families else "ipv4",)
    if "redirect_dns" in readings:
        readings |= _servers(found)
    readings |= _groups(found)
    for mark in readings.get("istio_inbound_tproxy_mark", ()):
        if int(mark) in tables:
            readings["istio_inbound_tproxy_route_table"] = (str(tables[int(mark)]),)
            break
    return {
        name: usable
        for name, texts in readings.items()
        if (usable := tuple(dropwhile(partial(_is_unusable, name), dict.fromkeys(texts))))
    }


def _with_tunnel(text: str, tunnel: Iterable[str]) -> Iterator[str]:
    """The excluded ports of *text* with that of the tunnel, whose rule is like the tunnel's own."""
    ports = text.split(",") if text else []
    for port in tunnel:
        for at in range(min(len(ports), _MOST_DISPUTED) + 1):
            yield ",".join([*ports[:at], port, *ports[at:]])
        yield ",".join([port, port, *ports])


def _is_unusable(name: str, text: str) -> bool:
    """Whether a setting can't have this text; others' rules may have other values."""
    return name != SERVERS and bool(parse(declared(name).kind, text, _NO_NAMES)[1])


#: A list is tried without one of its items for so many items at most.
_MOST_DISPUTED = 8


def _readings(sequences: Sequence[Sequence[str]], name: str) -> list[str]:
    """The texts that a value may have had, from what each text of a rule tells: likeliest first."""
    if not _is_list(name):
        votes = Counter(chain(*sequences))
        texts = [value for value, _ in votes.most_common()]
        return list(_decimal(texts)) if name == "tproxy_mark" else texts
    return [",".join(each) for each in _lists(sequences)]


def _decimal(texts: Iterable[str]) -> Iterator[str]:
    """The marks among *texts*, which rules have in hexadecimal, as settings have them."""
    for text in texts:
        with contextlib.suppress(ValueError):
            yield str(int(text, 0))


def _lists(sequences: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The lists of which *sequences* may be parts, or copies with something put in."""
    told = Counter(map(tuple, sequences))
    merged = tuple(_merged(sequences))
    if not merged:
        return []
    (likeliest, times), *_ = told.most_common()
    first = [likeliest, merged] if 2 * times > len(sequences) else [merged, likeliest]
    # An item that not every text tells may be there for others' rules.
    everywhere = frozenset.intersection(*map(frozenset, told))
    agreed = sorted(range(len(merged)), key=lambda at: merged[at] in everywhere)
    without = ((*merged[:at], *merged[at + 1 :]) for at in agreed[:_MOST_DISPUTED])
    return [*first, *told, *without]


def _joined(lists: Sequence[Sequence[tuple[str, ...]]]) -> list[tuple[str, ...]]:
    """The lists of the families as one: the likeliest of each, then one of them another in turn."""
    likeliest = [each[0] for each in lists]
    return [
        tuple(chain(*likeliest[:at], other, *likeliest[at + 1 :]))
        for at, others in enumerate(lists)
        for other in others
    ]


def _modes(found: _Evidence) -> Readings:
    """The settings that have a few values, by the texts that only one of these makes."""
    plain = _texts_of().keys()
    readings: Readings = {}
    for name, value, other in (
        ("istio_inbound_interception_mode", _TPROXY, "REDIRECT"),
        ("redirect_dns", _DNS, "false"),
        ("drop_invalid", _INVALID, "false"),
    ):
        changed = _texts_of(value).keys()
        times, against = found.count(changed - plain), found.count(plain - changed)
        if times:
            texts = (value[name], other)
            readings[name] = texts if times >= against else texts[::-1]
    return readings


def _native_modes(found: _Evidence, tables: Iterable[Table]) -> Readings:
    """That the rules are native, and what only such rules may be."""
    readings: Readings = {}
    texts = [rule.text for table in tables for chain in table.chains for rule in chain.rules]
    like = set(all_texts(native=True)) - set(all_texts())
    is_like = PASS_IPV6.text in texts or found.count(like) > 0
    readings["nft_like_iptables"] = ("true", "false") if is_like else ("false", "true")
    # The port of DNS and that of the tunnel are a set in any case, which no packet's port is in.
    if any(" { " in text.replace(" != {", "") for text in texts):
        readings["nft_sets"] = ("true",)
    return readings


def _native_of_ours(rulesets: Iterable[Ruleset]) -> list[Table]:
    """The native tables of ours, each once: they are both families'."""
    tables = {table.name: table for each in rulesets for table in each.tables}
    return [each for name, each in tables.items() if name in NATIVE_NAMES]


def _groups(found: _Evidence) -> Readings:
    """The groups whose traffic alone is captured."""
    name = "istio_outbound_owner_groups"
    if found.groups:
        return {name: tuple(found.groups)}
    if found.count(_texts_of(_NO_GROUP).keys() - _texts_of().keys()):
        return {name: ("", "*")}
    return {}


def _inbound(found: _Evidence, listed: Sequence[str]) -> tuple[str, ...]:
    """What is captured inbound: everything, the ports of a list, or nothing."""
    nothing = {"istio_inbound_ports": ""}
    everything = repeats = captured = 0
    for mode in ({}, _TPROXY):
        texts = _texts_of(mode).keys()
        every = {each for each in texts - _texts_of(mode, _LISTED).keys() if "{" not in each}
        everything += found.count(every)
        repeats = max(repeats, found.repeats(every))
        captured += found.count(texts - _texts_of(mode, nothing).keys())
    if everything:
        # As native rules, those of a list of all ports are the same.
        return ("*", *listed, ",".join([_ANYTHING["--dport"]] * repeats))
    return (*listed, "*") if captured else tuple(listed)


def _networks(found: _Evidence, families: Sequence[Family]) -> Readings:
    """The destinations that are captured, and those that are not."""
    readings: Readings = {}
    for name in ("outbound_cidrs", "outbound_cidrs_exclude"):
        each = [_lists(found.sequences(name, family)) or [()] for family in families]
        readings[_SETTINGS[name]] = tuple(map(",".join, _joined(each)))
    everywhere = ",".join(_EVERYWHERE[family] for family in families)
    name = _SETTINGS["outbound_cidrs"]
    captured = readings[name]
    if _leaves_loopback_out(found):
        readings[name] = (*map(_with_loopback, captured), *captured)
    # nft lists a network of length 0, where iptables-save has none.
    readings[name] = tuple(
        chain(*(("*", text) if text == everywhere else (text,) for text in readings[name]))
    )
    return readings


def _leaves_loopback_out(found: _Evidence) -> bool:
    """Whether the rules that a captured loopback network takes away are missing, all of them."""
    loopback = {"istio_service_cidr": "127.0.0.0/8"}
    spared = {
        text
        for mode in ({}, _DNS, _LIKE, _LIKE | _DNS)
        for text in _texts_of(mode).keys() - _texts_of(mode, loopback).keys()
    }
    proxies = {text for text in all_texts() if "{proxy_" in text}
    return found.count(proxies) > 0 == found.count(spared)


def _with_loopback(text: str) -> str:
    """These networks, one of them written as the network of a loopback address."""
    from ipaddress import ip_address, ip_network  # few rules have such a network

    networks = text.split(",") if text else []
    if any(_is_loopback(each) for each in networks):
        return text
    for number, each in enumerate(networks):
        for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            # What others put there may be none.
            with contextlib.suppress(ValueError):
                if ip_address(address) not in ip_network(each):
                    continue
                networks[number] = f"{address}/{each.partition('/')[2]}"
                return ",".join(networks)
    return ",".join([*networks, "::1/128"])


def _is_loopback(text: str) -> bool:
    read, _ = parse(ValueKind.CIDRS, text, _NO_NAMES)
    return isinstance(read, tuple) and any(isinstance(e, Network) and e.loopback for e in read)


def _servers(found: _Evidence) -> Readings:
    """The DNS servers whose port is captured, or that all of them are."""
    each = [_lists(found.sequences("server", family)) or [()] for family in Family]
    lists = _joined(each)
    if any(network in one for one in lists for network in _EVERYWHERE.values()):
        return {"capture_all_dns": ("true", "false")}
    if not lists[0]:
        return {SERVERS: (_SOME_SERVER,)}
    return {
        SERVERS: tuple(",".join(each.partition("/")[0] for each in one) for one in lists),
    }
