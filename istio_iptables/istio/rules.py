"""Istio's rules as iptables spells them, in order, each with the reason for it.

A rule here is what follows the word ``iptables`` (``ip6tables`` for IPv6) on a command line, in the
spelling of iptables-save. The functions stand in the order of docs/contract.md, section 2, which is
the order of the rules; a chain exists as soon as a rule jumps to it.

With ``nft_like_iptables`` some are otherwise: native nftables rules that are made from these treat
packets as iptables treats them by the usual ones. That is so where a negated owner matches packets
of no socket, which it does in iptables alone, and where iptables' TPROXY finds no listener.

``{name}`` is a value, named for the field of Config that it is from: one of ``common_values``, or, in a
condition, one that ``rule`` is given (``recovery`` reads the same texts the other way round). A value
that every packet has (``0.0.0.0/0``, ``::/0``, interface ``+``, ports ``0:65535``) makes no
condition: iptables-save does not print it, and it is left out. The reasons are plain f-strings.
"""

from __future__ import annotations

from istio_iptables.netfilter.model import Family
from istio_iptables.settings.types import ALL, IPV4, IPV6, Mode
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.settings.config import Config
    from istio_iptables.settings.types import Network, PortRange

__all__ = [
    "AGENT_DNS_PORT",
    "CHAIN_PREFIX",
    "DIVERT",
    "IN_REDIRECT",
    "NATIVE_TABLE",
    "OUTBOUND_MARK",
    "OUTPUT",
    "OUTPUT_GROUPS",
    "REDIRECT",
    "RuleText",
    "common_values",
    "rules",
]

#: Every chain of ours has a name that starts with it, and every chain named so is taken for ours.
CHAIN_PREFIX = "ISTIO_"
#: Before the name of each native table, which nothing else tells from those of others.
NATIVE_TABLE = "istio-proxy-"

# Chains that other modules ask for by name.
OUTPUT = "ISTIO_OUTPUT"
OUTPUT_GROUPS = "ISTIO_OUTPUT_GROUPS"
REDIRECT = "ISTIO_REDIRECT"
IN_REDIRECT = "ISTIO_IN_REDIRECT"
DIVERT = "ISTIO_DIVERT"

#: Where the agent answers DNS.
AGENT_DNS_PORT = 15053
#: Under TPROXY, the mark of Envoy's connections to its own pod; Istio fixes it.
OUTBOUND_MARK = 1338

#: The address from which Envoy's inbound listener connects to the application.
_PASSTHROUGH = {Family.IPV4: "127.0.0.6", Family.IPV6: "::6"}

_WELL_KNOWN_PORTS = {
    "15000": "Envoy's admin interface",
    "15020": "the agent's health checks and merged metrics",
    "15021": "Envoy's health check, which the kubelet calls",
    "15090": "Envoy's Prometheus metrics",
}

#: How the words for a set of ports begin, and how many of its items they name.
_MANY = "ports "
_MOST_NAMED = 4

#: A rule with ``{names}`` in it, the reason for it, and the values of those names.
RuleText = tuple[str, str, dict[str, str]]


def rule(text: str, reason: str, **values: str) -> RuleText:
    """The rule *text*: ``-t TABLE``, ``-A CHAIN`` or ``-I CHAIN [NUMBER]``, then the rule itself."""
    return text, reason, values


def common_values(c: Config, family: Family) -> dict[str, object]:
    """The values that any rule of one address family may name."""
    ipv4 = family is Family.IPV4
    return {
        "loopback": str(c.loopback) if ipv4 else "::1/128",
        "passthrough": f"{_PASSTHROUGH[family]}/{family.bits}",
        "any_address": "0.0.0.0" if ipv4 else "::",  # noqa: S104 - text of a rule, not bound
        # Where Envoy listens: for outbound connections (-p), inbound ones (-z), and HBONE (-e).
        "envoy_port": c.envoy_port,
        "inbound_capture_port": c.inbound_capture_port,
        "inbound_tunnel_port": c.inbound_tunnel_port,
        "agent_dns_port": AGENT_DNS_PORT,
        "tproxy_mark": hex(c.tproxy_mark),
        "outbound_mark": hex(OUTBOUND_MARK),
    }


