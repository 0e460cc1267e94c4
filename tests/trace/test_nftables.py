"""Packets through native rules: what holds, what is done, and in which order the kernel asks.

tests/kernel/test_trace_native.py holds the same code against the kernel; here is what can't be
sent there, and what can't be known.
"""

from __future__ import annotations

import pytest

from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.nftlisting import families, read_listing
from istio_iptables.netfilter.packet import Packet, Surroundings
from istio_iptables.netfilter.plan import PolicyRoute
from istio_iptables.trace.hooks import End, Outcome, Trace, trace

TCP = Packet(
    Family.IPV4, 6, "10.0.0.2", "1.2.3.4", 40000, 80, out_interface="eth0", uid=1000, gid=1001
)
COMING = Packet(Family.IPV4, 6, "1.2.3.4", "10.0.0.2", 40000, 80, in_interface="eth0")
IPV6 = TCP._replace(family=Family.IPV6, source="fd00::2", destination="2001:db8::1")
UDP = TCP._replace(protocol=17, destination_port=53)
ICMP = TCP._replace(protocol=1, source_port=None, destination_port=None)
POD = Surroundings({"eth0": ("10.0.0.2", "fd00::2"), "lo": ("127.0.0.1", "::1")})
NOWHERE = Surroundings()

OUTPUT = "type filter hook output priority 0; policy accept;"
SETS = """
	set nets {
		type ipv4_addr
		flags interval
		elements = { 1.2.0.0/16, 9.9.9.9 counter packets 1 bytes 2, 7.7.7.7 comment "x" }
	}

	set moving {
		type ipv4_addr
		size 9
		flags dynamic
	}

	set odd {
		type ipv4_addr
		elements = { 1.2.3.4 . 80 }
	}

	set empty {
		type ipv4_addr
	}

	map verdicts {
		type inet_service : verdict
		elements = { 80 : drop, 81-90 : jump a }
	}

	map broken {
		type inet_service : verdict
		elements = { 80 : what }
	}
"""


def ways(  # noqa: PLR0913 - what differs between tests
    rules: str,
    packet: Packet = TCP,
    world: Surroundings = NOWHERE,
    *,
    base: str = OUTPUT,
    a: str = "",
    misses: bool = False,
) -> Trace:
    """A packet through the rules of a base chain, one a line, beside a chain ``a``."""
    listing = f"table inet t {{\n{SETS}\nchain a {{\n{a}\n}}\nchain x {{\n{base}\n{rules}\n}}\n}}"
    return through(listing, packet, world, misses=misses)


def through(
    listing: str, packet: Packet = TCP, world: Surroundings = NOWHERE, *, misses: bool = False
) -> Trace:
    """A packet through what nft lists."""
    found = families(read_listing(listing.splitlines()))
    ruleset = next(each for each in found if each.family is packet.family)
    return trace(ruleset, packet, world, misses=misses)


def way(
    rules: str, packet: Packet = TCP, world: Surroundings = NOWHERE, *, base: str = OUTPUT
) -> Outcome:
    """The only way of a packet."""
    (only,) = ways(rules, packet, world, base=base).outcomes
    return only


def holds(condition: str, packet: Packet = TCP, world: Surroundings = NOWHERE) -> bool | None:
    """Whether a condition holds; None if that is followed both ways."""
    hook = "output" if packet.in_interface == "" else "prerouting"
    base = OUTPUT.replace("output", hook)
    found = ways(f"{condition} drop", packet, world, base=base).outcomes
    ends = {each.end is End.DROPPED for each in found}
    return ends.pop() if len(ends) == 1 else None


