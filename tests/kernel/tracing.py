"""The kernel's word on packets: load rules in a namespace, send packets, read which way they took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from istio_iptables.netfilter.model import Family, Ruleset
from istio_iptables.netfilter.nftlisting import families, read_listing
from istio_iptables.netfilter.savefile import parse, render
from tests.kernel.podprocess import PodProcess

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from istio_iptables.netfilter.packet import Packet
    from istio_iptables.netfilter.plan import DesiredState, PolicyRoute
    from istio_iptables.trace.hooks import Outcome

__all__ = ["ADDRESSES", "FIRST_PORT", "Kernel", "Position", "Said", "predicted"]

#: The pod that tests/kernel/traced.py makes: what it has of each family; there are more.
ADDRESSES = {
    "lo": ("127.0.0.1", "::1"),
    "eth0": ("10.244.0.2", "fd00:10:244::2"),
    "net1": ("10.245.0.2", "fd00:10:245::2"),
}
#: Packets from these ports on are traced; each has a port of its own.
FIRST_PORT = 20000

_TRACED = [
    f"-A {chain} -p {protocol} -m {protocol} --sport {FIRST_PORT}:65535 -j TRACE"
    for chain in ("PREROUTING", "OUTPUT")
    for protocol in ("tcp", "udp")
]
_TRACED_ERRORS = {
    Family.IPV4: "-p icmp -m icmp --icmp-type 3",
    Family.IPV6: "-p ipv6-icmp -m icmp6 --icmpv6-type 1",
}
_EMPTY = """*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
"""

#: What has the kernel tell of packets that meet native tables.
_TRACER = """table inet tracer {
	chain prerouting {
		type filter hook prerouting priority -390; policy accept;
		th sport 20000-65535 meta nftrace set 1
		icmp type destination-unreachable meta nftrace set 1
		icmpv6 type destination-unreachable meta nftrace set 1
	}
	chain output {
		type filter hook output priority -390; policy accept;
		th sport 20000-65535 meta nftrace set 1
		icmp type destination-unreachable meta nftrace set 1
		icmpv6 type destination-unreachable meta nftrace set 1
	}
}
"""

#: Table, chain and rule number (from 1), None for the policy.
Position = tuple[str, str, int | None]


class Said(NamedTuple):
    """What the kernel has now, and the way of each packet; None for one that could not be sent."""

    rulesets: dict[Family, Ruleset]
    paths: list[list[Position] | None]


class Kernel(PodProcess):
    """A pod's network namespace for as long as the block lasts."""

    def __init__(self, backend: str) -> None:
        super().__init__("traced.py", backend)

    def send(self, plan: DesiredState, packets: Iterable[Packet]) -> Said:
        """Load the plan's rules in place of all others, send the packets, one after the other."""
        packets = tuple(packets)
        rules = {each.family: _traced(each) for each in plan.rulesets}
        for family in Family:
            rules.setdefault(family, _traced(Ruleset(family)))
        answer = self._ask({each.value: text for each, text in rules.items()}, plan.routes, packets)
        saved = {Family(name): parse(text, Family(name)) for name, text in answer["saved"].items()}
        return _said(saved, packets, answer["paths"])

    def send_native(
        self, tables: str, routes: Iterable[PolicyRoute], packets: Iterable[Packet]
    ) -> Said:
        """The same with native tables in nft's words."""
        packets = tuple(packets)
        answer = self._ask({"native": f"flush ruleset\n{_TRACER}{tables}"}, routes, packets)
        listed = read_listing(answer["saved"]["native"].splitlines())
        found = families(each for each in listed if each.name != "inet tracer")
        return _said({each.family: each for each in found}, packets, answer["paths"])

    def _ask(
        self, rules: dict[str, str], routes: Iterable[PolicyRoute], packets: Iterable[Packet]
    ) -> dict[str, Any]:
        request = {
            "rules": rules,
            "routes": [" ".join(command[1:]) for route in routes for command in route.commands],
            "packets": [{**each._asdict(), "family": each.family.value} for each in packets],
        }
        self._request(request)
        return self._answer(rules)


def _said(rulesets: dict[Family, Ruleset], packets: Iterable[Packet], told: Iterable[Any]) -> Said:
    paths: list[list[Position] | None] = []
    for packet, path in zip(packets, told, strict=True):
        assert not isinstance(path, str), (packet, path)
        paths.append(None if path is None else _places(rulesets[packet.family], path))
    return Said(rulesets, paths)


def _traced(ruleset: Ruleset) -> str:
    """The text that loads *ruleset* with what makes the kernel tell, and nothing else."""
    tables = {table.name: table for table in ruleset.tables}
    empty = parse(_EMPTY, ruleset.family)
    names = {each.name: each for each in empty.tables} | tables
    text = render(Ruleset(ruleset.family, tuple(names.values())))
    lines = text.split("\n")
    first = next(
        number for number, line in enumerate(lines) if line.startswith("-A") or line == "COMMIT"
    )
    errors = [
        f"-A {chain} {_TRACED_ERRORS[ruleset.family]} -j TRACE"
        for chain in ("PREROUTING", "OUTPUT")
    ]
    return "\n".join([*lines[:first], *_TRACED, *errors, *lines[first:]])


def _places(ruleset: Ruleset, path: Sequence[tuple[str, str, str, int]]) -> list[Position]:
    """What the kernel said, in our words: without the ends of chains and the tracing rules."""
    places: list[Position] = []
    for name, chain_name, what, number in path:
        if name == "inet tracer":
            continue
        table = ruleset.table(name)
        chain = table.chain(chain_name) if table else None
        assert chain is not None, (name, chain_name)
        # The legacy kernel calls an unconditional RETURN or ACCEPT "return" and "policy" too.
        if 0 < number <= len(chain.rules):
            target = chain.rules[number - 1].target
            if target is None or target.name != "TRACE":
                places.append((name, chain_name, number))
        elif what == "policy":
            places.append((name, chain_name, None))
    return places


def predicted(outcome: Outcome) -> list[Position]:
    """The way that a trace says, in the same words."""
    return [
        (step.table, step.chain, step.number) for step in outcome.steps if step.verdict != "TRACE"
    ]
