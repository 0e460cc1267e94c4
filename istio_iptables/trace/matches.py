"""Whether a rule matches a packet: yes, no, or not to be known from here.

Only what can be decided from the packet is; every other match is unknown (None), and unknown
is never taken for yes or no.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.differences.rules import option_text
from istio_iptables.netfilter.fieldvalues import (
    Range,
    address_number,
    masked,
    number,
    port_range,
    protocol_number,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from istio_iptables.netfilter.model import Family, Match, Option, Rule, Term
    from istio_iptables.netfilter.packet import Packet, Surroundings

__all__ = ["Condition", "Situation", "conditions", "matches"]

_TCP = 6
_SENDING = frozenset({"OUTPUT", "POSTROUTING"})


class Situation(NamedTuple):
    """A packet at one hook: all that a match may look at."""

    packet: Packet
    #: The built-in chain's name.
    hook: str
    world: Surroundings
    #: Whether a nat rule has given the connection another destination.
    translated: bool = False


class Condition(NamedTuple):
    """One condition of a rule, whether it holds, and what the packet has instead."""

    text: str
    holds: bool | None
    has: str


def matches(rule: Rule, situation: Situation) -> bool | None:
    """Whether *rule* matches: False as soon as one condition fails, None if that depends."""
    packet = situation.packet
    answer: bool | None = True
    # Written out, and the most telling ones first: thousands of rules are asked.
    for term, ask in (
        (rule.destination, _is_destination),
        (rule.source, _is_source),
        (rule.protocol, _is_protocol),
        (rule.out_interface, _is_out),
        (rule.in_interface, _is_in),
        (rule.fragment, _is_fragment),
    ):
        if term is not None:
            holds = ask(term, packet)
            if holds is False:
                return False
            answer = answer if holds else None
    for match in rule.matches:
        for _, holds in _match(match, situation):
            if holds is False:
                return False
            answer = answer if holds else None
    return answer


def conditions(rule: Rule, situation: Situation) -> list[Condition]:
    """Each condition of *rule*, for saying why it did not match."""
    packet = situation.packet
    source, destination = packet.endpoints
    found = [
        Condition(
            f"{'! ' if term.negated else ''}{flag} {term.value}".rstrip(), ask(term, packet), has
        )
        for flag, term, ask, has in (
            ("-s", rule.source, _is_source, f"source {source}"),
            ("-d", rule.destination, _is_destination, f"destination {destination}"),
            ("-i", rule.in_interface, _is_in, f"in by {packet.in_interface or 'no interface'}"),
            ("-o", rule.out_interface, _is_out, f"out by {packet.out_interface or 'no interface'}"),
            ("-p", rule.protocol, _is_protocol, f"protocol {packet.protocol_name}"),
            ("-f", rule.fragment, _is_fragment, "not a fragment"),
        )
        if term is not None
    ]
    for match in rule.matches:
        about = _HAS.get(match.name)
        has = "it can't be known from here" if about is None else about(packet)
        found += (Condition(text, holds, has) for text, holds in _match(match, situation))
    return found


# Conditions on the header.


def _in_network(text: str, address: str | None, family: Family) -> bool | None:
    if address is None:
        return None
    base, slash, length = text.partition("/")
    wanted, value = address_number(base, family), address_number(address, family)
    if wanted is None or value is None:
        return None
    if not slash:
        return wanted == value
    bits = number(length) if length == "0" or not length.startswith("0") else None
    if bits is not None:
        clear = family.bits - bits
        return clear >= 0 and wanted >> clear == value >> clear
    mask = address_number(length, family)
    return None if mask is None else wanted & mask == value & mask


def _is_source(term: Term, packet: Packet) -> bool | None:
    answer = _in_network(term.value, packet.source, packet.family)
    return None if answer is None else answer is not term.negated


def _is_destination(term: Term, packet: Packet) -> bool | None:
    answer = _in_network(term.value, packet.destination, packet.family)
    return None if answer is None else answer is not term.negated


def _interface(term: Term, name: str | None) -> bool | None:
    if name is None:
        return None
    wanted = term.value
    answer = name.startswith(wanted[:-1]) if wanted.endswith("+") else name == wanted
    return answer is not term.negated


def _is_in(term: Term, packet: Packet) -> bool | None:
    return _interface(term, packet.in_interface)


def _is_out(term: Term, packet: Packet) -> bool | None:
    return _interface(term, packet.out_interface)


def _is_protocol(term: Term, packet: Packet) -> bool | None:
    wanted = protocol_number(term.value)
    if wanted is None:
        return None
    return (wanted in {0, packet.protocol}) is not term.negated


def _is_fragment(term: Term, _: Packet) -> bool | None:
    # Connection tracking has put fragments together before any rule that we know sees them.
    return term.negated


# Match extensions.


def _match(match: Match, situation: Situation) -> Iterator[tuple[str, bool | None]]:
    """Each option of a match as text, and whether it holds; all have to."""
    asked = _MATCHES.get(match.name)
    wanted = _NEEDS_PROTOCOL.get(match.name)
    if wanted is not None and wanted != situation.packet.protocol:
        yield f"-m {match.name}", False
        return
    if not match.options:
        yield f"-m {match.name}", True if wanted is not None else None
        return
    for option in match.options:
        ask = None if asked is None else asked.get(option.name)
        holds = None if ask is None else ask(option, situation)
        if match.name in _OF_CONNECTIONS and ask is not _state and not situation.packet.tracked:
            # The kernel looks at the state alone then, or refuses if it isn't asked for.
            holds = match.option("--ctstate", "--state") is not None
        elif match.name == "addrtype" and holds is not None and len(match.options) > 1:
            holds = _of_one_interface(match, option, holds=holds)
        yield f"-m {match.name} {option_text(option)}", holds


_OF_CONNECTIONS = frozenset({"conntrack", "state"})


def _of_one_interface(match: Match, option: Option, *, holds: bool) -> bool | None:
    """What is left of an answer of addrtype when only one interface's addresses count.

    An address of no interface is none of this one; any other may be another's.
    """
    limits = match.option("--limit-iface-in", "--limit-iface-out") is not None
    return None if limits and holds is not option.negated else holds


_NEEDS_PROTOCOL = {"tcp": 6, "udp": 17, "dccp": 33, "sctp": 132, "udplite": 136}


def _port(option: Option, port: int | None) -> bool | None:
    ports = port_range(option.values[0]) if len(option.values) == 1 else None
    if ports is None or port is None:
        return None
    return (port in ports) is not option.negated


def _sport(option: Option, situation: Situation) -> bool | None:
    return _port(option, situation.packet.source_port)


def _dport(option: Option, situation: Situation) -> bool | None:
    return _port(option, situation.packet.destination_port)


def _among(option: Option, situation: Situation, *ports: int | None) -> bool | None:
    if not situation.packet.has_ports:
        return False
    ranges = [port_range(item) for item in ",".join(option.values).split(",")]
    if None in ports or None in ranges:
        return None
    found = any(port in each for each in ranges if each for port in ports)
    return found is not option.negated


def _sports(option: Option, situation: Situation) -> bool | None:
    return _among(option, situation, situation.packet.source_port)


def _dports(option: Option, situation: Situation) -> bool | None:
    return _among(option, situation, situation.packet.destination_port)


def _either_ports(option: Option, situation: Situation) -> bool | None:
    packet = situation.packet
    return _among(option, situation, packet.source_port, packet.destination_port)


def _flags(option: Option, situation: Situation) -> bool | None:
    """The first packet of a connection has SYN alone; of others it isn't known."""
    if situation.packet.state != "NEW" or situation.packet.protocol != _TCP:
        return None
    values = ("FIN,SYN,RST,ACK", "SYN") if option.name == "--syn" else option.values
    if len(values) != 2:  # noqa: PLR2004 - the flags looked at, and those that have to be set
        return None
    mask, wanted = values
    looked_at = {"SYN"} if mask == "ALL" or "SYN" in mask.split(",") else set()
    return (looked_at == set(wanted.replace("NONE", "").split(",")) - {""}) is not option.negated