@pytest.mark.parametrize(
    ("condition", "packet", "answer"),
    [
        ("meta l4proto tcp", TCP, True),
        ("meta l4proto != { tcp, 17 }", TCP, False),
        ("meta l4proto 1-20", TCP, True),
        ("ip protocol what", TCP, None),
        ("tcp dport 80", TCP, True),
        ("tcp dport != 80-90", TCP, False),
        ("tcp dport { 53, 79-81, 80-200 }", TCP, True),
        ("tcp dport { 53, 90-100 }", TCP, False),
        ("tcp dport < 80", TCP, False),
        ("tcp dport <= 80", TCP, True),
        ("tcp dport > 79", TCP, True),
        ("tcp dport >= 81", TCP, False),
        ("tcp dport < 80-90", TCP, None),
        ("tcp dport nosuchservice", TCP, None),
        ("tcp dport { 80, nosuchservice }", TCP, True),
        ("tcp dport { 81, nosuchservice }", TCP, None),
        # A field that the packet lacks fails in either sense.
        ("udp dport != 53", TCP, False),
        ("tcp dport != 80", UDP, False),
        ("ip6 daddr != ::1", TCP, False),
        ("ip daddr != 1.2.3.4", IPV6, False),
        ("th dport 53", UDP, True),
        ("th dport 53", ICMP, None),
        ("ip saddr 10.0.0.0/8", TCP, True),
        ("ip daddr 1.2.3.0-1.2.3.9", TCP, True),
        ("ip daddr 1.2.3.0-what", TCP, None),
        ("ip daddr 1.2.3.0/33", TCP, None),
        ("ip daddr != 1.2.0.0/16", TCP, False),
        ("ip6 daddr 2001:db8::/32", IPV6, True),
        ("ip daddr @nets", TCP, True),
        ("ip daddr != @nets", TCP, False),
        ("ip daddr @nets", TCP._replace(destination="9.9.9.9"), True),
        ("ip daddr @nets", TCP._replace(destination="7.7.7.7"), True),
        ("ip daddr @nets", TCP._replace(destination="8.8.8.8"), False),
        ("ip daddr @empty", TCP, False),
        ("ip daddr @moving", TCP, None),
        ("ip daddr @odd", TCP, None),
        ("ip daddr @absent", TCP, None),
        ("ip daddr 1.2.3.4", TCP._replace(destination=None), None),
        ('oifname "eth0"', TCP, True),
        ('oifname "eth*"', TCP, True),
        (r'oifname "eth\*"', TCP, False),
        ('oifname != { "lo", "net*" }', TCP, True),
        ('iifname "eth0"', COMING, True),
        ("meta nfproto ipv6", IPV6, True),
        ("meta protocol ip", TCP, True),
        ("meta mark 0x1", TCP._replace(mark=1), True),
        ("meta mark & 0xf0 == 0x10", TCP._replace(mark=0x15), True),
        ("meta mark & 0xf0 != 0x10", TCP._replace(mark=0x15), False),
        ("meta mark & what == 0x10", TCP, None),
        ("meta mark 0x1", TCP._replace(mark=None), None),
        ("ct mark 0x1", TCP._replace(connmark=1), True),
        ("ct mark != 0x1", TCP._replace(state="UNTRACKED"), False),
        ("ct state new", TCP, True),
        ("ct state established,related", TCP, False),
        ("ct state != invalid", TCP, True),
        ("ct state != established | related", TCP, None),
        ('ct helper "ftp"', TCP, None),
        ("meta skuid 1000", TCP, True),
        ("meta skuid != 1000", TCP, False),
        ("meta skgid 1000-1002", TCP, True),
        ("meta skuid != 1000", TCP._replace(uid=None, gid=None), False),
        # Who has the socket of what arrives, nobody knows here.
        ("meta skuid 1000", COMING, None),
        ("ip ttl 64", TCP, None),
        ("ip daddr . tcp dport { 1.2.3.4 . 80 }", TCP, None),
        ("limit rate 1/second", TCP, None),
        ("quota 10 mbytes", TCP, None),
        ("log", TCP, True),
        ("counter", TCP, True),
        ('counter name "x"', TCP, True),
    ],
)  # fmt: skip
def test_conditions(condition: str, packet: Packet, answer: bool | None) -> None:  # noqa: FBT001 - a case
    """They hold, they do not, or nobody knows."""
    assert holds(condition, packet) is answer


