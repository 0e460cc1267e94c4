"""Istio's ruleset, in its order: each rule as iptables spells it, and why it is there.

The functions stand in the order of docs/contract.md, section 2, which is the order of the rules.
Texts are in the canonical spelling, that of iptables-save, so that they can be compared with what
the kernel says. Annotated output, explanations and reports of differences all give the reasons
that stand here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.netfilter.model import Family, Match, Rule, Term
from istio_iptables.netfilter.savefile import parse_rule
from istio_iptables.settings.values import ALL, Mode, PortRange

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.settings.config import Config
    from istio_iptables.settings.values import Network

__all__ = [
    "AGENT_DNS_PORT",
    "CHAIN_PREFIX",
    "DIVERT",
    "IN_REDIRECT",
    "OUTBOUND_MARK",
    "OUTPUT",
    "REDIRECT",
    "PlacedRule",
    "rules",
]

#: Every chain of ours has a name that starts so, and no chain of others has.
CHAIN_PREFIX = "ISTIO_"
#: Chains that are asked for by name elsewhere.
DIVERT = "ISTIO_DIVERT"
IN_REDIRECT = "ISTIO_IN_REDIRECT"
OUTPUT = "ISTIO_OUTPUT"
REDIRECT = "ISTIO_REDIRECT"

#: Where the agent answers DNS.
AGENT_DNS_PORT = 15053
#: The mark of what Envoy sends to its own pod under TPROXY; Istio fixes it.
OUTBOUND_MARK = 1338

_WELL_KNOWN = {
    15000: "Envoy's admin interface",
    15020: "the agent's health checks and merged metrics",
    15021: "Envoy's health checks, which the kubelet asks",
    15090: "Envoy's Prometheus metrics",
}
_EVERY_PORT = PortRange(0, 65535)


class PlacedRule(NamedTuple):
    """A rule, and where it goes: to the end of a chain, or to *position* (from 0)."""

    table: str
    chain: str
    rule: Rule
    position: int | None = None


def rules(config: Config, family: Family) -> Iterator[PlacedRule]:
    """Every rule that *config* asks for in one address family, in the order of installation."""
    scope = _Scope(config, family)
    for step in (
        _excluded_interfaces,  # 1
        _virtual_interfaces,  # 2
        _invalid_packets,  # 3
        _listeners,  # 4
        _inbound,  # 5
        _outbound,  # 6
        _excluded_outbound_ports,  # 7
        _from_envoy_inbound,  # 8
        _proxy,  # 9, 10
        _owner_groups,  # 11
        _dns,  # 12
        _captured_outbound,  # 13
        _tproxy_marks,  # 14
    ):
        yield from step(scope)


class _Scope(NamedTuple):
    """The configuration in one address family, and what the texts of its rules name."""

    config: Config
    family: Family

    @property
    def version(self) -> int:
        """4 or 6."""
        return 4 if self.family is Family.IPV4 else 6

    @property
    def loopback(self) -> str:
        """The network that counts as loopback: LOOP in the contract."""
        return str(self.config.loopback) if self.family is Family.IPV4 else "::1/128"

    @property
    def passthrough(self) -> str:
        """The address from which Envoy's inbound side connects to the application."""
        return "127.0.0.6" if self.family is Family.IPV4 else "::6"

    @property
    def tproxy(self) -> bool:
        """Whether inbound connections are handed over by TPROXY."""
        return self.config.mode is Mode.TPROXY

    @property
    def owners(self) -> Iterator[tuple[str, str, str]]:
        """The proxy's users, then its groups: option, id, and name for people."""
        for uid in self.config.proxy_uids:
            yield "--uid-owner", str(uid), f"user {uid}"
        for gid in self.config.proxy_gids:
            yield "--gid-owner", str(gid), f"group {gid}"

    @property
    def dns_servers(self) -> tuple[str | None, ...]:
        """The DNS servers of this family that are captured; None stands for every server."""
        config = self.config
        if config.capture_all_dns:
            return (None,)
        return config.dns_servers_ipv4 if self.family is Family.IPV4 else config.dns_servers_ipv6


