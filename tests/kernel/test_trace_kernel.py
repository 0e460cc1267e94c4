"""A trace against the kernel's own: packets are really sent, and the kernel says which way they took.

``ISTIO_IPTABLES_TRACE_PAIRS=5000 pytest tests/kernel/test_trace_kernel.py`` compares more.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from istio_iptables.istio.plan import build
from istio_iptables.istio.rules import OUTBOUND_MARK
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.packet import Packet, Surroundings
from istio_iptables.netfilter.savefile import render
from istio_iptables.settings.config import configure
from istio_iptables.settings.sources import gather
from istio_iptables.trace.hooks import End, Outcome, Trace, trace
from tests.kernel.tracing import ADDRESSES, FIRST_PORT, Kernel, predicted
from tests.namespaces import BACKENDS
from tests.strategies import FixedMachine

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_iptables.netfilter.plan import DesiredState

pytestmark = pytest.mark.kernel

#: How many pairs of a ruleset and a packet are compared in each backend.
PAIRS = int(os.environ.get("ISTIO_IPTABLES_TRACE_PAIRS", "600"))
PACKETS = 8

SERVERS = ("10.96.0.10", "fd00:96::a")
TCP, UDP = 6, 17

TEXTS = {
    "istio_inbound_interception_mode": ("REDIRECT", "TPROXY", "TPROXY"),
    "istio_inbound_ports": ("*", "*", "80,8000:8100", ""),
    "istio_local_exclude_ports": ("", "15090,443"),
    "istio_service_cidr": ("*", "*", "1.2.0.0/16,2001:db8::/32", "127.0.0.0/8,10.0.0.0/8", ""),
    "istio_service_exclude_cidr": ("", "1.2.3.0/24,2001:db8:1::/48"),
    "istio_outbound_ports": ("", "443,8080"),
    "istio_local_outbound_ports_exclude": ("", "8080,53"),
    "istio_exclude_interfaces": ("", "", "net1", "net+"),
    "kube_virt_interfaces": ("", "", "net1"),
    "proxy_uid": ("1337", "1337,1338", "1330-1340", "0"),
    "proxy_gid": ("", "1337", "1000"),
    "istio_outbound_owner_groups": ("*", "*", "*", "1000,1337", ""),
    "istio_outbound_owner_groups_exclude": ("", "1000"),
    "istio_outbound_ipv4_loopback_cidr": ("127.0.0.1/32", "127.0.0.0/8"),
    "istio_inbound_tproxy_mark": ("1337", "1338", "0x37"),
    "redirect_dns": ("true", "false"),
    "capture_all_dns": ("true", "false"),
    "drop_invalid": ("false", "true"),
}


def plan_of(texts: dict[str, str]) -> DesiredState:
    """The plan that these settings make on the pod of the tests."""
    values, _ = gather({"dry_run": "true", "ip_family": "dual"} | texts, {})
    return build(configure(values, FixedMachine(servers=SERVERS))[0])


choices = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in TEXTS.items()})

NEAR = {
    Family.IPV4: (
        *("127.0.0.1", "127.0.0.5", "10.244.0.2", "10.244.0.3", "10.245.0.2", "169.254.20.10"),
    ),
    Family.IPV6: ("::1", "fd00:10:244::2", "fd00:10:244::3", "fd00:10:245::2", "fe80::2"),
}
FAR = {
    Family.IPV4: ("1.2.3.4", "1.2.9.9", "9.9.9.9", "10.245.0.9", "10.96.0.10", "169.254.9.9"),
    Family.IPV6: ("2001:db8::9", "2001:db8:1::9", "fd00:10:245::9", "fd00:96::a", "fe80::9"),
}
#: The other address of eth0.
SECOND = {Family.IPV4: "10.244.0.3", Family.IPV6: "fd00:10:244::3"}
ICMP = {Family.IPV4: 1, Family.IPV6: 58}
PASSTHROUGH = {Family.IPV4: "127.0.0.6", Family.IPV6: "::6"}
#: Where connections are taken: by an application, and by Envoy.
LISTENING = (80, 15001, 15006)
PORTS = (53, 80, 443, 8080, 15006, 15008, 15053, 15090)


@st.composite
def sent(draw: st.DrawFn) -> Packet:
    """A packet that a process in the pod can send; its interface is found out later."""
    family = draw(st.sampled_from(Family))
    destination = draw(st.sampled_from(NEAR[family] + FAR[family]))
    pod = ADDRESSES["eth0"][family is Family.IPV6]
    mark = draw(st.sampled_from((0, 0, 0, 1337, 1338, 0x37)))
    if destination.startswith("127.") or destination == "::1":
        source = draw(st.sampled_from((NEAR[family][0], PASSTHROUGH[family], pod)))
    elif destination == "fe80::2":
        # Where a mark leads to loopback, routing asks for another interface than the address.
        source, mark = destination, 0
    elif destination == "fe80::9":
        source, mark = "fe80::2", 0
    elif destination in NEAR[family]:
        sources = (destination, PASSTHROUGH[family], FAR[family][0] if mark else pod)
        source = draw(st.sampled_from(sources))
    else:
        source = ADDRESSES["net1" if "245" in destination else "eth0"][family is Family.IPV6]
    return Packet(
        family,
        draw(st.sampled_from((TCP, TCP, UDP))),
        source,
        destination,
        destination_port=draw(st.sampled_from(PORTS)),
        uid=draw(st.sampled_from((0, 1000, 1337, 1338))),
        gid=draw(st.sampled_from((0, 1000, 1337, 1338))),
        mark=mark,
    )


@st.composite
def calling(draw: st.DrawFn) -> Packet:
    """What an application asks of the world, names too: the packets that a mesh is for."""
    packet = draw(sent())
    family = packet.family
    asks = draw(st.booleans())
    return packet._replace(
        protocol=UDP if asks else TCP,
        source=ADDRESSES["eth0"][family is Family.IPV6],
        destination=FAR[family][4 if asks else draw(st.sampled_from((0, 1, 2)))]
        if family is Family.IPV4
        else FAR[family][3 if asks else draw(st.sampled_from((0, 1)))],
        destination_port=53 if asks else draw(st.sampled_from((80, 443, 53))),
        mark=0,
        uid=1000,
    )


@st.composite
def sent_on(draw: st.DrawFn) -> Packet:
    """A later packet of a connection that the pod has with itself."""
    family = draw(st.sampled_from(Family))
    destination = draw(st.sampled_from([each for each in NEAR[family] if each[:4] != "fe80"]))
    sources = (NEAR[family][0], ADDRESSES["eth0"][family is Family.IPV6], PASSTHROUGH[family])
    return Packet(
        family,
        TCP,
        draw(st.sampled_from(sources)),
        destination,
        destination_port=80,
        uid=draw(st.sampled_from((0, 1000, 1337))),
        gid=draw(st.sampled_from((0, 1000, 1337))),
        mark=draw(st.sampled_from((0, 0, 1337, 1338))),
        state="ESTABLISHED",
    )


@st.composite
def received(draw: st.DrawFn) -> Packet:
    """A packet that arrives at the pod, or is to go through it."""
    family = draw(st.sampled_from(Family))
    interface = draw(st.sampled_from(("eth0", "eth0", "net1")))
    here = ADDRESSES[interface][family is Family.IPV6]
    if interface == "eth0":
        here = draw(st.sampled_from((here, SECOND[family])))
    protocol = draw(st.sampled_from((TCP, TCP, TCP, UDP)))
    states = ("NEW", "NEW", "ESTABLISHED", "INVALID") if protocol == TCP else ("NEW",)
    return Packet(
        family,
        protocol,
        draw(st.sampled_from(FAR[family][:3])),
        draw(st.sampled_from((here, here, here, FAR[family][3]))),
        destination_port=draw(st.sampled_from((80, *PORTS))),
        in_interface=interface,
        state=draw(st.sampled_from(states)),
    )


@st.composite
def told(draw: st.DrawFn) -> Packet:
    """An ICMP error about a UDP packet: one that arrives, or one of the kernel's own."""
    family = draw(st.sampled_from(Family))
    arrives = draw(st.booleans())
    pod = ADDRESSES["eth0"][family is Family.IPV6]
    other = draw(st.sampled_from(FAR[family][:2]))
    return Packet(
        family,
        ICMP[family],
        other if arrives else pod,
        pod if arrives else other,
        # Of the packet that it is about; it has none of its own.
        destination_port=draw(st.sampled_from((80, 443, 8080, 999))),
        in_interface="eth0" if arrives else "",
        uid=1000 if arrives else None,
        gid=1000 if arrives else None,
        # It is that of the connection of the other packet, which rules may have marked.
        connmark=None,
        state="RELATED",
    )