@pytest.mark.parametrize(
    ("condition", "packet", "answer"),
    [
        ("fib daddr type local", TCP, False),
        ("fib daddr type != local", TCP, True),
        ("fib daddr type local", TCP._replace(destination="10.0.0.2"), True),
        ("fib daddr type { local, broadcast }", TCP, None),
        ("fib saddr type local", TCP, True),
        ("fib daddr type local", TCP._replace(destination=None), None),
        ("fib daddr type local", IPV6._replace(destination="fd00::2"), True),
        ("fib daddr type local", IPV6._replace(destination="fe80::2"), None),
    ],
)
def test_addresses_of_the_machine(condition: str, packet: Packet, answer: bool | None) -> None:  # noqa: FBT001 - a case
    """They are told by those that are known."""
    assert holds(condition, packet, POD) is answer


@pytest.mark.parametrize(
    ("rules", "end"),
    [
        ("tcp dport vmap { 80 : drop, 81 : accept }", {End.DROPPED}),
        ("tcp dport vmap { 81 : drop }", {End.SENT}),
        ("tcp dport vmap @verdicts", {End.DROPPED}),
        ("tcp dport vmap @broken", {End.UNKNOWN, End.SENT}),
        ("tcp dport vmap @absent", {End.UNKNOWN, End.SENT}),
        ("tcp dport vmap { 80 : continue } counter drop", {End.DROPPED}),
        ("tcp dport vmap { nosuchservice : drop }", {End.UNKNOWN, End.SENT}),
        ("udp dport vmap { 80 : drop }", {End.SENT}),
        ("ct state vmap { invalid : drop, new : jump a }", {End.DROPPED}),
        ("numgen inc mod 2 vmap { 0 : accept, 1 : drop }", {End.UNKNOWN, End.SENT}),
        ("goto a", {End.DROPPED}),
        ("return\ndrop", {End.SENT}),
        ("accept\ndrop", {End.SENT}),
        ("reject with tcp reset", {End.DROPPED}),
        ("queue to 3", {End.UNKNOWN, End.SENT}),
        ('log prefix "x"\ndrop', {End.DROPPED}),
        # What nobody knows may change the mark, and more.
        ("quota 10 mbytes\nmeta mark 0x0 drop", {End.DROPPED, End.SENT, End.UNKNOWN}),
        ("meta mark set jhash ip saddr mod 2\nmeta mark 0x0 drop", {End.DROPPED, End.SENT, End.UNKNOWN}),
    ],
)  # fmt: skip
def test_verdicts(rules: str, end: set[End]) -> None:
    """By maps too; what is not understood is followed both ways."""
    assert {each.end for each in ways(rules, a="drop").outcomes} == end


@pytest.mark.parametrize(
    ("rules", "mark", "connmark"),
    [
        ("meta mark set 0x7", 7, 0),
        ("meta mark set meta mark | 0x4", 4, 0),
        ("meta mark set 0x7 ct mark set meta mark", 7, 7),
        ("ct mark set 0x9\nmeta mark set ct mark", 9, 9),
        # What was done before a condition failed stays.
        ("meta mark set 0x7 tcp dport 81 drop", 7, 0),
        ("ip ttl 3 meta mark set 0x7 tcp dport 81 drop", None, None),
    ],
)
def test_marks(rules: str, mark: int | None, connmark: int | None) -> None:
    """As the kernel computes them."""
    packet = way(rules).packet
    assert (packet.mark, packet.connmark) == (mark, connmark)


def test_other_fields_are_set() -> None:
    """Where the packet has them; what they are then is not known."""
    assert way("ip daddr set 1.2.3.4").packet.destination is None
    assert way("tcp dport set 81").packet.destination_port is None
    assert way("ip dscp set cs1").packet._replace(settled=False) == TCP
    assert way("tcp dport set 81 drop", UDP).end is End.SENT
    assert way("ip6 daddr set ::1 drop").end is End.SENT
    assert (
        way("ct mark set 0x1 meta mark set ct mark", TCP._replace(state="UNTRACKED")).packet.mark
        == 0
    )


NAT = "type nat hook output priority -100; policy accept;"