def _rule(
    where: str, text: str, reason: str, *, insert: bool = False, position: int | None = None
) -> PlacedRule:
    """The rule *text* in the table and chain *where*; with *insert* at the head (-I)."""
    table, chain = where.split()
    rule = parse_rule(" ".join(text.split()))._replace(reason=reason, inserted=insert)
    return PlacedRule(table, chain, rule, 0 if insert else position)


def _for_ports(text: str, ports: Iterable[PortRange]) -> Iterator[tuple[PortRange, Rule]]:
    """The rule *text* once for each port, which stands in place of PORT.

    The text is read once: there may be thousands of ports.
    """
    template = parse_rule(text)._replace(verbatim="")
    first, *others = template.matches
    for port in ports:
        # The range of all ports is no condition, and iptables-save leaves it out.
        options = tuple(option._replace(values=(str(port),)) for option in first.options)
        match = Match(first.name, () if port == _EVERY_PORT else options)
        yield port, template._replace(matches=(match, *others))


def _for_networks(
    text: str, networks: Iterable[Network], version: int
) -> Iterator[tuple[Network, Rule]]:
    """The rule *text* once for each network of the family, which stands in place of NETWORK."""
    template = parse_rule(text)._replace(verbatim="")
    for network in networks:
        if network.version == version:
            # A network of length 0 is any address, which is no condition.
            destination = Term(str(network)) if network.prefix else None
            yield network, template._replace(destination=destination)


def _interface(flag: str, name: str) -> str:
    """The condition on an interface; ``+`` alone is any interface, which is no condition."""
    return "" if name == "+" else f"{flag} {name}"


# 1, 2: interfaces


def _excluded_interfaces(scope: _Scope) -> Iterator[PlacedRule]:
    for table in ("nat", "mangle") if scope.tproxy else ("nat",):
        for name in scope.config.exclude_interfaces:
            for chain, flag, way in (
                ("PREROUTING", "-i", "comes in"),
                ("OUTPUT", "-o", "goes out"),
            ):
                yield _rule(
                    f"{table} {chain}",
                    f"{_interface(flag, name)} -j RETURN",
                    f"Interface {name} is excluded from the mesh (-c): what {way} through"
                    " it is left alone, before any other rule can capture it.",
                )


def _virtual_interfaces(scope: _Scope) -> Iterator[PlacedRule]:
    for name in scope.config.virtual_interfaces:
        yield _rule(
            "nat PREROUTING",
            f"{_interface('-i', name)} -j RETURN",
            f"Interface {name} carries a virtual machine's traffic (-k), which counts as"
            " outbound: it never enters the inbound chain.",
            insert=True,
        )


# 3: packets of no connection


def _invalid_packets(scope: _Scope) -> Iterator[PlacedRule]:
    if scope.config.drop_invalid:
        yield _rule(
            "mangle PREROUTING",
            "-m conntrack --ctstate INVALID -j ISTIO_DROP",
            "Packets that belong to no connection the kernel knows (--drop-invalid) are"
            " sorted out first: answered, they would reset connections that still live.",
        )
        yield _rule(
            "mangle ISTIO_DROP", "-j DROP", "Whatever was sent here is invalid and is dropped."
        )


# 4: where captured traffic is sent


def _listeners(scope: _Scope) -> Iterator[PlacedRule]:
    config = scope.config
    yield _rule(
        "nat ISTIO_INBOUND",
        f"-p tcp -m tcp --dport {config.inbound_tunnel_port} -j RETURN",
        f"Port {config.inbound_tunnel_port} is the mesh's own tunnel (HBONE):"
        " Envoy listens there itself, so nothing is redirected.",
    )
    yield _rule(
        "nat ISTIO_REDIRECT",
        f"-p tcp -j REDIRECT --to-ports {config.envoy_port}",
        "Captured outbound connections go to Envoy's outbound listener on port"
        f" {config.envoy_port}, which asks the kernel where they were meant to go.",
    )
    yield _rule(
        "nat ISTIO_IN_REDIRECT",
        f"-p tcp -j REDIRECT --to-ports {config.inbound_capture_port}",
        "Captured inbound connections go to Envoy's inbound listener on port"
        f" {config.inbound_capture_port}, which passes them on to the application.",
    )


