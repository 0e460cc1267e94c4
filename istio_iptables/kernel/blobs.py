"""Rules as the bytes that the kernel's legacy tables hold, and those bytes as text again.

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
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING

from istio_iptables.netfilter.model import Family

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_iptables.netfilter.model import Match, Option, Rule, Target, Term

__all__ = ["UnknownPartError", "decode", "encode"]


class UnknownPartError(ValueError):
    """A rule has a part whose bytes are not known here; only a stranger's rule can have one."""


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
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}

_HEADER4 = struct.Struct("=4s4s4s4s16s16s16s16sHBB")
_HEADER6 = struct.Struct("=16s16s16s16s16s16s16s16sHBBBxxx")
#: Behind the header: nfcache, offset of the target, offset of the next rule, comefrom.
_OFFSETS = struct.Struct("=IHHI")
_PART = struct.Struct("=H29sB")
_IPV6_HAS_PROTOCOL = 0x01
_FLAG_GOTO4, _FLAG_GOTO6 = 0x02, 0x04
_FLAG_FRAGMENT = 0x01
_NOT_IN, _NOT_OUT, _NOT_SOURCE, _NOT_DESTINATION = 0x01, 0x02, 0x08, 0x10
_NOT_FRAGMENT, _NOT_PROTOCOL = 0x20, 0x40
_VERDICTS = frozenset({"ACCEPT", "DROP", "QUEUE", "RETURN"})


class _Layout:
    """Where things stand in a rule's bytes, in one family."""

    def __init__(self, family: Family) -> None:
        self.family = family
        four = family is Family.IPV4
        self.number = AF_INET if four else AF_INET6
        self.header = _HEADER4 if four else _HEADER6
        self.size = 112 if four else 168
        #: Between the offsets and the counters at the end.
        self.padding = bytes(self.size - 16 - self.header.size - _OFFSETS.size)
        self.goto = _FLAG_GOTO4 if four else _FLAG_GOTO6
        self.bytes = 4 if four else 16
        self.anywhere = (bytes(self.bytes), bytes(self.bytes))


_LAYOUTS = {family: _Layout(family) for family in Family}


# Rules to bytes.


def encode(rule: Rule, family: Family) -> bytes:
    """The bytes of *rule* for iptc_append_entry; raises UnknownPartError for a stranger's parts."""
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
    matches = b"".join([_encode_match(match) for match in rule.matches])
    target = _encode_target(rule.target, family)
    offset = layout.size + len(matches)
    offsets = _OFFSETS.pack(0, offset, offset + len(target), 0)
    return b"".join((header, offsets, layout.padding, bytes(16), matches, target))


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


def _part(name: str, revision: int, data: bytes) -> bytes:
    size = (_PART.size + len(data) + 7) & ~7
    return _PART.pack(size, name.encode(), revision) + data + bytes(size - _PART.size - len(data))


def _encode_match(match: Match) -> bytes:
    # The ports of a long list are all different: not worth a place in the cache.
    if match.name in {"tcp", "udp"}:
        return _encode_ports(match)
    return _encode_other_match(match)


_PORTS = struct.Struct("=HHHH")
#: Whole parts: tcp has an option and two bytes of flags between the ports and the inversion.
_TCP_PART = struct.Struct("=H29sBHHHH3xB4x")
_UDP_PART = struct.Struct("=H29sBHHHHB7x")
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
        return _TCP_PART.pack(48, b"tcp", 0, *source, *destination, inverted)
    return _UDP_PART.pack(48, b"udp", 0, *source, *destination, inverted)


@cache
def _encode_other_match(match: Match) -> bytes:
    try:
        return _MATCHES[match.name](match)
    except (KeyError, ValueError, IndexError):
        message = f"-m {match.name}"
        raise UnknownPartError(message) from None


def _only_option(part: Match | Target) -> Option:
    (option,) = part.options
    return option


def _multiport(match: Match) -> bytes:
    option = _only_option(match)
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
    return _part("multiport", 1, data)


