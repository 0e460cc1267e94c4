"""Config to Plan: the one place that knows Istio's chains (CONTRACT section 2).

Each rule carries the reason for its being there: annotated output, explanations and reports
of differences all say it in these words. The methods stand in the order of the contract's
numbered steps, because that order is the order of the rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.netfilter import parts
from istio_iptables.netfilter.model import (
    BUILT_IN_CHAINS,
    Chain,
    Family,
    Rule,
    Ruleset,
    Table,
    Target,
    Term,
    is_built_in,
)
from istio_iptables.netfilter.parts import ACCEPT, DROP, RETURN
from istio_iptables.netfilter.plan import InterfaceAddress, Plan, PolicyRoute
from istio_iptables.settings.values import ALL, Mode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_iptables.netfilter.model import Match
    from istio_iptables.settings.config import Config
    from istio_iptables.settings.values import IdRange, Network, PortRange

__all__ = ["AGENT_DNS_PORT", "CHAIN_PREFIX", "OUTBOUND_MARK", "build"]

#: Every chain of ours has a name that starts so, and no stranger's has.
CHAIN_PREFIX = "ISTIO_"
#: Where the agent answers DNS.
AGENT_DNS_PORT = 15053
#: The mark of what Envoy sends to its own pod under TPROXY; Istio fixes it.
OUTBOUND_MARK = 1338

INBOUND = "ISTIO_INBOUND"
IN_REDIRECT = "ISTIO_IN_REDIRECT"
OUTPUT = "ISTIO_OUTPUT"
REDIRECT = "ISTIO_REDIRECT"
OUTPUT_DNS = "ISTIO_OUTPUT_DNS"
DIVERT = "ISTIO_DIVERT"
TPROXY = "ISTIO_TPROXY"
DROP_CHAIN = "ISTIO_DROP"

_TABLE_ORDER = ("raw", "mangle", "nat")

_WELL_KNOWN = {
    15000: "Envoy's admin interface",
    15020: "the agent's health checks and merged metrics",
    15021: "Envoy's health checks, which the kubelet asks",
    15090: "Envoy's Prometheus metrics",
}

_TCP = Term("tcp")
_UDP = Term("udp")
_LO = Term("lo")


def build(config: Config) -> Plan:
    """The rules, routes and addresses that *config* asks for.

    Every ruleset is in the canonical order and spelling, so its text is what the kernel says
    after it was installed into an empty namespace (CONTRACT section 3).
    """
    families = (Family.IPV4, Family.IPV6) if config.ipv6 else (Family.IPV4,)
    routed = families if config.mode is Mode.TPROXY and config.inbound_ports else ()
    return Plan(
        rulesets=tuple(_Rules(config, family).build() for family in families),
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
    """The address that goes with IPv6 rules (CONTRACT section 2, "Beside the rules")."""
    return InterfaceAddress(
        Family.IPV6,
        "::6",
        128,
        "lo",
        "Envoy hands inbound connections to the application from this address, by which"
        " the rules know them (in IPv4, 127.0.0.6 needs no adding).",
    )


def _numbers(ranges: Iterable[object]) -> str:
    return ", ".join(map(str, ranges))


class _Rules:
    """The rules of one address family, collected in the order of the contract."""

    def __init__(self, config: Config, family: Family) -> None:
        self._config = config
        self._family = family
        self._chains: dict[str, dict[str, list[Rule]]] = {}
        ipv4 = family is Family.IPV4
        self._version = 4 if ipv4 else 6
        self._loopback = str(config.loopback) if ipv4 else "::1/128"
        self._passthrough = "127.0.0.6/32" if ipv4 else "::6/128"
        self._tproxy = config.mode is Mode.TPROXY
        self._dns_servers = config.dns_servers_ipv4 if ipv4 else config.dns_servers_ipv6

    def build(self) -> Ruleset:
        """The ruleset; each step adds to what the ones before it have left."""
        self._exclude_interfaces()
        self._spare_virtual_interfaces()
        self._drop_invalid()
        self._redirect_targets()
        self._capture_inbound()
        self._enter_output()
        self._exclude_outbound_ports()
        self._pass_envoy_to_application()
        for uid in self._config.proxy_uids:
            self._pass_proxy(str(uid), user=True)
        for gid in self._config.proxy_gids:
            self._pass_proxy(str(gid), user=False)
        self._filter_owner_groups()
        self._capture_dns()
        self._capture_outbound()
        if self._tproxy:
            self._mark_for_tproxy()
        return Ruleset(
            self._family,
            tuple(self._table(name) for name in _TABLE_ORDER if name in self._chains),
        )

    def _table(self, name: str) -> Table:
        chains = self._chains[name]
        built_in = (
            Chain(each, "ACCEPT", tuple(chains.get(each, ()))) for each in BUILT_IN_CHAINS[name]
        )
        own = sorted(each for each in chains if not is_built_in(name, each))
        return Table(name, (*built_in, *(Chain(each, None, tuple(chains[each])) for each in own)))

    def _add(self, table: str, chain: str, rule: Rule, position: int | None = None) -> None:
        """Append *rule*, or put it in at *position*; a chain it jumps to comes to be with it."""
        chains = self._chains.setdefault(table, {})
        rules = chains.setdefault(chain, [])
        if rule.target is not None and rule.target.name.startswith(CHAIN_PREFIX):
            chains.setdefault(rule.target.name, [])
        if position is None:
            rules.append(rule)
        else:
            rules.insert(position, rule)

    # 1. Excluded interfaces.

    def _exclude_interfaces(self) -> None:
        for table in ("nat", "mangle") if self._tproxy else ("nat",):
            for name in self._config.exclude_interfaces:
                for chain, heading in (("PREROUTING", "comes in"), ("OUTPUT", "goes out")):
                    reason = (
                        f"Interface {name} is excluded from the mesh (-c): what {heading} through"
                        " it is left alone, before any other rule can capture it."
                    )
                    interface = _interface(name)
                    rule = Rule(target=RETURN, reason=reason)
                    if chain == "PREROUTING":
                        self._add(table, chain, rule._replace(in_interface=interface))
                    else:
                        self._add(table, chain, rule._replace(out_interface=interface))

    # 2. Virtual interfaces.

    def _spare_virtual_interfaces(self) -> None:
        for name in self._config.virtual_interfaces:
            reason = (
                f"Interface {name} carries a virtual machine's traffic (-k), which counts as"
                " outbound: it never enters the inbound chain."
            )
            rule = Rule(in_interface=_interface(name), target=RETURN, reason=reason, inserted=True)
            self._add("nat", "PREROUTING", rule, 0)

    # 3. Invalid packets.

    def _drop_invalid(self) -> None:
        if not self._config.drop_invalid:
            return
        self._add(
            "mangle",
            "PREROUTING",
            Rule(
                matches=(parts.conntrack_states("INVALID"),),
                target=Target(DROP_CHAIN),
                reason="Packets that belong to no connection the kernel knows (--drop-invalid) are"
                " sorted out first: answered, they would reset connections that still live.",
            ),
        )
        self._add(
            "mangle",
            DROP_CHAIN,
            Rule(target=DROP, reason="Whatever was sent here is invalid and is dropped."),
        )

    # 4. What is always there.

    def _redirect_targets(self) -> None:
        config = self._config
        self._add(
            "nat",
            INBOUND,
            Rule(
                protocol=_TCP,
                matches=(parts.ports("tcp", dport=str(config.inbound_tunnel_port)),),
                target=RETURN,
                reason=f"Port {config.inbound_tunnel_port} is the mesh's own tunnel (HBONE):"
                " Envoy listens there itself, so nothing is redirected.",
            ),
        )
        self._add(
            "nat",
            REDIRECT,
            Rule(
                protocol=_TCP,
                target=parts.redirect(config.envoy_port),
                reason="Captured outbound connections go to Envoy's outbound listener on port"
                f" {config.envoy_port}, which asks the kernel where they were meant to go.",
            ),
        )
        self._add(
            "nat",
            IN_REDIRECT,
            Rule(
                protocol=_TCP,
                target=parts.redirect(config.inbound_capture_port),
                reason="Captured inbound connections go to Envoy's inbound listener on port"
                f" {config.inbound_capture_port}, which passes them on to the application.",
            ),
        )

    # 5. Inbound.

    def _capture_inbound(self) -> None:
        config = self._config
        if not config.inbound_ports:
            return
        table = "mangle" if self._tproxy else "nat"
        if self._tproxy:
            self._tproxy_targets()
        self._add(
            table,
            "PREROUTING",
            Rule(
                protocol=_TCP,
                target=Target(INBOUND),
                reason="Every TCP packet that arrives at the pod is looked at by the inbound rules."
                if self._tproxy
                else "Every TCP connection that arrives at the pod is looked at by the inbound rules.",
            ),
        )
        if config.inbound_ports is ALL:
            for port in config.inbound_ports_exclude:
                self._add(
                    table,
                    INBOUND,
                    Rule(
                        protocol=_TCP,
                        matches=(parts.ports("tcp", dport=str(port)),),
                        target=RETURN,
                        reason=f"Port {port}{_known(port)} is excluded from inbound capture (-d):"
                        " it is reached directly, without Envoy in between.",
                    ),
                )
            self._send_inbound(table, None)
        else:
            for port in config.inbound_ports:
                self._send_inbound(table, port)

    def _tproxy_targets(self) -> None:
        config = self._config
        self._add(
            "mangle",
            DIVERT,
            Rule(
                target=parts.set_mark(config.tproxy_mark),
                reason=f"The mark {config.tproxy_mark} makes the policy route deliver the packet to"
                " a local socket, although its address is not the pod's.",
            ),
        )
        self._add(
            "mangle",
            DIVERT,
            Rule(
                target=ACCEPT,
                reason="A marked packet of a known connection is done here; nothing else in this"
                " table is to touch it.",
            ),
        )
        self._add(
            "mangle",
            TPROXY,
            Rule(
                destination=Term(self._loopback, negated=True),
                protocol=_TCP,
                target=parts.tproxy(config.inbound_capture_port, config.tproxy_mark, self._family),
                reason="New inbound connections are handed to Envoy's inbound listener on port"
                f" {config.inbound_capture_port} with both addresses unchanged, so that the"
                " application can see who called; loopback is left out.",
            ),
        )

    def _send_inbound(self, table: str, port: PortRange | None) -> None:
        """Hand one captured port to Envoy; None is every port that was not excluded."""
        what = "the remaining inbound ports" if port is None else f"port {port}"
        which = () if port is None else (parts.ports("tcp", dport=str(port)),)
        rule = Rule(protocol=_TCP, matches=which)
        if not self._tproxy:
            reason = f"Inbound connections to {what} (-b) are captured and go to Envoy first."
            self._add(table, INBOUND, rule._replace(target=Target(IN_REDIRECT), reason=reason))
            return
        known = parts.conntrack_states("RELATED", "ESTABLISHED")
        self._add(
            table,
            INBOUND,
            rule._replace(
                matches=(*which, known),
                target=Target(DIVERT),
                reason=f"Later packets of captured connections to {what} only need their mark, which"
                " leads them to the socket that Envoy already has.",
            ),
        )
        reason = (
            f"New inbound connections to {what} (-b) are captured: TPROXY finds Envoy for them."
        )
        self._add(table, INBOUND, rule._replace(target=Target(TPROXY), reason=reason))

    # 6. and 7. Outbound: the way in, and the ports left out before everything else.

    def _enter_output(self) -> None:
        self._add(
            "nat",
            "OUTPUT",
            Rule(
                target=Target(OUTPUT),
                reason="Everything that a process in the pod sends is looked at by the outbound rules.",
            ),
        )

    def _exclude_outbound_ports(self) -> None:
        for port in self._config.outbound_ports_exclude:
            for protocol in (_TCP, _UDP):
                self._add(
                    "nat",
                    OUTPUT,
                    Rule(
                        protocol=protocol,
                        matches=(parts.ports(protocol.value, dport=str(port)),),
                        target=RETURN,
                        reason=f"Destination port {port} is excluded from outbound capture (-o), for"
                        f" {protocol.value.upper()} here; this comes before every other outbound"
                        " rule, DNS capture included.",
                    ),
                )

    # 8. Envoy to the application.

    def _pass_envoy_to_application(self) -> None:
        address = self._passthrough.partition("/")[0]
        self._add(
            "nat",
            OUTPUT,
            Rule(
                source=Term(self._passthrough),
                out_interface=_LO,
                target=RETURN,
                reason=f"{address} is the address from which Envoy's inbound side connects to the"
                " application: this traffic has been through Envoy and must not go back to it.",
            ),
        )

    # 9. and 10. What the proxy sends, and what others send to the pod itself.

    def _pass_proxy(self, owner: str, *, user: bool) -> None:
        config = self._config
        who = f"user {owner}" if user else f"group {owner}"
        mine = parts.owner(uid=owner) if user else parts.owner(gid=owner)
        others = (
            parts.owner(uid=owner, negated=True) if user else parts.owner(gid=owner, negated=True)
        )
        tunnel = str(config.inbound_tunnel_port)
        not_tunnel = (
            parts.ports_except((53, config.inbound_tunnel_port))
            if config.redirect_dns and user
            else parts.ports("tcp", dport=tunnel, negated=True)
        )
        self._add(
            "nat",
            OUTPUT,
            Rule(
                destination=Term(self._loopback, negated=True),
                out_interface=_LO,
                protocol=_TCP,
                matches=(not_tunnel, mine),
                target=Target(IN_REDIRECT),
                reason=f"Envoy ({who}) connects to its own pod when the application calls a service"
                " that ends at itself: that is an inbound connection and goes to Envoy's inbound"
                " listener, as if it came from outside.",
            ),
        )
        if not self._captures_loopback():
            self._add(
                "nat",
                OUTPUT,
                Rule(
                    out_interface=_LO,
                    protocol=_TCP if config.redirect_dns else None,
                    matches=(parts.ports("tcp", dport="53", negated=True), others)
                    if config.redirect_dns
                    else (others,),
                    target=RETURN,
                    reason=f"The application (anyone but {who}) talks to its own pod over loopback:"
                    " nobody else takes part, so it goes straight to the listener"
                    + (
                        "; DNS over TCP is kept for the capture below."
                        if config.redirect_dns
                        else "."
                    ),
                ),
            )
        self._add(
            "nat",
            OUTPUT,
            Rule(
                matches=(mine,),
                target=RETURN,
                reason=f"What Envoy itself ({who}) sends has been handled already: captured again,"
                " it would run in a loop between Envoy and the kernel.",
            ),
        )

    def _captures_loopback(self) -> bool:
        """Whether a captured destination, of either family, was written as a loopback address."""
        cidrs = self._config.outbound_cidrs
        return cidrs is not ALL and any(network.loopback for network in cidrs)

    # 11. Owner groups.

    def _filter_owner_groups(self) -> None:
        config = self._config
        if config.owner_groups is ALL:
            for group in config.owner_groups_exclude:
                self._add(
                    "nat",
                    OUTPUT,
                    Rule(
                        matches=(parts.owner(gid=str(group)),),
                        target=RETURN,
                        reason=f"Processes of group {group} are excluded from outbound capture"
                        " (ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE).",
                    ),
                )
            return
        listed = _numbers(config.owner_groups)
        self._add(
            "nat",
            OUTPUT,
            Rule(
                matches=_none_of(config.owner_groups),
                target=RETURN,
                reason=f"Only processes of group {listed} are captured outbound"
                " (ISTIO_OUTBOUND_OWNER_GROUPS); everyone else's traffic is left alone."
                if listed
                else "No group is captured outbound (ISTIO_OUTBOUND_OWNER_GROUPS is empty): all"
                " traffic is left alone from here on.",
            ),
        )

    # 12. DNS.

    def _capture_dns(self) -> None:
        config = self._config
        if not config.redirect_dns:
            return
        self._add(
            "raw",
            "OUTPUT",
            Rule(
                target=Target(OUTPUT_DNS),
                reason="Before connection tracking sees them, DNS packets are put into zones.",
            ),
        )
        # None stands for every server, where the contract names each one otherwise.
        servers = (None,) if config.capture_all_dns else self._dns_servers
        if servers:
            self._add(
                "nat",
                OUTPUT,
                Rule(
                    target=Target(OUTPUT_DNS),
                    reason="What is left may be a DNS query: those rules stand in a chain of their own.",
                ),
            )
        for protocol in (_TCP, _UDP):
            for server in servers:
                self._redirect_dns(protocol, server)
        for owner in config.proxy_uids:
            self._zone_proxy(f"user {owner}", parts.owner(uid=str(owner)))
        for owner in config.proxy_gids:
            self._zone_proxy(f"group {owner}", parts.owner(gid=str(owner)))
        if servers:
            self._add(
                "raw",
                "PREROUTING",
                Rule(
                    target=Target(INBOUND),
                    reason="Answers of DNS servers are put into the zone of the question they belong to.",
                ),
            )
        for server in servers:
            self._zone_server(server)

    def _redirect_dns(self, protocol: Term, server: str | None) -> None:
        whom = "any server" if server is None else f"the server {server} of resolv.conf"
        self._add(
            "nat",
            OUTPUT_DNS,
            Rule(
                destination=self._host(server),
                protocol=protocol,
                matches=(parts.ports(protocol.value, dport="53"),),
                target=parts.redirect(AGENT_DNS_PORT),
                reason=f"DNS over {protocol.value.upper()} to {whom} is answered by the agent on port"
                f" {AGENT_DNS_PORT}, which knows the mesh's names.",
            ),
        )

    def _zone_proxy(self, who: str, owner: Match) -> None:
        self._add(
            "raw",
            OUTPUT_DNS,
            Rule(
                protocol=_UDP,
                matches=(parts.ports("udp", dport="53"), owner),
                target=parts.conntrack_zone(1),
                reason=f"Questions of the agent ({who}) to the real DNS servers are tracked in zone"
                " 1, apart from the application's questions to the agent.",
            ),
        )
        self._add(
            "raw",
            OUTPUT_DNS,
            Rule(
                protocol=_UDP,
                matches=(parts.ports("udp", sport=str(AGENT_DNS_PORT)), owner),
                target=parts.conntrack_zone(2),
                reason=f"Answers of the agent ({who}) to the application are tracked in zone 2, where"
                " the question was, so that its address can be put back.",
            ),
        )

    def _zone_server(self, server: str | None) -> None:
        whom = "a DNS server" if server is None else f"the DNS server {server}"
        self._add(
            "raw",
            OUTPUT_DNS,
            Rule(
                destination=self._host(server),
                protocol=_UDP,
                matches=(parts.ports("udp", dport="53"),),
                target=parts.conntrack_zone(2),
                reason=f"Questions of the application to {whom} are tracked in zone 2: the same"
                " ports may be in use at once between the agent and that server.",
            ),
        )
        self._add(
            "raw",
            INBOUND,
            Rule(
                source=self._host(server),
                protocol=_UDP,
                matches=(parts.ports("udp", sport="53"),),
                target=parts.conntrack_zone(1),
                reason=f"Answers of {whom} belong to the agent's question in zone 1.",
            ),
        )

    def _host(self, address: str | None) -> Term | None:
        return None if address is None else Term(f"{address}/{self._family.bits}")

    # 13. What is captured of the rest.

    def _capture_outbound(self) -> None:
        config = self._config
        self._add(
            "nat",
            OUTPUT,
            Rule(
                destination=Term(self._loopback),
                target=RETURN,
                reason="What is meant for loopback stays in the pod: it is either the application"
                " talking to itself or to Envoy on purpose.",
            ),
        )
        for network in config.outbound_cidrs_exclude:
            if network.version == self._version:
                self._add(
                    "nat",
                    OUTPUT,
                    Rule(
                        destination=_destination(network),
                        target=RETURN,
                        reason=f"Destinations in {network} are excluded from outbound capture (-x),"
                        " whatever is included below.",
                    ),
                )
        for port in config.outbound_ports:
            self._add(
                "nat",
                OUTPUT,
                Rule(
                    protocol=_TCP,
                    matches=(parts.ports("tcp", dport=str(port)),),
                    target=Target(REDIRECT),
                    reason=f"Destination port {port} is captured wherever it leads (-q).",
                ),
            )
        if config.outbound_cidrs is ALL:
            self._capture_destination(None)
        else:
            for network in config.outbound_cidrs:
                if network.version == self._version:
                    self._capture_destination(network)

    def _capture_destination(self, network: Network | None) -> None:
        """Send a destination to Envoy, from the pod and from its virtual interfaces."""
        destination = None if network is None else _destination(network)
        reason = (
            "Everything else that leaves the application (-i '*') is captured and goes to Envoy."
            if network is None
            else f"Destinations in {network} (-i) are captured and go to Envoy."
        )
        self._add(
            "nat", OUTPUT, Rule(destination=destination, target=Target(REDIRECT), reason=reason)
        )
        for name in self._config.virtual_interfaces:
            where = "anywhere" if network is None else f"to {network}"
            rule = Rule(
                destination=destination,
                in_interface=_interface(name),
                target=Target(REDIRECT),
                reason=f"What a virtual machine sends {where} through {name} (-k) counts as outbound:"
                " it is captured and goes to Envoy.",
                inserted=True,
            )
            self._add("nat", "PREROUTING", rule, 0)

    # 14. Marks for TPROXY.

    def _mark_for_tproxy(self) -> None:
        config = self._config
        mark = config.tproxy_mark
        marked = parts.mark_is(mark)
        self._add(
            "mangle",
            "PREROUTING",
            Rule(
                protocol=_TCP,
                matches=(marked,),
                target=parts.save_mark(),
                reason=f"Envoy marks with {mark} what it sends to the application under the client's"
                " address: the connection remembers the mark for the answers.",
            ),
        )
        self._add(
            "mangle",
            "OUTPUT",
            Rule(
                out_interface=_LO,
                protocol=_TCP,
                matches=(marked,),
                target=RETURN,
                reason="What Envoy marked on its way to the application keeps that mark.",
            ),
        )
        for ids, what in ((config.proxy_uids, "user"), (config.proxy_gids, "group")):
            for owner in ids:
                self._mark_own_calls(f"{what} {owner}", owner, user=what == "user")
        self._add(
            "mangle",
            "OUTPUT",
            Rule(
                protocol=_TCP,
                matches=(parts.mark_is(mark, of="connmark"),),
                target=parts.restore_mark(),
                reason="The application's answers get the connection's mark again, so that the policy"
                " route brings them to Envoy and not to the client.",
            ),
        )
        address = self._passthrough.partition("/")[0]
        first = (
            Rule(
                protocol=_TCP,
                matches=(marked,),
                target=RETURN,
                reason="A packet that already has the mark is on its way between Envoy and the"
                " application: captured again, it would run in a loop.",
            ),
            Rule(
                source=Term(self._passthrough),
                in_interface=_LO,
                protocol=_TCP,
                target=RETURN,
                reason=f"{address} is the address from which Envoy's inbound side connects to the"
                " application: this traffic has been through Envoy.",
            ),
            Rule(
                in_interface=_LO,
                protocol=_TCP,
                matches=(parts.mark_is(OUTBOUND_MARK, negated=True),),
                target=RETURN,
                reason=f"Over loopback only what Envoy marked with {OUTBOUND_MARK} is inbound traffic;"
                " the application talking to itself is left alone.",
            ),
        )
        for position, rule in enumerate(first):
            self._add("mangle", INBOUND, rule, position)

    def _mark_own_calls(self, who: str, owner: IdRange, *, user: bool) -> None:
        self._add(
            "mangle",
            "OUTPUT",
            Rule(
                destination=Term(self._loopback, negated=True),
                out_interface=_LO,
                protocol=_TCP,
                matches=(parts.owner(uid=str(owner)) if user else parts.owner(gid=str(owner)),),
                target=parts.set_mark(OUTBOUND_MARK),
                reason=f"Envoy ({who}) calls its own pod for the application: the mark {OUTBOUND_MARK}"
                " lets the inbound rules tell it from the application talking to itself.",
            ),
        )


def _interface(name: str) -> Term | None:
    """The condition on an interface; ``+`` alone is any interface, which is no condition."""
    return None if name == "+" else Term(name)


def _destination(network: Network) -> Term | None:
    """The condition on a destination; a network of length 0 is any address, which is none."""
    return None if network.prefix == 0 else Term(str(network))


def _known(port: PortRange) -> str:
    about = _WELL_KNOWN.get(port.first) if port.first == port.last else None
    return f" ({about})" if about else ""


def _none_of(groups: Iterable[IdRange]) -> tuple[Match, ...]:
    return tuple(parts.owner(gid=str(group), negated=True) for group in groups)
