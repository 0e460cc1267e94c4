"""One packet through a ruleset: the rules it passes, in the kernel's order, and where it ends.

A rule that can't be decided is followed both ways, so a trace has one outcome or several; each
says on which answers it rests. nat is asked once a connection and direction, as in the kernel:
a packet that comes back over loopback has been through it. Connections are taken to be tracked:
the kernel does so as soon as one rule redirects or asks for a state, and nat means nothing before.
"""

from __future__ import annotations

from itertools import islice, product
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.netfilter.model import PRIORITIES, Family
from istio_iptables.netfilter.packet import is_link_local, is_loopback, is_multicast
from istio_iptables.netfilter.questions import among, named, same
from istio_iptables.netfilter.sets import one_number
from istio_iptables.trace.table import (
    MAX_STEPS,
    Assumption,
    Called,
    End,
    Tie,
    TraceStep,
    Translation,
    Walk,
    Way,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import TypeAlias

    from istio_iptables.netfilter.model import Ruleset
    from istio_iptables.netfilter.packet import Packet, Route, Surroundings

    #: What the kernel calls of one priority, one after the other: a chain, or all chains of nat.
    _Order: TypeAlias = "tuple[tuple[Called, ...], ...]"

__all__ = [
    "MAX_OUTCOMES",
    "MAX_STEPS",
    "Assumption",
    "End",
    "Outcome",
    "Tie",
    "Trace",
    "TraceStep",
    "has_ties",
    "trace",
]

#: How many ways a packet is followed when rules can't be decided.
MAX_OUTCOMES = 32
#: How many orders of chains of one priority are tried: all of four tables.
_MAX_ORDERS = 24

#: The tables of iptables with rules at each hook, in the kernel's order.
_HOOKS = {
    "PREROUTING": ("raw", "mangle", "nat"),
    "INPUT": ("mangle", "filter", "security", "nat"),
    "FORWARD": ("mangle", "filter", "security"),
    "OUTPUT": ("raw", "mangle", "nat", "filter", "security"),
    "POSTROUTING": ("mangle", "nat"),
}
_SOURCE_NAT, _DESTINATION_NAT, _TRACKING = 100, -100, -200
_DESTINATION_HOOKS = frozenset({"PREROUTING", "OUTPUT"})
_NAT_HOOKS = frozenset({"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"})
#: Targets behind which nat has nothing more to ask about the connection.
_MAPS = frozenset({"DNAT", "MASQUERADE", "NETMAP", "REDIRECT", "SNAT"})
_LO = "lo"
#: What leads out of a pod when nothing says how that is called.
_OUTSIDE = "eth0"
_TCP = 6
#: States of packets that may be the first of their connection: only those does nat see.
_FIRST = named("NEW", "RELATED")


class Outcome(NamedTuple):
    """One way the packet can take, and its end."""

    end: End
    #: The packet as it is at the end.
    packet: Packet
    steps: tuple[TraceStep, ...]
    assumptions: tuple[Assumption, ...] = ()
    #: How it was handed to a local port that it had not asked for: REDIRECT, TPROXY or "".
    taken_by: str = ""
    to_port: int | None = None
    #: Whether a policy route delivered the packet here because of its mark.
    by_mark: bool = False
    #: Whether nat gave it another destination.
    translated: bool = False
    #: The packet as it set out.
    start: Packet | None = None
    #: The hooks that it came to, in their order; those of a second journey are there twice.
    hooks: tuple[str, ...] = ()
    #: Why the kernel has no route for it; "" if there is one, or it wasn't asked.
    refused: str = ""


class Trace(NamedTuple):
    """The ways that a packet can take: one, unless something could not be decided."""

    packet: Packet
    outcomes: tuple[Outcome, ...]
    #: False if there were more ways than are followed.
    complete: bool = True


def trace(ruleset: Ruleset, packet: Packet, world: Surroundings, *, misses: bool = False) -> Trace:
    """The way of *packet* through *ruleset*: out if it comes from no interface, in otherwise.

    With *misses*, each step also has the rules that were asked in vain before it.
    """
    journeys = _Journeys(ruleset, world, misses=misses)
    outcomes: list[Outcome] = []
    for start in _starts(ruleset, packet, world):
        for way in (
            journeys.outgoing(start) if packet.in_interface == "" else journeys.incoming(start)
        ):
            if len(outcomes) == MAX_OUTCOMES:
                return Trace(packet, tuple(outcomes), complete=False)
            outcomes.append(
                Outcome(
                    way.end or End.UNKNOWN,
                    way.packet,
                    way.steps,
                    way.assumptions,
                    way.taken_by,
                    way.to_port,
                    way.by_mark,
                    way.translated,
                    packet,
                    way.hooks,
                    way.refused,
                )
            )
    return Trace(packet, tuple(outcomes), complete=not journeys.cut)


def has_ties(ruleset: Ruleset) -> bool:
    """Whether chains of one priority may be asked in several orders."""
    return any(len(orders) > 1 for hook in _HOOKS for orders in _calls(ruleset, hook))


def _starts(ruleset: Ruleset, packet: Packet, world: Surroundings) -> Iterator[Way]:
    """The ways on which the packet can set out: more than one if its connection has a past.

    nat does to a later packet what it did to the first one, if that went the same direction.
    """
    if not among(packet.state, named("ESTABLISHED")):
        yield Way(packet)
        return
    first = trace(ruleset, packet._replace(state="NEW", connmark=0), world)
    pasts = {
        Translation(
            each.packet.destination, each.packet.destination_port, each.taken_by, each.to_port
        ): each
        for each in first.outcomes
        if each.translated
    }
    for past, outcome in pasts.items():
        text = f"such a packet opened the connection, and was sent to {outcome.packet.endpoints[1]}"
        yield Way(packet, kept=past).assuming("", text, answer=True)
    if pasts:
        text = "such a packet opened the connection"
        yield Way(packet).assuming("", text, answer=False)
    else:
        yield Way(packet)


class _Journeys:
    """The hooks of a packet's journey, one after the other."""

    def __init__(self, ruleset: Ruleset, world: Surroundings, *, misses: bool) -> None:
        self._world = world
        self._misses = misses
        self._chains = {
            table.name: {chain.name: chain for chain in table.chains} for table in ruleset.tables
        }
        self._calls = {hook: tuple(_calls(ruleset, hook)) for hook in _HOOKS}
        #: Whether a hook was come to whose chains may be asked in more orders than are tried.
        self.cut = False

    def outgoing(self, start: Way) -> Iterator[Way]:
        """From a process here to the network, or over loopback to a process here."""
        start = start._replace(
            next_interface=start.packet.out_interface,
            bound_to=self._bound_to(start.packet),
            routed_mark=start.packet.mark,
        )
        route = self._world.route(start.packet)
        if route is not None and route.refused:
            yield start._replace(end=End.UNROUTED, refused=route.refused)
            return
        for sent in self._hook(start, "OUTPUT"):
            for way in self._reroute(sent):
                for left in self._hook(way, "POSTROUTING"):
                    if left.end is None and _is_lo(left.packet.out_interface):
                        yield from self._comes_back(left)
                    else:
                        yield _end_at(left, End.SENT)

    def _bound_to(self, packet: Packet) -> str:
        """The interface that a socket is bound to because it speaks to a link-local address.

        Only in IPv6, where such an address is nothing without an interface.
        """
        destination = packet.destination
        if (
            packet.family is not Family.IPV6
            or destination is None
            or not is_link_local(destination, packet.family)
        ):
            return ""
        if not _is_lo(packet.out_interface):
            return packet.out_interface or _OUTSIDE
        return self._world.interface_of(destination, packet.family) or _OUTSIDE

    def _bound_or_not(self, way: Way) -> Iterator[tuple[Way, bool]]:
        """Whether the new route has to lead out of one interface; UDP need not be bound to it."""
        if not way.bound_to or among(way.packet.protocol, one_number(_TCP)):
            yield way, bool(way.bound_to)
            return
        text = f"its socket is bound to {way.bound_to}"
        for answer in (True, False):
            yield way.assuming("", text, answer=answer), answer

    def _reroute(self, way: Way) -> Iterator[Way]:
        """The way behind OUTPUT, where what changed the packet may have changed its route."""
        packet = way.packet
        if way.end is not None or way.next_interface is not None:
            yield way._replace(packet=packet._replace(out_interface=way.next_interface))
            return
        route = None if way.bound_to else self._world.route(packet)
        if route is not None:
            yield self._by_route(way, route)
            return
        for sent, bound in self._bound_or_not(way):
            if bound:
                # What is not on that interface can't be reached, ::1 neither.
                for routed, local in self._local_or_not(sent._replace(by_mark=False)):
                    on = self._world.interface_of(packet.destination or "", packet.family)
                    near = local and on in {None, way.bound_to} and not _is_loopback(packet)
                    there = packet._replace(out_interface=_LO if near else way.bound_to)
                    yield routed._replace(packet=there)
                continue
            for asked, by_mark in self._by_mark_or_not(sent):
                if by_mark:
                    home = packet._replace(out_interface=_LO)
                    yield asked._replace(packet=home, by_mark=True)
                    continue
                for routed, local in self._local_or_not(asked._replace(by_mark=False)):
                    there = packet._replace(out_interface=_LO if local else None)
                    yield routed._replace(packet=there)

    def _by_route(self, way: Way, route: Route) -> Way:
        """The way of a packet that the kernel has been asked about."""
        packet = way.packet
        if route.refused:
            return way._replace(end=End.DROPPED, refused=route.refused)
        return way._replace(
            packet=packet._replace(out_interface=route.interface),
            by_mark=bool(self._world.is_routed_home(packet)),
        )

    def _by_mark_or_not(self, way: Way) -> Iterator[tuple[Way, bool]]:
        """Whether a policy route delivers the packet here; both when its mark isn't known."""
        packet = way.packet
        home = self._world.is_routed_home(packet)
        if home is None and self._world.is_local(packet.destination, packet.family):
            # It is delivered here with any mark.
            home = False
        if home is not None:
            yield way, home
            return
        text = "its mark is one that a policy route delivers here"
        for answer in (True, False):
            yield way.assuming("", text, answer=answer), answer

    def _local_or_not(self, way: Way) -> Iterator[tuple[Way, bool]]:
        """Whether the packet's destination is this machine; both when that can't be known."""
        packet = way.packet
        local = self._world.is_local(packet.destination, packet.family)
        if local is not None:
            yield way, local
            return
        text = f"{packet.destination or 'the new destination'} is an address of this machine"
        for answer in (True, False):
            yield way.assuming("", text, answer=answer), answer

    def _comes_back(self, way: Way) -> Iterator[Way]:
        """The second journey of a packet that was sent to this machine itself."""
        packet = way.packet._replace(in_interface=_LO, out_interface="", uid=None, gid=None)
        # Its connection is the one it left with, which has been through nat.
        way = way._replace(packet=_as_tracked(packet), journey=2)
        way = way._replace(destination_done=True, source_done=True)
        for arrived in self._hook(way, "PREROUTING"):
            yield from self._to_process(arrived)

    def incoming(self, start: Way) -> Iterator[Way]:
        """From an interface to a process here, or through to another machine."""
        if _is_lo(start.packet.in_interface):
            start = start._replace(packet=_as_tracked(start.packet))
            start = start._replace(destination_done=True, source_done=True)
        for arrived in self._hook(start, "PREROUTING"):
            if arrived.end is not None:
                yield arrived
                continue
            for way, local in self._route(arrived):
                yield from self._to_process(way) if local else self._forward(way)

    def _route(self, way: Way) -> Iterator[tuple[Way, bool]]:
        """Whether the packet is for this machine; both when that can't be known."""
        packet = way.packet
        if _is_lo(packet.in_interface):
            yield way, True
            return
        route = self._world.route(packet)
        if route is not None and (route.local or route.refused):
            there = self._by_route(way, route)
            yield there._replace(packet=packet), True
            return
        if route is not None:
            yield self._by_route(way, route), False
            return
        if is_multicast(packet.destination, packet.family):
            yield way, True
            return
        for asked, by_mark in self._by_mark_or_not(way):
            if by_mark:
                yield asked._replace(by_mark=True), True
            elif way.taken_by == "REDIRECT" or not (way.translated or self._world.addresses):
                # Where the addresses aren't known, what arrives was sent to this machine.
                yield asked, True
            else:
                yield from self._local_or_not(asked)

    def _to_process(self, way: Way) -> Iterator[Way]:
        for delivered in self._hook(way, "INPUT"):
            yield _end_at(delivered, End.DELIVERED)

    def _forward(self, way: Way) -> Iterator[Way]:
        if way.taken_by == "TPROXY":
            # The kernel does not forward what has a socket here.
            yield way._replace(end=End.DROPPED, refused="no route delivers it")
            return
        way = way._replace(
            packet=way.packet._replace(out_interface=way.packet.out_interface or None)
        )
        for passed in self._hook(way, "FORWARD"):
            for left in self._hook(passed, "POSTROUTING"):
                yield _end_at(left, End.FORWARDED)

    def _hook(self, way: Way, hook: str) -> Iterator[Way]:
        """The ways through all chains of a hook; one that has ended comes back as it is."""
        if way.end is None:
            way = way._replace(hooks=(*way.hooks, hook))
        yield from self._through(way, hook, self._calls[hook])

    def _through(
        self, way: Way, hook: str, stages: tuple[tuple[_Order, ...], ...]
    ) -> Iterator[Way]:
        if not stages or way.end is not None:
            yield way
            return
        for after in self._in_any_order(way, hook, stages[0]):
            yield from self._through(after, hook, stages[1:])

    def _in_any_order(self, way: Way, hook: str, orders: tuple[_Order, ...]) -> Iterator[Way]:
        """The ways through chains of one priority, for each order that makes a difference.

        The kernel asks the one that was registered last first, which can't be read from it.
        """
        if len(orders) == 1:
            yield from self._in_order(way, hook, orders[0])
            return
        if len(orders) > _MAX_ORDERS:
            if self._is_one_in_any_order(way, hook, orders[0]):
                yield from self._in_order(way, hook, orders[0])
                return
            self.cut = True
        results: list[tuple[list[Way], list[_Order]]] = []
        for order in orders[:_MAX_ORDERS]:
            ways = list(self._in_order(way, hook, order))
            for known, alike in results:
                if _come_to_the_same(known, ways):
                    alike.append(order)
                    break
            else:
                results.append((ways, [order]))
        if len(results) == 1:
            yield from results[0][0]
            return
        for ways, alike in results:
            text, chains = _said(alike, orders)
            tie = Assumption("", text, answer=True, tie=Tie(hook, chains))
            for after in ways:
                yield after._replace(assumptions=(*after.assumptions, tie))

    def _is_one_in_any_order(self, way: Way, hook: str, order: _Order) -> bool:
        """Whether no chain does anything, or one maps the connection and all are nat's."""
        chains = [each for calls in order for each in calls]
        # What asking does by itself: it is settled whether the packet is tracked, and nat is done.
        asked = way._replace(packet=_as_tracked(way.packet)._replace(early_state=""))
        acting = []
        for each in chains:
            ways = [
                after._replace(destination_done=way.destination_done, source_done=way.source_done)
                for after in self._in_order(way, hook, ((each,),))
            ]
            if not _come_to_the_same(ways, [asked]):
                acting.append(ways)
        if len(acting) != 1 or any(each.kind != "nat" for each in chains):
            return not acting
        ((one, *others),) = acting
        return not others and one.steps[-1].verdict in _MAPS

    def _in_order(self, way: Way, hook: str, calls: _Order) -> Iterator[Way]:
        if not calls or way.end is not None:
            yield way
            return
        called, rest = calls[0], calls[1:]
        if called and called[0].kind != "nat":
            (one,) = called
            for after in self._walk(way, hook, one):
                for settled in self._settle(way, after, hook, one.kind):
                    yield from self._in_order(settled, hook, rest)
            return
        if called and _asks_nat(hook, way):
            found = self._nat(way, hook, called, len(way.steps))
        elif hook in _DESTINATION_HOOKS and not way.destination_done:
            found = iter((_translate(way),))
        else:
            yield from self._in_order(way, hook, rest)
            return
        for after in found:
            for settled in self._settle(way, after, hook, "nat"):
                yield from self._in_order(settled, hook, rest)

    def _nat(self, way: Way, hook: str, called: tuple[Called, ...], start: int) -> Iterator[Way]:
        """The ways through the chains of nat, up to the first that maps the connection.

        *start* is how many steps there were before them.
        """
        mapped = len(way.steps) > start and way.steps[-1].verdict in _MAPS
        if not called or way.end is not None or mapped:
            yield way
            return
        for after in self._walk(way, hook, called[0]):
            yield from self._nat(after, hook, called[1:], start)

    def _walk(self, way: Way, hook: str, called: Called) -> Iterator[Way]:
        chains = self._chains[called.table]
        walk = Walk(hook=hook, called=called, chains=chains, world=self._world, misses=self._misses)
        early = called.priority < _TRACKING and called.kind != "nat" and hook in _DESTINATION_HOOKS
        if not early and chains[called.chain].base is not None:
            # Behind connection tracking it is settled whether it is tracked.
            way = way._replace(packet=_as_tracked(way.packet))
        for after in walk.ways(_early(way) if early else way):
            yield after._replace(packet=after.packet._replace(early_state=""))

    def _settle(self, before: Way, way: Way, hook: str, kind: str) -> Iterator[Way]:
        """What the kernel does behind a chain: nat is done; what was changed is routed anew."""
        packet = way.packet
        if kind == "nat" and hook in _DESTINATION_HOOKS:
            way = way._replace(destination_done=True)
        elif kind == "nat":
            way = way._replace(source_done=True)
        if hook != "OUTPUT" or way.end is not None:
            yield way
        elif kind == "route" and _has_other_mark(before, way):
            yield self._by_its_mark(way)
        elif kind == "route" and _may_be_routed_anew(before, way):
            # A mark that raw gave it counts only now, and only if the value is another one.
            anew = self._by_its_mark(way)
            differs = (
                anew.by_mark != way.by_mark
                or anew.end is not way.end
                or not same(anew.next_interface, way.next_interface)
            )
            text = "its TOS or hop limit is another now, so that it is routed anew by its mark"
            yield anew.assuming("", text, answer=True) if differs else way
            if differs:
                yield way.assuming("", text, answer=False)
        elif kind == "nat" and not same(
            packet.destination, before.packet.destination, packet.family
        ):
            yield from self._by_its_destination(way)
        else:
            yield way

    def _by_its_mark(self, way: Way) -> Way:
        """The way behind mangle for a packet that is routed anew, now that its mark is another."""
        packet = way.packet
        route = self._world.route(packet)
        if route is not None and not way.bound_to:
            if route.refused:
                # At once: what stands behind this chain never sees it.
                return way._replace(end=End.DROPPED, refused=route.refused)
            return way._replace(next_interface=None, by_mark=False)
        home = self._world.is_routed_home(packet)
        was = self._world.is_routed_home(packet._replace(mark=way.routed_mark))
        # A chain behind this one may change the mark once more.
        way = way._replace(routed_mark=packet.mark)
        if home and not way.bound_to:
            return way._replace(next_interface=_LO, by_mark=True)
        if home is not False or was is not False:
            # It may have lost the mark that led it here; where it goes, only routing knows.
            return way._replace(next_interface=None, by_mark=False)
        return way

    def _by_its_destination(self, way: Way) -> Iterator[Way]:
        """The way behind nat; from 127.0.0.0/8 no route leads to another machine.

        But for the setting route_localnet.
        """
        packet = way.packet
        if self._world.route(packet) is not None and not way.bound_to:
            yield way._replace(next_interface=None)
            return
        source, destination = packet.source, packet.destination
        local = self._world.is_local(destination, packet.family)
        home = self._world.is_routed_home(packet)
        if (local or home) and not way.bound_to:
            yield way._replace(next_interface=_LO, by_mark=bool(home))
            return
        if (
            packet.family is Family.IPV4
            and source is not None
            and is_loopback(source, packet.family)
            and not local
        ):
            text = f"a route leads from {source} to {destination or 'the new destination'}"
            yield way.assuming("", text, answer=False)._replace(end=End.DROPPED)
            way = way.assuming("", text, answer=True)
        yield way._replace(next_interface=None)


def _is_lo(name: str | None) -> bool:
    return name is not None and among(name, named(_LO))


def _calls(ruleset: Ruleset, hook: str) -> Iterator[tuple[_Order, ...]]:
    """What the kernel calls at a hook, one priority after the other, each in the orders it may have.

    A call is a chain, or all chains of nat at once.
    """
    place = _DESTINATION_NAT if hook in _DESTINATION_HOOKS else _SOURCE_NAT
    kinds = {"nat": "nat", "mangle": "route" if hook == "OUTPUT" else "filter"}
    found = [
        Called(name, hook, kinds.get(name, "filter"), place if name == "nat" else PRIORITIES[name])
        for name in _HOOKS[hook]
        for table in ruleset.tables
        if table.name == name and table.chain(hook)
    ]
    # Of chains of one priority in one table, the one that was made last is called first.
    found += [
        Called(table.name, chain.name, chain.base.kind, chain.base.priority)
        for table in reversed(ruleset.tables)
        for chain in reversed(table.chains)
        if chain.base is not None and chain.base.hook == hook and not table.dormant
    ]
    found.sort(key=attrgetter("priority"))
    idle = {each for each in found if _is_idle(ruleset, each)}
    nat = [each for each in found if each.kind == "nat"]
    mappings = [
        tuple(one for part in parts for (one,) in part)
        for parts in islice(
            product(
                *(
                    tuple(_orders([(each,) for each in nat if each.priority == priority], idle))
                    for priority in dict.fromkeys(each.priority for each in nat)
                )
            ),
            _MAX_ORDERS + 1,
        )
    ]
    others = [each for each in found if each.kind != "nat"]
    places = {each.priority for each in others} | ({place} if hook in _NAT_HOOKS else set())
    for priority in sorted(places):
        here = [(each,) for each in others if each.priority == priority]
        if priority != place or hook not in _NAT_HOOKS:
            yield tuple(_orders(here, idle))
            continue
        orders = (order for one in mappings for order in _orders([one, *here], idle))
        yield tuple(islice(orders, _MAX_ORDERS + 1))


def _is_idle(ruleset: Ruleset, called: Called) -> bool:
    """Whether a chain lets everything pass, whenever it is asked."""
    table = ruleset.table(called.table)
    chain = table.chain(called.chain) if table else None
    return chain is None or (not chain.rules and chain.policy in {None, "ACCEPT"})


def _orders(calls: Sequence[tuple[Called, ...]], idle: set[Called]) -> Iterator[_Order]:
    """The orders that *calls* may have; of one table only the one in which they are."""
    still = tuple(each for each in calls if idle.issuperset(each))
    moving = [each for each in calls if not idle.issuperset(each)]
    # nat is a caller of its own, of whichever tables its chains are.
    owners = [
        "nat" if each[0].kind == "nat" and len(each) > 1 else each[0].table for each in moving
    ]
    queues: dict[str, _Order] = {}
    for owner, call in zip(owners, moving, strict=True):
        queues[owner] = (*queues.get(owner, ()), call)
    return islice(((*still, *order) for order in _merged(queues.values())), _MAX_ORDERS + 1)


def _merged(queues: Iterable[_Order]) -> Iterator[_Order]:
    """Every order of all members in which those of each queue keep theirs."""
    waiting: list[tuple[_Order, tuple[_Order, ...]]] = [((), tuple(queues))]
    while waiting:
        order, left = waiting.pop()
        if len(left) <= 1:
            yield (*order, *(call for queue in left for call in queue))
            continue
        for at in reversed(range(len(left))):
            first, *rest = left[at]
            others = (*left[:at], tuple(rest), *left[at + 1 :])
            waiting.append(((*order, first), tuple(filter(None, others))))


def _before(order: _Order) -> set[tuple[str, str]]:
    """Which chains are asked before which, in one order."""
    names = [f"{each.table} {each.chain}" for calls in order for each in calls]
    return {(one, other) for at, one in enumerate(names) for other in names[at + 1 :]}


def _said(alike: Iterable[_Order], orders: Iterable[_Order]) -> tuple[str, tuple[str, ...]]:
    """What the orders *alike* have in common and others have not, and the chains it is about."""
    always = set.intersection(*map(_before, orders))
    shared = sorted(set.intersection(*map(_before, alike)) - always)
    told = [
        (one, other)
        for one, other in shared
        if not any((one, name) in shared and (name, other) in shared for name, _ in shared)
    ]
    chains = tuple(
        sorted({name for pair in set.union(*map(_before, orders)) - always for name in pair})
    )
    if not told:
        return f"the kernel asks {', '.join(chains)} in some other order", chains
    pairs = " and ".join(f"{one} before {other}" for one, other in told)
    return f"the kernel asks {pairs}", chains


def _come_to_the_same(some: list[Way], others: list[Way]) -> bool:
    """Whether the ways of two orders are the same but for the rules that were passed."""
    return len(some) == len(others) and all(
        any(_comes_to(one, other) for other in others) for one in some
    )


def _comes_to(one: Way, other: Way) -> bool:
    if one.end is not other.end or set(one.assumptions) != set(other.assumptions):
        return False
    if one.end is not None:
        return one.refused == other.refused
    family = one.packet.family
    return (
        all(
            same(getattr(one.packet, field), getattr(other.packet, field), family)
            for field in ("source", "destination")
        )
        and all(
            same(value, beside)
            for field, value, beside in zip(one._fields, one, other, strict=True)
            if field not in _PASSED
        )
        and all(
            same(value, beside)
            for field, value, beside in zip(
                one.packet._fields, one.packet, other.packet, strict=True
            )
            if field not in {"source", "destination"}
        )
    )


#: What of a way tells how the packet came where it is, and not what becomes of it.
_PASSED = frozenset({"packet", "steps", "misses", "assumptions"})


def _is_loopback(packet: Packet) -> bool:
    return packet.destination is not None and is_loopback(packet.destination, packet.family)


def _has_other_mark(before: Way, way: Way) -> bool:
    """Whether the mark was changed; one that isn't known may be another after any change."""
    mark = way.packet.mark
    changed = any(step.change for step in way.steps[len(before.steps) :])
    return not same(mark, before.packet.mark) or (mark is None and changed)


def _may_be_routed_anew(before: Way, way: Way) -> bool:
    """Whether a target changed what the kernel looks at beside the mark, which has changed."""
    targets = {step.verdict for step in way.steps[len(before.steps) :]}
    return bool(targets & _ROUTED_ANEW) and not same(way.packet.mark, way.routed_mark)


#: Targets in mangle that may change the TOS or, in IPv6, the hop limit.
_ROUTED_ANEW = frozenset({"DSCP", "ECN", "HL", "SET-FIELD", "TOS"})


def _early(way: Way) -> Way:
    """The way before connection tracking, where a packet has no connection yet.

    A packet that comes back over loopback has brought its own.
    """
    if way.packet.settled:
        return way
    return way._replace(packet=way.packet._replace(early_state="INVALID"))


def _as_tracked(packet: Packet) -> Packet:
    """A packet that brings its connection with it; one that has none is looked at anew."""
    return packet._replace(settled=not among(packet.state, named("INVALID")))


def _asks_nat(hook: str, way: Way) -> bool:
    """Whether the kernel asks nat: only for the first packet, once a direction."""
    if not among(way.packet.state, _FIRST) or way.packet.is_error:
        return False
    return not (way.destination_done if hook in _DESTINATION_HOOKS else way.source_done)


def _translate(way: Way) -> Way:
    """The way behind nat for a packet whose connection nat has dealt with already."""
    if way.kept is None:
        return way
    destination, port, taken_by, to_port = way.kept
    packet = way.packet._replace(destination=destination, destination_port=port)
    return way._replace(packet=packet, taken_by=taken_by, to_port=to_port, translated=True)


def _end_at(way: Way, end: End) -> Way:
    return way if way.end is not None else way._replace(end=end)
