"""A trace of native rules against the kernel's own: those of plans, and rules of others.

``ISTIO_IPTABLES_TRACE_PAIRS=5000 pytest tests/kernel/test_trace_native.py`` compares more.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from istio_iptables.istio.native import build_native
from istio_iptables.istio.plan import build
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.native import text
from istio_iptables.netfilter.nftlisting import families, planned_tables
from istio_iptables.netfilter.packet import Packet, Surroundings
from istio_iptables.netfilter.plan import PolicyRoute
from istio_iptables.settings.config import configure
from istio_iptables.settings.sources import gather
from istio_iptables.trace.hooks import End, trace
from tests.kernel.sandbox import needs
from tests.kernel.test_trace_foreign import MARK, agrees
from tests.kernel.test_trace_kernel import (
    DROPPING,
    INVALID,
    LISTENING,
    SERVERS,
    TCP,
    asked,
    assert_every_kind,
    calling,
    choices,
    completed,
    kind_of,
    possible,
    received,
    second,
    sent,
    sent_on,
    told,
)
from tests.kernel.traced import DRAWN
from tests.kernel.tracing import FIRST_PORT, Kernel, predicted
from tests.strategies import FixedMachine

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_iptables.trace.hooks import Outcome
    from tests.kernel.tracing import Position

pytestmark = [pytest.mark.kernel, needs("nft")]

#: How many packets meet rules of plans, and half as many rules of others.
PAIRS = int(os.environ.get("ISTIO_IPTABLES_TRACE_PAIRS", "700"))
PACKETS = 8


def listens(protocol: int, port: int, _family: Family) -> bool:
    """Whether the pod of the tests has a listener."""
    return protocol == TCP and port in LISTENING


def test_every_packet_goes_the_kernels_way() -> None:
    """The rules that a trace names are those that the kernel names, one after the other."""
    ports = itertools.cycle(range(FIRST_PORT, 65536))
    compared: Counter[str] = Counter()
    with Kernel("native") as kernel:

        @settings(
            max_examples=PAIRS * 21 // (20 * PACKETS) + 5,
            deadline=None,
            derandomize=PAIRS < 1000,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate),
        )
        @given(
            choices,
            st.sampled_from(("dual", "dual", "dual", "ipv4")),
            st.sampled_from(("true", "false")),
            st.sampled_from(("15006", "15006", "15007")),
            st.lists(
                st.one_of(sent(), calling(), sent_on(), received(), received(), told()),
                min_size=PACKETS,
                max_size=PACKETS,
            ),
        )
        @example(DROPPING, "dual", "false", "15006", INVALID)
        def compare(
            texts: dict[str, str], family: str, like: str, port: str, drawn: list[Packet]
        ) -> None:
            values, _ = gather(
                {
                    **texts,
                    "dry_run": "true",
                    "native_nftables": "true",
                    "nft_like_iptables": like,
                    "ip_family": family,
                    "inbound_capture_port": port,
                },
                {},
            )
            config, _ = configure(values, FixedMachine(servers=SERVERS))
            state = build(config)
            plan = build_native(config, state)
            planned = state._replace(rulesets=families(planned_tables(plan)))
            world = Surroundings(kernel.addresses, state.routes, listens=listens)
            packets = [
                second(completed(each, next(ports), world), planned, world) for each in drawn
            ]
            said = kernel.send_native(text(plan, "save"), state.routes, packets)
            for packet, path in zip(packets, said.paths, strict=True):
                if path is None:
                    continue
                ways = possible(trace(said.rulesets[packet.family], asked(packet), world))
                right = [each for each in ways if predicted(each) == path]
                assert len(right) == 1, (
                    packet,
                    path,
                    list(map(predicted, ways)),
                    text(plan, "save"),
                )
                # Only who knows all connections knows whether one has a socket without a listener.
                certain = packet.state == "NEW" or port == "15006"
                if packet.connmark is not None and packet.state != "ESTABLISHED" and certain:
                    assert len(ways) == 1, packet
                compared.update(("pairs", *kind_of(packet, right[0])))

        compare()
    print(dict(compared))
    assert_every_kind(compared, PAIRS)


CONDITIONS = [
    "",
    "",
    "meta l4proto tcp",
    "meta l4proto != udp",
    "meta l4proto { tcp, icmp }",
    "meta nfproto ipv4",
    "meta nfproto != ipv6",
    "meta protocol ip6",
    "tcp dport 80",
    "tcp dport != 80-443",
    "tcp dport { 53, 8000-9000 }",
    "tcp dport != { 80, 443 }",
    "tcp dport < 100",
    "tcp dport >= 8080",
    "udp dport 53",
    "th dport 443",
    "tcp sport > 30000",
    "tcp flags syn / fin,syn,rst,ack",
    f"meta mark {MARK:#x}",
    "meta mark & 0x3 != 0x1",
    "meta mark != 0x0",
    "meta mark { 0x37, 0x3 }",
    "ct mark 0x4",
    "ct mark & 0x4 == 0x4",
    "ct mark != 0x4",
    "ct state new",
    "ct state != new",
    "ct state established,related",
    "ct state { invalid, new }",
    "ct state invalid",
    "ct state untracked",
    "ip daddr 10.244.0.3",
    "ip daddr != 10.244.0.0/16",
    "ip daddr { 1.2.0.0/16, 169.254.0.0/16, 127.0.0.1 }",
    "ip daddr != { 1.2.0.0/16, 10.0.0.0/8 }",
    "ip saddr 10.244.0.2",
    "ip saddr 1.2.3.0-1.2.9.255",
    "ip6 daddr fd00:10:244::3",
    "ip6 daddr != fd00:10::/32",
    "ip6 daddr { ::1, fe80::/10, 2001:db8::/32 }",
    "ip6 saddr != fd00:10:244::2",
    "ip protocol tcp",
    "ip6 nexthdr != tcp",
    'iifname "lo"',
    'iifname != "eth*"',
    'oifname "eth0"',
    'oifname != { "lo", "net1" }',
    "fib daddr type local",
    "fib daddr type != local",
    "fib saddr type local",
    "ip daddr @networks",
    "tcp dport @ports",
    "tcp dport != @ports",
    "ip ttl 64",
    "meta length > 20",
    "ip daddr . tcp dport { 1.2.3.4 . 80, 9.9.9.9 . 443 }",
    "icmp type destination-unreachable",
    "limit rate 1000/second",
]
OWNERS = ["meta skuid 1000", "meta skuid != 1000", "meta skgid 1337-1400", "meta skgid != { 0, 5 }"]
DOES = [
    "accept",
    "return",
    "jump a",
    "goto b",
    "drop",
    "",
    "counter",
    f"meta mark set {MARK:#x}",
    "meta mark set meta mark | 0x4",
    "meta mark set meta mark & 0xfffffff0 | 0x3 counter accept",
    "meta mark set meta mark ^ 0x5",
    "ct mark set 0x4",
    "ct mark set meta mark",
    "meta mark set ct mark",
    "meta mark set ct mark ct mark set 0x4 accept",
    # What was done stays, though the rule then fails.
    f"meta mark set {MARK:#x} tcp dport 80 accept",
    "ct mark set 0x4 ip6 daddr ::1 counter",
    'log prefix "accept" level debug comment "drop"',
    "ct state vmap { invalid : drop, established : accept, new : jump a }",
    "tcp dport vmap { 53 : accept, 80-90 : jump a, 443 : drop }",
    "tcp dport vmap @verdicts",
    "meta l4proto vmap { udp : return, tcp : continue } counter",
    "ip dscp set cs1",
    "numgen inc mod 2 vmap { 0 : accept, 1 : continue }",
]
EARLY = ["notrack", "ct zone set 3", "notrack counter"]
MAPS = [
    "redirect to :80",
    "redirect to :15006",
    "redirect to :80-443",
    "redirect",
    "dnat ip to 10.244.0.3:80",
    "dnat ip6 to [fd00:10:244::3]:80",
    "dnat ip to 10.244.0.3",
]
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
SETS = """
	set networks {
		type ipv4_addr
		flags interval
		elements = { 1.2.0.0/16, 10.244.0.3 }
	}

	set ports {
		type inet_service
		flags interval
		elements = { 53, 8000-9000 }
	}

	map verdicts {
		type inet_service : verdict
		elements = { 80 : jump a, 443 : drop, 8080 : accept }
	}
