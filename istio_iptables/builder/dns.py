"""DNS to the agent, and the connection tracking zones that keep its two sides apart (step 12)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.builder.chains import (
    AGENT_DNS_PORT,
    INBOUND,
    OUTPUT,
    OUTPUT_DNS,
    TCP,
    UDP,
    Placed,
    Scope,
)
from istio_iptables.netfilter import parts
from istio_iptables.netfilter.model import Rule, Target, Term

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_iptables.netfilter.model import Match

__all__ = ["capture"]


def capture(scope: Scope) -> Iterator[Placed]:
    """DNS is sent to the agent, and its two sides are tracked apart."""
    config = scope.config
    if not config.redirect_dns:
        return
    yield Placed(
        "raw",
        "OUTPUT",
        Rule(
            target=Target(OUTPUT_DNS),
            reason="Before connection tracking sees them, DNS packets are put into zones.",
        ),
    )
    # None stands for every server, where the contract names each one otherwise.
    servers = (None,) if config.capture_all_dns else scope.dns_servers
    if servers:
        yield Placed(
            "nat",
            OUTPUT,
            Rule(
                target=Target(OUTPUT_DNS),
                reason="What is left may be a DNS query: those rules stand in a chain of their own.",
            ),
        )
    for protocol in (TCP, UDP):
        for server in servers:
            yield from _redirect_dns(scope, protocol, server)
    for owner in config.proxy_uids:
        yield from _zone_proxy(f"user {owner}", parts.owner(uid=str(owner)))
    for owner in config.proxy_gids:
        yield from _zone_proxy(f"group {owner}", parts.owner(gid=str(owner)))
    if servers:
        yield Placed(
            "raw",
            "PREROUTING",
            Rule(
                target=Target(INBOUND),
                reason="Answers of DNS servers are put into the zone of the question they belong to.",
            ),
        )
    for server in servers:
        yield from _zone_server(scope, server)


def _redirect_dns(scope: Scope, protocol: Term, server: str | None) -> Iterator[Placed]:
    whom = "any server" if server is None else f"the server {server} of resolv.conf"
    yield Placed(
        "nat",
        OUTPUT_DNS,
        Rule(
            destination=_host(scope, server),
            protocol=protocol,
            matches=(parts.ports(protocol.value, dport="53"),),
            target=parts.redirect(AGENT_DNS_PORT),
            reason=f"DNS over {protocol.value.upper()} to {whom} is answered by the agent on port"
            f" {AGENT_DNS_PORT}, which knows the mesh's names.",
        ),
    )


def _zone_proxy(who: str, owner: Match) -> Iterator[Placed]:
    yield Placed(
        "raw",
        OUTPUT_DNS,
        Rule(
            protocol=UDP,
            matches=(parts.ports("udp", dport="53"), owner),
            target=parts.conntrack_zone(1),
            reason=f"Questions of the agent ({who}) to the real DNS servers are tracked in zone"
            " 1, apart from the application's questions to the agent.",
        ),
    )
    yield Placed(
        "raw",
        OUTPUT_DNS,
        Rule(
            protocol=UDP,
            matches=(parts.ports("udp", sport=str(AGENT_DNS_PORT)), owner),
            target=parts.conntrack_zone(2),
            reason=f"Answers of the agent ({who}) to the application are tracked in zone 2, where"
            " the question was, so that its address can be put back.",
        ),
    )


def _zone_server(scope: Scope, server: str | None) -> Iterator[Placed]:
    whom = "a DNS server" if server is None else f"the DNS server {server}"
    yield Placed(
        "raw",
        OUTPUT_DNS,
        Rule(
            destination=_host(scope, server),
            protocol=UDP,
            matches=(parts.ports("udp", dport="53"),),
            target=parts.conntrack_zone(2),
            reason=f"Questions of the application to {whom} are tracked in zone 2: the same"
            " ports may be in use at once between the agent and that server.",
        ),
    )
    yield Placed(
        "raw",
        INBOUND,
        Rule(
            source=_host(scope, server),
            protocol=UDP,
            matches=(parts.ports("udp", sport="53"),),
            target=parts.conntrack_zone(1),
            reason=f"Answers of {whom} belong to the agent's question in zone 1.",
        ),
    )


def _host(scope: Scope, address: str | None) -> Term | None:
    return None if address is None else Term(f"{address}/{scope.family.bits}")
