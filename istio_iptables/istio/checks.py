"""Misconfigurations that produce no error, found by following example packets.

Envoy's own traffic that is sent back to Envoy, and an application that runs as the proxy's user
or group and so is never captured.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.istio.capture import describe
from istio_iptables.istio.places import NAT_TABLES, find_ours, nat_tables
from istio_iptables.istio.rules import IN_REDIRECT, OUTPUT, REDIRECT
from istio_iptables.netfilter.fieldvalues import number
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.packet import Packet, Surroundings, is_loopback, loopback
from istio_iptables.settings.config import uncaptured_ipv6
from istio_iptables.settings.converters import MAX_ID
from istio_iptables.settings.types import ALL, IdRange, Mode, within
from istio_iptables.trace.hooks import End, trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.netfilter.model import Rule, Ruleset
    from istio_iptables.netfilter.plan import PolicyRoute
    from istio_iptables.settings.config import Config
    from istio_iptables.trace.hooks import Outcome, TraceStep

__all__ = [
    "ELSEWHERE",
    "POD",
    "Finding",
    "FindingKind",
    "escape",
    "findings",
    "left_out_live",
    "losses",
    "with_proxies_of",
]

#: An address of the pod and one of somewhere else, for examples.
POD = {Family.IPV4: "10.244.0.2", Family.IPV6: "fd00:10:244::2"}
ELSEWHERE = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8::1"}
#: The address from which Envoy's inbound side connects to the application.
_PASSTHROUGH = {Family.IPV4: "127.0.0.6", Family.IPV6: "::6"}

_TCP, _UDP = 6, 17
_MOST_IDS = 4


class FindingKind(Enum):
    """What is wrong; the value is its name in JSON."""

    LOOP = "loop"
    ESCAPE = "escape"
    #: What is captured is dropped on its way to Envoy.
    LOSS = "loss"


class Finding(NamedTuple):
    """One fault, the rule that decides it, and a packet that shows it."""

    fault: FindingKind
    family: Family
    #: The rule's place, such as ``nat ISTIO_OUTPUT 9``.
    place: str
    text: str
    packet: Packet
    line: str


def findings(
    rulesets: Iterable[Ruleset],
    routes: tuple[PolicyRoute, ...],
    config: Config,
    applications: Iterable[tuple[int, int]],
) -> tuple[Finding, ...]:
    """The faults of *rulesets* when the proxy runs as *config* says; mostly none.

    *applications* are the (uid, gid) that applications run as.

    A fault is told once for each rule that makes it.
    """
    applications = tuple(applications)
    found: dict[tuple[FindingKind, Family, str], Finding] = {}
    for ruleset in rulesets:
        if not any(len(table.chains) for table in ruleset.tables):
            continue
        world = Surroundings(None, routes)
        probe = _Probe(ruleset, world, config)
        for finding in (*probe.loops(), *probe.escapes(applications)):
            found.setdefault((finding.fault, finding.family, finding.place), finding)
    return tuple(found.values())


def losses(
    rulesets: Iterable[Ruleset], routes: tuple[PolicyRoute, ...], config: Config
) -> tuple[Finding, ...]:
    """What is captured and then dropped, by foreign rules behind ours; mostly nothing."""
    # Of the pod in the examples, so that it is known what a redirection makes of them.
    addresses = {"lo": tuple(map(loopback, Family)), "eth0": tuple(POD.values())}
    world = Surroundings(addresses, routes)
    found = {
        (each.family, each.place, each.packet.in_interface): each
        for ruleset in rulesets
        for each in _Probe(ruleset, world, config).losses()
    }
    return tuple(found.values())


def escape(ruleset: Ruleset, packet: Packet, world: Surroundings, config: Config) -> Finding | None:
    """The fault that *packet* is not captured only because its sender has the proxy's user.

    The proxy's users and groups are those that the rules name.
    """
    if packet.in_interface != "":
        return None
    return _Probe(ruleset, world, with_proxies_of(config, [ruleset])).escape(packet)


def with_proxies_of(config: Config, rulesets: Iterable[Ruleset]) -> Config:
    """*config* with the proxy's users and groups that the rules name, where they name any.

    These are the owners of what goes from the pod to itself by Envoy's inbound listener.
    """
    found: dict[str, list[IdRange]] = {"--uid-owner": [], "--gid-owner": []}
    for ruleset in rulesets:
        for nat in nat_tables(ruleset):
            output = nat.table.chain(nat.name(OUTPUT))
            for rule in output.rules if output else ():
                if rule.target is None or rule.target.name != nat.name(IN_REDIRECT):
                    continue
                for option in (each for match in rule.matches for each in match.options):
                    if option.name in found and option.values and not option.negated:
                        first, _, last = option.values[0].partition("-")
                        low, high = number(first), number(last or first)
                        if low is not None and high is not None:
                            found[option.name].append(IdRange(low, high))
    return config._replace(
        proxy_uids=tuple(dict.fromkeys(found["--uid-owner"])) or config.proxy_uids,
        proxy_gids=tuple(dict.fromkeys(found["--gid-owner"])) or config.proxy_gids,
    )


def left_out_live(rulesets: Iterable[Ruleset], addresses: Iterable[str]) -> list[str]:
    """What a namespace with these rules and addresses leaves uncaptured: IPv6, if it does."""
    ours = {
        ruleset.family for ruleset in rulesets if any(find_ours(each) for each in ruleset.tables)
    }
    return uncaptured_ipv6(addresses, "--dual-stack") if ours == {Family.IPV4} else []


class _Probe:
    """Sends example packets through the rules of one family."""

    def __init__(self, ruleset: Ruleset, world: Surroundings, config: Config) -> None:
        self._ruleset, self._world, self._config = ruleset, world, config
        self._family = ruleset.family
        self._nobody = self._unused()

    def _unused(self) -> int:
        """An id that no setting names, if there is one; ids have 32 bits, the last is no id."""
        config = self._config
        if config.owner_groups is not ALL:
            return config.owner_groups[0].first if config.owner_groups else 64999
        taken = {*config.proxy_uids, *config.proxy_gids, *config.owner_groups_exclude}
        # Where the ranges cover the usual one, the ids next to them are the only ones to try.
        beside = (each for ids in taken for each in (ids.first - 1, ids.last + 1))
        return next(
            (each for each in (64999, *beside) if 0 < each <= MAX_ID and not within(each, taken)),
            64999,
        )

    # Envoy's own traffic.

    def loops(self) -> Iterator[Finding]:
        """Envoy's packets that come back to Envoy."""
        for uid, gid in self._proxies():
            for packet, what in self._of_envoy(uid, gid):
                for outcome in trace(self._ruleset, packet, self._world).outcomes:
                    verdict = describe(outcome, self._config)
                    if verdict.captured is None or outcome.assumptions:
                        continue
                    step = _decisive(outcome)
                    yield self._finding(
                        FindingKind.LOOP,
                        step,
                        packet,
                        f"{what} would be sent back: {verdict.text}",
                    )

    def _proxies(self) -> list[tuple[int, int]]:
        """What Envoy may run as: one of its users, one of its groups, or both."""
        config = self._config
        uids = [each.first for each in config.proxy_uids[:_MOST_IDS]]
        gids = [each.first for each in config.proxy_gids[:_MOST_IDS]]
        pairs = [(uids[0], gids[0])]
        pairs += ((uid, self._nobody) for uid in uids)
        pairs += ((self._nobody, gid) for gid in gids)
        if config.mode is Mode.TPROXY:
            pairs += ((0, gid) for gid in gids)
        return pairs

    def _of_envoy(self, uid: int, gid: int) -> Iterator[tuple[Packet, str]]:
        """Packets that Envoy and the agent beside it send, and what they are."""
        config, family = self._config, self._family
        base = Packet(family, _TCP, POD[family], None, 40000, uid=uid, gid=gid)
        for destination, port in self._captured_destinations():
            out = base._replace(
                destination=destination, destination_port=port, out_interface="eth0"
            )
            yield out, "what Envoy sends on for the application"
        application = base._replace(
            source=_PASSTHROUGH[family],
            destination=POD[family],
            destination_port=8080,
            out_interface="lo",
        )
        yield application, "what Envoy hands to the application"
        if config.mode is Mode.TPROXY and config.inbound_ports and uid in {0, self._nobody}:
            # Only a privileged Envoy can speak under another address; Istio's runs as root then.
            kept = application._replace(source=ELSEWHERE[family], mark=config.tproxy_mark)
            yield kept, "what Envoy hands to the application under the client's address"
        here = base._replace(
            source=loopback(family),
            destination=loopback(family),
            destination_port=15020,
            out_interface="lo",
        )
        yield here, "what Envoy asks the agent"
        if config.redirect_dns:
            servers = config.dns_servers_ipv4 if family is Family.IPV4 else config.dns_servers_ipv6
            for protocol in (_UDP, _TCP):
                question = base._replace(
                    protocol=protocol,
                    destination=servers[0] if servers else ELSEWHERE[family],
                    destination_port=53,
                    out_interface="eth0",
                )
                yield question, "what the agent asks the real DNS server"

    def _captured_destinations(self) -> list[tuple[str, int]]:
        """Destinations that are meant to be captured when the application asks for them.

        They are read from the rules, which may be those of a namespace or a file.
        """
        networks: list[tuple[str, int]] = []
        ports: list[tuple[str, int]] = []
        rules = (
            rule
            for nat in nat_tables(self._ruleset)
            for chain in nat.table.chains
            if chain.name not in {"PREROUTING", "prerouting"}
            for rule in chain.rules
            if rule.target is not None and rule.target.name == nat.name(REDIRECT)
        )
        for rule in rules:
            address = ELSEWHERE[self._family]
            if rule.destination is not None and not rule.destination.negated:
                address = rule.destination.value.partition("/")[0]
            port = _port(rule)
            # A native rule may be about the other family.
            other = (":" in address) is not (self._family is Family.IPV6)
            if other or is_loopback(address, self._family):
                continue
            if port is None:
                networks.append((address, 80))
            else:
                ports.append((address, port))
        return list(dict.fromkeys(networks))[:2] + list(dict.fromkeys(ports))[:2]

    # What is captured and comes nowhere.

    def losses(self) -> Iterator[Finding]:
        """Packets that are redirected to Envoy, and dropped before they are there."""
        family, ports = self._family, self._config.inbound_ports
        out = Packet(family, _TCP, POD[family], None, 40000, uid=self._nobody, gid=self._nobody)
        packets = [
            (
                out._replace(destination=destination, destination_port=port, out_interface="eth0"),
                "what an application sends",
            )
            for destination, port in self._captured_destinations()
        ]
        if ports:
            port = 8080 if ports is ALL else ports[0].first
            arrives = Packet(family, _TCP, ELSEWHERE[family], POD[family], 40000, port)
            packets.append((arrives._replace(in_interface="eth0"), "what arrives at the pod"))
        for packet, what in packets:
            for outcome in trace(self._ruleset, packet, self._world).outcomes:
                # Without a rule that does it, it is for want of a route, of which nothing is known.
                if outcome.end is End.DROPPED and outcome.taken_by and not outcome.refused:
                    maybe = "may be" if outcome.assumptions else "is captured, and"
                    line = f"{what} {maybe} dropped on its way to Envoy"
                    yield self._finding(FindingKind.LOSS, outcome.steps[-1], packet, line)

    # Applications that pass for Envoy.

    def escapes(self, applications: tuple[tuple[int, int], ...]) -> Iterator[Finding]:
        """Applications that aren't captured because they run as the proxy does."""
        for uid, gid in applications:
            for destination, port in self._captured_destinations():
                packet = Packet(self._family, _TCP, POD[self._family], destination, 40000, port)
                found = self.escape(packet._replace(out_interface="eth0", uid=uid, gid=gid))
                if found is not None:
                    yield found

    def escape(self, packet: Packet) -> Finding | None:
        """The fault that *packet* is not captured only because of the user or group it is of."""
        names = [
            f"{what} {identity}"
            for what, identity, ids in (
                ("uid", packet.uid, self._config.proxy_uids),
                ("gid", packet.gid, self._config.proxy_gids),
            )
            if identity is not None and within(identity, ids)
        ]
        other = packet._replace(uid=self._nobody, gid=self._nobody)
        if not names or not self._captured(other) or self._captured(packet):
            return None
        outcome = trace(self._ruleset, packet, self._world).outcomes[0]
        if not outcome.steps:
            # No rule is asked about it, so that its owner makes no difference.
            return None
        what = f"an application that runs as the proxy's {' and '.join(names)} escapes"
        return self._finding(FindingKind.ESCAPE, _decisive(outcome), packet, what)

    def _captured(self, packet: Packet) -> bool:
        outcomes = trace(self._ruleset, packet, self._world).outcomes
        return any(describe(each, self._config).captured for each in outcomes)

    def _finding(self, fault: FindingKind, step: TraceStep, packet: Packet, what: str) -> Finding:
        place = f"{step.table} {step.chain} {'policy' if step.number is None else step.number}"
        source, destination = packet.endpoints
        owner = "" if packet.uid is None else f", uid {packet.uid}, gid {packet.gid}"
        example = f"{packet.protocol_name} {source} to {destination}{owner}"
        line = f"{what}; decided by {place} ({step.text}), for example {example}"
        return Finding(fault, self._family, place, step.text, packet, line)


def _port(rule: Rule) -> int | None:
    """The first destination port that *rule* asks for, or None."""
    for match in rule.matches:
        option = match.option("--dport")
        if option is not None and option.values and not option.negated:
            return number(option.values[0].partition(":")[0])
    return None


def _decisive(outcome: Outcome) -> TraceStep:
    """The rule that made the decision: the last one that chose, and did not merely carry it out."""
    steps = [step for step in outcome.steps if step.rule is not None] or list(outcome.steps)
    if outcome.taken_by:
        verdicts = [step.verdict for step in steps]
        # A native rule may send the packet on behind tproxy: then its verdict is where to.
        taken = verdicts.index(outcome.taken_by) if outcome.taken_by in verdicts else len(steps) - 1
        # In a chain that only redirects, the rule that led there is the one that chose.
        carries_out = taken > 0 and steps[taken - 1].verdict == steps[taken].chain
        return steps[taken - 1] if carries_out else steps[taken]
    returns = [step for step in steps if step.table in NAT_TABLES and step.verdict == "RETURN"]
    return returns[-1] if returns else steps[-1]
