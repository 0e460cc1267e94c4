"""Target extensions as bytes and as text: the ones that our rules use."""

from __future__ import annotations

import struct
from functools import cache
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING

from istio_iptables.kernel.xt_abi.entry import (
    WHOLE_MARK,
    UnknownPartError,
    only_option,
    part,
    range_text,
    value_and_mask,
)
from istio_iptables.netfilter.model import Family

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_iptables.netfilter.model import Target

__all__ = ["decode_target", "encode_target"]


@cache
def encode_target(target: Target | None, family: Family) -> bytes:
    """The bytes of a target; raises UnknownPartError for one that is not known here."""
    name = "" if target is None else target.name
    if target is None or (not target.options and name not in _TARGETS):
        # A verdict or a chain: libiptc looks the name up and puts in the number it stands for.
        if len(name.encode(errors="surrogateescape")) >= 29:  # noqa: PLR2004 - the room for a name
            raise UnknownPartError(name)
        return part(name, 0, bytes(4))
    try:
        return _TARGETS[name](target, family)
    except (KeyError, ValueError, IndexError):
        message = f"-j {name}"
        raise UnknownPartError(message) from None


_NAT_TO_PORTS = 0x02


def _redirect(target: Target, family: Family) -> bytes:
    option = only_option(target)
    if option.name != "--to-ports":
        raise ValueError(option.name)
    first, dash, last = option.values[0].partition("-")
    low = int(first)
    ports = (low, int(last) if dash else low)
    if family is Family.IPV4:
        return part(
            "REDIRECT", 0, struct.pack("=III4x", 1, _NAT_TO_PORTS, 0) + struct.pack(">HH", *ports)
        )
    return part("REDIRECT", 0, struct.pack("=I32x", _NAT_TO_PORTS) + struct.pack(">HH", *ports))


def _set_mark(target: Target, _: Family) -> bytes:
    option = only_option(target)
    if option.name != "--set-xmark":
        raise ValueError(option.name)
    return part("MARK", 2, struct.pack("=II", *value_and_mask(option.values[0])))


_CONNMARK_MODES = {"--set-xmark": 0, "--save-mark": 1, "--restore-mark": 2}


def _connmark(target: Target, _: Family) -> bytes:
    mode, nfmask, ctmask = -1, WHOLE_MARK, WHOLE_MARK
    for option in target.options:
        if option.name == "--nfmask":
            nfmask = int(option.values[0], 0)
        elif option.name == "--ctmask":
            ctmask = int(option.values[0], 0)
        else:
            mode = _CONNMARK_MODES[option.name]
    if mode < 1:
        raise ValueError(mode)
    # Revision 2 (Linux 4.17) is what iptables makes: it does not print the text of another.
    return part("CONNMARK", 2, struct.pack("=IIIBBBx", 0, ctmask, nfmask, 0, 0, mode))


def _tproxy(target: Target, family: Family) -> bytes:
    options = {option.name: option.values[0] for option in target.options}
    value, mask = value_and_mask(options.pop("--tproxy-mark"))
    number = AF_INET if family is Family.IPV4 else AF_INET6
    address = inet_pton(number, options.pop("--on-ip"))
    port = int(options.pop("--on-port"))
    if options:
        raise ValueError(options)
    return part(
        "TPROXY", 1, struct.pack("=II16s", mask, value, address) + struct.pack(">Hxx", port)
    )


def _zone(target: Target, _: Family) -> bytes:
    option = only_option(target)
    if option.name != "--zone":
        raise ValueError(option.name)
    # struct xt_ct_target_info_v1: the end is a pointer of the kernel's own.
    return part("CT", 2, struct.pack("=HHII48s4x8x", 0, int(option.values[0]), 0, 0, b""))


_TARGETS: dict[str, Callable[[Target, Family], bytes]] = {
    "REDIRECT": _redirect,
    "MARK": _set_mark,
    "CONNMARK": _connmark,
    "TPROXY": _tproxy,
    "CT": _zone,
}


@cache
def decode_target(name: str, revision: int, data: bytes, family: Family) -> str:
    """The text of a target from ``-j`` on; raises UnknownPartError for one not known here."""
    reader = _TARGET_READERS.get((name, revision))
    if reader is None:
        message = f"-j {name} (revision {revision})"
        raise UnknownPartError(message)
    return f"-j {name}{reader(data, family)}"


def _redirect_text(data: bytes, family: Family) -> str:
    if family is Family.IPV4:
        _, flags = struct.unpack_from("=II", data)
        first, last = struct.unpack_from(">HH", data, 16)
    else:
        (flags,) = struct.unpack_from("=I", data)
        first, last = struct.unpack_from(">HH", data, 36)
    if flags & ~_NAT_TO_PORTS:
        message = "-j REDIRECT with more than ports"
        raise UnknownPartError(message)
    return f" --to-ports {range_text(first, last, '-')}" if flags else ""


def _set_mark_text(data: bytes, _: Family) -> str:
    value, mask = struct.unpack_from("=II", data)
    if mask != WHOLE_MARK:
        message = "-j MARK with a mask"
        raise UnknownPartError(message)
    return f" --set-xmark {value:#x}/{mask:#x}"


def _connmark_text(data: bytes, _: Family) -> str:
    _, ctmask, nfmask, shift, bits, mode = struct.unpack_from("=IIIBBB", data)
    if mode not in {1, 2} or shift or bits:
        message = "-j CONNMARK that neither saves nor restores"
        raise UnknownPartError(message)
    what = "--save-mark" if mode == 1 else "--restore-mark"
    return f" {what} --nfmask {nfmask:#x} --ctmask {ctmask:#x}"


def _tproxy_text(data: bytes, family: Family) -> str:
    mask, value, address = struct.unpack_from("=II16s", data)
    (port,) = struct.unpack_from(">H", data, 24)
    four = family is Family.IPV4
    shown = inet_ntop(AF_INET, address[:4]) if four else inet_ntop(AF_INET6, address)
    return f" --on-port {port} --on-ip {shown} --tproxy-mark {value:#x}/{mask:#x}"


def _zone_text(data: bytes, _: Family) -> str:
    flags, zone, events, expected = struct.unpack_from("=HHII", data)
    if flags or events or expected or any(data[12:60]):
        message = "-j CT with more than a zone"
        raise UnknownPartError(message)
    return f" --zone {zone}"


_TARGET_READERS: dict[tuple[str, int], Callable[[bytes, Family], str]] = {
    ("REDIRECT", 0): _redirect_text,
    ("MARK", 2): _set_mark_text,
    ("CONNMARK", 2): _connmark_text,
    ("TPROXY", 1): _tproxy_text,
    ("CT", 1): _zone_text,
    ("CT", 2): _zone_text,
}
