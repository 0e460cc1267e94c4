"""Rules as the bytes that the kernel's legacy tables hold.

python-iptables makes these bytes through libxtables, one extension object a rule. That is too
slow for thousands of rules (0.13 ms each) and wrong in places that matter here: its interface
masks in IPv6 compare one bit a letter, so that ``-o lo`` matches net1 and veth0 too; it can't
load TPROXY or REDIRECT for both families; and looking up a target opens every table of the
namespace. The layouts below are the kernel's ABI (include/uapi/linux/netfilter), which never
changes; tests hold them against the bytes that iptables-legacy-restore makes of the same text.
"""

from __future__ import annotations

import struct
from functools import cache
from socket import AF_INET, AF_INET6, inet_pton
from typing import TYPE_CHECKING

from istio_iptables.kernel.xt_abi.entry import UnknownPartError, aligned
from istio_iptables.kernel.xt_abi.matches import encode_match
from istio_iptables.kernel.xt_abi.targets import encode_target
from istio_iptables.netfilter.model import Family

if TYPE_CHECKING:
    from istio_iptables.netfilter.model import Rule, Term

__all__ = ["UnknownPartError", "encode"]

_PROTOCOLS = {
    "tcp": 6,
    "udp": 17,
    "icmp": 1,
    "ipv6-icmp": 58,
    "sctp": 132,
    "udplite": 136,
    "esp": 50,
    "ah": 51,
}

_HEADER4 = struct.Struct("=4s4s4s4s16s16s16s16sHBB")
_HEADER6 = struct.Struct("=16s16s16s16s16s16s16s16sHBBBxxx")
#: Behind the header: nfcache, offset of the target, offset of the next rule, comefrom.
_OFFSETS = struct.Struct("=IHHI")
_COUNTERS_SIZE = 16
_IPV6_HAS_PROTOCOL = 0x01
_FLAG_GOTO4, _FLAG_GOTO6 = 0x02, 0x04
_FLAG_FRAGMENT = 0x01
_NOT_IN, _NOT_OUT, _NOT_SOURCE, _NOT_DESTINATION = 0x01, 0x02, 0x08, 0x10
_NOT_FRAGMENT, _NOT_PROTOCOL = 0x20, 0x40


class _Layout:
    """Where things stand in a rule's bytes, in one family."""

    def __init__(self, family: Family) -> None:
        self.family = family
        four = family is Family.IPV4
        self.number = AF_INET if four else AF_INET6
        self.header = _HEADER4 if four else _HEADER6
        #: Of struct ipt_entry or ip6t_entry: two counters of 64 bits are its end.
        self.size = aligned(self.header.size + _OFFSETS.size) + _COUNTERS_SIZE
        #: Between the offsets and the counters at the end.
        self.padding = bytes(self.size - _COUNTERS_SIZE - self.header.size - _OFFSETS.size)
        self.goto = _FLAG_GOTO4 if four else _FLAG_GOTO6
        self.bytes = 4 if four else 16
        self.anywhere = (bytes(self.bytes), bytes(self.bytes))


_LAYOUTS = {family: _Layout(family) for family in Family}


def encode(rule: Rule, family: Family) -> bytes:
    """The bytes of *rule* for iptc_append_entry; raises UnknownPartError for a foreign parts."""
    layout = _LAYOUTS[family]
    goto = rule.target is not None and rule.target.goto
    header = _encode_header(
        layout,
        rule.source,
        rule.destination,
        rule.in_interface,
        rule.out_interface,
        rule.protocol,
        rule.fragment,
        goto,
    )
    matches = b"".join([encode_match(match) for match in rule.matches])
    target = encode_target(rule.target, family)
    offset = layout.size + len(matches)
    offsets = _OFFSETS.pack(0, offset, offset + len(target), 0)
    return b"".join((header, offsets, layout.padding, bytes(_COUNTERS_SIZE), matches, target))


@cache
def _encode_header(  # noqa: PLR0913, PLR0917 - the header has that many fields, and they are the cache's key
    layout: _Layout,
    source: Term | None,
    destination: Term | None,
    in_interface: Term | None,
    out_interface: Term | None,
    protocol: Term | None,
    fragment: Term | None,
    goto: bool,  # noqa: FBT001
) -> bytes:
    four = layout.family is Family.IPV4
    flags, inverted, proto = layout.goto if goto else 0, 0, 0
    for term, bit in (
        (source, _NOT_SOURCE),
        (destination, _NOT_DESTINATION),
        (in_interface, _NOT_IN),
        (out_interface, _NOT_OUT),
        (protocol, _NOT_PROTOCOL),
        (fragment, _NOT_FRAGMENT),
    ):
        if term is not None and term.negated:
            inverted |= bit
    if protocol is not None:
        proto = _protocol_number(protocol.value)
        flags |= 0 if four else _IPV6_HAS_PROTOCOL
    if fragment is not None:
        flags |= _FLAG_FRAGMENT
    source_bytes, source_mask = _network(layout, source)
    destination_bytes, destination_mask = _network(layout, destination)
    in_name, in_mask = _interface(in_interface)
    out_name, out_mask = _interface(out_interface)
    fields = (
        source_bytes,
        destination_bytes,
        source_mask,
        destination_mask,
        in_name,
        out_name,
        in_mask,
        out_mask,
    )
    if four:
        return layout.header.pack(*fields, proto, flags, inverted)
    return layout.header.pack(*fields, proto, 0, flags, inverted)


def _protocol_number(name: str) -> int:
    number = _PROTOCOLS.get(name)
    if number is None:
        if not name.isdigit():
            message = f"protocol {name}"
            raise UnknownPartError(message)
        number = int(name)
    return number


def _network(layout: _Layout, term: Term | None) -> tuple[bytes, bytes]:
    if term is None:
        return layout.anywhere
    address, _, length = term.value.partition("/")
    bits = layout.bytes * 8
    mask = _mask(int(length), bits) if length.isdigit() else inet_pton(layout.number, length)
    return inet_pton(layout.number, address), mask


@cache
def _mask(length: int, bits: int) -> bytes:
    return (((1 << length) - 1) << (bits - length)).to_bytes(bits // 8, "big")


def _interface(term: Term | None) -> tuple[bytes, bytes]:
    """The name, and a mask over its letters and the end of it, or not the end for ``br+``."""
    if term is None:
        return b"", b""
    name = term.value.encode(errors="surrogateescape")
    if name.endswith(b"+"):
        # iptables leaves the plus in the name; the mask keeps the kernel from looking at it.
        return name, b"\xff" * (len(name) - 1)
    return name, b"\xff" * (len(name) + 1)