def _owner(match: Match) -> bytes:
    uid, gid, present, inverted = (0, 0), (0, 0), 0, 0
    for option in match.options:
        first, dash, last = option.values[0].partition("-")
        ids = (int(first), int(last if dash else first))
        bit = {"--uid-owner": 1, "--gid-owner": 2}[option.name]
        uid, gid = (ids, gid) if bit == 1 else (uid, ids)
        present |= bit
        inverted |= bit if option.negated else 0
    return _part("owner", 1, struct.pack("=IIIIBBxx", *uid, *gid, present, inverted))


def _mark(match: Match) -> bytes:
    option = _only_option(match)
    value, mask = _value_and_mask(option.values[0])
    if option.name != "--mark":
        raise ValueError(option.name)
    return _part(match.name, 1, struct.pack("=IIBxxx", value, mask, option.negated))


def _value_and_mask(text: str) -> tuple[int, int]:
    value, slash, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if slash else 0xFFFFFFFF


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
    option = _only_option(match)
    if option.name != "--ctstate":
        raise ValueError(option.name)
    states = 0
    for name in option.values[0].split(","):
        states |= _STATES[name]
    ports = (0,) * 4
    inverted = _BY_STATE if option.negated else 0
    data = _CONNTRACK.pack(b"", 0, 0, 0, *ports, _BY_STATE, inverted, states, 0, *ports)
    return _part("conntrack", 3, data)


def _comment(match: Match) -> bytes:
    return _part("comment", 0, _only_option(match).values[0].encode().ljust(256, b"\0"))


_MATCHES: dict[str, Callable[[Match], bytes]] = {
    "multiport": _multiport,
    "owner": _owner,
    "mark": _mark,
    "connmark": _mark,
    "conntrack": _conntrack,
    "comment": _comment,
}


@cache
def _encode_target(target: Target | None, family: Family) -> bytes:
    name = "" if target is None else target.name
    if target is None or (not target.options and name not in _TARGETS):
        # A verdict or a chain: libiptc looks the name up and puts in the number it stands for.
        if len(name) >= 29:  # noqa: PLR2004 - the room for a name
            raise UnknownPartError(name)
        return _part(name, 0, bytes(4))
    try:
        return _TARGETS[name](target, family)
    except (KeyError, ValueError, IndexError):
        message = f"-j {name}"
        raise UnknownPartError(message) from None


_NAT_TO_PORTS = 0x02


def _redirect(target: Target, family: Family) -> bytes:
    option = _only_option(target)
    if option.name != "--to-ports":
        raise ValueError(option.name)
    first, dash, last = option.values[0].partition("-")
    low = int(first)
    ports = (low, int(last) if dash else low)
    if family is Family.IPV4:
        return _part(
            "REDIRECT",
            0,
            struct.pack("=III4x", 1, _NAT_TO_PORTS, 0) + struct.pack(">HH", *ports) + bytes(4),
        )
    return _part("REDIRECT", 0, struct.pack("=I32x", _NAT_TO_PORTS) + struct.pack(">HH", *ports))


def _set_mark(target: Target, _: Family) -> bytes:
    option = _only_option(target)
    if option.name != "--set-xmark":
        raise ValueError(option.name)
    return _part("MARK", 2, struct.pack("=II", *_value_and_mask(option.values[0])))


_CONNMARK_MODES = {"--set-xmark": 0, "--save-mark": 1, "--restore-mark": 2}


def _connmark(target: Target, _: Family) -> bytes:
    mode, nfmask, ctmask = -1, 0xFFFFFFFF, 0xFFFFFFFF
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
    return _part("CONNMARK", 2, struct.pack("=IIIBBBx", 0, ctmask, nfmask, 0, 0, mode))


def _tproxy(target: Target, family: Family) -> bytes:
    options = {option.name: option.values[0] for option in target.options}
    value, mask = _value_and_mask(options.pop("--tproxy-mark"))
    number = AF_INET if family is Family.IPV4 else AF_INET6
    address = inet_pton(number, options.pop("--on-ip"))
    port = int(options.pop("--on-port"))
    if options:
        raise ValueError(options)
    return _part(
        "TPROXY", 1, struct.pack("=II16s", mask, value, address) + struct.pack(">Hxx", port)
    )