def rules(c: Config, family: Family) -> Iterator[RuleText]:
    """Every rule that *c* asks for in one address family, in the order in which they are added."""
    yield from _excluded_interfaces(c)  # 1
    yield from _virtual_interfaces(c)  # 2
    if c.drop_invalid:
        yield from _invalid_packets()  # 3
    yield from _listeners(c)  # 4
    if c.inbound_ports and c.mode is Mode.REDIRECT:
        yield from _inbound_redirect(c)  # 5
    if c.inbound_ports and c.mode is Mode.TPROXY:
        yield from _inbound_tproxy(c)  # 5
    yield from _outbound_start(c, family)  # 6, 7, 8
    yield from _proxy_traffic(c)  # 9, 10
    yield from _owner_groups(c)  # 11
    if c.redirect_dns:
        yield from _dns(c, family)  # 12
    yield from _outbound_capture(c, family)  # 13
    if c.mode is Mode.TPROXY:
        yield from _tproxy_marks(c, family)  # 14


def _excluded_interfaces(c: Config) -> Iterator[RuleText]:
    for table in ("nat", "mangle") if c.mode is Mode.TPROXY else ("nat",):
        for name in c.exclude_interfaces:
            yield rule(
                f"-t {table} -A PREROUTING -i {{exclude_interfaces}} -j RETURN",
                f"Interface {name} is excluded from capture (-c): packets that arrive on it skip"
                " the rules below.",
                exclude_interfaces=name,
            )
            yield rule(
                f"-t {table} -A OUTPUT -o {{exclude_interfaces}} -j RETURN",
                f"Interface {name} is excluded from capture (-c): packets that leave through it"
                " skip the rules below.",
                exclude_interfaces=name,
            )


def _virtual_interfaces(c: Config) -> Iterator[RuleText]:
    for name in c.virtual_interfaces:
        yield rule(
            "-t nat -I PREROUTING -i {virtual_interfaces} -j RETURN",
            f"Interface {name} carries a virtual machine's traffic (-k), which counts as outbound:"
            " it skips the inbound rules.",
            virtual_interfaces=name,
        )


def _invalid_packets() -> Iterator[RuleText]:
    yield rule(
        "-t mangle -A PREROUTING -m conntrack --ctstate INVALID -j ISTIO_DROP",
        "Packets that belong to no known connection are dropped (--drop-invalid): if the pod"
        " answered them, the answer could reset a connection that is still open.",
    )
    yield rule(
        "-t mangle -A ISTIO_DROP -j DROP",
        "Every packet that is sent to this chain is invalid, and is dropped.",
    )


def _listeners(c: Config) -> Iterator[RuleText]:
    yield rule(
        "-t nat -A ISTIO_INBOUND -p tcp -m tcp --dport {inbound_tunnel_port} -j RETURN",
        f"Port {c.inbound_tunnel_port} is the mesh's tunnel (HBONE): Envoy listens on it, so it is"
        " not redirected.",
    )
    yield rule(
        "-t nat -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports {envoy_port}",
        "Captured outbound connections go to Envoy's outbound listener on port"
        f" {c.envoy_port}, which asks the kernel for their original destination.",
    )
    yield rule(
        "-t nat -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports {inbound_capture_port}",
        "Captured inbound connections go to Envoy's inbound listener on port"
        f" {c.inbound_capture_port}, which forwards them to the application.",
    )