#: What --drop-invalid is for; drawn by chance alone, both would seldom meet.
DROPPING = {name: values[0] for name, values in TEXTS.items()} | {"drop_invalid": "true"}
INVALID = [
    Packet(
        family,
        TCP,
        FAR[family][0],
        ADDRESSES["eth0"][family is Family.IPV6],
        destination_port=80,
        in_interface="eth0",
        state="INVALID",
    )
    for family in Family
]


def asked(packet: Packet) -> Packet:
    """The packet as the rules see it, without what the tests have to know to send it."""
    if packet.state != "RELATED":
        return packet
    return packet._replace(source_port=None, destination_port=None, uid=None, gid=None)


def completed(packet: Packet, port: int, world: Surroundings) -> Packet:
    """The packet with a port of its own, and the interface that routing finds for it."""
    packet = packet._replace(source_port=port)
    if packet.in_interface:
        return packet
    if world.is_local(packet.destination, packet.family) or world.is_routed_home(packet):
        return packet._replace(out_interface="lo")
    return packet._replace(out_interface="net1" if ":245:" in _dotless(packet) else "eth0")


def _dotless(packet: Packet) -> str:
    return f":{packet.destination}".replace(".", ":")


def second(packet: Packet, plan: DesiredState, world: Surroundings) -> Packet:
    """A packet of a connection that was made, with the marks that its first packet left.

    Where nobody listens there is none: the first one is asked again.
    """
    if packet.state != "ESTABLISHED" or packet.in_interface:
        return packet
    first = packet._replace(state="NEW")
    (ruleset,) = (each for each in plan.rulesets if each.family is packet.family)
    (outcome,) = trace(ruleset, first, world).outcomes
    if outcome.end is not End.DELIVERED or outcome.packet.destination_port not in LISTENING:
        return first
    text = render(ruleset)
    if f"connmark --mark {OUTBOUND_MARK:#x} " in text or f"ct mark {OUTBOUND_MARK:#010x} " in text:
        # The answer (of a listener that runs as root) may have marked the connection as well.
        return packet._replace(connmark=None)
    return packet._replace(connmark=outcome.packet.connmark)