def _zone(target: Target, _: Family) -> bytes:
    option = _only_option(target)
    if option.name != "--zone":
        raise ValueError(option.name)
    # struct xt_ct_target_info_v1: the end is a pointer of the kernel's own.
    return _part("CT", 2, struct.pack("=HHII48s4x8x", 0, int(option.values[0]), 0, 0, b""))


_TARGETS: dict[str, Callable[[Target, Family], bytes]] = {
    "REDIRECT": _redirect,
    "MARK": _set_mark,
    "CONNMARK": _connmark,
    "TPROXY": _tproxy,
    "CT": _zone,
}


# Bytes to text.


def decode(entry: bytes, family: Family, standard_target: str) -> str:
    """The text of a rule behind ``-A CHAIN``, as iptables-legacy-save prints it.

    *entry* is what the kernel gave, *standard_target* the name of the chain or verdict that its
    target stands for ("" if it is an extension). Raises UnknownPartError for parts not known here.
    """
    layout = _LAYOUTS[family]
    header = layout.header.size
    _, target_offset, _, _ = _OFFSETS.unpack_from(entry, header)
    words, goto = _decode_header(layout, entry[:header])
    position = layout.size
    text = [words] if words else []
    while position < target_offset:
        size, name, revision = _read_part(entry, position)
        text.append(_decode_match(name, revision, entry[position + _PART.size : position + size]))
        position += size
    size, name, revision = _read_part(entry, target_offset)
    data = entry[target_offset + _PART.size : target_offset + size]
    if standard_target or not name:
        if standard_target:
            text.append(f"{'-g' if goto else '-j'} {standard_target}")
    else:
        text.append(_decode_target(name, revision, data, family))
    return " ".join(text)


def _read_part(entry: bytes, position: int) -> tuple[int, str, int]:
    size, name, revision = _PART.unpack_from(entry, position)
    return size, name.partition(b"\0")[0].decode(), revision


@cache
def _decode_header(layout: _Layout, header: bytes) -> tuple[str, bool]:
    fields = layout.header.unpack(header)
    source, destination, source_mask, destination_mask, in_name, out_name, in_mask, out_mask = (
        fields[:8]
    )
    proto, flags, inverted = fields[8], fields[-2], fields[-1]
    words: list[str] = []

    def add(bit: int, *more: str) -> None:
        if inverted & bit:
            words.append("!")
        words.extend(more)

    if any(source_mask) or inverted & _NOT_SOURCE:
        add(_NOT_SOURCE, "-s", _network_text(layout, source, source_mask))
    if any(destination_mask) or inverted & _NOT_DESTINATION:
        add(_NOT_DESTINATION, "-d", _network_text(layout, destination, destination_mask))
    for flag, name, mask, bit in (
        ("-i", in_name, in_mask, _NOT_IN),
        ("-o", out_name, out_mask, _NOT_OUT),
    ):
        if any(mask):
            add(bit, flag, _interface_text(name, mask))
    if proto or inverted & _NOT_PROTOCOL:
        name = _PROTOCOL_NAMES.get(proto)
        if name is None:
            message = f"protocol {proto}"
            raise UnknownPartError(message)
        add(_NOT_PROTOCOL, "-p", name)
    if layout.family is Family.IPV4 and flags & _FLAG_FRAGMENT:
        add(_NOT_FRAGMENT, "-f")
    return " ".join(words), bool(flags & layout.goto)


def _network_text(layout: _Layout, address: bytes, mask: bytes) -> str:
    bits = layout.bytes * 8
    length = int.from_bytes(mask, "big").bit_count()
    shown = str(length) if mask == _mask(length, bits) else inet_ntop(layout.number, mask)
    return f"{inet_ntop(layout.number, address)}/{shown}"


def _interface_text(name: bytes, mask: bytes) -> str:
    text = name.partition(b"\0")[0]
    covered = len(mask.rstrip(b"\0"))
    if mask[:covered].strip(b"\xff"):
        message = "an interface mask that iptables does not make"
        raise UnknownPartError(message)
    whole = covered > len(text)
    return text[:covered].decode(errors="surrogateescape") + ("" if whole else "+")


def _decode_match(name: str, revision: int, data: bytes) -> str:
    if name in {"tcp", "udp"} and revision == 0:
        return _decode_ports(name, data)
    return _decode_other_match(name, revision, data)