def test_nat_is_asked_once() -> None:
    """The first chain that maps ends it; a statement for the other family does nothing."""
    outcome = way("meta l4proto tcp redirect to :15001", TCP, POD, base=NAT)
    assert (outcome.end, outcome.taken_by, outcome.to_port) == (End.DELIVERED, "REDIRECT", 15001)
    other = way("dnat ip6 to [::1]:80 accept", TCP, POD, base=NAT)
    assert (other.translated, other.steps[0].verdict) == (False, "ACCEPT")
    listing = "".join(
        f"table inet {name} {{\nchain x {{\ntype nat hook output priority {priority};\n"
        f"meta l4proto tcp redirect to :{port}\n}}\n}}\n"
        for name, priority, port in (("b", "-100", 1), ("a", "-110", 2))
    )
    (outcome,) = through(listing, TCP, POD).outcomes
    assert outcome.to_port == 2
    assert [step.table for step in outcome.steps] == ["inet a"]


def test_chains_are_called_by_their_priority() -> None:
    """Of equal ones the last that was made comes first; a table that is dormant does not."""
    listing = "".join(
        f"table inet {name} {{\n{flags}\nchain x {{\ntype filter hook output priority {priority};"
        " policy accept;\ncounter\n}\n}\n"
        for name, priority, flags in (
            ("a", "0", ""),
            ("b", "0", ""),
            ("c", "raw", ""),
            ("d", "5", "flags dormant"),
        )
    )
    steps = [step.table for step in way_of(listing).steps if step.number is not None]
    assert steps == ["inet c", "inet b", "inet a"]


def at_one_priority(*names: str, rules: str) -> str:
    """A table of each name, with a filter chain of its own for each time that the name is there."""
    tables = {
        name: "".join(
            f"chain c{number} {{\n{OUTPUT}\n{rules}\n}}\n" for number in range(names.count(name))
        )
        for name in names
    }
    return "".join(f"table inet {name} {{\n{chains}}}\n" for name, chains in tables.items())


def test_many_chains_of_one_table() -> None:
    """They have one order only, however many there are."""
    outcome = way_of(at_one_priority(*["a"] * 100, rules="meta mark set 0x1"))
    assert outcome.packet.mark == 1
    two = through(at_one_priority(*["a"] * 30, *["b"] * 30, rules="counter"))
    assert (len(two.outcomes), two.complete) == (1, True)


def test_more_orders_than_are_followed() -> None:
    """Of five tables there are 120: some are followed, and that there are more is said."""
    listing = "".join(
        at_one_priority(name, rules=f"meta mark {number} drop\nmeta mark set {number + 1}")
        for number, name in enumerate("abcde")
    )
    found = through(listing)
    assert not found.complete
    assert len(found.outcomes) > 1


def way_of(listing: str) -> Outcome:
    """The only way of a packet through what nft lists."""
    (only,) = through(listing).outcomes
    return only


TPROXY = "meta l4proto tcp tproxy ip to :15006 meta mark set 0x539 accept"
MANGLE = "type filter hook prerouting priority mangle; policy accept;"


@pytest.mark.parametrize(
    ("packet", "listening", "taken"),
    [
        (COMING, None, {"TPROXY"}),
        (COMING, True, {"TPROXY"}),
        (COMING, False, {""}),
        # Its connection may have a socket.
        (COMING._replace(state="ESTABLISHED"), False, {"TPROXY", ""}),
        (COMING._replace(state="ESTABLISHED"), True, {"TPROXY"}),
        (COMING._replace(protocol=1), True, {""}),
    ],
)
def test_tproxy_needs_a_listener(
    packet: Packet,
    listening: bool | None,  # noqa: FBT001 - a case
    taken: set[str],
) -> None:
    """Without one the rule ends, and the packet goes on."""
    world = POD if listening is None else POD._replace(listens=lambda *_: listening)
    rule = TPROXY.replace("meta l4proto tcp ", "")
    found = ways(rule, packet, world, base=MANGLE).outcomes
    assert {each.taken_by for each in found} == taken


