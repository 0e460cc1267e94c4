"""What a request will meet, from the plan alone: rules, listeners, and who is seen at the end.

A connection is followed leg by leg: through the sender's rules, over the wire, through the
receiver's rules, to a listener of Envoy, which makes another connection, and so on to a server.
"""

from __future__ import annotations

from collections import Counter
from socket import IPPROTO_UDP
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.lab.clients import RequestKind
from istio_iptables.lab.nodes import SourceAddress, family_of
from istio_iptables.netfilter.packet import Packet, Surroundings, loopback
from istio_iptables.trace.hooks import End, Outcome, trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_iptables.lab.clients import Request
    from istio_iptables.lab.nodes import Listener, Node
    from istio_iptables.lab.processes import Identity
    from istio_iptables.netfilter.model import Family
    from istio_iptables.netfilter.plan import DesiredState

__all__ = ["Leg", "Prediction", "RuleAddress", "predict"]

#: The longest way of the lab has seven: app, Envoy, gateway, and so on. More is a circle.
_MAX_LEGS = 12

#: From where Envoy's inbound listener connects to the application, in each family.
_PASSED_ON = ("127.0.0.6", "::6")
#: Stands for the port that the kernel will choose.
_ANY_PORT = 40000


class RuleAddress(NamedTuple):
    """Where a rule stands."""

    node: str
    family: Family
    table: str
    chain: str
    #: Counted from 1.
    number: int

    @property
    def counts_connections(self) -> bool:
        """Whether only a connection's first packet is asked about: nat's, of iptables or native."""
        return self.table == "nat" or self.table.endswith("-nat")


class Leg(NamedTuple):
    """One connection: from a process to where the rules let it end."""

    origin: str
    source: str
    destination: str
    port: int
    #: The rules it meets, in the order in which it meets them.
    places: tuple[RuleAddress, ...]
    #: The node where it ends, and which listener of Envoy or which server takes it.
    at: str = ""
    listener: str = ""
    server: str = ""
    #: Why nothing takes it.
    problem: str = ""
    #: The port it is handed to instead of its own; 0 for its own.
    taken_to: int = 0


class Prediction(NamedTuple):
    """What one request will meet."""

    legs: tuple[Leg, ...]
    #: Who answers and whom they see; "" where nobody does, or where Envoy answers itself.
    server: str = ""
    peer: str = ""
    hops: tuple[str, ...] = ()
    path: str = ""
    problem: str = ""
    #: Whether the connection goes round in a circle.
    loops: bool = False

    @property
    def listeners(self) -> Counter[tuple[str, str]]:
        """How many connections each listener takes, by node and listener."""
        return Counter((leg.at, leg.listener) for leg in self.legs if leg.listener)

    @property
    def rules(self) -> Counter[RuleAddress]:
        """How many connections each rule matches."""
        return Counter(place for leg in self.legs for place in leg.places)


class _Arrival(NamedTuple):
    """Where a connection has come to."""

    node: Node | None
    port: int
    source: str
    places: tuple[RuleAddress, ...] = ()
    taken_to: int = 0
    problem: str = ""


class _Start(NamedTuple):
    """A connection that is about to be made."""

    node: Node
    identity: Identity
    address: str
    port: int
    source: str = ""
    mark: int = 0


def predict(
    nodes: Mapping[str, Node], plan: DesiredState, node: str, identity: Identity, request: Request
) -> Prediction:
    """What *request*, sent once on *node* by a process of *identity*, will meet."""
    wires = _Wires(nodes, plan)
    start = _Start(nodes[node], identity, request.address, request.port)
    legs: list[Leg] = []
    hops: tuple[str, ...] = ()
    path = request.path
    while len(legs) < _MAX_LEGS:
        arrival = wires.carry(start, request.kind.protocol)
        place, listener = arrival.node, _listener(arrival)
        server = "" if listener else _server(arrival)
        leg = Leg(
            start.node.name,
            arrival.source,
            start.address,
            start.port,
            arrival.places,
            place.name if place else "",
            listener.name if listener else "",
            server,
            "" if listener or server else _problem(arrival),
            arrival.taken_to,
        )
        legs.append(leg)
        if place is None or place.proxy is None or listener is None:
            if not server:
                return Prediction(tuple(legs), problem=leg.problem)
            http = request.kind is RequestKind.HTTP
            return Prediction(
                tuple(legs), server, arrival.source, hops if http else (), path if http else ""
            )
        if listener.answer:
            return Prediction(tuple(legs), server=listener.answer)
        if listener.statistics:
            return Prediction(tuple(legs))
        if request.kind is RequestKind.HTTP:
            hops += (f"{place.proxy.name} {listener.name}",)
            path = _rewritten(listener, path)
        start = _onward(place, listener, start, arrival.source)
    return Prediction(tuple(legs), problem="it goes round in a circle", loops=True)


def _listener(arrival: _Arrival) -> Listener | None:
    if arrival.node is None or arrival.node.proxy is None:
        return None
    listeners = arrival.node.proxy.listeners
    return next((each for each in listeners if each.port == arrival.port), None)


def _server(arrival: _Arrival) -> str:
    if arrival.node is None:
        return ""
    servers = arrival.node.servers
    return next((each.name for each in servers if each.port == arrival.port), "")


def _problem(arrival: _Arrival) -> str:
    return arrival.problem or f"nothing listens on port {arrival.port}"


def _rewritten(listener: Listener, path: str) -> str:
    for each in listener.rewrites:
        if path.startswith(each.prefix):
            return each.to + path.removeprefix(each.prefix)
    return path