def _inbound_redirect(c: Config) -> Iterator[RuleText]:
    yield rule(
        "-t nat -A PREROUTING -p tcp -j ISTIO_INBOUND",
        "Every TCP connection that arrives at the pod is checked against the inbound rules.",
    )
    if c.inbound_ports is ALL:
        for port, named in _ports(c, c.inbound_ports_exclude):
            yield rule(
                "-t nat -A ISTIO_INBOUND -p tcp -m tcp --dport {inbound_ports_exclude} -j RETURN",
                _why_excluded(port, named),
                inbound_ports_exclude=port,
            )
        yield rule(
            "-t nat -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT",
            "Connections to all other inbound ports (-b '*') are captured and go to Envoy.",
        )
    else:
        for port, named in _ports(c, c.inbound_ports):
            yield rule(
                "-t nat -A ISTIO_INBOUND -p tcp -m tcp --dport {inbound_ports} -j ISTIO_IN_REDIRECT",
                f"Inbound connections to {named} (-b) are captured and go to Envoy.",
                inbound_ports=port,
            )


def _inbound_tproxy(c: Config) -> Iterator[RuleText]:
    yield rule(
        "-t mangle -A ISTIO_DIVERT -j MARK --set-xmark {tproxy_mark}/0xffffffff",
        f"The mark {c.tproxy_mark} selects the policy route, which delivers the packet to a local"
        " socket even if its destination is not an address of the pod.",
    )
    yield rule(
        "-t mangle -A ISTIO_DIVERT -j ACCEPT",
        "A packet that was marked as part of an established connection skips the rest of this"
        " table.",
    )
    yield rule(
        "-t mangle -A ISTIO_TPROXY ! -d {loopback} -p tcp -j TPROXY --on-port {inbound_capture_port} --on-ip {any_address} --tproxy-mark {tproxy_mark}/0xffffffff",
        "New inbound connections go to Envoy's inbound listener on port"
        f" {c.inbound_capture_port} with both addresses unchanged, so that the application sees"
        " the client's address; loopback is left out.",
    )
    if c.nft_like_iptables:
        yield rule(
            "-t mangle -A ISTIO_TPROXY ! -d {loopback} -p tcp -j DROP",
            f"While Envoy does not listen on port {c.inbound_capture_port}, new inbound connections"
            " are dropped, so that none reaches the application past it.",
        )
    yield rule(
        "-t mangle -A PREROUTING -p tcp -j ISTIO_INBOUND",
        "Every TCP packet that arrives at the pod is checked against the inbound rules.",
    )
    if c.inbound_ports is ALL:
        for port, named in _ports(c, c.inbound_ports_exclude):
            yield rule(
                "-t mangle -A ISTIO_INBOUND -p tcp -m tcp --dport {inbound_ports_exclude} -j RETURN",
                _why_excluded(port, named),
                inbound_ports_exclude=port,
            )
        yield rule(
            "-t mangle -A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT",
            "Packets of established connections to all other inbound ports only need the mark,"
            " which takes them to Envoy's existing socket.",
        )
        yield rule(
            "-t mangle -A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY",
            "New connections to all other inbound ports (-b '*') are captured: TPROXY gives them"
            " to Envoy.",
        )
    else:
        for port, named in _ports(c, c.inbound_ports):
            yield rule(
                "-t mangle -A ISTIO_INBOUND -p tcp -m tcp --dport {inbound_ports} -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT",
                f"Packets of established connections to {named} only need the mark, which"
                " takes them to Envoy's existing socket.",
                inbound_ports=port,
            )
            yield rule(
                "-t mangle -A ISTIO_INBOUND -p tcp -m tcp --dport {inbound_ports} -j ISTIO_TPROXY",
                f"New inbound connections to {named} (-b) are captured: TPROXY gives them to"
                " Envoy.",
                inbound_ports=port,
            )