# 5: what comes to the pod


def _inbound(scope: _Scope) -> Iterator[PlacedRule]:
    config = scope.config
    if not config.inbound_ports:
        return
    table = "nat"
    if scope.tproxy:
        table = "mangle"
        yield from _tproxy_chains(scope)
    yield _rule(
        f"{table} PREROUTING",
        "-p tcp -j ISTIO_INBOUND",
        f"Every TCP {'packet' if scope.tproxy else 'connection'} that arrives at the pod is looked"
        " at by the inbound rules.",
    )
    if config.inbound_ports is ALL:
        excluded = "-p tcp -m tcp --dport PORT -j RETURN"
        for port, rule in _for_ports(excluded, config.inbound_ports_exclude):
            reason = (
                f"Port {port}{_known(port)} is excluded from inbound capture (-d):"
                " it is reached directly, without Envoy in between."
            )
            yield PlacedRule(table, "ISTIO_INBOUND", rule._replace(reason=reason))
        for text, reason in _captures(scope, "-p tcp"):
            yield _rule(
                f"{table} ISTIO_INBOUND", text, reason.format(what="the remaining inbound ports")
            )
        return
    captures = [
        (_for_ports(text, config.inbound_ports), reason)
        for text, reason in _captures(scope, "-p tcp -m tcp --dport PORT")
    ]
    # Under TPROXY each port has two rules, one after the other.
    for group in zip(*(ported for ported, _ in captures), strict=True):
        for (port, rule), (_, reason) in zip(group, captures, strict=True):
            reason_for_port = reason.format(what=f"port {port}")
            yield PlacedRule(table, "ISTIO_INBOUND", rule._replace(reason=reason_for_port))


def _tproxy_chains(scope: _Scope) -> Iterator[PlacedRule]:
    config = scope.config
    mark = f"{config.tproxy_mark:#x}/0xffffffff"
    any_address = "0.0.0.0" if scope.version == 4 else "::"  # noqa: PLR2004, S104 - IPv4; a rule's text
    yield _rule(
        "mangle ISTIO_DIVERT",
        f"-j MARK --set-xmark {mark}",
        f"The mark {config.tproxy_mark} makes the policy route deliver the packet to"
        " a local socket, although its address is not the pod's.",
    )
    yield _rule(
        "mangle ISTIO_DIVERT",
        "-j ACCEPT",
        "A marked packet of a known connection is done here; nothing else in this"
        " table is to touch it.",
    )
    yield _rule(
        "mangle ISTIO_TPROXY",
        f"! -d {scope.loopback} -p tcp"
        f" -j TPROXY --on-port {config.inbound_capture_port} --on-ip {any_address}"
        f" --tproxy-mark {mark}",
        "New inbound connections are handed to Envoy's inbound listener on port"
        f" {config.inbound_capture_port} with both addresses unchanged, so that the"
        " application can see who called; loopback is left out.",
    )


def _captures(scope: _Scope, which: str) -> tuple[tuple[str, str], ...]:
    """Text and reason of the rules that send inbound connections to Envoy."""
    if not scope.tproxy:
        return (
            (
                f"{which} -j ISTIO_IN_REDIRECT",
                "Inbound connections to {what} (-b) are captured and go to Envoy first.",
            ),
        )
    return (
        (
            f"{which} -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT",
            (
                "Later packets of captured connections to {what} only need their mark, which"
                " leads them to the socket that Envoy already has."
            ),
        ),
        (
            f"{which} -j ISTIO_TPROXY",
            "New inbound connections to {what} (-b) are captured: TPROXY finds Envoy for them.",
        ),
    )


