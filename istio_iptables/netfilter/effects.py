"""What a matching rule does: where the packet goes next, and what is changed about it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.netfilter.numbers import WHOLE_MARK, address_number, masked, number
from istio_iptables.netfilter.packet import loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from istio_iptables.netfilter.model import Rule, Target
    from istio_iptables.netfilter.packet import Packet, World

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
    #: The local port that the packet is handed to, whatever it asked for.
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
        "SET",
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
_REDIRECTED = frozenset({6, 17, 33, 132, 136})


def effect(rule: Rule, packet: Packet, hook: str, chains: Container[str], world: World) -> Effect:
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
    return done or Effect(Next.UNKNOWN, name, packet, "what it does can't be known from here")


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


def _mark(target: Target, packet: Packet, _hook: str, _world: World) -> Effect | None:
    read = _xmark(target)
    if read is None:
        return None
    mark = _mixed(packet.mark, *read)
    return Effect(Next.CONTINUE, target.name, packet._replace(mark=mark), f"mark {_text(mark)}")


def _mixed(old: int | None, value: int, mask: int) -> int | None:
    if mask == WHOLE_MARK:
        return value
    return None if old is None else (old & ~mask) ^ value


def _text(mark: int | None) -> str:
    return "unknown" if mark is None else f"{mark:#x}"


def _connmark(target: Target, packet: Packet, _hook: str, _world: World) -> Effect | None:
    if not packet.tracked:
        return Effect(Next.CONTINUE, target.name, packet, "no connection, so no mark of it")
    saves = target.option("--save-mark") is not None
    if not saves and target.option("--restore-mark") is None:
        read = _xmark(target)
        if read is None:
            return None
        connmark = _mixed(packet.connmark, *read)
        return Effect(
            Next.CONTINUE,
            target.name,
            packet._replace(connmark=connmark),
            f"connection mark {_text(connmark)}",
        )
    both = _mask(target, "--mask", WHOLE_MARK)
    nfmask, ctmask = _mask(target, "--nfmask", both), _mask(target, "--ctmask", both)
    if nfmask is None or ctmask is None:
        return None
    if saves:
        connmark = _copied(packet.mark, nfmask, packet.connmark, ctmask)
        changed = packet._replace(connmark=connmark)
        return Effect(Next.CONTINUE, target.name, changed, f"connection mark {_text(connmark)}")
    mark = _copied(packet.connmark, ctmask, packet.mark, nfmask)
    return Effect(Next.CONTINUE, target.name, packet._replace(mark=mark), f"mark {_text(mark)}")


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


def _ct(target: Target, packet: Packet, _hook: str, _world: World) -> Effect | None:
    """How the packet is to be tracked; only the first such target is heard."""
    zone = target.option("--zone")
    value = number(zone.values[0]) if zone is not None and len(zone.values) == 1 else None
    if zone is not None and value is None:
        return None
    if packet.settled:
        return Effect(Next.CONTINUE, target.name, packet)
    packet = packet._replace(settled=True)
    if target.name == "NOTRACK" or target.option("--notrack"):
        changed = packet._replace(state="UNTRACKED")
        return Effect(Next.CONTINUE, target.name, changed, "not tracked")
    if value is None:
        return Effect(Next.CONTINUE, target.name, packet)
    return Effect(Next.CONTINUE, target.name, packet._replace(zone=value), f"zone {value}")


def _redirect(target: Target, packet: Packet, hook: str, world: World) -> Effect | None:
    option = target.option("--to-ports", "--to-port")
    first = option.values[0].partition("-")[0] if option and len(option.values) == 1 else None
    port = packet.destination_port if first is None else number(first)
    if packet.protocol not in _REDIRECTED and first is not None:
        return None
    here = loopback(packet.family) if hook == "OUTPUT" else world.answering(packet)
    if not here and here is not None:
        return Effect(Next.DROP, target.name, packet, "its interface has no address")
    changed = packet._replace(destination=here, destination_port=port)
    return Effect(
        Next.ACCEPT,
        target.name,
        changed,
        f"to {changed.endpoints[1]}",
        to_port=port,
        translated=True,
    )


def _tproxy(target: Target, packet: Packet, _hook: str, _world: World) -> Effect | None:
    port = _mask(target, "--on-port", packet.destination_port)
    option = target.option("--tproxy-mark")
    read = masked(option.values[0]) if option and len(option.values) == 1 else (0, 0)
    if read is None or port is None:
        return None
    mark = _mixed(packet.mark, *read)
    return Effect(
        Next.ACCEPT,
        target.name,
        packet._replace(mark=mark),
        f"to the listener on port {port}, mark {_text(mark)}",
        to_port=port,
    )


def _destination_nat(target: Target, packet: Packet, _hook: str, _world: World) -> Effect:
    """Another destination; of a range, which one can't be known."""
    option = target.option("--to-destination")
    text = option.values[0] if option and len(option.values) == 1 else ""
    address: str | None
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    else:
        address, port = text, ""
    if address == "":
        address = packet.destination if text else None
    elif address_number(address, packet.family) is None:
        address = None
    changed = packet._replace(
        destination=address, destination_port=number(port) if port else packet.destination_port
    )
    return Effect(Next.ACCEPT, target.name, changed, f"to {changed.endpoints[1]}", translated=True)


def _source_nat(target: Target, packet: Packet, _hook: str, _world: World) -> Effect:
    option = target.option("--to-source")
    text = option.values[0] if option and len(option.values) == 1 else None
    known = text is not None and address_number(text, packet.family) is not None
    changed = packet._replace(source=text if known else None)
    return Effect(Next.ACCEPT, target.name, changed, f"from {text or 'another address'}")


_ACTIONS: dict[str, Callable[[Target, Packet, str, World], Effect | None]] = {
    "MARK": _mark,
    "CONNMARK": _connmark,
    "CT": _ct,
    "NOTRACK": _ct,
    "REDIRECT": _redirect,
    "TPROXY": _tproxy,
    "DNAT": _destination_nat,
    "SNAT": _source_nat,
    "MASQUERADE": _source_nat,
}