def _outbound_start(c: Config, family: Family) -> Iterator[RuleText]:
    yield rule(
        "-t nat -A OUTPUT -j ISTIO_OUTPUT",
        "Everything that a process in the pod sends is checked against the outbound rules.",
    )
    for port, named in _ports(c, c.outbound_ports_exclude):
        excluded = f"Destination {named} {'are' if named.startswith(_MANY) else 'is'} excluded"
        yield rule(
            "-t nat -A ISTIO_OUTPUT -p tcp -m tcp --dport {outbound_ports_exclude} -j RETURN",
            f"{excluded} from outbound capture (-o), for TCP here; this"
            " comes before every other outbound rule, DNS capture included.",
            outbound_ports_exclude=port,
        )
        yield rule(
            "-t nat -A ISTIO_OUTPUT -p udp -m udp --dport {outbound_ports_exclude} -j RETURN",
            f"{excluded} from outbound capture (-o), for UDP here; this"
            " comes before every other outbound rule, DNS capture included.",
            outbound_ports_exclude=port,
        )
    yield rule(
        "-t nat -A ISTIO_OUTPUT -s {passthrough} -o lo -j RETURN",
        f"Envoy's inbound listener connects to the application from {_PASSTHROUGH[family]}: this"
        " traffic has been through Envoy and must not go back to it.",
    )


def _proxy_traffic(c: Config) -> Iterator[RuleText]:
    # A captured destination that was written as a loopback address counts in both families.
    captures_loopback = c.outbound_cidrs is not ALL and any(
        network.loopback for network in c.outbound_cidrs
    )
    for owner, who, number in _proxy_owners(c):
        if c.redirect_dns and "proxy_uids" in number:
            to_itself = f"-t nat -A ISTIO_OUTPUT ! -d {{loopback}} -o lo -p tcp -m multiport ! --dports 53,{{inbound_tunnel_port}} -m owner {owner} -j ISTIO_IN_REDIRECT"
        else:
            to_itself = f"-t nat -A ISTIO_OUTPUT ! -d {{loopback}} -o lo -p tcp -m tcp ! --dport {{inbound_tunnel_port}} -m owner {owner} -j ISTIO_IN_REDIRECT"
        yield rule(
            to_itself,
            f"Envoy ({who}) connects to its own pod when the application calls a service whose"
            " endpoint is this pod: that is an inbound connection and goes to Envoy's inbound"
            " listener, as if it came from outside.",
            **number,
        )
        if captures_loopback:
            pass
        elif c.nft_like_iptables:
            yield rule(
                "-t nat -A ISTIO_OUTPUT -o lo -p tcp -m tcp ! --dport 53 -j RETURN"
                if c.redirect_dns
                else "-t nat -A ISTIO_OUTPUT -o lo -j RETURN",
                "All other traffic to its own pod over loopback is not captured, be it Envoy's"
                f" ({who}), the application's or of no process"
                + ("; DNS over TCP is left to the rules below." if c.redirect_dns else "."),
            )
        elif c.redirect_dns:
            yield rule(
                f"-t nat -A ISTIO_OUTPUT -o lo -p tcp -m tcp ! --dport 53 -m owner ! {owner} -j RETURN",
                f"Connections of the application (any process but those of {who}) to its own pod"
                " over loopback are not captured; DNS over TCP is left to the rules below.",
                **number,
            )
        else:
            yield rule(
                f"-t nat -A ISTIO_OUTPUT -o lo -m owner ! {owner} -j RETURN",
                f"Traffic of the application (any process but those of {who}) to its own pod over"
                " loopback is not captured.",
                **number,
            )
        yield rule(
            f"-t nat -A ISTIO_OUTPUT -m owner {owner} -j RETURN",
            f"Envoy's own traffic ({who}) is not captured: it would be redirected to Envoy again,"
            " in a loop.",
            **number,
        )