def _known(port: PortRange) -> str:
    about = _WELL_KNOWN.get(port.first) if port.first == port.last else None
    return f" ({about})" if about else ""


# 6 to 8: what leaves the pod


def _outbound(_: _Scope) -> Iterator[PlacedRule]:
    yield _rule(
        "nat OUTPUT",
        "-j ISTIO_OUTPUT",
        "Everything that a process in the pod sends is looked at by the outbound rules.",
    )


def _excluded_outbound_ports(scope: _Scope) -> Iterator[PlacedRule]:
    ports = scope.config.outbound_ports_exclude
    both = zip(
        _for_ports("-p tcp -m tcp --dport PORT -j RETURN", ports),
        _for_ports("-p udp -m udp --dport PORT -j RETURN", ports),
        strict=True,
    )
    for (port, tcp), (_, udp) in both:
        for protocol, rule in (("TCP", tcp), ("UDP", udp)):
            reason = (
                f"Destination port {port} is excluded from outbound capture (-o), for"
                f" {protocol} here; this comes before every other outbound"
                " rule, DNS capture included."
            )
            yield PlacedRule("nat", "ISTIO_OUTPUT", rule._replace(reason=reason))


def _from_envoy_inbound(scope: _Scope) -> Iterator[PlacedRule]:
    yield _rule(
        "nat ISTIO_OUTPUT",
        f"-s {scope.passthrough}/{scope.family.bits} -o lo -j RETURN",
        f"{scope.passthrough} is the address from which Envoy's inbound side connects to the"
        " application: this traffic has been through Envoy and must not go back to it.",
    )


# 9, 10: what the proxy sends, and what others send to the pod itself


def _proxy(scope: _Scope) -> Iterator[PlacedRule]:
    config = scope.config
    tunnel = config.inbound_tunnel_port
    cidrs = config.outbound_cidrs
    # A captured destination, of either family, that was written as a loopback address.
    captures_loopback = cidrs is not ALL and any(network.loopback for network in cidrs)
    for option, owner, who in scope.owners:
        not_tunnel = (
            f"-m multiport ! --dports 53,{tunnel}"
            if config.redirect_dns and option == "--uid-owner"
            else f"-m tcp ! --dport {tunnel}"
        )
        yield _rule(
            "nat ISTIO_OUTPUT",
            f"! -d {scope.loopback} -o lo -p tcp {not_tunnel}"
            f" -m owner {option} {owner} -j ISTIO_IN_REDIRECT",
            f"Envoy ({who}) connects to its own pod when the application calls a service"
            " that ends at itself: that is an inbound connection and goes to Envoy's inbound"
            " listener, as if it came from outside.",
        )
        if not captures_loopback:
            not_dns = "-p tcp -m tcp ! --dport 53" if config.redirect_dns else ""
            yield _rule(
                "nat ISTIO_OUTPUT",
                f"-o lo {not_dns} -m owner ! {option} {owner} -j RETURN",
                f"The application (anyone but {who}) talks to its own pod over loopback:"
                " nobody else takes part, so it goes straight to the listener"
                + ("; DNS over TCP is kept for the capture below." if config.redirect_dns else "."),
            )
        yield _rule(
            "nat ISTIO_OUTPUT",
            f"-m owner {option} {owner} -j RETURN",
            f"What Envoy itself ({who}) sends has been handled already: captured again,"
            " it would run in a loop between Envoy and the kernel.",
        )


# 11: whose traffic is captured


def _owner_groups(scope: _Scope) -> Iterator[PlacedRule]:
    config = scope.config
    if config.owner_groups is ALL:
        for group in config.owner_groups_exclude:
            yield _rule(
                "nat ISTIO_OUTPUT",
                f"-m owner --gid-owner {group} -j RETURN",
                f"Processes of group {group} are excluded from outbound capture"
                " (ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE).",
            )
        return
    listed = ", ".join(map(str, config.owner_groups))
    nobody = " ".join(f"-m owner ! --gid-owner {group}" for group in config.owner_groups)
    yield _rule(
        "nat ISTIO_OUTPUT",
        f"{nobody} -j RETURN",
        f"Only processes of group {listed} are captured outbound"
        " (ISTIO_OUTBOUND_OWNER_GROUPS); everyone else's traffic is left alone."
        if listed
        else "No group is captured outbound (ISTIO_OUTBOUND_OWNER_GROUPS is empty): all"
        " traffic is left alone from here on.",
    )


