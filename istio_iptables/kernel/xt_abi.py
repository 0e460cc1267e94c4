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
from functools import lru_cache

from istio_iptables.netfilter.extensions import match_extension, target_extension
from istio_iptables.netfilter.fieldvalues import protocol_number
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.parts import align_size, part
from istio_iptables.sockets import inet_pton
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_iptables.netfilter.model import Match, Rule, Target, Term

__all__ = ["UnknownPartError", "encode", "load"]

#: What rules of ours are made of. Rules that go may have to be put back when a table is committed
#: already, and nothing is to be imported then.
_MATCHES = ("tcp", "multiport", "owner", "mark", "connmark", "conntrack", "comment")
_TARGETS = ("REDIRECT", "MARK", "CONNMARK", "TPROXY", "CT")
#: Why an extension's bytes are not known.
_NOT_KNOWN = (KeyError, ValueError, IndexError, struct.error)

_HEADER4 = struct.Struct("=4s4s4s4s16s16s16s16sHBB")
_HEADER6 = struct.Struct("=16s16s16s16s16s16s16s16sHBBBxxx")
#: Behind the header: nfcache, offset of the target, offset of the next rule, comefrom.
_OFFSETS = struct.Struct("=IHHI")
_COUNTERS_SIZE = 16
_IPV6_HAS_PROTOCOL = 0x01
_FLAG_GOTO4, _FLAG_GOTO6 = 0x02, 0x04
_FLAG_FRAGMENT = 0x01
#: Of the terms in the order of a rule's fields: source, destination, interfaces, protocol, fragment.
_NEGATIONS = (0x08, 0x10, 0x01, 0x02, 0x40, 0x20)


class UnknownPartError(ValueError):
    """A rule has a part whose bytes are not known here; only a foreign rule can have one."""


class _Layout:
    """Where things stand in a rule's bytes, in one family."""

    def __init__(self, family: Family) -> None:
        four = family is Family.IPV4
        self.family, self.number, self.bits = family, family.number, family.bits
        self.header = _HEADER4 if four else _HEADER6
        #: Of struct ipt_entry or ip6t_entry: two counters of 64 bits are its end.
        self.size = align_size(self.header.size + _OFFSETS.size) + _COUNTERS_SIZE
        #: Behind the offsets: padding, and counters of nothing.
        self.end = bytes(self.size - self.header.size - _OFFSETS.size)
        self.goto = _FLAG_GOTO4 if four else _FLAG_GOTO6
        self.anywhere = (bytes(family.bits // 8),) * 2


_IPV4, _IPV6 = _Layout(Family.IPV4), _Layout(Family.IPV6)


def load() -> None:
    """Import what is known about the parts of our rules."""
    for name in _MATCHES:
        match_extension(name)
    for name in _TARGETS:
        target_extension(name)


def encode(rule: Rule, family: Family) -> bytes:
    """The bytes of *rule* for iptc_append_entry; raises UnknownPartError for a foreign part."""
    # No key of a dict: the hash of an Enum takes longer than all that is done with it here.
    layout = _IPV4 if family is Family.IPV4 else _IPV6
    flags = layout.goto if rule.target is not None and rule.target.goto else 0
    header = _encode_header(layout, rule.header, flags)
    matches = b""
    for match in rule.matches:
        matches += _encode_match(match)
    target = _encode_target(rule.target, layout)
    offset = layout.size + len(matches)
    offsets = _OFFSETS.pack(0, offset, offset + len(target), 0)
    return header + offsets + layout.end + matches + target


def _encode_match(match: Match) -> bytes:
    known = match_extension(match.name).encode
    try:
        if known:
            return known(match)
    except _NOT_KNOWN:
        pass
    message = f"-m {match.name}"
    raise UnknownPartError(message)


@lru_cache(maxsize=256)
def _encode_target(target: Target | None, layout: _Layout) -> bytes:
    name = target.name if target else ""
    known = target_extension(name).encode
    try:
        if target and known:
            return known(target, layout.family)
        if not (target and target.options) and len(name.encode(errors="surrogateescape")) < _ROOM:
            # A verdict or a chain: libiptc looks the name up and puts in the number it stands for.
            return part(name, 0, bytes(4))
    except _NOT_KNOWN:
        pass
    message = f"-j {name}"
    raise UnknownPartError(message)


#: For the name of a chain or an extension, and a zero behind it.
_ROOM = 29


@lru_cache(maxsize=256)
def _encode_header(layout: _Layout, terms: tuple[Term | None, ...], flags: int) -> bytes:
    source, destination, in_interface, out_interface, protocol, fragment = terms
    four = layout.header is _HEADER4
    inverted = proto = 0
    for term, bit in zip(terms, _NEGATIONS, strict=True):
        if term is not None and term.negated:
            inverted |= bit
    if protocol is not None:
        number = protocol_number(protocol.value)
        if number is None:
            message = f"protocol {protocol.value}"
            raise UnknownPartError(message)
        proto = number
        flags |= 0 if four else _IPV6_HAS_PROTOCOL
    if fragment is not None:
        flags |= _FLAG_FRAGMENT
    sender, sender_mask = _network(layout, source)
    receiver, receiver_mask = _network(layout, destination)
    in_name, in_mask = _interface(in_interface)
    out_name, out_mask = _interface(out_interface)
    networks = (sender, receiver, sender_mask, receiver_mask)
    fields = (*networks, in_name, out_name, in_mask, out_mask)
    if four:
        return layout.header.pack(*fields, proto, flags, inverted)
    return layout.header.pack(*fields, proto, 0, flags, inverted)


def _network(layout: _Layout, term: Term | None) -> tuple[bytes, bytes]:
    if term is None:
        return layout.anywhere
    address, _, length = term.value.partition("/")
    bits = layout.bits
    mask = _mask(int(length), bits) if length.isdigit() else inet_pton(layout.number, length)
    return inet_pton(layout.number, address), mask


@lru_cache(maxsize=256)
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