def _owner_groups(c: Config) -> Iterator[RuleText]:
    if c.owner_groups is ALL:
        for group in map(str, c.owner_groups_exclude):
            yield rule(
                "-t nat -A ISTIO_OUTPUT -m owner --gid-owner {owner_groups_exclude} -j RETURN",
                f"Processes of group {group} are excluded from outbound capture"
                " (ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE).",
                owner_groups_exclude=group,
            )
    elif c.owner_groups and c.nft_like_iptables:
        only = (
            f"Only processes of group {', '.join(map(str, c.owner_groups))} are captured outbound"
            " (ISTIO_OUTBOUND_OWNER_GROUPS)"
        )
        yield rule(
            "-t nat -A ISTIO_OUTPUT -j ISTIO_OUTPUT_GROUPS",
            f"{only}: a chain of their own tells them from all others.",
        )
        for group in map(str, c.owner_groups):
            yield rule(
                "-t nat -A ISTIO_OUTPUT_GROUPS -m owner --gid-owner {owner_groups} -j RETURN",
                f"Processes of group {group} go on to the rules that capture"
                " (ISTIO_OUTBOUND_OWNER_GROUPS).",
                owner_groups=group,
            )
        yield rule(
            "-t nat -A ISTIO_OUTPUT_GROUPS -j ACCEPT",
            f"{only}; the traffic of all others is not, nor is that of no process.",
        )
    elif c.owner_groups:
        none_of_them = " ".join(f"-m owner ! --gid-owner {group}" for group in c.owner_groups)
        yield rule(
            f"-t nat -A ISTIO_OUTPUT {none_of_them} -j RETURN",
            f"Only processes of group {', '.join(map(str, c.owner_groups))} are captured outbound"
            " (ISTIO_OUTBOUND_OWNER_GROUPS); the traffic of all others is not.",
        )
    else:
        yield rule(
            "-t nat -A ISTIO_OUTPUT -j RETURN",
            "No group is captured outbound (ISTIO_OUTBOUND_OWNER_GROUPS is empty): all traffic"
            " skips the rules below.",
        )


def _dns(c: Config, family: Family) -> Iterator[RuleText]:
    servers = _dns_servers(c, family)
    yield rule(
        "-t raw -A OUTPUT -j ISTIO_OUTPUT_DNS",
        "DNS packets are assigned to conntrack zones before connection tracking sees them.",
    )
    if servers:
        yield rule(
            "-t nat -A ISTIO_OUTPUT -j ISTIO_OUTPUT_DNS",
            "The remaining traffic may hold DNS queries, which a chain of their own redirects.",
        )
    for server, name in servers:
        yield rule(
            "-t nat -A ISTIO_OUTPUT_DNS -d {server} -p tcp -m tcp --dport 53 -j REDIRECT --to-ports {agent_dns_port}",
            f"DNS over TCP to {name} is answered by the agent on port {AGENT_DNS_PORT}, which"
            " knows the names of the mesh.",
            server=server,
        )
    for server, name in servers:
        yield rule(
            "-t nat -A ISTIO_OUTPUT_DNS -d {server} -p udp -m udp --dport 53 -j REDIRECT --to-ports {agent_dns_port}",
            f"DNS over UDP to {name} is answered by the agent on port {AGENT_DNS_PORT}, which"
            " knows the names of the mesh.",
            server=server,
        )
    for owner, who, number in _proxy_owners(c):
        yield rule(
            f"-t raw -A ISTIO_OUTPUT_DNS -p udp -m udp --dport 53 -m owner {owner} -j CT --zone 1",
            f"Queries of the agent ({who}) to the real DNS servers are tracked in zone 1, apart"
            " from the application's queries to the agent.",
            **number,
        )
        yield rule(
            f"-t raw -A ISTIO_OUTPUT_DNS -p udp -m udp --sport {{agent_dns_port}} -m owner {owner} -j CT --zone 2",
            f"Responses of the agent ({who}) to the application are tracked in zone 2, the zone of"
            " the query, so that the server's address can be put back.",
            **number,
        )
    if servers:
        yield rule(
            "-t raw -A PREROUTING -j ISTIO_INBOUND",
            "Responses of DNS servers are assigned to the zone of the query they belong to.",
        )
    for server, name in servers:
        yield rule(
            "-t raw -A ISTIO_OUTPUT_DNS -d {server} -p udp -m udp --dport 53 -j CT --zone 2",
            f"Queries of the application to {name} are tracked in zone 2: the agent may use the"
            " same ports for that server at the same time.",
            server=server,
        )
        yield rule(
            "-t raw -A ISTIO_INBOUND -s {server} -p udp -m udp --sport 53 -j CT --zone 1",
            f"Responses of {name} belong to the agent's query in zone 1.",
            server=server,
        )


