"""Config to Plan: Istio's rules put into tables, and the routes and addresses that go with them."""

from __future__ import annotations

from istio_iptables.istio.rules import CHAIN_PREFIX, common_values, rules
from istio_iptables.netfilter.model import (
    BUILT_IN_CHAINS,
    Chain,
    Family,
    Match,
    Option,
    Rule,
    Ruleset,
    Table,
    Term,
    is_built_in,
)
from istio_iptables.netfilter.plan import DesiredState, InterfaceAddress, PolicyRoute
from istio_iptables.netfilter.savefile import parse_rule
from istio_iptables.settings.types import Mode
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from istio_iptables.settings.config import Config

    #: Fills in the names in one part of a rule.
    _Fill = Callable[[Any, Mapping[str, object]], object]

__all__ = ["Common", "Template", "build", "build_address", "template"]

_TABLE_ORDER = ("raw", "mangle", "nat")

#: Values that every packet has: iptables-save prints no condition on them.
_NO_CONDITION = frozenset({"0.0.0.0/0", "::/0", "+", "0:65535"})


def build(config: Config) -> DesiredState:
    """The rules, routes and addresses that *config* asks for.

    Every ruleset is in the canonical order and spelling, so its text is what the kernel says
    after it was installed into an empty namespace (docs/contract.md, section 3).
    """
    # That is about native rules, which ``native`` makes.
    config = config._replace(nft_like_iptables=False, nft_sets=False)
    families = (Family.IPV4, Family.IPV6) if config.ipv6 else (Family.IPV4,)
    routed = families if config.mode is Mode.TPROXY and config.inbound_ports else ()
    return DesiredState(
        rulesets=tuple(_ruleset(config, family) for family in families),
        routes=tuple(
            PolicyRoute(
                family,
                config.tproxy_mark,
                config.tproxy_route_table,
                "Packets with TPROXY's mark may have any destination address: this route delivers"
                " them to Envoy's socket in the pod all the same.",
            )
            for family in routed
        ),
        addresses=(build_address(),) if config.ipv6 else (),
    )


def build_address() -> InterfaceAddress:
    """The address that goes with IPv6 rules (docs/contract.md, section 2, "Beside the rules")."""
    return InterfaceAddress(
        Family.IPV6,
        "::6",
        128,
        "lo",
        "Envoy's inbound listener connects to the application from this address, and the rules"
        " know its connections by it (IPv4's 127.0.0.6 is on lo already).",
    )


def _ruleset(config: Config, family: Family) -> Ruleset:
    """The rules of one address family, each put into what the ones before it have left."""
    common = Common(common_values(config, family))
    tables: dict[str, dict[str, list[Rule]]] = {}
    # Thousands of ports have one text, which is read once.
    templates: dict[str, Template] = {}
    for text, reason, values in rules(config, family):
        known = templates.get(text)
        if known is None:
            known = templates[text] = template(text.format_map(common), tables)
        known.add(reason, values)
    return Ruleset(
        family, tuple(_table(name, tables[name]) for name in _TABLE_ORDER if name in tables)
    )


def _table(name: str, chains: Mapping[str, list[Rule]]) -> Table:
    built_in = (
        Chain(each, "ACCEPT", tuple(chains.get(each, ()))) for each in BUILT_IN_CHAINS[name]
    )
    own = sorted(each for each in chains if not is_built_in(name, each))
    return Table(name, (*built_in, *(Chain(each, None, tuple(chains[each])) for each in own)))


class Common(dict[str, object]):
    """Values for the ``{names}`` in a text; a name that is not among them stays as it is."""

    def __missing__(self, name: str) -> str:
        return f"{{{name}}}"


class Template(NamedTuple):
    """A rule with ``{names}`` in it, and its place."""

    #: The rules of its chain, and where it goes among them; None is the end.
    chain: list[Rule]
    position: int | None
    #: The fields of the rule, and those that hold names, by number, with what fills in each.
    fields: list[Any]
    varying: tuple[tuple[int, _Fill], ...]

    def rule(self, reason: str, values: Mapping[str, object]) -> Rule:
        """The rule with its reason, and with *values* for the names."""
        fields = self.fields.copy()
        for number, fill in self.varying:
            fields[number] = fill(fields[number], values)
        fields[_REASON] = reason
        return Rule._make(fields)

    def add(self, reason: str, values: Mapping[str, object]) -> None:
        """Put that rule into its chain."""
        rule = self.rule(reason, values)
        if self.position is None:
            self.chain.append(rule)
        else:
            self.chain.insert(self.position, rule)


_REASON = Rule._fields.index("reason")


def template(text: str, tables: dict[str, dict[str, list[Rule]]]) -> Template:
    """The template of ``-t TABLE``, ``-A CHAIN`` or ``-I CHAIN [NUMBER]``, then a rule.

    The chain, and the one that the rule jumps to, are made in *tables* if they are not there.
    """
    _, table, command, chain, rest = text.split(" ", 4)
    position = None
    if command == "-I":
        number, _, behind = rest.partition(" ")
        position, rest = (int(number) - 1, behind) if number.isdecimal() else (0, rest)
    rule = parse_rule(rest)._replace(
        inserted=position is not None and is_built_in(table, chain), verbatim=""
    )
    chains = tables.setdefault(table, {})
    if rule.target is not None and rule.target.name.startswith(CHAIN_PREFIX):
        chains.setdefault(rule.target.name, [])
    varying = (
        (number, _fill_matches if field == "matches" else _fill_term)
        for number, field in enumerate(Rule._fields)
        if "{" in str(rule[number])
    )
    return Template(
        chains.setdefault(chain, []), position, list(rule), tuple(varying) if "{" in rest else ()
    )


def _fill_term(term: Term, values: Mapping[str, object]) -> Term | None:
    value = term.value.format_map(values)
    return None if value in _NO_CONDITION else Term(value, term.negated)


def _fill_matches(matches: tuple[Match, ...], values: Mapping[str, object]) -> tuple[Match, ...]:
    return tuple([Match(name, _fill_options(options, values)) for name, options in matches])


def _fill_options(options: tuple[Option, ...], values: Mapping[str, object]) -> tuple[Option, ...]:
    filled = []
    for option in options:
        name, texts, negated = option
        if texts and "{" in texts[0]:
            text = texts[0].format_map(values)
            if text not in _NO_CONDITION:
                filled.append(Option(name.format_map(values), (text,), negated))
        else:
            filled.append(option)
    return tuple(filled)