def _onward(node: Node, listener: Listener, start: _Start, source: str) -> _Start:
    """The connection that a listener makes for the one it took."""
    address, port = start.address, start.port
    family = family_of(address)
    for each in listener.upstreams:
        if not each.destinations or address in each.destinations:
            address, port = next(
                target for target in each.targets if family_of(target[0]) is family
            )
    bound, mark = "", 0
    if listener.source is SourceAddress.BOUND:
        bound = _PASSED_ON[":" in address]
    elif listener.source is SourceAddress.CLIENT:
        bound, mark = source, listener.mark
    assert node.proxy is not None  # noqa: S101 - it has a listener
    return _Start(node, node.proxy.identity, address, port, bound, mark)


def _delivered(
    node: Node, packet: Packet, outcome: Outcome, source: str, places: tuple[RuleAddress, ...]
) -> _Arrival:
    taken_to = outcome.to_port or 0
    return _Arrival(node, taken_to or packet.destination_port or 0, source, places, taken_to)


def _zone(outcome: Outcome) -> str:
    """The zone of connection tracking that a packet is in: the first that a rule gives it."""
    for step in outcome.steps:
        target = step.rule.target if step.rule else None
        zone = target.option("--zone") if target and target.name == "CT" else None
        if zone is not None:
            return zone.values[0]
    return "0"


class _Wires:
    """What carries a connection: the wires between nodes, and the rules at their ends."""

    def __init__(self, nodes: Mapping[str, Node], plan: DesiredState) -> None:
        self._nodes, self._plan = nodes, plan

    def carry(self, start: _Start, protocol: int) -> _Arrival:
        """Where the connection arrives, through the rules of both ends."""
        arrival = self._carry(start, protocol)
        if start.source == _PASSED_ON[1] and not self._plan.addresses:
            # Native rules capture IPv6 that is off; the address goes with rules for IPv6.
            problem = (
                f"{start.source} is not an address of {start.node.name}: nothing comes back to it"
            )
            return arrival._replace(node=None, problem=problem)
        return arrival

    def _carry(self, start: _Start, protocol: int) -> _Arrival:
        node = start.node
        interface, chosen = node.way_to(start.address)
        source = start.source or chosen
        packet = Packet(
            family_of(start.address),
            protocol,
            source,
            start.address,
            _ANY_PORT,
            start.port,
            out_interface=interface,
            uid=start.identity.uid,
            gid=start.identity.gid,
            mark=start.mark,
        )
        places: tuple[RuleAddress, ...] = ()
        if node.captured:
            outcome, places, problem = self._through(node, packet)
            if outcome is None:
                return _Arrival(None, 0, source, places, problem=problem)
            packet = outcome.packet
            if outcome.end is End.DELIVERED:
                return _delivered(node, packet, outcome, source, places)
            if protocol == IPPROTO_UDP:
                places += self._answered(node, packet, interface, _zone(outcome))
        elif interface == "lo":
            return _Arrival(node, start.port, source)
        return self._received(node, packet, source, places)

    def _answered(
        self, node: Node, packet: Packet, interface: str, zone: str
    ) -> tuple[RuleAddress, ...]:
        """The nat rules that the answer to a datagram meets: none, unless it is in another zone.

        The kernel knows an answer by the zone of the question. With DNS capture, raw puts the
        two in different ones where the question was not redirected after all, and nat is asked
        about the answer as about a first packet.
        """
        answer = packet._replace(
            source=packet.destination,
            source_port=packet.destination_port,
            destination=packet.source,
            destination_port=packet.source_port,
            in_interface=interface,
            out_interface="",
            uid=None,
            gid=None,
            mark=0,
            zone=0,
        )
        outcome, places, _ = self._through(node, answer)
        if outcome is None or _zone(outcome) == zone:
            return ()
        return tuple(place for place in places if place.counts_connections)

    def _received(
        self, sender: Node, packet: Packet, source: str, places: tuple[RuleAddress, ...]
    ) -> _Arrival:
        """Where the packet arrives that *sender* has put on the wire."""
        address, port = packet.destination or "", packet.destination_port or 0
        there = next(
            (each for each in self._nodes.values() if each is not sender and each.has(address)),
            None,
        )
        if there is None:
            return _Arrival(None, 0, source, places, problem=f"no host has the address {address}")
        if not there.captured:
            return _Arrival(there, port, source, places)
        interface, _ = there.way_to(source)
        came = packet._replace(in_interface=interface, out_interface="", uid=None, gid=None, mark=0)
        outcome, more, problem = self._through(there, came)
        if outcome is None:
            return _Arrival(None, 0, source, places + more, problem=problem)
        return _delivered(there, outcome.packet, outcome, source, places + more)

    def _through(
        self, node: Node, packet: Packet
    ) -> tuple[Outcome | None, tuple[RuleAddress, ...], str]:
        """The one outcome of a packet that meets a node's rules, or why there is none."""
        family = packet.family
        ruleset = next((each for each in self._plan.rulesets if each.family is family), None)
        if ruleset is None:
            end = End.SENT if packet.out_interface not in {"", "lo"} else End.DELIVERED
            return Outcome(end, packet, ()), (), ""
        addresses = {
            each.name: tuple(text.partition("/")[0] for text in each.addresses)
            for each in node.interfaces
        }
        world = Surroundings({"lo": (loopback(family),), **addresses}, self._plan.routes)
        followed = trace(ruleset, packet, world)
        if len(followed.outcomes) != 1:
            return None, (), "the rules can't be followed to one end"
        (outcome,) = followed.outcomes
        places = tuple(
            RuleAddress(node.name, family, step.table, step.chain, step.number)
            for step in outcome.steps
            if step.number is not None
        )
        if outcome.end not in {End.SENT, End.DELIVERED}:
            return None, places, f"{outcome.end.value} by the rules"
        return outcome, places, ""