def _outbound_capture(c: Config, family: Family) -> Iterator[RuleText]:
    yield rule(
        "-t nat -A ISTIO_OUTPUT -d {loopback} -j RETURN",
        "Traffic to loopback addresses is not captured: the application talks to itself, or"
        " to Envoy directly.",
    )
    for network, named in _networks(c, c.outbound_cidrs_exclude, family):
        yield rule(
            "-t nat -A ISTIO_OUTPUT -d {outbound_cidrs_exclude} -j RETURN",
            f"Destinations in {named} are excluded from outbound capture (-x), whatever is"
            " included below.",
            outbound_cidrs_exclude=network,
        )
    for port, named in _ports(c, c.outbound_ports):
        yield rule(
            "-t nat -A ISTIO_OUTPUT -p tcp -m tcp --dport {outbound_ports} -j ISTIO_REDIRECT",
            f"Connections to destination {named} (-q) are captured, whatever their address.",
            outbound_ports=port,
        )
    if c.outbound_cidrs is ALL:
        yield rule(
            "-t nat -A ISTIO_OUTPUT -j ISTIO_REDIRECT",
            "All other outbound TCP connections (-i '*') are captured and go to Envoy.",
        )
        for name in c.virtual_interfaces:
            yield rule(
                "-t nat -I PREROUTING -i {virtual_interfaces} -j ISTIO_REDIRECT",
                f"All connections of the virtual machine on {name} (-k) count as outbound: they"
                " are captured and go to Envoy.",
                virtual_interfaces=name,
            )
    else:
        for network, named in _networks(c, c.outbound_cidrs, family):
            yield rule(
                "-t nat -A ISTIO_OUTPUT -d {outbound_cidrs} -j ISTIO_REDIRECT",
                f"Connections to {named} (-i) are captured and go to Envoy.",
                outbound_cidrs=network,
            )
            for name in c.virtual_interfaces:
                yield rule(
                    "-t nat -I PREROUTING -d {outbound_cidrs} -i {virtual_interfaces} -j ISTIO_REDIRECT",
                    f"Connections of the virtual machine on {name} (-k) to {named} count as"
                    " outbound: they are captured and go to Envoy.",
                    outbound_cidrs=network,
                    virtual_interfaces=name,
                )


