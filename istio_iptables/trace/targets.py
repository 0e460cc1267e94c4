"""What a matching rule does: where the packet goes next, and what is changed about it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.netfilter.fieldvalues import (
    MAX_PORT,
    WHOLE_MARK,
    Range,
    address_number,
    mapped,
    masked,
    number,
)
from istio_iptables.netfilter.packet import loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from istio_iptables.netfilter.model import Rule, Target
    from istio_iptables.netfilter.packet import Packet, Surroundings

__all__ = ["Effect", "Next", "effect"]


class Next(Enum):
    """Where a packet goes from a rule."""

    CONTINUE = "continue"
    RETURN = "return"
    JUMP = "jump"
    GOTO = "goto"
    #: Done with this table.
    ACCEPT = "accept"
    DROP = "drop"
    UNKNOWN = "unknown"


class Effect(NamedTuple):
    """What came of a rule."""

    next: Next
    #: The target's name, the chain's, or "" for a rule without a target.
    verdict: str
    packet: Packet
    change: str = ""
    #: Whether the packet is handed to a local port whatever it asked for, and which one; None if
    #: that can't be known.
    takes: bool = False
    to_port: int | None = None
    #: Whether nat gave the connection another destination.
    translated: bool = False


#: Targets that look or write something down and let the packet go on.
_GOES_ON = frozenset(
    {
        "AUDIT",
        "CHECKSUM",
        "CLASSIFY",
        "CONNSECMARK",
        "DSCP",
        "ECN",
        "HL",
        "IDLETIMER",
        "LED",
        "LOG",
        "NFLOG",
        "RATEEST",
        "SECMARK",
        "TCPMSS",
        "TCPOPTSTRIP",
        "TEE",
        "TOS",
        "TRACE",
        "TTL",
        "ULOG",
    }
)
_FINAL = {
    "ACCEPT": Next.ACCEPT,
    "DROP": Next.DROP,
    "REJECT": Next.DROP,
    "TARPIT": Next.DROP,
    "RETURN": Next.RETURN,
}


def effect(
    rule: Rule, packet: Packet, hook: str, chains: Container[str], world: Surroundings
) -> Effect:
    """What *rule* does to *packet*, which it matches."""
    target = rule.target
    if target is None:
        return Effect(Next.CONTINUE, "", packet)
    name = target.name
    if name in chains:
        return Effect(Next.GOTO if target.goto else Next.JUMP, name, packet)
    if name in _FINAL:
        return Effect(_FINAL[name], name, packet)
    if name in _GOES_ON:
        return Effect(Next.CONTINUE, name, packet)
    act = _ACTIONS.get(name)
    done = act(target, packet, hook, world) if act else None
    if done is not None:
        return done
    # If it lets the packet go on, it may have marked it.
    marked = packet._replace(mark=None, connmark=None if packet.tracked else packet.connmark)
    return Effect(Next.UNKNOWN, name, marked, "what it does can't be known from here")


def _xmark(target: Target) -> tuple[int, int] | None:
    """The value and the mask of ``--set-xmark``, from any spelling."""
    option = target.options[0] if len(target.options) == 1 else None
    read = masked(option.values[0]) if option and len(option.values) == 1 else None
    if option is None or read is None:
        return None
    value, mask = read
    return {
        "--set-xmark": (value, mask),
        "--set-mark": (value, mask | value),
        "--and-mark": (0, ~value & WHOLE_MARK),
        "--or-mark": (value, value),
        "--xor-mark": (value, 0),
    }.get(option.name)


def _mark(target: Target, packet: Packet, _hook: str, _world: Surroundings) -> Effect:
    read = _xmark(target)
    mark = None if read is None else _mixed(packet.mark, *read)
    return Effect(Next.CONTINUE, target.name, packet._replace(mark=mark), f"mark {_text(mark)}")


def _mixed(old: int | None, value: int, mask: int) -> int | None:
    if mask == WHOLE_MARK:
        return value
    return None if old is None else (old & ~mask) ^ value


def _text(mark: int | None) -> str:
    return "unknown" if mark is None else f"{mark:#x}"


def _hashed_mark(target: Target, packet: Packet, _hook: str, _world: Surroundings) -> Effect:
    """HMARK: a mark that is computed from the addresses, in a way of the kernel's own."""
    return Effect(Next.CONTINUE, target.name, packet._replace(mark=None), "mark unknown")


def _set(target: Target, packet: Packet, hook: str, world: Surroundings) -> Effect:
    """SET: a map may give the packet a mark, which only the set knows."""
    if target.option("--map-mark") is None:
        return Effect(Next.CONTINUE, target.name, packet)
    return _hashed_mark(target, packet, hook, world)