def test_tproxy_that_marks_nothing_makes_two_ways() -> None:
    """The packet is the same with a socket and without one, and what becomes of it is not."""
    world = POD._replace(listens=lambda *_: False)
    established = COMING._replace(state="ESTABLISHED")
    found = ways("tproxy ip to :15006 counter", established, world, base=MANGLE).outcomes
    assert {each.taken_by for each in found} == {"TPROXY", ""}


def test_tproxy_of_a_packet_whose_port_is_not_known() -> None:
    """Without a port of its own it is the packet's, and whether anything listens is not known."""
    world = POD._replace(listens=lambda *_: True)
    rule = "tproxy ip to 127.0.0.1 accept"
    assert len(ways(rule, COMING._replace(destination_port=None), world, base=MANGLE).outcomes) > 1
    assert way(rule, COMING, world, base=MANGLE).to_port == 80
    other = COMING._replace(family=Family.IPV6, source="2001:db8::1", destination="fd00::2")
    assert way(rule, other, world, base=MANGLE).taken_by == ""


def test_the_verdict_of_a_rule_with_tproxy() -> None:
    """It is TPROXY where the packet is accepted, and where it is sent on the chain."""
    taken = way(TPROXY, COMING, POD, base=MANGLE)
    assert (taken.steps[0].verdict, taken.steps[0].change) == (
        "TPROXY",
        "to the listener on port 15006, mark 0x539",
    )
    on = way("meta l4proto tcp tproxy ip to :15006 jump a", COMING, POD, base=MANGLE)
    assert (on.steps[0].verdict, on.taken_by, on.to_port) == ("a", "TPROXY", 15006)


def test_the_mark_of_a_connection_before_its_zone() -> None:
    """Behind a zone that was set early it is another connection's, and not known."""
    early = "type filter hook output priority raw; policy accept;"
    found = ways("ct zone set 2\nct mark 0x1 drop", TCP._replace(connmark=1), base=early).outcomes
    assert {each.end for each in found} == {End.DROPPED, End.SENT}
    assert way("notrack\nct state untracked drop", base=early).end is End.DROPPED
    # A zone behind notrack has the packet tracked again, in which state nobody knows.
    found = ways("notrack\nct zone set 3", base=early).outcomes
    assert {each.end for each in found} == {End.UNKNOWN, End.SENT}


def test_why_a_rule_did_not_match() -> None:
    """Each condition with what the packet has instead."""
    rules = """
        ip saddr 9.9.9.9 tcp sport 1 tcp dport 81 ip daddr 5.5.5.5 meta l4proto udp drop
        udp dport 53 drop
        meta mark 0x1 ct mark 0x2 meta mark 0x3 ct helper "x" meta skuid 7 drop
    """
    (outcome,) = ways(rules, misses=True).outcomes
    told = [
        (each.text, each.has)
        for miss in outcome.steps[-1].misses
        for each in miss.conditions
        if each.holds is not True
    ]
    assert told == [
        ("ip saddr 9.9.9.9", "source 10.0.0.2:40000"),
        ("tcp sport 1", "source 10.0.0.2:40000"),
        ("tcp dport 81", "destination 1.2.3.4:80"),
        ("ip daddr 5.5.5.5", "destination 1.2.3.4:80"),
        ("meta l4proto udp", "protocol tcp"),
        ("udp dport 53", "the packet has none"),
        ("meta mark 0x1", "0x0"),
        ("ct mark 0x2", "0x0"),
        ("meta mark 0x3", "0x0"),
        ('ct helper "x"', "it can't be known from here"),
        ("meta skuid 7", "it is 1000"),
    ]


def test_a_mark_that_changes_twice_routes_by_the_last() -> None:
    """Each chain of the type route has the packet routed anew: here to this machine, and out again."""
    listing = "".join(
        f"table inet t{priority} {{\nchain x {{\ntype route hook output priority {priority};\n"
        f"meta mark set {mark}\n}}\n}}\n"
        for priority, mark in ((0, "0x37"), (50, "0x33"))
    )
    world = POD._replace(routes=(PolicyRoute(Family.IPV4, 0x37, 155),))
    (outcome,) = through(listing, UDP, world).outcomes
    assert (outcome.end, outcome.by_mark) == (End.SENT, False)