def _tproxy_marks(c: Config, family: Family) -> Iterator[RuleText]:
    yield rule(
        "-t mangle -A PREROUTING -p tcp -m mark --mark {tproxy_mark} -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff",
        f"Envoy sets the mark {c.tproxy_mark} on its connections to the application from the"
        " client's address: the connection keeps the mark for the replies.",
    )
    yield rule(
        "-t mangle -A OUTPUT -o lo -p tcp -m mark --mark {tproxy_mark} -j RETURN",
        "Packets that Envoy marked, on their way to the application, keep that mark.",
    )
    for owner, who, number in _proxy_owners(c):
        yield rule(
            f"-t mangle -A OUTPUT ! -d {{loopback}} -o lo -p tcp -m owner {owner} -j MARK --set-xmark {{outbound_mark}}/0xffffffff",
            f"Envoy ({who}) connects to its own pod for the application: by the mark"
            f" {OUTBOUND_MARK} the inbound rules tell this from the application's connections to"
            " itself.",
            **number,
        )
    yield rule(
        "-t mangle -A OUTPUT -p tcp -m connmark --mark {tproxy_mark} -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
        "The application's replies get the connection's mark back, so that the policy route takes"
        " them to Envoy and not to the client.",
    )
    yield rule(
        "-t mangle -I ISTIO_INBOUND 1 -p tcp -m mark --mark {tproxy_mark} -j RETURN",
        "A packet that has the mark already is on its way between Envoy and the application:"
        " captured again, it would run in a loop.",
    )
    yield rule(
        "-t mangle -I ISTIO_INBOUND 2 -s {passthrough} -i lo -p tcp -j RETURN",
        f"Envoy's inbound listener connects to the application from {_PASSTHROUGH[family]}: this"
        " traffic has been through Envoy.",
    )
    yield rule(
        "-t mangle -I ISTIO_INBOUND 3 -i lo -p tcp -m mark ! --mark {outbound_mark} -j RETURN",
        f"Over loopback only packets with Envoy's mark {OUTBOUND_MARK} are inbound traffic; the"
        " application's connections to itself are not captured.",
    )


def _proxy_owners(c: Config) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Envoy's users, then its groups: the option of owner, the words for it, and its value."""
    for uid in map(str, c.proxy_uids):
        yield "--uid-owner {proxy_uids}", f"user {uid}", {"proxy_uids": uid}
    for gid in map(str, c.proxy_gids):
        yield "--gid-owner {proxy_gids}", f"group {gid}", {"proxy_gids": gid}


def _dns_servers(c: Config, family: Family) -> list[tuple[str, str]]:
    """The DNS servers of one family to capture: each as a network, and the words for it."""
    if c.capture_all_dns:
        return [("0.0.0.0/0", "any DNS server")]
    servers = c.dns_servers_ipv4 if family is Family.IPV4 else c.dns_servers_ipv6
    return [
        (f"{server}/{family.bits}", f"the DNS server {server} of resolv.conf") for server in servers
    ]


def _ports(c: Config, ports: tuple[PortRange, ...]) -> Iterator[tuple[str, str]]:
    """What each rule about a list of ports asks for, and the words for it.

    It is one port or range, or with ``nft_sets`` the whole list, commas between.
    """
    if c.nft_sets and len(ports) > 1:
        from istio_iptables.netfilter.nftsets import port_set  # few ask for it

        yield port_set(ports), f"{_MANY}{_some(list(map(str, ports)))}"
    else:
        for port in map(str, ports):
            yield port, f"port {port}"


def _networks(c: Config, networks: Iterable[Network], family: Family) -> Iterator[tuple[str, str]]:
    """What each rule about a list of networks asks for, and the words for it, as with ports."""
    version = IPV4 if family is Family.IPV4 else IPV6
    listed = [str(network) for network in networks if network.version == version]
    if c.nft_sets and len(listed) > 1:
        from istio_iptables.netfilter.nftsets import network_set  # few ask for it

        yield network_set(listed), _some(listed)
    else:
        for network in listed:
            yield network, network


def _some(items: list[str]) -> str:
    """The first of *items*, and how many more there are."""
    if len(items) <= _MOST_NAMED:
        return f"{', '.join(items[:-1])} and {items[-1]}"
    return f"{', '.join(items[:_MOST_NAMED])} and {len(items) - _MOST_NAMED} more"


def _why_excluded(port: str, named: str) -> str:
    if named.startswith(_MANY):
        return (
            f"{named.capitalize()} are excluded from inbound capture (-d): clients reach them"
            " directly, without Envoy in between."
        )
    known = _WELL_KNOWN_PORTS.get(port)
    about = f" ({known})" if known else ""
    return (
        f"Port {port}{about} is excluded from inbound capture (-d): clients reach it directly,"
        " without Envoy in between."
    )
