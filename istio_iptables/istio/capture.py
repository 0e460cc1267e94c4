"""Where a packet ended, in the mesh's words: captured by whom, or why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.istio.places import NAT_TABLES
from istio_iptables.istio.rules import AGENT_DNS_PORT
from istio_iptables.netfilter.fieldvalues import WHOLE_MARK
from istio_iptables.netfilter.questions import among, has_bits, named, same
from istio_iptables.trace.hooks import MAX_STEPS, End

if TYPE_CHECKING:
    from istio_iptables.netfilter.packet import Packet
    from istio_iptables.settings.config import Config
    from istio_iptables.trace.hooks import Outcome, Trace, TraceStep

__all__ = ["DEPENDS", "Verdict", "brief", "deciding_step", "describe", "fate_of", "listeners"]


#: Targets that drop nothing: a packet ends behind them for want of a route.
_SENDS_ON = frozenset({"DNAT", "NETMAP"})


class Verdict(NamedTuple):
    """An outcome in words, and for programs."""

    text: str
    #: The port that the packet is handed to instead of the one it asked for.
    to_port: int | None = None
    #: ``inbound``, ``outbound`` or ``dns``; None for a packet that is not captured.
    captured: str | None = None


#: Verdicts of rules that let a packet go on.
_LETS = frozenset({"ACCEPT", "RETURN"})
#: Of ways that end differently.
DEPENDS = Verdict("depends on what can't be known from here")


def deciding_step(found: Trace) -> TraceStep | None:
    """The rule, or the policy, that makes the difference for a packet; None if nothing is asked.

    It is the rule that chose, rather than one in a chain that only carries out what was chosen.
    """
    outcome = found.outcomes[0]
    steps = outcome.steps
    if len({(each.end, each.taken_by, each.to_port) for each in found.outcomes}) > 1:
        place = next((each.place for each in outcome.assumptions if each.place), "")
        return next((step for step in steps if step.place == place), None)
    if not steps or outcome.end in {End.DROPPED, End.UNKNOWN}:
        return steps[-1] if steps else None
    acts = [at for at, step in enumerate(steps) if _acts(step, outcome)]
    if acts:
        at = acts[0]
        led = at > 0 and steps[at - 1].verdict == steps[at].chain
        # A built-in chain is where all begins: what leads out of it has not chosen yet.
        return steps[at - 1] if led and steps[at - 1].rule is not None else steps[at]
    returns = [step for step in steps if step.table in NAT_TABLES and step.verdict == "RETURN"]
    policies = [step for step in steps if step.table in NAT_TABLES and step.rule is None]
    others = [step for step in steps if step.rule is not None and step.verdict in _LETS]
    deciding = returns or policies[:1] or others
    return deciding[-1] if deciding else None


def _acts(step: TraceStep, outcome: Outcome) -> bool:
    """Whether a step brought about the end: another destination or listener, or a mark."""
    if outcome.taken_by:
        return step.verdict == outcome.taken_by
    if outcome.by_mark:
        return step.change.startswith("mark ")
    return outcome.translated and step.kind == "nat" and step.change != ""


def fate_of(found: Trace, config: Config) -> Verdict:
    """What comes of a packet, in words that are true for every packet with the same fate."""
    fates = list(dict.fromkeys(_fate(outcome, config) for outcome in found.outcomes))
    if len(fates) == 1 and found.complete:
        return fates[0]
    texts = " or ".join(dict.fromkeys(brief(each) for each in fates))
    if not any(each.place or each.tie for one in found.outcomes for each in one.assumptions):
        return Verdict(f"as its connection began: {texts}")
    return Verdict(f"can't be known from here: {texts}")


def brief(fate: Verdict) -> str:
    """A fate in the words of a table."""
    if fate.captured and fate.to_port:
        return f"captured {fate.captured} on port {fate.to_port}"
    return fate.text


def _fate(outcome: Outcome, config: Config) -> Verdict:
    packet, start = outcome.packet, outcome.start or outcome.packet
    if outcome.end in _NOWHERE:
        dropped = outcome.end is End.DROPPED
        return Verdict("dropped" if dropped else _NOWHERE[outcome.end](outcome))
    if outcome.taken_by and packet.has_ports:
        port = outcome.to_port
        ours = (config.envoy_port, config.inbound_capture_port, AGENT_DNS_PORT)
        if any(same(port, each) for each in ours) or not same(port, start.destination_port):
            return _taken(outcome, port, config)
        return Verdict(f"handed to the port that it asked for, by {outcome.taken_by}")
    mark = packet.mark
    if outcome.by_mark and mark is not None and has_bits(mark, config.tproxy_mark, WHOLE_MARK):
        delivered = _delivered_by_mark(packet)
        port_asked = f" to port {packet.destination_port}"
        return delivered._replace(text=delivered.text.replace(port_asked, ""))
    went = _went(outcome, start)
    changes = [
        f"{name} {'unknown' if value is None else value}"
        for name, value, before, family in (
            ("source", packet.source, start.source, packet.family),
            ("source port", packet.source_port, start.source_port, None),
            ("destination", packet.destination, start.destination, packet.family),
            ("destination port", packet.destination_port, start.destination_port, None),
        )
        if not same(value, before, family)
    ]
    if changes:
        return Verdict(f"{went or 'let through'} with {', '.join(changes)}")
    return Verdict(f"{went} untouched" if went else "untouched")


def _went(outcome: Outcome, start: Packet) -> str:
    """Where a packet went that nobody took, if that is not where such a packet goes by itself."""
    if outcome.end is End.FORWARDED:
        return "forwarded"
    leaves = start.in_interface == "" and not same(start.out_interface, "lo")
    if (outcome.end is End.SENT) is leaves:
        return ""
    return "sent out" if outcome.end is End.SENT else "delivered here"


def describe(outcome: Outcome, config: Config) -> Verdict:
    """What *outcome* means in a mesh with these settings."""
    packet = outcome.packet
    if outcome.end in _NOWHERE:
        return Verdict(_NOWHERE[outcome.end](outcome))
    if outcome.taken_by and packet.has_ports:
        return _taken(outcome, outcome.to_port, config)
    mark = packet.mark
    if outcome.by_mark and mark is not None and has_bits(mark, config.tproxy_mark, WHOLE_MARK):
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
    if among(packet.state, named("NEW")):
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
    if outcome.refused and outcome.taken_by == "TPROXY":
        return f"is handed to port {outcome.to_port} by TPROXY, but {outcome.refused}"
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
    if among(packet.state, named("ESTABLISHED")):
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
            f"is redirected to port {port}, which is not a listener of Envoy or the agent", port
        )
    return Verdict(f"captured by {who} on port {port}{how}", port, captured)
