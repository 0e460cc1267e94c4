"""Random tables of rules of all kinds, as iptables-save prints them: ours are never so mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.netfilter.model import Family

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

__all__ = ["random_rules"]

_HOOKS = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}
_NETWORKS = {
    Family.IPV4: (
        *("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "127.0.0.1/32", "127.0.0.0/8"),
        *("192.0.2.0/24", "10.0.0.0/255.0.255.0", "224.0.0.0/4", "127.0.0.6/32"),
    ),
    Family.IPV6: (
        *("fd00::/8", "2001:db8::1/128", "::1/128", "fd00:10::/32", "ff00::/8", "::6/128"),
    ),
}
_MARKS = ("0x1", "0x539", "0x1/0x1", "0x10/0xf0", "0x53a", "0x0/0xff")
_STATES = ("NEW", "INVALID", "RELATED,ESTABLISHED", "UNTRACKED", "NEW,DNAT", "DNAT")
_PORTS = ("80", "443", "1024:65535", "53", "8000:8100", ":1023")
_EVERYWHERE = ("-j ACCEPT", "-j DROP", "-j RETURN", "-j LOG")
_MASKS = ("0xffffffff", "0xff")


class _Place(NamedTuple):
    table: str
    #: "" for a chain that is not built in.
    hook: str
    family: Family
    #: Where a rule may lead.
    chains: list[str]

    @property
    def is_entry(self) -> bool:
        return self.hook in {"PREROUTING", "INPUT", "FORWARD", ""}

    @property
    def is_exit(self) -> bool:
        return self.hook in {"FORWARD", "OUTPUT", "POSTROUTING", ""}


def random_rules(random: Random, family: Family) -> str:
    """Some tables, with chains that lead to each other and never in a circle."""
    lines = []
    for table in random.sample([*_HOOKS], random.randint(1, 3)):
        hooks, own = _HOOKS[table], ["A", "B", "C"][: random.randint(0, 3)]
        policies = ["ACCEPT"] * 6 + ["DROP"] * (table != "nat")
        lines += [f"*{table}", *(f":{hook} {random.choice(policies)} [0:0]" for hook in hooks)]
        lines += [f":{chain} - [0:0]" for chain in own]
        for hook in random.sample(hooks, random.randint(1, min(3, len(hooks)))):
            place = _Place(table, hook, family, own)
            lines += (f"-A {hook} {_rule(random, place)}" for _ in range(random.randint(1, 4)))
        for number, chain in enumerate(own, 1):
            place = _Place(table, "", family, own[number:])
            lines += (f"-A {chain} {_rule(random, place)}" for _ in range(random.randint(0, 3)))
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def _rule(random: Random, place: _Place) -> str:
    icmp = "icmp" if place.family is Family.IPV4 else "icmpv6"
    protocol = random.choice(("", "", "tcp", "tcp", "udp", icmp, "sctp", "47"))
    return " ".join((*_matches(random, place, protocol), _target(random, place, protocol)))


def _matches(random: Random, place: _Place, protocol: str) -> Iterator[str]:
    def some(chance: float, before: str, values: Sequence[str]) -> Iterator[str]:
        if random.random() < chance:
            what, _, option = before.rpartition(" ")
            sense = random.choice(("", "", "! "))
            yield f"{what} {sense}{option} {random.choice(values)}".lstrip()

    yield from some(0.25, "-s", _NETWORKS[place.family])
    yield from some(0.3, "-d", _NETWORKS[place.family])
    interfaces = ("lo", "eth0", "net+", "br0")
    yield from some(0.3 * place.is_entry, "-i", interfaces)
    yield from some(0.3 * place.is_exit, "-o", interfaces)
    if protocol:
        yield f"-p {protocol}"
    if protocol in {"tcp", "udp"}:
        yield from some(0.4, f"-m {protocol} --{random.choice(('dport', 'sport'))}", _PORTS)
        kind = random.choice(("dports", "sports", "ports"))
        yield from some(0.2, f"-m multiport --{kind}", ("80,443", "53,1000:2000", "15001"))
    if place.is_exit:
        owner = random.choice(("uid-owner", "gid-owner"))
        yield from some(0.25, f"-m owner --{owner}", ("0", "1337", "1000", "1000-1337"))
    yield from some(0.15, "-m mark --mark", _MARKS)
    yield from some(0.1, "-m connmark --mark", _MARKS)
    yield from some(0.15, "-m conntrack --ctstate", _STATES)
    yield from some(0.03, "-m addrtype --dst-type", ("LOCAL", "MULTICAST", "BROADCAST"))
    if random.random() < 0.03:
        yield "-m statistic --mode random --probability 0.5"


def _target(random: Random, place: _Place, protocol: str) -> str:
    found = [*_EVERYWHERE, *(f"-{random.choice('jg')} {chain}" for chain in place.chains * 2)]
    ipv4, with_ports = place.family is Family.IPV4, protocol in {"tcp", "udp"}
    destination = place.table == "nat" and place.hook in {"PREROUTING", "OUTPUT", ""}
    if destination:
        found += ["-j REDIRECT", f"-j DNAT --to-destination {'10.1.2.3' if ipv4 else 'fd00::5'}"]
    if destination and with_ports:
        there = "10.0.0.5:80" if ipv4 else "[fd00::5]:80"
        found += ["-j REDIRECT --to-ports 15001", "-j REDIRECT --to-ports 15006"] * 2
        found += [f"-j DNAT --to-destination {there}"]
    if place.table == "nat" and place.hook == "POSTROUTING":
        found += ["-j MASQUERADE", f"-j SNAT --to-source {'10.9.9.9' if ipv4 else 'fd00::9'}"]
    if place.table == "mangle":
        marks = ("0x539/0xffffffff", "0x1/0xf", "0x0/0xff", "0x2/0x0")
        found += [f"-j MARK --set-xmark {each}" for each in marks]
        for mask in _MASKS:
            found += [
                f"-j CONNMARK --{way}-mark --nfmask {mask} --ctmask {mask}"
                for way in ("save", "restore")
            ]
        if place.hook == "PREROUTING" and with_ports:
            address = "0.0.0.0" if ipv4 else "::"  # noqa: S104 - a target's, no listener
            found += [f"-j TPROXY --on-port 15006 --on-ip {address} --tproxy-mark 0x539/0xff"] * 3
    if place.table == "raw":
        found += ["-j CT --notrack", "-j CT --zone 1"]
    if place.table == "filter":
        found += ["-j REJECT", "-j NFQUEUE --queue-num 1", "-j SOMETHING"]
    return random.choice(found)
