"""A trace of rules that are nobody's in particular, against the kernel's own.

Every match and target that the trace claims to decide, in chains that jump and go to each other.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from istio_iptables.netfilter.model import BUILT_IN_CHAINS, Chain, Family, Rule, Ruleset, Table
from istio_iptables.netfilter.packet import Packet, Surroundings
from istio_iptables.netfilter.plan import DesiredState, PolicyRoute
from istio_iptables.netfilter.savefile import parse, parse_rule, render
from istio_iptables.trace.hooks import Outcome, trace
from tests.kernel.test_trace_kernel import asked, completed, received, sent, told
from tests.kernel.tracing import FIRST_PORT, Kernel, Position, predicted
from tests.namespaces import BACKENDS

pytestmark = pytest.mark.kernel

PAIRS = int(os.environ.get("ISTIO_IPTABLES_TRACE_PAIRS", "240"))
PACKETS = 6
MARK = 0x37

CONDITIONS = [
    "",
    "",
    "-p tcp",
    "! -p udp",
    "-p tcp -m tcp --dport 80",
    "-p tcp -m tcp ! --dport 80:443",
    "-p udp -m udp --dport 53",
    "-p tcp -m multiport --dports 53,8000:9000",
    "-p udp -m multiport ! --dports 80,443",
    "-p tcp -m multiport --ports 15006,15008",
    "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN",
    f"-m mark --mark {MARK:#x}",
    "-m mark ! --mark 0x1/0x3",
    "-m connmark --mark 0x4/0x4",
    "-m conntrack --ctstate NEW",
    "-m conntrack ! --ctstate RELATED,ESTABLISHED",
    "-m conntrack --ctstate INVALID",
    "-m conntrack --ctstate DNAT",
    "-m state --state NEW,UNTRACKED",
    "-m state --state INVALID",
    "-m state ! --state NEW",
    "-m conntrack --ctproto 6",
    "-m conntrack ! --ctproto 17",
    "-m conntrack --ctstate INVALID,NEW --ctproto 17",
    "-m connmark ! --mark 0x4/0x4",
    "-m connmark --mark 0x0",
    "-m addrtype --dst-type LOCAL",
    "-m addrtype ! --src-type LOCAL",
    '-m comment --comment "a b"',
]
ADDRESS = {
    Family.IPV4: [
        "-d 10.244.0.3/32",
        "-d 169.254.0.0/16",
        "-d 127.0.0.0/8",
        "! -d 10.244.0.0/16",
        "-s 10.244.0.2/32",
        "-d 1.2.0.0/16",
    ],
    Family.IPV6: [
        "-d fd00:10:244::3/128",
        "-d fe80::/10",
        "-d ::1/128",
        "! -d fd00:10::/32",
        "-s fd00:10:244::2/128",
        "-d 2001:db8::/32",
    ],
}
#: Where DNAT sends: an address of the pod, with a range of ports.
POD = {Family.IPV4: "10.244.0.3:80-90", Family.IPV6: "[fd00:10:244::3]:80-90"}
OWNERS = ["-m owner --uid-owner 1000", "-m owner ! --gid-owner 1337-1400", "-o lo", "-o net+"]
TARGETS = {
    "raw": [
        "-j ACCEPT",
        "-j CT --notrack",
        "-j CT --zone 3",
        "-j RETURN",
        "-j A",
        "-g B",
        "",
        f"-j MARK --set-mark {MARK:#x}",
        "-j CONNMARK --restore-mark",
        "-j DROP",
    ],
    "mangle": [
        "-j ACCEPT",
        "-j RETURN",
        "-j A",
        "-g B",
        f"-j MARK --set-mark {MARK:#x}",
        "-j MARK --set-xmark 0x3/0xf",
        "-j MARK --or-mark 0x4",
        "-j CONNMARK --save-mark",
        "-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff",
        "-j CONNMARK --set-xmark 0x4/0x4",
        "-j HMARK --hmark-tuple src,dst --hmark-mod 2 --hmark-offset 0x36 --hmark-rnd 5",
        "-j DSCP --set-dscp 0x08",
        "",
        "-j DROP",
    ],
    "nat": ["-j ACCEPT", "-j RETURN", "-j A", "-g B", ""],
    "filter": ["-j ACCEPT", "-j RETURN", "-j A", "-g B", "-j DROP", ""],
}
#: Connections are tracked only where a rule asks for it; any mesh's does.
TRACKING = (parse_rule("-p dccp -m conntrack --ctstate NEW"),)


@st.composite
def rules(draw: st.DrawFn, family: Family, table: str, chain: str) -> Rule:
    """A rule that the kernel takes in this chain."""
    conditions = [*CONDITIONS, *ADDRESS[family]]
    if chain in {"OUTPUT", "POSTROUTING"}:
        conditions += OWNERS
    condition = draw(st.sampled_from(conditions))
    targets = [
        each
        for each in TARGETS[table]
        # Chains lead to later ones only, and both are called from everywhere.
        if not (chain == "A" and "-j A" in each) and not (chain == "B" and each[3:] in {"A", "B"})
    ]
    if table == "nat" and chain in {"PREROUTING", "OUTPUT"} and condition.startswith("-p tcp"):
        targets += [
            "-j REDIRECT --to-ports 80",
            "-j REDIRECT --to-ports 15006",
            "-j REDIRECT --to-ports 80-443",
            "-j REDIRECT --to-ports 15000-15100 --random",
            "-j REDIRECT",
            f"-j DNAT --to-destination {POD[family]}",
        ]
        network = "10.244.0.0/24" if family is Family.IPV4 else "fd00:10:244::/64"
        targets.append(f"-j NETMAP --to {network}")
    if chain in {"PREROUTING", "INPUT"} and condition.startswith("-p tcp"):
        condition = draw(st.sampled_from((condition, f"{condition} -m socket --transparent")))
    return parse_rule(f"{condition} {draw(st.sampled_from(targets))}".strip())


@st.composite
def rulesets(draw: st.DrawFn, family: Family) -> Ruleset:
    """Rules in every hook of every table, and two chains of each."""
    found = []
    for name in ("raw", "mangle", "nat", "filter"):
        chains = [
            Chain(
                chain,
                "ACCEPT" if chain in BUILT_IN_CHAINS[name] else None,
                (
                    *draw(st.lists(rules(family, name, chain), max_size=4)),
                    *(TRACKING if chain == "FORWARD" else ()),
                ),
            )
            for chain in (*BUILT_IN_CHAINS[name], "A", "B")
        ]
        found.append(Table(name, tuple(chains)))
    return Ruleset(family, tuple(found))


def tracked_apart(texts: tuple[str, ...], packet: Packet) -> bool:
    """Whether raw may have put a packet and the error about it into different zones, or none."""
    return " -j CT " in dict(zip(Family, texts, strict=True))[packet.family]


def agrees(outcome: Outcome, path: list[Position]) -> bool:
    """Whether the way is the kernel's, rules that may have matched left out of both."""
    open_ones = {
        (step.table, step.chain, step.number) for step in outcome.steps if not step.certain
    }
    return [each for each in predicted(outcome) if each not in open_ones] == [
        each for each in path if each not in open_ones
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_rules_are_followed_as_the_kernel_follows_them(backend: str) -> None:
    """All that is decided is decided alike, and what is not has the kernel's way among its ways."""
    ports = itertools.cycle(range(FIRST_PORT, 65536))
    compared: Counter[str] = Counter()
    routes = tuple(PolicyRoute(family, MARK, 155) for family in Family)
    with Kernel(backend) as kernel:
        world = Surroundings(kernel.addresses, routes)

        @settings(
            # Errors that can't be compared are a seventh of what is sent.
            max_examples=PAIRS * 4 // (3 * PACKETS) + 1,
            deadline=None,
            derandomize=PAIRS < 1000,
            database=None,
            suppress_health_check=list(HealthCheck),
            # Shrinking sends so many packets that their ports, and connections, come again.
            phases=(Phase.generate,),
        )
        @given(
            # As text, which is what a report of a failure can show.
            st.tuples(*(rulesets(family).map(render) for family in Family)),
            st.lists(
                st.one_of(sent(), sent(), received(), received(), told()),
                min_size=PACKETS,
                max_size=PACKETS,
            ),
        )
        def compare(texts: tuple[str, ...], drawn: list[Packet]) -> None:
            plan = DesiredState(tuple(map(parse, texts, Family)), routes)
            packets = [
                completed(
                    each._replace(state=each.state.replace("ESTABLISHED", "NEW")),
                    next(ports),
                    world,
                )
                for each in drawn
            ]
            said = kernel.send(plan, packets)
            for packet, path in zip(packets, said.paths, strict=True):
                if path is None or (packet.state == "RELATED" and tracked_apart(texts, packet)):
                    # No error had to be told, or who knows whether it belongs to anything.
                    continue
                found = trace(said.rulesets[packet.family], asked(packet), world)
                ways = found.outcomes
                certain = "certain" if len(ways) == 1 else "uncertain"
                # Of what can't be known (the flags of an invalid packet), one answer is right.
                right = any(agrees(each, path) for each in ways)
                if not right and not found.complete:
                    # It may be one of those that are not followed, which is said.
                    compared["cut off"] += 1
                    continue
                assert right, (packet, path)
                compared.update(("pairs", packet.state, certain))

        compare()
    print(backend, dict(compared))
    assert compared["pairs"] >= PAIRS
    assert compared["cut off"] < 0.01 * compared["pairs"]
    assert compared["certain"] > 0.7 * compared["pairs"]