def _decode_ports(name: str, data: bytes) -> str:
    first_source, last_source, first, last = _PORTS.unpack_from(data)
    end = _PORTS.size + 3 if name == "tcp" else _PORTS.size
    if any(data[_PORTS.size : end]):
        message = "tcp flags or options"
        raise UnknownPartError(message)
    inverted = data[end]
    text = f"-m {name}"
    if (first_source, last_source) != _ALL_PORTS or inverted & 1:
        text += f"{' !' if inverted & 1 else ''} --sport {_range(first_source, last_source, ':')}"
    if (first, last) != _ALL_PORTS or inverted & 2:
        text += f"{' !' if inverted & 2 else ''} --dport {_range(first, last, ':')}"
    return text


def _range(first: int, last: int, between: str) -> str:
    return str(first) if first == last else f"{first}{between}{last}"


@cache
def _decode_other_match(name: str, revision: int, data: bytes) -> str:
    reader = _MATCH_READERS.get((name, revision))
    if reader is None:
        message = f"-m {name} (revision {revision})"
        raise UnknownPartError(message)
    return f"-m {name}{reader(data)}"


def _bang(inverted: int) -> str:
    return " !" if inverted else ""


def _multiport_text(data: bytes) -> str:
    kind, count, *rest = struct.unpack_from("=BB15H15BB", data)
    ports, ranges, inverted = rest[:15], rest[15:30], rest[30]
    items = []
    position = 0
    while position < count:
        if ranges[position]:
            items.append(f"{ports[position]}:{ports[position + 1]}")
            position += 1
        else:
            items.append(str(ports[position]))
        position += 1
    return f"{_bang(inverted)} {('--sports', '--dports', '--ports')[kind]} {','.join(items)}"


def _owner_text(data: bytes) -> str:
    first_uid, last_uid, first_gid, last_gid, present, inverted = struct.unpack_from(
        "=IIIIBB", data
    )
    if present & ~3:
        message = "-m owner --socket-exists"
        raise UnknownPartError(message)
    text = ""
    if present & 1:
        text += f"{_bang(inverted & 1)} --uid-owner {_range(first_uid, last_uid, '-')}"
    if present & 2:
        text += f"{_bang(inverted & 2)} --gid-owner {_range(first_gid, last_gid, '-')}"
    return text


def _mark_text(data: bytes) -> str:
    value, mask, inverted = struct.unpack_from("=IIB", data)
    shown = f"{value:#x}" if mask == 0xFFFFFFFF else f"{value:#x}/{mask:#x}"  # noqa: PLR2004
    return f"{_bang(inverted)} --mark {shown}"


def _conntrack_text(data: bytes) -> str:
    fields = _CONNTRACK.unpack_from(data)
    matched, inverted, states = fields[8:11]
    if matched != _BY_STATE:
        message = "-m conntrack by more than state"
        raise UnknownPartError(message)
    order = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")
    names = [name for name in order if states & _STATES[name]]
    return f"{_bang(inverted & _BY_STATE)} --ctstate {','.join(names)}"


def _comment_text(data: bytes) -> str:
    text = data.partition(b"\0")[0].decode(errors="surrogateescape")
    plain = text.replace("_", "").replace("-", "")
    if plain.isascii() and plain.isalnum() and text:
        return f" --comment {text}"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("'", "\\'")
    return f' --comment "{escaped}"'


_MATCH_READERS: dict[tuple[str, int], Callable[[bytes], str]] = {
    ("multiport", 1): _multiport_text,
    ("owner", 1): _owner_text,
    ("mark", 1): _mark_text,
    ("connmark", 1): _mark_text,
    ("conntrack", 3): _conntrack_text,
    ("comment", 0): _comment_text,
}


@cache
def _decode_target(name: str, revision: int, data: bytes, family: Family) -> str:
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
    return f" --to-ports {_range(first, last, '-')}" if flags else ""


def _set_mark_text(data: bytes, _: Family) -> str:
    value, mask = struct.unpack_from("=II", data)
    if mask != 0xFFFFFFFF:  # noqa: PLR2004 - other masks print as --and-mark, --or-mark, ...
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
    layout = _LAYOUTS[family]
    shown = inet_ntop(layout.number, address[: layout.bytes])
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
