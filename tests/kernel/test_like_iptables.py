"""--nft-like-iptables: the kernel treats every packet as it does with the rules of iptables.

Packets are really sent, into a pod with the one and a pod with the other, and what is seen behind
the rules has to be the same. ``ISTIO_IPTABLES_TREATED=100000 pytest
tests/kernel/test_like_iptables.py`` sends more.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from istio_iptables.istio.plan import build
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.packet import Packet, Surroundings
from istio_iptables.settings.config import configure
from istio_iptables.settings.sources import gather
from tests.kernel.test_trace_kernel import (
    FAR,
    SERVERS,
    TEXTS,
    calling,
    completed,
    received,
    sent,
    sent_on,
    told,
)
from tests.kernel.tracing import ADDRESSES, FIRST_PORT
from tests.kernel.treating import FIRST_UNOWNED, Pod, native_rules, rules_of_iptables
from tests.strategies import FixedMachine

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_iptables.settings.config import Config

pytestmark = pytest.mark.kernel

#: How many packets are sent into each of the two pods.
PACKETS = int(os.environ.get("ISTIO_IPTABLES_TREATED", "600"))
BATCH = 30 if PACKETS < 1000 else 100
TCP, UDP = 6, 17
LISTENING = (80, 15001, 15006)
#: Under TPROXY, without Envoy.
NOT_LISTENING = (80, 15001)


def config_of(texts: dict[str, str]) -> Config:
    """The Config of these settings on the pod of the tests."""
    values, _ = gather({"dry_run": "true", "native_nftables": "true"} | texts, {})
    return configure(values, FixedMachine(servers=SERVERS))[0]


@st.composite
def unowned(draw: st.DrawFn) -> Packet:
    """The first packet of a connection that is of no socket: the kernel's own."""
    family = draw(st.sampled_from(Family))
    pod = ADDRESSES["eth0"][family is Family.IPV6]
    return Packet(
        family,
        TCP,
        pod,
        draw(st.sampled_from((pod, *FAR[family][:2]))),
        destination_port=draw(st.sampled_from((8080, 9000, 443))),
    )


@st.composite
def broken(draw: st.DrawFn) -> Packet:
    """A packet that connection tracking takes for invalid."""
    family = draw(st.sampled_from(Family))
    return Packet(
        family,
        draw(st.sampled_from((TCP, UDP))),
        FAR[family][0],
        ADDRESSES["eth0"][family is Family.IPV6],
        destination_port=draw(st.sampled_from((80, 443))),
        in_interface="eth0",
        state="INVALID",
    )


drawn_settings = st.fixed_dictionaries(
    {name: st.sampled_from(values) for name, values in TEXTS.items()}
    | {"ip_family": st.sampled_from(("ipv4", "dual", "dual"))}
    | {"nft_sets": st.sampled_from(("false", "true"))}
)
drawn_packets = st.lists(
    st.one_of(
        *(sent(), calling(), sent_on(), received(), received(), told(), unowned(), broken()),
    ),
    min_size=BATCH,
    max_size=BATCH,
)


#: A connection that was begun is remembered for a while, so that each packet has a port of its own.
ports = itertools.cycle(range(FIRST_PORT, FIRST_UNOWNED))
unowned_ports = itertools.cycle(range(FIRST_UNOWNED, 65536))


def ready(drawn: list[Packet], world: Surroundings, listening: tuple[int, ...]) -> list[Packet]:
    """The packets, each with a port of its own and the interface that it leaves by."""
    packets = []
    for each in drawn:
        packet = each
        if packet.state == "ESTABLISHED" and (listening != LISTENING or not packet.in_interface):
            # Where nobody listens there is none, and waiting for it takes long.
            packet = packet._replace(state="NEW")
        no_socket = packet.uid is None and not packet.in_interface and packet.state == "NEW"
        packets.append(completed(packet, next(unowned_ports if no_socket else ports), world))
    return packets


def kind_of(packet: Packet, seen: list[Any]) -> list[str]:
    """What a packet was about and what became of it, for counting."""
    places = [each for each in seen[1:] if " " not in each[0]]
    ports = {each[-1] for each in places} & {15001, 15006, 15053} - {packet.destination_port}
    return [
        packet.family.title,
        packet.state,
        *(f"to {port}" for port in ports),
        *({each[0].partition(" ")[2] for each in seen[1:]} - {""}),
        *(["marked"] if any(each[2] for each in places) else ()),
        "seen" if places else "dropped",
        *(["of no socket"] if (packet.source_port or 0) >= FIRST_UNOWNED and places else ()),
    ]