def _ids(option: Option) -> Range | None:
    first, dash, last = "".join(option.values).partition("-")
    low, high = number(first), number(last if dash else first)
    return None if low is None or high is None else Range(low, high)


def _owner(option: Option, situation: Situation, owner: int | None) -> bool | None:
    if situation.hook not in _SENDING:
        return None
    if situation.packet.uid is None and situation.packet.gid is None:
        # A packet of no socket (the kernel's own) matches only what is negated.
        return option.negated
    ids = _ids(option)
    if ids is None or owner is None:
        return None
    return (owner in ids) is not option.negated


def _uid(option: Option, situation: Situation) -> bool | None:
    return _owner(option, situation, situation.packet.uid)


def _gid(option: Option, situation: Situation) -> bool | None:
    return _owner(option, situation, situation.packet.gid)


def _has_socket(option: Option, situation: Situation) -> bool | None:
    return (situation.packet.uid is not None) is not option.negated


def _masked(option: Option, mark: int | None) -> bool | None:
    read = masked(option.values[0]) if len(option.values) == 1 else None
    if read is None or mark is None:
        return None
    value, mask = read
    return (mark & mask == value) is not option.negated


def _mark(option: Option, situation: Situation) -> bool | None:
    return _masked(option, situation.packet.mark)


def _connmark(option: Option, situation: Situation) -> bool | None:
    packet = situation.packet
    # Without a connection there is no mark to compare, in either sense.
    if not packet.tracked:
        return False
    # Behind a CT target, raw sees the mark of what that target has made, not the connection's.
    return None if packet.early_state else _masked(option, packet.connmark)