def _connmark(target: Target, packet: Packet, _hook: str, _world: Surroundings) -> Effect:
    name = target.name
    if not packet.tracked:
        return Effect(Next.CONTINUE, name, packet, "no connection, so no mark of it")
    saves, restores = target.option("--save-mark"), target.option("--restore-mark")
    both = _mask(target, "--mask", WHOLE_MARK)
    nfmask, ctmask = _mask(target, "--nfmask", both), _mask(target, "--ctmask", both)
    readable = (
        nfmask is not None
        and ctmask is not None
        and all(each.name in _CONNMARK_OPTIONS for each in target.options)
        # What raw finds behind a CT target is no connection yet.
        and not packet.early_state
    )
    if restores is not None:
        mark = None
        if readable and nfmask is not None and ctmask is not None:
            mark = _copied(packet.connmark, ctmask, packet.mark, nfmask)
        return Effect(Next.CONTINUE, name, packet._replace(mark=mark), f"mark {_text(mark)}")
    if packet.early_state:
        return Effect(Next.CONTINUE, name, packet, "no connection yet, so no mark of it")
    connmark = None
    if saves is None:
        read = _xmark(target)
        connmark = None if read is None else _mixed(packet.connmark, *read)
    elif readable and nfmask is not None and ctmask is not None:
        connmark = _copied(packet.mark, nfmask, packet.connmark, ctmask)
    changed = packet._replace(connmark=connmark)
    return Effect(Next.CONTINUE, name, changed, f"connection mark {_text(connmark)}")


_CONNMARK_OPTIONS = frozenset({"--save-mark", "--restore-mark", "--mask", "--nfmask", "--ctmask"})


def _mask(target: Target, name: str, default: int | None) -> int | None:
    option = target.option(name)
    if option is None:
        return default
    return number(option.values[0]) if len(option.values) == 1 else None


def _copied(source: int | None, mask: int, old: int | None, replaced: int) -> int | None:
    if source is None:
        return None
    if replaced == WHOLE_MARK:
        return source & mask
    return None if old is None else (old & ~replaced) ^ (source & mask)


def _ct(target: Target, packet: Packet, _hook: str, _world: Surroundings) -> Effect:
    """How the packet is to be tracked; only the first such target is heard."""
    if packet.settled:
        return Effect(Next.CONTINUE, target.name, packet)
    if target.name == "NOTRACK" or target.option("--notrack"):
        changed = packet._replace(settled=True, state="UNTRACKED", early_state="UNTRACKED")
        return Effect(Next.CONTINUE, target.name, changed, "not tracked")
    # A connection to be: the rest of raw sees it as a new one.
    packet = packet._replace(settled=True, early_state="NEW")
    zone = target.option("--zone")
    if zone is None:
        return Effect(Next.CONTINUE, target.name, packet)
    value = number(zone.values[0]) if len(zone.values) == 1 else None
    text = "unknown" if value is None else value
    return Effect(Next.CONTINUE, target.name, packet._replace(zone=value), f"zone {text}")


def _redirect(target: Target, packet: Packet, hook: str, world: Surroundings) -> Effect | None:
    option = target.option("--to-ports", "--to-port")
    ports = None
    if option is not None:
        ports = _port_range(option.values[0]) if len(option.values) == 1 else None
        if ports is None or not packet.has_ports:
            return None
    here = loopback(packet.family) if hook == "OUTPUT" else world.answering(packet)
    if here == "":
        return Effect(Next.DROP, target.name, packet, "its interface has no address")
    port = _mapped(packet.destination_port, ports, target)
    changed = packet._replace(destination=here, destination_port=port)
    return Effect(
        Next.ACCEPT,
        target.name,
        changed,
        _redirected_to(changed, ports),
        takes=True,
        to_port=port,
        translated=True,
    )


def _redirected_to(packet: Packet, ports: Range | None) -> str:
    """Where REDIRECT sends a packet, in words."""
    if ports is not None and packet.destination_port is None:
        port = f"a port from {ports.first} to {ports.last}"
    elif packet.destination is None and packet.destination_port is not None:
        port = f"port {packet.destination_port}"
    else:
        return f"to {packet.endpoints[1]}" if packet.destination else f"to {_own(packet)}"
    whose = packet.destination or _own(packet)
    return f"to {port} of {whose}"


def _own(packet: Packet) -> str:
    return f"the first address of {packet.in_interface or 'its interface'}"


def _port_range(text: str) -> Range | None:
    """The ports of ``80`` or ``80-90``, as nat's targets write them."""
    first, dash, last = text.partition("-")
    low, high = number(first), number(last if dash else first)
    if low is None or high is None or not low <= high <= MAX_PORT:
        return None
    return Range(low, high)


def _mapped(port: int | None, ports: Range | None, target: Target) -> int | None:
    """The port that nat gives a connection, None if only the kernel knows it.

    One that is in the range stays, unless the port is to be a random one.
    """
    if ports is None:
        return port
    if ports.first == ports.last:
        return ports.first
    is_random = target.option("--random", "--random-fully") is not None
    return port if not is_random and port is not None and port in ports else None