"""


@st.composite
def rules(draw: st.DrawFn, kind: str, hook: str, priority: int, chain: str) -> str:
    """A rule that the kernel takes in this chain."""
    conditions = [*CONDITIONS]
    if hook in {"output", "postrouting"}:
        conditions += OWNERS
    condition = draw(st.sampled_from(conditions))
    # Chains lead to later ones only, and both are called from everywhere.
    does = [
        each
        for each in DOES
        if not (chain in {"a", "b"} and ("jump a" in each or "verdicts" in each))
        and not (chain == "b" and each == "goto b")
    ]
    if priority < -200 and hook in {"prerouting", "output"}:
        does += EARLY
    if kind == "nat" and hook in {"prerouting", "output"}:
        does = [*[each for each in does if "drop" not in each], *MAPS]
    done = draw(st.sampled_from(does))
    needs_port = any(each in done for each in ("to :", "]:", ":80"))
    if needs_port and ("redirect" in done or "dnat" in done):
        condition = draw(st.sampled_from(["meta l4proto tcp", "tcp dport 80", "tcp dport != 53"]))
    if "meta protocol" in condition and " ip" in f" {done}":
        # nft takes the one for what the other needs, and lists it no more.
        done = "counter"
    if kind == "filter" and hook == "prerouting" and draw(st.integers(0, 9)) == 0:
        return f"meta l4proto tcp tproxy to :{draw(st.sampled_from((15006, 15007)))} {done}".strip()
    return f"{condition} {done}".strip() or "counter"


def _body(rules: Iterable[str]) -> str:
    return "".join(f"\t\t{rule} {DRAWN}\n" for rule in rules)


@st.composite
def tables(draw: st.DrawFn) -> str:
    """Three tables, with base chains of any kind at any hook, and two chains of each."""
    found = []
    for number, family in enumerate(("inet", "ip", "ip6", "inet")[: draw(st.integers(1, 4))]):
        chains = []
        for at in range(draw(st.integers(1, 6))):
            kind = draw(st.sampled_from(("filter", "filter", "filter", "nat", "route")))
            hook = "output" if kind == "route" else draw(st.sampled_from(HOOKS))
            if kind == "nat" and hook == "forward":
                hook = "prerouting"
            priority = draw(st.sampled_from((-300, -300, -210, -150, -150, -99, 0, 0, 50, 110)))
            if kind == "nat":
                priority = draw(st.sampled_from((-100, -100, -90, 100)))
            policy = draw(st.sampled_from(("accept", "accept", "accept", "drop")))
            if kind == "nat":
                policy = "accept"
            lines = draw(st.lists(rules(kind, hook, priority, ""), max_size=5))
            chains.append(
                f"\tchain c{at} {{\n\t\ttype {kind} hook {hook} priority {priority};"
                f" policy {policy};\n{_body(lines)}\t}}\n"
            )
        for name in ("a", "b"):
            lines = draw(st.lists(rules("", "", 0, name), max_size=3))
            chains.append(f"\tchain {name} {{\n{_body(lines)}\t}}\n")
        found.append(f"table {family} t{number} {{{SETS}\n{''.join(chains)}}}\n")
    return "".join(found) + TRACKING


#: Connections are tracked only where a rule asks for it; any mesh's does.
TRACKING = """table inet tracking {
	chain x {
		type filter hook forward priority 300; policy accept;
		ct state new
	}
}
"""


def follows(outcome: Outcome, path: list[Position]) -> bool:
    """Whether the kernel went this way, as far as it can be followed."""
    if outcome.end is not End.UNKNOWN:
        return agrees(outcome, path)
    way = [step for step in outcome.steps if step.certain]
    known = [(step.table, step.chain, step.number) for step in way]
    return [each for each in path if each in known][: len(known)] == known


def test_any_rules_are_followed_as_the_kernel_follows_them() -> None:
    """All that is decided is decided alike, and what is not has the kernel's way among its ways."""
    ports = itertools.cycle(range(FIRST_PORT, 65536))
    compared: Counter[str] = Counter()
    routes = tuple(PolicyRoute(family, MARK, 155) for family in Family)
    wanted = PAIRS // 2
    with Kernel("native") as kernel:
        world = Surroundings(kernel.addresses, routes, listens=listens)

        @settings(
            max_examples=wanted * 4 // (3 * PACKETS) + 1,
            deadline=None,
            derandomize=PAIRS < 1000,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),
        )
        @given(
            tables(),
            st.lists(
                st.one_of(sent(), sent(), received(), received(), told()),
                min_size=PACKETS,
                max_size=PACKETS,
            ),
        )
        def compare(made: str, drawn: list[Packet]) -> None:
            packets = [
                completed(
                    each._replace(state=each.state.replace("ESTABLISHED", "NEW")),
                    next(ports),
                    world,
                )
                for each in drawn
            ]
            said = kernel.send_native(made, routes, packets)
            for packet, path in zip(packets, said.paths, strict=True):
                if path is None or (
                    packet.state == "RELATED" and ("notrack" in made or "zone" in made)
                ):
                    continue
                found = trace(said.rulesets[packet.family], asked(packet), world)
                ways = found.outcomes
                right = any(follows(each, path) for each in ways)
                if not right and not found.complete:
                    compared["cut off"] += 1
                    continue
                assert right, "\n".join(map(str, (packet, path, *map(predicted, ways), made)))
                certain = "certain" if len(ways) == 1 else "uncertain"
                compared.update(("pairs", packet.state, certain))

        compare()
    print(dict(compared))
    assert compared["pairs"] >= wanted
    assert compared["cut off"] < 0.01 * compared["pairs"]
    assert compared["certain"] > 0.6 * compared["pairs"]