def _state(option: Option, situation: Situation) -> bool | None:
    asked = set(",".join(option.values).upper().split(","))
    packet = situation.packet
    if packet.seen_state in asked:
        return not option.negated
    if packet.tracked and not packet.early_state:
        if "DNAT" in asked and packet.state != "NEW":
            return None
        if "DNAT" in asked and situation.translated:
            # Where it is unknown, the new destination may be the old one.
            known = packet.destination and (packet.destination_port or not packet.has_ports)
            return not option.negated if known else None
        if "SNAT" in asked and packet.state != "NEW":
            return None
    return option.negated


def _connection_protocol(option: Option, situation: Situation) -> bool | None:
    if situation.packet.early_state or situation.packet.is_error:
        # Of a connection to be it isn't known yet; an error has that of the packet it is about.
        return None
    wanted = protocol_number("".join(option.values))
    return None if wanted is None else (wanted == situation.packet.protocol) is not option.negated


def _always(_: Option, __: Situation) -> bool | None:
    return True


def _address_type(option: Option, situation: Situation, address: str | None) -> bool | None:
    """Whether an address is LOCAL is decided where that is known; the rest needs the routes."""
    packet = situation.packet
    asked = set(",".join(option.values).split(","))
    local = situation.world.is_local(address, packet.family)
    if local or (local is False and asked == {"LOCAL"}):
        # An address that is local is nothing else.
        return (local and "LOCAL" in asked) is not option.negated
    return None


def _source_type(option: Option, situation: Situation) -> bool | None:
    return _address_type(option, situation, situation.packet.source)


def _destination_type(option: Option, situation: Situation) -> bool | None:
    return _address_type(option, situation, situation.packet.destination)


_PORTS: dict[str, Callable[[Option, Situation], bool | None]] = {
    "--sport": _sport,
    "--source-port": _sport,
    "--dport": _dport,
    "--destination-port": _dport,
}
_STATE: dict[str, Callable[[Option, Situation], bool | None]] = {
    "--ctstate": _state,
    "--state": _state,
    "--ctproto": _connection_protocol,
}

#: The options that can be decided, by match; what is not here is unknown.
_MATCHES: dict[str, dict[str, Callable[[Option, Situation], bool | None]]] = {
    "tcp": {**_PORTS, "--tcp-flags": _flags, "--syn": _flags},
    "udp": _PORTS,
    "sctp": _PORTS,
    "dccp": _PORTS,
    "udplite": _PORTS,
    "multiport": {
        "--sports": _sports,
        "--source-ports": _sports,
        "--dports": _dports,
        "--destination-ports": _dports,
        "--ports": _either_ports,
    },
    "owner": {"--uid-owner": _uid, "--gid-owner": _gid, "--socket-exists": _has_socket},
    "mark": {"--mark": _mark},
    "connmark": {"--mark": _connmark},
    "conntrack": _STATE,
    "state": _STATE,
    "comment": {"--comment": _always},
    "addrtype": {"--src-type": _source_type, "--dst-type": _destination_type},
}


def _number_text(value: int | None) -> str:
    return "unknown" if value is None else f"{value:#x}"


def _ports_text(packet: Packet) -> str:
    source, destination = packet.endpoints
    return f"{packet.protocol_name} {source} to {destination}"


def _state_text(packet: Packet) -> str:
    early = " (before connection tracking)" if packet.early_state else ""
    return f"state {packet.seen_state}{early}"


#: What to say a packet has, by match.
_HAS: dict[str, Callable[[Packet], str]] = {
    **dict.fromkeys(("tcp", "udp", "sctp", "dccp", "udplite", "multiport"), _ports_text),
    "owner": lambda packet: (
        "no socket" if packet.uid is None else f"uid {packet.uid}, gid {packet.gid}"
    ),
    "mark": lambda packet: f"mark {_number_text(packet.mark)}",
    "connmark": lambda packet: f"connection mark {_number_text(packet.connmark)}",
    "conntrack": _state_text,
    "state": _state_text,
}