@pytest.mark.parametrize("backend", ["legacy"] if PACKETS < 1000 else ["legacy", "nft"])
def test_every_packet_is_treated_as_by_iptables(
    backend: str, record_property: Callable[[str, object], None]
) -> None:
    """Where it goes, its marks and its zone; with Envoy listening and without."""
    compared: Counter[str] = Counter()
    with Pod() as one, Pod() as other:

        @settings(
            max_examples=-(-PACKETS // BATCH),
            deadline=None,
            derandomize=PACKETS < 1000,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(drawn_settings, drawn_packets, st.sampled_from((LISTENING, NOT_LISTENING)))
        def compare(texts: dict[str, str], drawn: list[Packet], listening: tuple[int, ...]) -> None:
            config = config_of(texts | {"nft_like_iptables": "true"})
            rules = rules_of_iptables(config, backend)
            world = Surroundings(one.addresses, build(config).routes)
            packets = ready(drawn, world, listening)
            one.ask(rules, packets, listening)
            other.ask(native_rules(config), packets, listening)
            for packet, expected, found in zip(packets, one.seen(), other.seen(), strict=True):
                assert found == expected, packet
                compared.update(("packets", *kind_of(packet, expected)))

        compare()
    record_property("compared", dict(compared))
    print(backend, dict(compared))
    assert compared["packets"] >= min(PACKETS, 600)
    for kind in ("IPv4", "IPv6", "NEW", "ESTABLISHED", "RELATED", "INVALID", "of no socket"):
        assert compared[kind], kind
    for kind in ("to 15001", "to 15006", "to 15053", "marked", "seen", "dropped"):
        assert compared[kind], kind


def arriving(family: Family, protocol: int = TCP, state: str = "NEW") -> Packet:
    """A packet from outside, to an application."""
    here = ADDRESSES["eth0"][family is Family.IPV6]
    return Packet(
        *(family, protocol, FAR[family][0], here),
        destination_port=80,
        in_interface="eth0",
        state=state,
    )


def of_no_socket(destination: str) -> Packet:
    """A packet of the kernel's own, out of a new connection."""
    return Packet(Family.IPV4, TCP, ADDRESSES["eth0"][0], destination, destination_port=8080)


ALL = {"istio_service_cidr": "*", "istio_inbound_ports": "*", "ip_family": "dual"}
#: What Istio's native rules do otherwise: the settings, the packet and who listens.
OTHERWISE: dict[str, tuple[dict[str, str], Packet, tuple[int, ...]]] = {
    "IPv6 is off, inbound": ({"ip_family": "ipv4"}, arriving(Family.IPV6), LISTENING),
    "IPv6 is off, outbound": (
        {"ip_family": "ipv4"},
        Packet(
            *(Family.IPV6, TCP, ADDRESSES["eth0"][1], FAR[Family.IPV6][0]),
            *(None, 443),
            uid=1000,
            gid=1000,
        ),
        LISTENING,
    ),
    "TPROXY and nobody listens": (
        {"istio_inbound_interception_mode": "TPROXY"},
        arriving(Family.IPV4),
        NOT_LISTENING,
    ),
    "TPROXY and nobody listens, IPv6": (
        {"istio_inbound_interception_mode": "TPROXY"},
        arriving(Family.IPV6),
        NOT_LISTENING,
    ),
    "an invalid packet of UDP": (
        {"drop_invalid": "true"},
        arriving(Family.IPV4, UDP, "INVALID"),
        LISTENING,
    ),
    "no socket, over loopback": ({}, of_no_socket(ADDRESSES["eth0"][0]), LISTENING),
    "no socket, and some groups are captured": (
        {"istio_outbound_owner_groups": "1000"},
        of_no_socket(FAR[Family.IPV4][0]),
        LISTENING,
    ),
}


def test_what_istios_native_rules_do_otherwise() -> None:
    """Each of the differences is there without the flag, and gone with it."""
    with Pod() as one, Pod() as other:
        for name, (texts, packet, listening) in OTHERWISE.items():
            found = []
            for like in ("false", "true"):
                config = config_of(ALL | texts | {"nft_like_iptables": like})
                world = Surroundings(one.addresses, build(config).routes)
                packets = ready([packet], world, listening)
                one.ask(rules_of_iptables(config, "legacy"), packets, listening)
                other.ask(native_rules(config), packets, listening)
                found.append(one.seen() == other.seen())
            assert found == [False, True], name