def _tproxy(target: Target, packet: Packet, _hook: str, _world: Surroundings) -> Effect | None:
    # Port 0 is the one that was asked for.
    port = _mask(target, "--on-port", 0)
    option = target.option("--tproxy-mark")
    read = masked(option.values[0]) if option and len(option.values) == 1 else (0, 0)
    if read is None or port is None or port > MAX_PORT:
        return None
    port = port or packet.destination_port
    mark = _mixed(packet.mark, *read)
    return Effect(
        Next.ACCEPT,
        target.name,
        packet._replace(mark=mark),
        f"to the listener on port {port}, mark {_text(mark)}",
        takes=True,
        to_port=port,
    )


class _Endpoint(NamedTuple):
    """What ``--to-destination`` and ``--to-source`` name; None is "as it is"."""

    address: str | None
    ports: Range | None
    #: Whether it could be read, a range of addresses apart.
    known: bool = True


def _endpoint(text: str) -> _Endpoint:
    if text.startswith("["):
        address, _, ports = text[1:].partition("]")
        ports = ports.removeprefix(":")
    elif text.count(":") == 1:
        address, _, ports = text.partition(":")
    else:
        address, ports = text, ""
    found = _port_range(ports) if ports else None
    return _Endpoint(address or None, found, not ports or found is not None)


def _destination_nat(target: Target, packet: Packet, _hook: str, _world: Surroundings) -> Effect:
    """Another destination; of a range of addresses, which one can't be known."""
    option = target.option("--to-destination")
    text = option.values[0] if option and len(option.values) == 1 else ""
    wanted = _endpoint(text)
    address = packet.destination if text and wanted.address is None else wanted.address
    if address is not None and address_number(address, packet.family) is None:
        address = None
    port = _mapped(packet.destination_port, wanted.ports, target) if wanted.known else None
    changed = packet._replace(destination=address, destination_port=port)
    return Effect(Next.ACCEPT, target.name, changed, f"to {changed.endpoints[1]}", translated=True)


def _source_nat(target: Target, packet: Packet, _hook: str, _world: Surroundings) -> Effect:
    """Another source; the port stays as a rule, but nothing says that it must."""
    option = target.option("--to-source", "--to-ports")
    text = option.values[0] if option and len(option.values) == 1 else None
    changed = packet._replace(source=None, source_port=None)
    if option is not None and option.name == "--to-source" and text is not None:
        wanted = _endpoint(text)
        port = _mapped(packet.source_port, wanted.ports, target) if wanted.known else None
        address = packet.source if wanted.address is None else wanted.address
        if address is not None and address_number(address, packet.family) is None:
            address = None
        changed = packet._replace(source=address, source_port=port)
    elif target.option("--to-ports", "--random", "--random-fully") is None:
        changed = packet._replace(source=None)
    return Effect(Next.ACCEPT, target.name, changed, f"from {text or 'another address'}")


def _network_nat(target: Target, packet: Packet, hook: str, _world: Surroundings) -> Effect:
    """NETMAP: the network's part of the address is another, the host's part stays."""
    option = target.option("--to")
    text = option.values[0] if option and len(option.values) == 1 else ""
    source = hook in {"INPUT", "POSTROUTING"}
    address = mapped(text, packet.source if source else packet.destination, packet.family)
    if source:
        changed = packet._replace(source=address)
        return Effect(Next.ACCEPT, target.name, changed, f"from {changed.endpoints[0]}")
    changed = packet._replace(destination=address)
    return Effect(Next.ACCEPT, target.name, changed, f"to {changed.endpoints[1]}", translated=True)


def _prefix_translation(target: Target, packet: Packet, _hook: str, _world: Surroundings) -> Effect:
    """SNPT and DNPT, which change an IPv6 prefix without a connection: to what isn't computed."""
    if target.name == "SNPT":
        changed = packet._replace(source=None)
        return Effect(Next.CONTINUE, target.name, changed, "from another address")
    changed = packet._replace(destination=None)
    return Effect(Next.CONTINUE, target.name, changed, "to another address")


_ACTIONS: dict[str, Callable[[Target, Packet, str, Surroundings], Effect | None]] = {
    "MARK": _mark,
    "CONNMARK": _connmark,
    "CT": _ct,
    "NOTRACK": _ct,
    "REDIRECT": _redirect,
    "TPROXY": _tproxy,
    "DNAT": _destination_nat,
    "SNAT": _source_nat,
    "MASQUERADE": _source_nat,
    "NETMAP": _network_nat,
    "SNPT": _prefix_translation,
    "DNPT": _prefix_translation,
    "HMARK": _hashed_mark,
    "SET": _set,
}
