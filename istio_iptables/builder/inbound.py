"""What comes to the pod: where captured traffic is sent, and which is captured (steps 3 to 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.builder.chains import (
    DIVERT,
    DROP_CHAIN,
    IN_REDIRECT,
    INBOUND,
    REDIRECT,
    TCP,
    TPROXY,
    Placed,
    Scope,
)
from istio_iptables.netfilter import parts
from istio_iptables.netfilter.model import Rule, Target, Term
from istio_iptables.netfilter.parts import ACCEPT, DROP, RETURN
from istio_iptables.settings.values import ALL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_iptables.settings.values import PortRange

__all__ = ["capture", "drop_invalid", "listeners"]

_WELL_KNOWN = {
    15000: "Envoy's admin interface",
    15020: "the agent's health checks and merged metrics",
    15021: "Envoy's health checks, which the kubelet asks",
    15090: "Envoy's Prometheus metrics",
}


def drop_invalid(scope: Scope) -> Iterator[Placed]:
    """Packets of no known connection are dropped, if that was asked for."""
    if not scope.config.drop_invalid:
        return
    yield Placed(
        "mangle",
        "PREROUTING",
        Rule(
            matches=(parts.conntrack_states("INVALID"),),
            target=Target(DROP_CHAIN),
            reason="Packets that belong to no connection the kernel knows (--drop-invalid) are"
            " sorted out first: answered, they would reset connections that still live.",
        ),
    )
    yield Placed(
        "mangle",
        DROP_CHAIN,
        Rule(target=DROP, reason="Whatever was sent here is invalid and is dropped."),
    )


def listeners(scope: Scope) -> Iterator[Placed]:
    """The tunnel's port is spared; captured traffic is sent to Envoy's two listeners."""
    config = scope.config
    yield Placed(
        "nat",
        INBOUND,
        Rule(
            protocol=TCP,
            matches=(parts.ports("tcp", dport=str(config.inbound_tunnel_port)),),
            target=RETURN,
            reason=f"Port {config.inbound_tunnel_port} is the mesh's own tunnel (HBONE):"
            " Envoy listens there itself, so nothing is redirected.",
        ),
    )
    yield Placed(
        "nat",
        REDIRECT,
        Rule(
            protocol=TCP,
            target=parts.redirect(config.envoy_port),
            reason="Captured outbound connections go to Envoy's outbound listener on port"
            f" {config.envoy_port}, which asks the kernel where they were meant to go.",
        ),
    )
    yield Placed(
        "nat",
        IN_REDIRECT,
        Rule(
            protocol=TCP,
            target=parts.redirect(config.inbound_capture_port),
            reason="Captured inbound connections go to Envoy's inbound listener on port"
            f" {config.inbound_capture_port}, which passes them on to the application.",
        ),
    )


def capture(scope: Scope) -> Iterator[Placed]:
    """The captured ports, and what is excluded from capturing all of them."""
    config = scope.config
    if not config.inbound_ports:
        return
    table = "mangle" if scope.tproxy else "nat"
    if scope.tproxy:
        yield from _tproxy_targets(scope)
    yield Placed(
        table,
        "PREROUTING",
        Rule(
            protocol=TCP,
            target=Target(INBOUND),
            reason="Every TCP packet that arrives at the pod is looked at by the inbound rules."
            if scope.tproxy
            else "Every TCP connection that arrives at the pod is looked at by the inbound rules.",
        ),
    )
    if config.inbound_ports is ALL:
        for port in config.inbound_ports_exclude:
            yield Placed(
                table,
                INBOUND,
                Rule(
                    protocol=TCP,
                    matches=(parts.ports("tcp", dport=str(port)),),
                    target=RETURN,
                    reason=f"Port {port}{_known(port)} is excluded from inbound capture (-d):"
                    " it is reached directly, without Envoy in between.",
                ),
            )
        yield from _send_inbound(scope, table, None)
    else:
        for port in config.inbound_ports:
            yield from _send_inbound(scope, table, port)


def _tproxy_targets(scope: Scope) -> Iterator[Placed]:
    config = scope.config
    yield Placed(
        "mangle",
        DIVERT,
        Rule(
            target=parts.set_mark(config.tproxy_mark),
            reason=f"The mark {config.tproxy_mark} makes the policy route deliver the packet to"
            " a local socket, although its address is not the pod's.",
        ),
    )
    yield Placed(
        "mangle",
        DIVERT,
        Rule(
            target=ACCEPT,
            reason="A marked packet of a known connection is done here; nothing else in this"
            " table is to touch it.",
        ),
    )
    yield Placed(
        "mangle",
        TPROXY,
        Rule(
            destination=Term(scope.loopback, negated=True),
            protocol=TCP,
            target=parts.tproxy(config.inbound_capture_port, config.tproxy_mark, scope.family),
            reason="New inbound connections are handed to Envoy's inbound listener on port"
            f" {config.inbound_capture_port} with both addresses unchanged, so that the"
            " application can see who called; loopback is left out.",
        ),
    )


def _send_inbound(scope: Scope, table: str, port: PortRange | None) -> Iterator[Placed]:
    """Hand one captured port to Envoy; None is every port that was not excluded."""
    what = "the remaining inbound ports" if port is None else f"port {port}"
    which = () if port is None else (parts.ports("tcp", dport=str(port)),)
    rule = Rule(protocol=TCP, matches=which)
    if not scope.tproxy:
        reason = f"Inbound connections to {what} (-b) are captured and go to Envoy first."
        yield Placed(table, INBOUND, rule._replace(target=Target(IN_REDIRECT), reason=reason))
        return
    known = parts.conntrack_states("RELATED", "ESTABLISHED")
    yield Placed(
        table,
        INBOUND,
        rule._replace(
            matches=(*which, known),
            target=Target(DIVERT),
            reason=f"Later packets of captured connections to {what} only need their mark, which"
            " leads them to the socket that Envoy already has.",
        ),
    )
    reason = f"New inbound connections to {what} (-b) are captured: TPROXY finds Envoy for them."
    yield Placed(table, INBOUND, rule._replace(target=Target(TPROXY), reason=reason))


def _known(port: PortRange) -> str:
    about = _WELL_KNOWN.get(port.first) if port.first == port.last else None
    return f" ({about})" if about else ""
