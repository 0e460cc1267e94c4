"""What is wrong around the rules of a live namespace: who listens, who runs, what is connected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.api.comparing import holds_ours
from istio_iptables.api.diagnostics import Diagnostic, Severity
from istio_iptables.api.packets import PACKET_FIELDS, complete_packet
from istio_iptables.api.unseen import unseen_chains
from istio_iptables.istio.capture import describe
from istio_iptables.istio.checks import left_out_live, with_proxies_of
from istio_iptables.istio.ownership import find_owned
from istio_iptables.istio.rules import AGENT_DNS_PORT
from istio_iptables.kernel.processes import sockets_of
from istio_iptables.kernel.sockets import TCP, UDP, takes
from istio_iptables.netfilter.fieldvalues import number, protocol_name, protocol_number
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.packet import endpoint, is_loopback
from istio_iptables.settings.types import within
from istio_iptables.trace.hooks import trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.api.evidence import Evidence
    from istio_iptables.api.subjects import Subject
    from istio_iptables.kernel.sockets import Socket
    from istio_iptables.netfilter.model import Rule, Ruleset
    from istio_iptables.settings.config import Config

__all__ = ["LiveChecks", "proxy_of"]

#: Programs that run as the proxy's user because they are the proxy.
_PROXY_PROGRAMS = frozenset({"envoy", "pilot-agent"})
_DNS_PORT = 53
#: What a socket for all addresses is at; it is compared, and not bound.
_ANY_ADDRESS = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104
#: From how much of the connection table on it counts as nearly full.
_NEARLY_FULL = 0.9
#: What one line names at most, and how many connections are followed through the rules.
_MOST_NAMED, _MOST_FOLLOWED = 3, 200


def proxy_of(subject: Subject) -> Config:
    """The settings, with the proxy's users and groups as the rules have them."""
    config = subject.plan.config
    given = any(subject.plan.values[name].given for name in ("proxy_uid", "proxy_gid"))
    return config if given else with_proxies_of(config, subject.native or subject.rulesets)


