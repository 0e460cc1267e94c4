"""Why a packet went past the capture, where the rules that it matched do not say it themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.istio.places import NAT_TABLES, find_ours, nat_tables
from istio_iptables.istio.rules import AGENT_DNS_PORT, CHAIN_PREFIX, IN_REDIRECT, REDIRECT
from istio_iptables.netfilter.fieldvalues import protocol_number
from istio_iptables.netfilter.model import BUILT_IN_CHAINS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from istio_iptables.netfilter.model import Chain, Rule, Ruleset
    from istio_iptables.netfilter.ownership import Owned
    from istio_iptables.netfilter.packet import Packet
    from istio_iptables.trace.hooks import Outcome

__all__ = ["Notes"]

_DNS = 53
_TCP = 6
_MOST_NAMES = 4


class Notes:
    """What is to be said about the rules of one family beside those that matched."""

    def __init__(self, ruleset: Ruleset, others: Iterable[Ruleset] = ()) -> None:
        self._ruleset = ruleset
        self._others = tuple(others)
        self._chains: Mapping[str, Mapping[str, Chain]] = {
            table.name: {chain.name: chain for chain in table.chains} for table in ruleset.tables
        }
        self._nat = tuple(nat_tables(ruleset))
        self._ours: dict[str, Owned] = {table.name: find_ours(table) for table in ruleset.tables}

    def is_foreign(self, table: str, chain: str, number: int | None) -> bool:
        """Whether the rule of this number (from 1), or the policy, is not one of ours."""
        ours = self._ours[table]
        if chain in ours.own_chains:
            return False
        return number is None or number - 1 not in ours.shared.get(chain, {})

    def came_back(self, outcome: Outcome) -> dict[int, str]:
        """By the step's number (from 0): why a jump or goto came back with no rule matched."""
        found = {}
        steps = outcome.steps
        for number, step in enumerate(steps):
            target = step.rule.target if step.rule else None
            chain = self._chains.get(step.table, {}).get(target.name) if target else None
            if chain is None:
                continue
            here = (step.hook, step.table, step.journey)
            after = steps[number + 1] if number + 1 < len(steps) else None
            if (
                after is not None
                and after.chain == chain.name
                and after.number is not None
                and (after.hook, after.table, after.journey) == here
            ):
                continue
            found[number] = f"came back without effect: {_why_not(chain, outcome.start)}"
        return found

    def why_not_captured(self, outcome: Outcome) -> tuple[str, ...]:
        """Why nothing captured the packet, as far as the rules that it matched do not tell."""
        packet = outcome.start or outcome.packet
        title = self._ruleset.family.title
        if not any(self._ours.values()):
            found = [each.family.title for each in self._others if _has_ours(each)]
            alone = f"; there are some for {found[0]}" if found else ""
            return (f"no rules of ours here ({title}){alone}",)
        outgoing = packet.in_interface == ""
        entry = f"{CHAIN_PREFIX}{'OUTPUT' if outgoing else 'INBOUND'}"
        names = dict.fromkeys(nat.name(entry) for nat in self._nat) or {entry: None}
        if not any(map(self._leads_to, names)):
            way = "what the pod sends" if outgoing else "what arrives"
            return (f"no rule jumps to {' or '.join(names)}: {way} is not captured ({title})",)
        if self._returned(outcome):
            return ()
        if outgoing and packet.destination_port == _DNS:
            return self._about_dns(packet)
        return self._about_included(packet, entry)

    def _about_included(self, packet: Packet, entry: str) -> tuple[str, ...]:
        """What the chain *entry* captures, if it is a list that the packet is not on."""
        target = IN_REDIRECT if packet.in_interface else REDIRECT
        for nat in self._nat:
            name = nat.name(entry)
            chain = nat.table.chain(name)
            listed = [
                text
                for rule in (chain.rules if chain else ())
                if rule.target is not None
                and rule.target.name == nat.name(target)
                and not rule.out_interface
                for text in _listed(rule)
            ]
            if packet.protocol == _TCP and listed:
                shown = ", ".join(listed[:_MOST_NAMES]) + (", ..." if listed[_MOST_NAMES:] else "")
                return (f"{name} captures only connections of this list: {shown}",)
        return ()

    def _leads_to(self, name: str) -> bool:
        """Whether a rule of a built-in chain jumps to our chain of this name."""
        return any(
            rule.target is not None and rule.target.name == name
            for table in self._ruleset.tables
            if table.name != "raw"
            for chain in table.chains
            if chain.base or chain.name in BUILT_IN_CHAINS.get(table.name, ())
            for rule in chain.rules
        )

    def _returned(self, outcome: Outcome) -> bool:
        """Whether one of our rules let the packet go on purpose, which its reason explains."""
        return any(
            step.verdict == "RETURN"
            and step.table in NAT_TABLES
            and any(step.chain.startswith(nat.prefix) for nat in self._nat)
            for step in outcome.steps
        )

    def _about_dns(self, packet: Packet) -> tuple[str, ...]:
        servers = [
            rule.destination.value.partition("/")[0] if rule.destination else ""
            for nat in self._nat
            for chain in nat.table.chains
            for rule in chain.rules
            if _captures_dns(rule, packet)
        ]
        if not servers:
            return (f"DNS capture is off: no rule captures port 53 over {packet.protocol_name}",)
        if "" in servers:
            return ()
        names = ", ".join(servers[:_MOST_NAMES]) + (", ..." if servers[_MOST_NAMES:] else "")
        text = f"DNS capture is on for the servers of resolv.conf alone ({names})"
        return (f"{text}, and {packet.destination} is not one of them",)


def _listed(rule: Rule) -> Iterator[str]:
    """What one capturing rule is for: a port or a network."""
    if rule.destination is not None:
        yield f"to {rule.destination.value}"
    for match in rule.matches:
        option = match.option("--dport")
        if option is not None and not option.negated:
            yield f"port {option.values[0]}"


def _has_ours(ruleset: Ruleset) -> bool:
    return any(find_ours(table) for table in ruleset.tables)


def _why_not(chain: Chain, packet: Packet | None) -> str:
    if not chain.rules:
        return f"{chain.name} has no rules"
    protocols = [rule.protocol for rule in chain.rules]
    names = list(dict.fromkeys(each.value for each in protocols if each and not each.negated))
    if (
        packet is not None
        and all(each is not None and not each.negated for each in protocols)
        and packet.protocol not in {protocol_number(each) for each in names}
    ):
        return f"the rules of {chain.name} are for {' and '.join(names)}"
    return f"no rule of {chain.name} matched"


def _captures_dns(rule: Rule, packet: Packet) -> bool:
    target = rule.target
    ports = target.option("--to-ports") if target and target.name == "REDIRECT" else None
    return (
        ports is not None
        and ports.values == (str(AGENT_DNS_PORT),)
        and rule.protocol is not None
        and protocol_number(rule.protocol.value) == packet.protocol
    )