# 12: DNS to the agent, and the connection tracking zones that keep its two sides apart


def _dns(scope: _Scope) -> Iterator[PlacedRule]:
    if not scope.config.redirect_dns:
        return
    yield _rule(
        "raw OUTPUT",
        "-j ISTIO_OUTPUT_DNS",
        "Before connection tracking sees them, DNS packets are put into zones.",
    )
    if scope.dns_servers:
        yield _rule(
            "nat ISTIO_OUTPUT",
            "-j ISTIO_OUTPUT_DNS",
            "What is left may be a DNS query: those rules stand in a chain of their own.",
        )
    for protocol in ("tcp", "udp"):
        for server in scope.dns_servers:
            whom = "any server" if server is None else f"the server {server} of resolv.conf"
            yield _rule(
                "nat ISTIO_OUTPUT_DNS",
                f"{_host(scope, '-d', server)} -p {protocol} -m {protocol} --dport 53"
                f" -j REDIRECT --to-ports {AGENT_DNS_PORT}",
                f"DNS over {protocol.upper()} to {whom} is answered by the agent on port"
                f" {AGENT_DNS_PORT}, which knows the mesh's names.",
            )
    yield from _dns_zones(scope)


def _dns_zones(scope: _Scope) -> Iterator[PlacedRule]:
    for option, owner, who in scope.owners:
        yield _rule(
            "raw ISTIO_OUTPUT_DNS",
            f"-p udp -m udp --dport 53 -m owner {option} {owner} -j CT --zone 1",
            f"Questions of the agent ({who}) to the real DNS servers are tracked in zone"
            " 1, apart from the application's questions to the agent.",
        )
        yield _rule(
            "raw ISTIO_OUTPUT_DNS",
            f"-p udp -m udp --sport {AGENT_DNS_PORT} -m owner {option} {owner} -j CT --zone 2",
            f"Answers of the agent ({who}) to the application are tracked in zone 2, where"
            " the question was, so that its address can be put back.",
        )
    if scope.dns_servers:
        yield _rule(
            "raw PREROUTING",
            "-j ISTIO_INBOUND",
            "Answers of DNS servers are put into the zone of the question they belong to.",
        )
    for server in scope.dns_servers:
        whom = "a DNS server" if server is None else f"the DNS server {server}"
        yield _rule(
            "raw ISTIO_OUTPUT_DNS",
            f"{_host(scope, '-d', server)} -p udp -m udp --dport 53 -j CT --zone 2",
            f"Questions of the application to {whom} are tracked in zone 2: the same"
            " ports may be in use at once between the agent and that server.",
        )
        yield _rule(
            "raw ISTIO_INBOUND",
            f"{_host(scope, '-s', server)} -p udp -m udp --sport 53 -j CT --zone 1",
            f"Answers of {whom} belong to the agent's question in zone 1.",
        )


def _host(scope: _Scope, flag: str, address: str | None) -> str:
    return "" if address is None else f"{flag} {address}/{scope.family.bits}"


# 13: what is captured of the rest