class LiveChecks:
    """What is wrong around the rules of a namespace."""

    def __init__(self, subject: Subject, evidence: Evidence) -> None:
        self._subject, self._evidence = subject, evidence
        self._config = proxy_of(subject)
        self._rulesets = subject.native or subject.rulesets
        self._ours = holds_ours(self._rulesets)

    def findings(self) -> Iterator[Diagnostic]:
        """All of them."""
        yield from self._node()
        yield from self._table_full()
        yield from self._lacking()
        yield from self._not_in_force()
        if not self._ours:
            return
        yield from self._loopback_down()
        yield from self._not_listening()
        yield from self._stopped()
        yield from self._as_the_proxy()
        yield from self._uncaptured_families()
        yield from self._dns()
        yield from self._past_envoy()
        yield from self._native()
        yield from self._twice()

    def _node(self) -> Iterator[Diagnostic]:
        if self._evidence.node:
            yield Diagnostic(
                "node",
                Severity.WARNING,
                f"this is a node's namespace, or a pod's with hostNetwork: {self._evidence.node}",
                "rules for a pod capture the whole machine here: install them in the pod's"
                " namespace (--network-namespace)",
            )

    def _table_full(self) -> Iterator[Diagnostic]:
        if self._evidence.connections is None:
            return
        count, most = self._evidence.connections
        if most and count >= most * _NEARLY_FULL:
            yield Diagnostic(
                "connection-table",
                Severity.ERROR if count >= most else Severity.WARNING,
                f"{count} of at most {most} connections are tracked: further ones are dropped",
                "raise net.netfilter.nf_conntrack_max on the node, or close connections",
            )

    def _lacking(self) -> Iterator[Diagnostic]:
        for extension in self._evidence.lacking:
            yield Diagnostic(
                "kernel",
                Severity.ERROR,
                f"the kernel has no {extension}, which the rules need",
                "load it on the node, or take a kernel that has it",
            )

    def _not_in_force(self) -> Iterator[Diagnostic]:
        for line in self._subject.state.warnings if self._subject.state else ():
            yield Diagnostic("table", Severity.WARNING, line, "see who made it (nft list tables)")

    def _loopback_down(self) -> Iterator[Diagnostic]:
        if not self._evidence.loopback_up:
            yield Diagnostic(
                "loopback",
                Severity.ERROR,
                "the interface lo is down: nothing that the rules send to Envoy arrives",
                "bring it up in the pod's namespace: ip link set lo up",
            )

    def _not_listening(self) -> Iterator[Diagnostic]:
        """Ports that captured traffic is sent to, and nobody takes it, or somebody else does."""
        sockets = self._evidence.sockets
        if sockets is None:
            return
        for protocol, port, family in _targets(self._rulesets):
            if self._unused(family):
                continue
            there = [each for each in sockets if takes(each, protocol, port, family)]
            where = f"{protocol_name(str(protocol))} port {port} ({family.title})"
            agent = port == AGENT_DNS_PORT
            who = "the agent" if agent else "Envoy"
            if not there:
                yield Diagnostic(
                    "no-listener",
                    Severity.ERROR,
                    f"nothing listens on {where}, where the rules send captured traffic",
                    f"see whether {who} runs and is ready",
                )
            elif not any(map(self._reached, there)):
                inbound = port == self._config.inbound_capture_port
                yield Diagnostic(
                    "no-listener",
                    Severity.ERROR,
                    f"{where} is listened on at {_listed(each.address for each in there)} only, and"
                    f" captured traffic comes to {'the pod' if inbound else 'loopback'}'s address",
                    f"let {who} listen on {_ANY_ADDRESS[family]}",
                )
            elif others := [each.uid for each in there if not self._is_proxy(each.uid)]:
                yield Diagnostic(
                    "foreign-listener",
                    Severity.ERROR,
                    f"user {others[0]} listens on {where}, and the rules except"
                    f" {self._named_proxies()}: what it sends on would be captured again",
                    f"run {who} as that user, or give -u and -g as it runs",
                )

    def _unused(self, family: Family) -> bool:
        """Whether native rules are for IPv6 as well, and the namespace has none of it."""
        native, own = self._subject.native, self._subject.own
        return bool(native) and family is Family.IPV6 and not any(":" in each for each in own)

    def _reached(self, socket: Socket) -> bool:
        """Whether captured traffic comes to the socket's address: an interface's, or loopback's.

        That of an interface is where inbound connections are redirected to, outbound ones to
        loopback.
        """
        inbound = socket.port == self._config.inbound_capture_port
        loopback = is_loopback(socket.address, socket.family)
        return socket.address in _ANY_ADDRESS.values() or loopback is not inbound

    def _is_proxy(self, uid: int) -> bool:
        """Whether the rules except what a socket of this user sends, by its group maybe."""
        return within(uid, self._config.proxy_uids) or any(
            each.uid == uid and within(each.gid, self._config.proxy_gids)
            for each in self._evidence.processes or ()
        )

    def _named_proxies(self) -> str:
        uids = ", ".join(str(each) for each in self._config.proxy_uids[:_MOST_NAMED])
        return f"user {uids}" if uids else "nobody"

    def _listeners(self) -> set[int]:
        """The sockets that take what is captured, by their numbers."""
        targets = tuple(_targets(self._rulesets))
        return {
            each.inode
            for each in self._evidence.sockets or ()
            if any(takes(each, *target) for target in targets)
        }

    def _stopped(self) -> Iterator[Diagnostic]:
        """Processes whose ports the kernel still answers on, and nobody reads from."""
        listeners = self._listeners()
        for each in self._evidence.processes or ():
            if each.stopped and listeners & sockets_of(each.pid):
                yield Diagnostic(
                    "stopped",
                    Severity.ERROR,
                    f"{each.name} (process {each.pid}) listens for captured traffic and is stopped:"
                    " connections are made and nothing answers",
                    f"let it go on (kill -CONT {each.pid}), or see which debugger holds it",
                )

    def _as_the_proxy(self) -> Iterator[Diagnostic]:
        """Applications whose traffic passes for Envoy's."""
        # Whatever takes what is captured is the proxy, by any name.
        proxies = self._listeners()
        others = [
            each
            for each in self._evidence.processes or ()
            if each.name not in _PROXY_PROGRAMS
            and (
                within(each.uid, self._config.proxy_uids)
                or within(each.gid, self._config.proxy_gids)
            )
            and not proxies & sockets_of(each.pid)
        ]
        if others:
            names = _listed(
                f"{each.name} (process {each.pid}{'' if each.certain else ', maybe elsewhere'})"
                for each in others
            )
            first = others[0]
            yield Diagnostic(
                "application-as-proxy",
                Severity.WARNING,
                f"{names}: runs as user {first.uid} and group {first.gid}, which the rules take"
                " for the proxy: nothing that it sends is captured",
                "give the application's container another runAsUser and runAsGroup",
            )

    def _uncaptured_families(self) -> Iterator[Diagnostic]:
        for line in left_out_live(self._subject.rulesets, self._subject.own):
            yield Diagnostic(
                "ipv6", Severity.WARNING, line, "install again with it if that is not meant"
            )

    def _dns(self) -> Iterator[Diagnostic]:
        config, servers = self._subject.plan.config, self._evidence.nameservers
        if not config.redirect_dns:
            yield Diagnostic(
                "dns",
                Severity.INFO,
                "DNS is not captured: no rule is for port 53",
                "--redirect-dns captures it, and the agent has to listen on port 15053",
            )
            return
        if config.capture_all_dns:
            return
        captured = {*config.dns_servers_ipv4, *config.dns_servers_ipv6}
        if missing := [each for each in servers or () if each not in captured]:
            yield Diagnostic(
                "dns-server",
                Severity.WARNING,
                f"the rules capture DNS to {_listed(sorted(captured)) or 'no server'}, and"
                f" resolv.conf names {_listed(missing)} as well",
                "install again, so that the current servers are captured",
            )
        asked = sorted(
            {
                each.peer
                for each in self._evidence.sockets or ()
                if each.connected
                and each.peer_port == _DNS_PORT
                and each.peer not in captured
                and not is_loopback(each.peer, each.family)
                and not self._is_proxy(each.uid)
            }
        )
        if asked:
            yield Diagnostic(
                "dns-server",
                Severity.WARNING,
                f"an application asks the DNS server {_listed(asked)}, whose queries are not captured",
                "--capture-all-dns captures port 53 to any server",
            )

    def _past_envoy(self) -> Iterator[Diagnostic]:
        """Connections that the rules would capture, and that have no end here at Envoy.

        They were there before the rules: nat is asked about a connection's first packet alone. Where
        connections were not tracked before, the kernel takes the next packet for the first: it goes to
        Envoy, who knows nothing of it and resets.
        """
        sockets = [
            each for each in self._evidence.sockets or () if each.connected and each.protocol == TCP
        ]
        serving = {
            (family, each.port)
            for each in self._evidence.sockets or ()
            for family in Family
            if takes(each, TCP, each.port, family)
        }
        ends = {(each.family, each.peer, each.peer_port) for each in sockets}
        own = {(each.family, each.address, each.port) for each in sockets}
        for way in ("outbound", "inbound"):
            found = []
            for each in sockets:
                incoming = (each.family, each.port) in serving
                if (way == "inbound") is not incoming or self._is_proxy(each.uid):
                    continue
                if is_loopback(each.peer, each.family):
                    continue
                here, there = (
                    (each.family, each.address, each.port),
                    (each.family, each.peer, each.peer_port),
                )
                # Envoy has taken it: what the application sees as the other end is here.
                if here in ends or there in own:
                    continue
                found.append(each)
            bypassing = [
                each
                for each in found[:_MOST_FOLLOWED]
                if self._would_capture(each, incoming=way == "inbound")
            ]
            if bypassing:
                first = bypassing[0]
                more = "" if len(found) <= _MOST_FOLLOWED else " at least"
                yield Diagnostic(
                    "past-envoy",
                    Severity.WARNING,
                    f"{way} connections from before the rules:{more} {len(bypassing)}, such as"
                    f" {endpoint(first.address, first.port)} to {endpoint(first.peer, first.peer_port)} of"
                    f" user {first.uid}; they go past Envoy, or are reset where connections were not"
                    " tracked before",
                    "restart the application, or let it connect anew",
                )

    def _would_capture(self, socket: Socket, *, incoming: bool) -> bool:
        """Whether the connection would be captured if it were made now."""
        ends = (endpoint(socket.peer, socket.peer_port), endpoint(socket.address, socket.port))
        source, destination = ends if incoming else ends[::-1]
        texts = {**dict.fromkeys(PACKET_FIELDS), "src": source, "dst": destination}
        if not incoming:
            texts["uid"] = str(socket.uid)
        ruleset = next((each for each in self._rulesets if each.family is socket.family), None)
        if ruleset is None:
            return False
        world = self._subject.world
        about = complete_packet(texts, incoming=incoming, world=world, family=socket.family)
        outcomes = trace(ruleset, about.packet, world).outcomes
        return all(describe(each, self._config).captured is not None for each in outcomes)

    def _native(self) -> Iterator[Diagnostic]:
        """Chains whose rules are not known, by whether captured traffic comes to them."""
        state = self._subject.state
        # The rules of the other backend are followed as well.
        unseen = unseen_chains(state._replace(other_rulesets=()), native=True) if state else ()
        meant = [each for each in unseen if each.decides]
        for chains, severity in (
            (meant, Severity.WARNING),
            ([each for each in unseen if each not in meant], Severity.INFO),
        ):
            if chains:
                names = _listed(each.line for each in chains)
                yield Diagnostic(
                    "unseen-chains",
                    severity,
                    f"chains that are not followed decide as well: {names}",
                    "nft list ruleset shows their rules",
                )

    def _twice(self) -> Iterator[Diagnostic]:
        """Istio's own program takes legacy for in use as soon as its tables exist."""
        state = self._subject.state
        if state and state.backend == "nft" and self._evidence.has_legacy:
            yield Diagnostic(
                "detection",
                Severity.WARNING,
                "our rules are in nft, and the namespace has legacy tables: Istio's own program"
                " takes those for in use, and would install its rules there a second time",
                "give it FORCE_IPTABLES_BINARY=nft, or use this one",
            )


def _targets(rulesets: Iterable[Ruleset]) -> Iterator[tuple[int, int, Family]]:
    """Where our rules send captured traffic: protocol, port and family, each once."""
    found = {
        (protocol, port, ruleset.family): None
        for ruleset in rulesets
        for table in ruleset.tables
        for chain in table.chains
        if " " in table.name or chain.name in find_owned(table).own_chains
        for rule in chain.rules
        for protocol, port in _target(rule)
    }
    yield from found


def _target(rule: Rule) -> Iterator[tuple[int, int]]:
    names = {"REDIRECT": "--to-ports", "TPROXY": "--on-port"}
    target = rule.target
    option = target.option(names[target.name]) if target and target.name in names else None
    port = number(option.values[0]) if option else None
    protocol = protocol_number(rule.protocol.value) if rule.protocol else None
    if port is not None and protocol in {TCP, UDP}:
        yield protocol, port


def _listed(names: Iterable[str]) -> str:
    """A few of *names*, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