def possible(found: Trace) -> list[Outcome]:
    """The ways of a packet whose connection was opened in the same direction: ours was."""
    return [
        outcome
        for outcome in found.outcomes
        if all(each.answer for each in outcome.assumptions if not each.place)
    ]


def kind_of(packet: Packet, outcome: Outcome) -> list[str]:
    """What a compared pair was about, for counting."""
    return [
        "in" if packet.in_interface else "out",
        packet.family.title,
        packet.protocol_name,
        packet.state,
        outcome.end.value,
        *([f"{outcome.taken_by} {outcome.to_port}"] if outcome.taken_by else ()),
    ]


def assert_every_kind(compared: Counter[str], pairs: int) -> None:
    """That enough was compared, and every kind of packet and end was among it."""
    assert compared["pairs"] >= min(pairs, 300)
    for kind in ("in", "out", "IPv4", "IPv6", "tcp", "udp", "icmp", "ipv6-icmp", "forwarded"):
        assert compared[kind], kind
    for kind in ("ESTABLISHED", "INVALID", "RELATED"):
        assert compared[kind], kind
    for kind in ("REDIRECT 15001", "REDIRECT 15006", "TPROXY 15006", "REDIRECT 15053", "dropped"):
        assert compared[kind], kind


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_packet_goes_the_kernels_way(
    backend: str, record_property: Callable[[str, object], None]
) -> None:
    """The rules that a trace names are those that the kernel names, one after the other."""
    ports = itertools.cycle(range(FIRST_PORT, 65536))
    compared: Counter[str] = Counter()
    with Kernel(backend) as kernel:

        @settings(
            # A few can't be compared: nobody answers, and there is no later packet to send.
            max_examples=PAIRS * 21 // (20 * PACKETS) + 5,
            deadline=None,
            derandomize=PAIRS < 1000,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            choices,
            st.lists(
                st.one_of(sent(), calling(), sent_on(), received(), received(), told()),
                min_size=PACKETS,
                max_size=PACKETS,
            ),
        )
        @example(DROPPING, INVALID)
        def compare(texts: dict[str, str], drawn: list[Packet]) -> None:
            plan = plan_of(texts)
            world = Surroundings(kernel.addresses, plan.routes)
            packets = [second(completed(each, next(ports), world), plan, world) for each in drawn]
            said = kernel.send(plan, packets)
            for packet, path in zip(packets, said.paths, strict=True):
                if path is None:
                    # Nobody answered, so there is no connection to send a second packet of.
                    continue
                ways = possible(trace(said.rulesets[packet.family], asked(packet), world))
                if packet.connmark is not None:
                    assert len(ways) == 1, packet
                    assert predicted(ways[0]) == path, (packet, ways[0].end)
                (outcome,) = (each for each in ways if predicted(each) == path)
                compared.update(("pairs", *kind_of(packet, outcome)))

        compare()
    record_property("compared", dict(compared))
    print(backend, dict(compared))
    assert_every_kind(compared, PAIRS)