def _captured_outbound(scope: _Scope) -> Iterator[PlacedRule]:
    config = scope.config
    yield _rule(
        "nat ISTIO_OUTPUT",
        f"-d {scope.loopback} -j RETURN",
        "What is meant for loopback stays in the pod: it is either the application"
        " talking to itself or to Envoy on purpose.",
    )
    excluded = "-d NETWORK -j RETURN"
    for network, rule in _for_networks(excluded, config.outbound_cidrs_exclude, scope.version):
        reason = (
            f"Destinations in {network} are excluded from outbound capture (-x),"
            " whatever is included below."
        )
        yield PlacedRule("nat", "ISTIO_OUTPUT", rule._replace(reason=reason))
    captured = "-p tcp -m tcp --dport PORT -j ISTIO_REDIRECT"
    for port, rule in _for_ports(captured, config.outbound_ports):
        reason = f"Destination port {port} is captured wherever it leads (-q)."
        yield PlacedRule("nat", "ISTIO_OUTPUT", rule._replace(reason=reason))
    if config.outbound_cidrs is ALL:
        yield _rule(
            "nat ISTIO_OUTPUT",
            "-j ISTIO_REDIRECT",
            "Everything else that leaves the application (-i '*') is captured and goes to Envoy.",
        )
        yield from _captured_virtual(scope, "", "anywhere")
        return
    included = "-d NETWORK -j ISTIO_REDIRECT"
    for network, rule in _for_networks(included, config.outbound_cidrs, scope.version):
        reason = f"Destinations in {network} (-i) are captured and go to Envoy."
        yield PlacedRule("nat", "ISTIO_OUTPUT", rule._replace(reason=reason))
        destination = f"-d {network}" if network.prefix else ""
        yield from _captured_virtual(scope, destination, f"to {network}")


def _captured_virtual(scope: _Scope, destination: str, where: str) -> Iterator[PlacedRule]:
    for name in scope.config.virtual_interfaces:
        yield _rule(
            "nat PREROUTING",
            f"{destination} {_interface('-i', name)} -j ISTIO_REDIRECT",
            f"What a virtual machine sends {where} through {name} (-k) counts as outbound:"
            " it is captured and goes to Envoy.",
            insert=True,
        )


# 14: the marks by which TPROXY knows its packets again


def _tproxy_marks(scope: _Scope) -> Iterator[PlacedRule]:
    if not scope.tproxy:
        return
    mark, name = f"{scope.config.tproxy_mark:#x}", scope.config.tproxy_mark
    yield _rule(
        "mangle PREROUTING",
        f"-p tcp -m mark --mark {mark}"
        " -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff",
        f"Envoy marks with {name} what it sends to the application under the client's"
        " address: the connection remembers the mark for the answers.",
    )
    yield _rule(
        "mangle OUTPUT",
        f"-o lo -p tcp -m mark --mark {mark} -j RETURN",
        "What Envoy marked on its way to the application keeps that mark.",
    )
    for option, owner, who in scope.owners:
        yield _rule(
            "mangle OUTPUT",
            f"! -d {scope.loopback} -o lo -p tcp -m owner {option} {owner}"
            f" -j MARK --set-xmark {OUTBOUND_MARK:#x}/0xffffffff",
            f"Envoy ({who}) calls its own pod for the application: the mark {OUTBOUND_MARK}"
            " lets the inbound rules tell it from the application talking to itself.",
        )
    yield _rule(
        "mangle OUTPUT",
        f"-p tcp -m connmark --mark {mark}"
        " -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
        "The application's answers get the connection's mark again, so that the policy"
        " route brings them to Envoy and not to the client.",
    )
    yield _rule(
        "mangle ISTIO_INBOUND",
        f"-p tcp -m mark --mark {mark} -j RETURN",
        "A packet that already has the mark is on its way between Envoy and the"
        " application: captured again, it would run in a loop.",
        position=0,
    )
    yield _rule(
        "mangle ISTIO_INBOUND",
        f"-s {scope.passthrough}/{scope.family.bits} -i lo -p tcp -j RETURN",
        f"{scope.passthrough} is the address from which Envoy's inbound side connects to the"
        " application: this traffic has been through Envoy.",
        position=1,
    )
    yield _rule(
        "mangle ISTIO_INBOUND",
        f"-i lo -p tcp -m mark ! --mark {OUTBOUND_MARK:#x} -j RETURN",
        f"Over loopback only what Envoy marked with {OUTBOUND_MARK} is inbound traffic;"
        " the application talking to itself is left alone.",
        position=2,
    )
