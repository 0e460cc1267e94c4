"""Where a packet ended, in the mesh's words: captured by whom, or why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.istio.rules import AGENT_DNS_PORT
from istio_iptables.trace.hooks import MAX_STEPS, End

if TYPE_CHECKING:
    from istio_iptables.netfilter.packet import Packet
    from istio_iptables.settings.config import Config
    from istio_iptables.trace.hooks import Outcome

__all__ = ["Verdict", "describe", "listeners"]


#: Targets that drop nothing: a packet ends behind them for want of a route.
_SENDS_ON = frozenset({"DNAT", "NETMAP"})


class Verdict(NamedTuple):
    """An outcome in words, and for programs."""

    text: str
    #: The port that the packet is handed to instead of the one it asked for.
    to_port: int | None = None
    #: ``inbound``, ``outbound`` or ``dns``; None for a packet that is not captured.
    captured: str | None = None


def describe(outcome: Outcome, config: Config) -> Verdict:
    """What *outcome* means in a mesh with these settings."""
    packet = outcome.packet
    if outcome.end in _NOWHERE:
        return Verdict(_NOWHERE[outcome.end](outcome))
    if outcome.taken_by and packet.has_ports:
        return _taken(outcome, outcome.to_port, config)
    if outcome.by_mark and packet.mark == config.tproxy_mark:
        return _delivered_by_mark(packet)
    return Verdict(_left_alone(outcome))


def listeners(config: Config) -> dict[str, str]:
    """Who has each port that traffic is redirected to, in the fewest words."""
    return {
        str(AGENT_DNS_PORT): "the agent's DNS",
        str(config.inbound_capture_port): "Envoy, inbound",
        str(config.envoy_port): "Envoy, outbound",
    }


def _unknown(outcome: Outcome) -> str:
    """The words for a packet that can't be followed to an end."""
    if len(outcome.steps) > MAX_STEPS:
        return f"matches more than {MAX_STEPS} rules, and is not followed further"
    target = outcome.steps[-1].verdict if outcome.steps else ""
    return f"where {target} sends it can't be known from here"


def _unrouted(outcome: Outcome) -> str:
    """The words for a packet that no rule ever sees."""
    return f"is not sent: {outcome.refused}"


def _delivered_by_mark(packet: Packet) -> Verdict:
    """A packet that TPROXY's policy route delivers without TPROXY having taken it."""
    where = f"delivered here by its mark {packet.mark or 0:#x}"
    if packet.state == "NEW":
        return Verdict(
            f"{where} to port {packet.destination_port}, where Envoy has no socket for a new"
            " connection"
        )
    return Verdict(f"{where}, to the socket of Envoy that has the connection", captured="inbound")


def _dropped(outcome: Outcome) -> str:
    """The words for a packet that comes nowhere."""
    if not outcome.steps:
        return f"dropped: {outcome.refused}"
    last = outcome.steps[-1]
    place = f"{last.table} {last.chain} {'policy' if last.number is None else last.number}"
    if outcome.refused:
        return f"dropped behind {place}: {outcome.refused}"
    if last.verdict in _SENDS_ON:
        source, destination = outcome.packet.endpoints
        return f"dropped behind {place}: no route leads from {source} to {destination}"
    return f"dropped by {place}"


#: The ends at which nobody gets the packet, and the words for them.
_NOWHERE = {End.DROPPED: _dropped, End.UNKNOWN: _unknown, End.UNROUTED: _unrouted}


def _left_alone(outcome: Outcome) -> str:
    """The words for a packet that neither Envoy nor the agent gets."""
    packet, start = outcome.packet, outcome.start or outcome.packet
    source, destination = packet.endpoints
    asked_source, asked = start.endpoints
    kept = ""
    if packet.state == "ESTABLISHED":
        kept = "; nat asks only a connection's first packet, and this one follows that"
    elif packet.is_error:
        kept = (
            "; nat asks no rule about an ICMP error, which follows the connection that it is about"
        )
    if outcome.end is End.FORWARDED:
        instead = "" if destination == asked else f" instead of {asked}"
        return f"is forwarded to {destination}{instead}, not captured{kept}"
    if outcome.end is End.DELIVERED:
        if destination != asked:
            return f"reaches {destination} here instead of {asked}{kept}"
        if source != asked_source:
            return (
                f"reaches {destination} here changed, from {source} instead of {asked_source}{kept}"
            )
        return f"reaches {destination} here untouched{kept}"
    by = f" by {packet.out_interface}" if packet.out_interface else ""
    if (source, destination) != start.endpoints:
        return f"goes out{by} changed, from {source} to {destination}{kept}"
    return f"goes out{by} untouched{kept}"


def _taken(outcome: Outcome, port: int | None, config: Config) -> Verdict:
    """A packet that REDIRECT or TPROXY handed to a local port."""
    if port is None:
        return Verdict("is redirected to a port that can't be known from here")
    if outcome.end is not End.DELIVERED:
        return Verdict(f"is handed to port {port} by {outcome.taken_by}, but no route delivers it")
    came = any(
        step.hook == "PREROUTING" and step.verdict == outcome.taken_by for step in outcome.steps
    )
    how = " with both addresses kept (TPROXY)" if outcome.taken_by == "TPROXY" else ""
    listeners = {
        config.envoy_port: ("outbound", "Envoy's outbound listener"),
        AGENT_DNS_PORT: ("dns", "the agent's DNS resolver"),
    }
    inbound = ("inbound", "Envoy's inbound listener")
    if port == config.inbound_capture_port and (came or port not in listeners):
        captured, who = inbound
    elif port in listeners:
        captured, who = listeners[port]
    else:
        return Verdict(
            f"is redirected to port {port}, which is no listener of Envoy or the agent", port
        )
    return Verdict(f"captured by {who} on port {port}{how}", port, captured)
