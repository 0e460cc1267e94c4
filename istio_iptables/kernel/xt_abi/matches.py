"""Match extensions as bytes: the ones that our rules use, and comments."""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING

from istio_iptables.kernel.xt_abi.entry import (
    UnknownPartError,
    aligned,
    only_option,
    part,
    value_and_mask,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_iptables.netfilter.model import Match

__all__ = ["encode_match"]


def encode_match(match: Match) -> bytes:
    """The bytes of a match; raises UnknownPartError for one that is not known here."""
    # The ports of a long list are all different: not worth a place in the cache.
    if match.name in {"tcp", "udp"}:
        return _encode_ports(match)
    return _encode_other_match(match)


_PORTS = struct.Struct("=HHHH")
#: Whole parts: tcp has an option and two bytes of flags between the ports and the inversion.
_PORTS_SIZE = aligned(44)
_TCP_PART = struct.Struct(f"=H29sBHHHH3xB{_PORTS_SIZE - 44}x")
_UDP_PART = struct.Struct(f"=H29sBHHHHB{_PORTS_SIZE - 41}x")
_ALL_PORTS = (0, 65535)


def _encode_ports(match: Match) -> bytes:
    source = destination = _ALL_PORTS
    inverted = 0
    for option in match.options:
        if option.name not in {"--sport", "--dport"}:
            message = f"-m {match.name} {option.name}"
            raise UnknownPartError(message)
        first, colon, last = option.values[0].partition(":")
        low = int(first)
        ports = (low, int(last) if colon else low)
        if option.name == "--sport":
            source = ports
            inverted |= option.negated
        else:
            destination = ports
            inverted |= option.negated << 1
    if match.name == "tcp":
        return _TCP_PART.pack(_PORTS_SIZE, b"tcp", 0, *source, *destination, inverted)
    return _UDP_PART.pack(_PORTS_SIZE, b"udp", 0, *source, *destination, inverted)


@cache
def _encode_other_match(match: Match) -> bytes:
    try:
        return _MATCHES[match.name](match)
    except (KeyError, ValueError, IndexError):
        message = f"-m {match.name}"
        raise UnknownPartError(message) from None


def _multiport(match: Match) -> bytes:
    option = only_option(match)
    kinds = {"--sports": 0, "--dports": 1, "--ports": 2}
    ports: list[int] = []
    ranges: list[int] = []
    for item in option.values[0].split(","):
        first, colon, last = item.partition(":")
        ports.append(int(first))
        ranges.append(1 if colon else 0)
        if colon:
            ports.append(int(last))
            ranges.append(0)
    count = len(ports)
    data = struct.pack(
        "=BB15H15BB",
        kinds[option.name],
        count,
        *ports,
        *(0,) * (15 - count),
        *ranges,
        *(0,) * (15 - count),
        option.negated,
    )
    return part("multiport", 1, data)


def _owner(match: Match) -> bytes:
    uid, gid, present, inverted = (0, 0), (0, 0), 0, 0
    for option in match.options:
        first, dash, last = option.values[0].partition("-")
        ids = (int(first), int(last if dash else first))
        bit = {"--uid-owner": 1, "--gid-owner": 2}[option.name]
        uid, gid = (ids, gid) if bit == 1 else (uid, ids)
        present |= bit
        inverted |= bit if option.negated else 0
    return part("owner", 1, struct.pack("=IIIIBBxx", *uid, *gid, present, inverted))


def _mark(match: Match) -> bytes:
    option = only_option(match)
    value, mask = value_and_mask(option.values[0])
    if option.name != "--mark":
        raise ValueError(option.name)
    return part(match.name, 1, struct.pack("=IIBxxx", value, mask, option.negated))


_STATES = {
    "INVALID": 1,
    "ESTABLISHED": 2,
    "RELATED": 4,
    "NEW": 8,
    "UNTRACKED": 256,
    "SNAT": 64,
    "DNAT": 128,
}
#: struct xt_conntrack_mtinfo3: 8 addresses of 16 bytes, then expiry, protocol, ports, flags.
_CONNTRACK = struct.Struct("=128sIIH4HHHHH4H")
_BY_STATE = 1


def _conntrack(match: Match) -> bytes:
    option = only_option(match)
    if option.name != "--ctstate":
        raise ValueError(option.name)
    states = 0
    for name in option.values[0].split(","):
        states |= _STATES[name]
    ports = (0,) * 4
    inverted = _BY_STATE if option.negated else 0
    data = _CONNTRACK.pack(b"", 0, 0, 0, *ports, _BY_STATE, inverted, states, 0, *ports)
    return part("conntrack", 3, data)


def _comment(match: Match) -> bytes:
    return part(
        "comment",
        0,
        only_option(match).values[0].encode(errors="surrogateescape").ljust(256, b"\0"),
    )


_MATCHES: dict[str, Callable[[Match], bytes]] = {
    "multiport": _multiport,
    "owner": _owner,
    "mark": _mark,
    "connmark": _mark,
    "conntrack": _conntrack,
    "comment": _comment,
}
