"""Config to Plan: Istio's rules put into their tables, and the routes and addresses they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.istio.rules import CHAIN_PREFIX, rules
from istio_iptables.netfilter.model import (
    BUILT_IN_CHAINS,
    Chain,
    Family,
    Rule,
    Ruleset,
    Table,
    is_built_in,
)
from istio_iptables.netfilter.plan import InterfaceAddress, Plan, PolicyRoute
from istio_iptables.settings.values import Mode

if TYPE_CHECKING:
    from istio_iptables.settings.config import Config

__all__ = ["build", "build_address"]

_TABLE_ORDER = ("raw", "mangle", "nat")


def build(config: Config) -> Plan:
    """The rules, routes and addresses that *config* asks for.

    Every ruleset is in the canonical order and spelling, so its text is what the kernel says
    after it was installed into an empty namespace (docs/contract.md, section 3).
    """
    families = (Family.IPV4, Family.IPV6) if config.ipv6 else (Family.IPV4,)
    routed = families if config.mode is Mode.TPROXY and config.inbound_ports else ()
    return Plan(
        rulesets=tuple(_ruleset(config, family) for family in families),
        routes=tuple(
            PolicyRoute(
                family,
                config.tproxy_mark,
                config.tproxy_route_table,
                "Packets that TPROXY marked are for other addresses than the pod's: this route"
                " delivers them to Envoy's listener all the same.",
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
        "Envoy hands inbound connections to the application from this address, by which"
        " the rules know them (in IPv4, 127.0.0.6 needs no adding).",
    )


def _ruleset(config: Config, family: Family) -> Ruleset:
    """The rules of one address family in their tables."""
    tables: dict[str, dict[str, list[Rule]]] = {}
    for table, chain, rule, position in rules(config, family):
        chains = tables.setdefault(table, {})
        placed = chains.setdefault(chain, [])
        if rule.target is not None and rule.target.name.startswith(CHAIN_PREFIX):
            # A chain comes to be with the first jump to it, whether or not it gets rules.
            chains.setdefault(rule.target.name, [])
        if position is None:
            placed.append(rule)
        else:
            placed.insert(position, rule)
    return Ruleset(
        family,
        tuple(_table(name, tables[name]) for name in _TABLE_ORDER if name in tables),
    )


def _table(name: str, chains: dict[str, list[Rule]]) -> Table:
    built_in = (
        Chain(each, "ACCEPT", tuple(chains.get(each, ()))) for each in BUILT_IN_CHAINS[name]
    )
    own = sorted(each for each in chains if not is_built_in(name, each))
    return Table(name, (*built_in, *(Chain(each, None, tuple(chains[each])) for each in own)))
