"""What leaves the pod: what is let through, and what of the rest is captured (steps 6 to 11, 13)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.builder.chains import (
    IN_REDIRECT,
    LO,
    OUTPUT,
    REDIRECT,
    TCP,
    UDP,
    Placed,
    Scope,
    interface,
)
from istio_iptables.netfilter import parts
from istio_iptables.netfilter.model import Rule, Target, Term
from istio_iptables.netfilter.parts import RETURN
from istio_iptables.settings.values import ALL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_iptables.settings.values import Network

__all__ = ["capture", "enter", "excluded_ports", "from_envoy", "from_proxy", "owner_groups"]


def enter(_: Scope) -> Iterator[Placed]:
    """The way into the outbound rules."""
    yield Placed(
        "nat",
        "OUTPUT",
        Rule(
            target=Target(OUTPUT),
            reason="Everything that a process in the pod sends is looked at by the outbound rules.",
        ),
    )


def excluded_ports(scope: Scope) -> Iterator[Placed]:
    """Ports that are left out before everything else."""
    for port in scope.config.outbound_ports_exclude:
        for protocol in (TCP, UDP):
            yield Placed(
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


def from_envoy(scope: Scope) -> Iterator[Placed]:
    """Envoy's connections to the application."""
    address = scope.passthrough.partition("/")[0]
    yield Placed(
        "nat",
        OUTPUT,
        Rule(
            source=Term(scope.passthrough),
            out_interface=LO,
            target=RETURN,
            reason=f"{address} is the address from which Envoy's inbound side connects to the"
            " application: this traffic has been through Envoy and must not go back to it.",
        ),
    )


def from_proxy(scope: Scope) -> Iterator[Placed]:
    """What the proxy sends, and what others send to the pod itself; users before groups."""
    for uid in scope.config.proxy_uids:
        yield from _pass_proxy(scope, str(uid), user=True)
    for gid in scope.config.proxy_gids:
        yield from _pass_proxy(scope, str(gid), user=False)


def _pass_proxy(scope: Scope, owner: str, *, user: bool) -> Iterator[Placed]:
    config = scope.config
    who = f"user {owner}" if user else f"group {owner}"
    mine = parts.owner(uid=owner) if user else parts.owner(gid=owner)
    others = parts.owner(uid=owner, negated=True) if user else parts.owner(gid=owner, negated=True)
    tunnel = str(config.inbound_tunnel_port)
    not_tunnel = (
        parts.ports_except((53, config.inbound_tunnel_port))
        if config.redirect_dns and user
        else parts.ports("tcp", dport=tunnel, negated=True)
    )
    yield Placed(
        "nat",
        OUTPUT,
        Rule(
            destination=Term(scope.loopback, negated=True),
            out_interface=LO,
            protocol=TCP,
            matches=(not_tunnel, mine),
            target=Target(IN_REDIRECT),
            reason=f"Envoy ({who}) connects to its own pod when the application calls a service"
            " that ends at itself: that is an inbound connection and goes to Envoy's inbound"
            " listener, as if it came from outside.",
        ),
    )
    if not _captures_loopback(scope):
        yield Placed(
            "nat",
            OUTPUT,
            Rule(
                out_interface=LO,
                protocol=TCP if config.redirect_dns else None,
                matches=(parts.ports("tcp", dport="53", negated=True), others)
                if config.redirect_dns
                else (others,),
                target=RETURN,
                reason=f"The application (anyone but {who}) talks to its own pod over loopback:"
                " nobody else takes part, so it goes straight to the listener"
                + ("; DNS over TCP is kept for the capture below." if config.redirect_dns else "."),
            ),
        )
    yield Placed(
        "nat",
        OUTPUT,
        Rule(
            matches=(mine,),
            target=RETURN,
            reason=f"What Envoy itself ({who}) sends has been handled already: captured again,"
            " it would run in a loop between Envoy and the kernel.",
        ),
    )


def _captures_loopback(scope: Scope) -> bool:
    """Whether a captured destination, of either family, was written as a loopback address."""
    cidrs = scope.config.outbound_cidrs
    return cidrs is not ALL and any(network.loopback for network in cidrs)


def owner_groups(scope: Scope) -> Iterator[Placed]:
    """Whose traffic is captured, by group."""
    config = scope.config
    if config.owner_groups is ALL:
        for group in config.owner_groups_exclude:
            yield Placed(
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
    listed = ", ".join(map(str, config.owner_groups))
    yield Placed(
        "nat",
        OUTPUT,
        Rule(
            matches=tuple(
                parts.owner(gid=str(group), negated=True) for group in config.owner_groups
            ),
            target=RETURN,
            reason=f"Only processes of group {listed} are captured outbound"
            " (ISTIO_OUTBOUND_OWNER_GROUPS); everyone else's traffic is left alone."
            if listed
            else "No group is captured outbound (ISTIO_OUTBOUND_OWNER_GROUPS is empty): all"
            " traffic is left alone from here on.",
        ),
    )


def capture(scope: Scope) -> Iterator[Placed]:
    """What is captured of the rest, after what is excluded from it."""
    config = scope.config
    yield Placed(
        "nat",
        OUTPUT,
        Rule(
            destination=Term(scope.loopback),
            target=RETURN,
            reason="What is meant for loopback stays in the pod: it is either the application"
            " talking to itself or to Envoy on purpose.",
        ),
    )
    for network in config.outbound_cidrs_exclude:
        if network.version == scope.version:
            yield Placed(
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
        yield Placed(
            "nat",
            OUTPUT,
            Rule(
                protocol=TCP,
                matches=(parts.ports("tcp", dport=str(port)),),
                target=Target(REDIRECT),
                reason=f"Destination port {port} is captured wherever it leads (-q).",
            ),
        )
    if config.outbound_cidrs is ALL:
        yield from _capture_destination(scope, None)
    else:
        for network in config.outbound_cidrs:
            if network.version == scope.version:
                yield from _capture_destination(scope, network)


def _capture_destination(scope: Scope, network: Network | None) -> Iterator[Placed]:
    """Send a destination to Envoy, from the pod and from its virtual interfaces."""
    destination = None if network is None else _destination(network)
    reason = (
        "Everything else that leaves the application (-i '*') is captured and goes to Envoy."
        if network is None
        else f"Destinations in {network} (-i) are captured and go to Envoy."
    )
    yield Placed(
        "nat", OUTPUT, Rule(destination=destination, target=Target(REDIRECT), reason=reason)
    )
    for name in scope.config.virtual_interfaces:
        where = "anywhere" if network is None else f"to {network}"
        rule = Rule(
            destination=destination,
            in_interface=interface(name),
            target=Target(REDIRECT),
            reason=f"What a virtual machine sends {where} through {name} (-k) counts as outbound:"
            " it is captured and goes to Envoy.",
            inserted=True,
        )
        yield Placed("nat", "PREROUTING", rule, 0)


def _destination(network: Network) -> Term | None:
    """The condition on a destination; a network of length 0 is any address, which is none."""
    return None if network.prefix == 0 else Term(str(network))
