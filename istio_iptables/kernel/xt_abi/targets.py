"""Target extensions as bytes: the ones that our rules use."""

from __future__ import annotations

import struct
from functools import cache
from socket import AF_INET, AF_INET6, inet_pton
from typing import TYPE_CHECKING

from istio_iptables.kernel.xt_abi.entry import (
    WHOLE_MARK,
    UnknownPartError,
    only_option,
    part,
    value_and_mask,
)
from istio_iptables.netfilter.model import Family

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_iptables.netfilter.model import Target

__all__ = ["encode_target"]


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
