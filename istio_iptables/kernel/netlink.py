"""Questions to the kernel over raw netlink: addresses, policy rules, routes, nftables tables.

pyroute2 encodes every change (kernel.routes), but importing it takes longer than a whole dry
run; these dumps are asked on every start, so they are written out here.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from contextlib import closing

from istio_iptables import sockets
from istio_iptables.errors import KernelRefused
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MarkRule",
    "addresses",
    "as_attribute",
    "attributes",
    "has_loopback_address",
    "interface_addresses",
    "interface_index",
    "is_local_default",
    "loopback_is_up",
    "nft",
    "nft_tables",
    "physical_interfaces",
    "policy_rules",
    "routes",
    "text",
]

_NETLINK_NETFILTER = 12
_NLM_F_REQUEST = 0x1
_NLM_F_DUMP = 0x300
_NLM_F_DUMP_INTR = 0x10
#: How often a dump that another program changed meanwhile is begun again.
_ATTEMPTS = 10
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_RTM_GETLINK = 18
_RTM_GETADDR = 22
_RTM_GETROUTE = 26
_RTM_GETRULE = 34
_NFNL_NFTABLES = 10 << 8
_NFT_MSG_GETTABLE = 1

_FRA_PRIORITY, _FRA_FWMARK, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE, _FRA_FWMASK = 6, 10, 14, 15, 16
#: With these alone a policy rule asks for nothing but its mark; 18 is padding, 21 who made it.
_FRA_PLAIN = frozenset(
    {_FRA_PRIORITY, _FRA_FWMARK, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE, _FRA_FWMASK, 18, 21}
)
_FIB_RULE_INVERT = 2
_FR_ACT_TO_TBL = 1
_RTA_OIF, _RTA_TABLE = 4, 15
_RTN_LOCAL = 2
_WHOLE = 0xFFFFFFFF

_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 18, 1
_ARPHRD_CARDS = frozenset({1, 32})
_ARPHRD_LOOPBACK = 772
_IFF_UP = 1

_IFA_ADDRESS = 1
_IFA_LOCAL = 2
#: Flags of an address that the link is being asked about, and of one used nevertheless.
_TENTATIVE, _OPTIMISTIC = 0x40, 0x04
_NFTA_NAME = 1

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


def _dump(protocol: int, kind: int, body: bytes) -> list[bytes]:
    """The body of each answer to a dump request, all of one state of what was asked about.

    OSError carries the kernel's error number; EINTR says that it never stood still.
    """
    for _ in range(_ATTEMPTS):
        answers = _dump_once(protocol, kind, body)
        if answers is not None:
            return answers
    raise OSError(errno.EINTR, "it was changed by another program all the time")


def _dump_once(protocol: int, kind: int, body: bytes) -> list[bytes] | None:
    """The answers, or None where the kernel says that they are of more states than one."""
    answers: list[bytes] = []
    whole = True
    with closing(sockets.netlink(protocol)) as link:
        size = _HEADER.size + len(body)
        link.send(_HEADER.pack(size, kind, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + body)
        while True:
            data = link.recv(1 << 17)
            position = 0
            while position < len(data):
                length, answer, flags, _number, _port = _HEADER.unpack_from(data, position)
                whole = whole and not flags & _NLM_F_DUMP_INTR
                content = data[position + _HEADER.size : position + length]
                if answer in (_NLMSG_DONE, _NLMSG_ERROR):
                    error = struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0  # noqa: PLR2004
                    if error == -errno.EINTR:
                        return None
                    if error:
                        raise OSError(-error, os.strerror(-error))
                    return answers if whole else None
                answers.append(content)
                position += (length + 3) & ~3


def attributes(data: bytes, position: int = 0) -> Iterator[tuple[int, bytes]]:
    """The attributes from *position* on, as (kind, value)."""
    while position + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        yield kind & 0x3FFF, data[position + _ATTRIBUTE.size : position + length]
        position += (max(length, _ATTRIBUTE.size) + 3) & ~3


def as_attribute(kind: int, value: bytes) -> bytes:
    """One attribute, as the kernel reads it."""
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def addresses() -> tuple[str, ...]:
    """The addresses of this network namespace, without loopback and link-local ones.

    IPv4 before IPv6, in the kernel's order otherwise. Raises KernelRefused if the kernel does
    not answer.
    """
    found: list[str] = []
    try:
        for family in (sockets.AF_INET, sockets.AF_INET6):
            # struct ifaddrmsg: family, prefix length, flags, scope, interface index.
            for content in _dump(
                sockets.NETLINK_ROUTE, _RTM_GETADDR, struct.pack("=BBBBi", family, 0, 0, 0, 0)
            ):
                if content[0] != family:
                    continue
                parts = dict(attributes(content, 8))
                packed = parts.get(_IFA_LOCAL) or parts.get(_IFA_ADDRESS, b"")
                if not _is_local_only(packed):
                    found.append(sockets.inet_ntop(family, packed))
    except OSError as error:
        raise _refused(error, "the addresses") from error
    return tuple(found)


def interface_addresses() -> dict[str, tuple[str, ...]]:
    """All addresses of each interface, loopback and link-local ones too, in the kernel's order.

    IPv6 addresses that are still looked for on the link are left out: they are nobody's yet.
    Raises KernelRefused if the kernel does not answer.
    """
    found: dict[str, list[str]] = {}
    for family in (sockets.AF_INET, sockets.AF_INET6):
        for content in _answers(_RTM_GETADDR, struct.pack("=BBBBi", family, 0, 0, 0, 0)):
            # struct ifaddrmsg, as above.
            if content[0] != family or content[2] & (_TENTATIVE | _OPTIMISTIC) == _TENTATIVE:
                continue
            parts = dict(attributes(content, 8))
            packed = parts.get(_IFA_LOCAL) or parts.get(_IFA_ADDRESS, b"")
            try:
                name = sockets.if_indextoname(struct.unpack_from("=i", content, 4)[0])
            except OSError:
                # It has gone meanwhile, and its address with it.
                continue
            found.setdefault(name, []).append(sockets.inet_ntop(family, packed))
    return {name: tuple(addresses) for name, addresses in found.items()}


def _is_local_only(packed: bytes) -> bool:
    """Whether an address is loopback or link-local (unicast or multicast)."""
    if len(packed) == 4:  # noqa: PLR2004 - the bytes of an IPv4 address
        return packed[0] == 127 or packed[:2] == b"\xa9\xfe" or packed[:3] == b"\xe0\x00\x00"  # noqa: PLR2004
    mapped = bytes(10) + b"\xff\xff"
    if packed[:12] == mapped:
        return _is_local_only(packed[12:])
    return (
        packed == bytes(15) + b"\x01"
        or (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80)  # noqa: PLR2004 - fe80::/10
        or (packed[0] == 0xFF and packed[1] & 0x0F == 0x02)  # noqa: PLR2004 - ff02::/16
    )


def nft(kind: int, family: int = 0) -> list[tuple[int, dict[int, bytes]]]:
    """Everything of one kind in this namespace's nf_tables, as (family, attributes).

    The family is the kernel's number (2 is ip, 10 ip6), 0 for all of them. A kernel without
    nf_tables has nothing; raises KernelRefused where the kernel does not tell.
    """
    try:
        # struct nfgenmsg: family, version, resource id.
        answers = _dump(
            _NETLINK_NETFILTER, _NFNL_NFTABLES | kind, struct.pack("=BBH", family, 0, 0)
        )
    except OSError as error:
        # No netfilter over netlink at all, or no such part of it. The kernel looks at the
        # capability first, so that EPERM says nothing of what there is.
        if error.errno in {errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP}:
            return []
        raise _refused(error, "nf_tables") from error
    return [(content[0], dict(attributes(content, 4))) for content in answers]


def _refused(error: OSError, what: str) -> KernelRefused:
    """What can't be read, why, and which capability that takes."""
    reason = error.strerror or str(error)
    if error.errno in {errno.EPERM, errno.EACCES}:
        from istio_iptables.kernel.capabilities import missing

        reason += missing()
    refused = KernelRefused(f"can't read {what} of the network namespace: {reason}")
    refused.busy = error.errno == errno.EINTR
    return refused


def interface_index(name: str) -> int:
    """The number of the interface *name*; raises KernelRefused if it can't be had."""
    try:
        return sockets.if_nametoindex(name)
    except OSError as error:
        message = f"can't find the interface {name}: {error.strerror or error}"
        raise KernelRefused(message) from error


def text(value: bytes | None) -> str:
    """A name as the kernel gives it; bytes that are no UTF-8 stay what they are."""
    return (value or b"").rstrip(b"\0").decode(errors="surrogateescape")


def nft_tables() -> tuple[tuple[int, str], ...]:
    """The nftables tables of this network namespace as (family, name); loads nothing.

    The family is the kernel's number: 2 is ip, 10 ip6.
    """
    found = nft(_NFT_MSG_GETTABLE)
    return tuple((family, text(parts.get(_NFTA_NAME))) for family, parts in found)


class MarkRule(NamedTuple):
    """A policy rule ``fwmark MARK lookup TABLE``."""

    mark: int
    table: int
    #: Whether it goes by the whole mark and by nothing else: no mask, address, interface, user, ...
    alone: bool = True


def _numbers(data: bytes, position: int) -> dict[int, int]:
    return {
        kind: int.from_bytes(value, sys.byteorder)
        for kind, value in attributes(data, position)
        if len(value) == struct.calcsize("I")
    }


def policy_rules(family: int) -> tuple[tuple[MarkRule | None, int], ...]:
    """The policy rules of one address family (AF_INET, AF_INET6), each with its priority.

    A rule that does not go by a mark is None. The kernel takes the same rule any number of times,
    at the same priority or others.
    """
    found = []
    # struct fib_rule_hdr: family, destination and source lengths, tos, table, ..., action, flags.
    for content in _answers(_RTM_GETRULE, struct.pack("=12B", family, *(0,) * 11)):
        if content[0] != family:
            continue
        parts = _numbers(content, 12)
        asked = {kind for kind, _ in attributes(content, 12)}
        rule = None
        if content[7] == _FR_ACT_TO_TBL and asked & {_FRA_FWMARK, _FRA_FWMASK}:
            mark = parts.get(_FRA_FWMARK, 0)
            alone = (
                bool(mark)
                and not content[3]
                and not content[8] & _FIB_RULE_INVERT
                and parts.get(_FRA_FWMASK, _WHOLE) == _WHOLE
                and parts.get(_FRA_SUPPRESS_PREFIXLEN, _WHOLE) == _WHOLE
                and asked <= _FRA_PLAIN
            )
            rule = MarkRule(mark, parts.get(_FRA_TABLE, content[4]), alone)
        found.append((rule, parts.get(_FRA_PRIORITY, 0)))
    return tuple(found)


def is_local_default(family: int, table: int) -> bool | None:
    """Whether the routing *table* holds ``local default dev lo`` and nothing else; None if empty."""
    local = interface_index("lo")
    found = []
    # struct rtmsg: family, destination and source lengths, tos, table, protocol, scope, type, flags.
    for content in routes(family):
        parts = _numbers(content, 12)
        if parts.get(_RTA_TABLE, content[4]) == table:
            # A default route has a destination of length 0.
            found.append(
                content[7] == _RTN_LOCAL and not content[1] and parts.get(_RTA_OIF) == local
            )
    return all(found) if found else None


def routes(family: int) -> list[bytes]:
    """The routes of all tables in one address family (AF_INET, AF_INET6): struct rtmsg and more."""
    found = _answers(_RTM_GETROUTE, struct.pack("=12B", family, *(0,) * 11))
    return [content for content in found if content[0] == family]


def has_loopback_address(address: str) -> bool:
    """Whether the interface lo has the IPv6 *address*."""
    wanted = sockets.inet_pton(sockets.AF_INET6, address)
    local = interface_index("lo")
    body = struct.pack("=BBBBi", sockets.AF_INET6, 0, 0, 0, 0)
    return any(
        content[0] == sockets.AF_INET6
        and struct.unpack_from("=i", content, 4)[0] == local
        and dict(attributes(content, 8)).get(_IFA_ADDRESS) == wanted
        for content in _answers(_RTM_GETADDR, body)
    )


def physical_interfaces() -> tuple[str, ...]:
    """The network cards of this namespace: Ethernet or InfiniBand, made by no ``ip link add``.

    A virtual interface (veth, bridge, tun, macvlan, ...) says what kind it is. /sys would show
    those of the namespace that it was mounted in.
    """
    found = []
    for kind, _, content in _links():
        parts = dict(attributes(content, 16))
        kinds = dict(attributes(parts.get(_IFLA_LINKINFO, b""), 0))
        if kind in _ARPHRD_CARDS and _IFLA_INFO_KIND not in kinds:
            found.append(text(parts.get(_IFLA_IFNAME)))
    return tuple(found)


def loopback_is_up() -> bool:
    """Whether this namespace's ``lo`` takes packets; raises KernelRefused if the kernel does not say."""
    return any(kind == _ARPHRD_LOOPBACK and flags & _IFF_UP for kind, flags, _ in _links())


def _links() -> Iterator[tuple[int, int, bytes]]:
    """Each interface: its type, its flags, and the message with both and its attributes."""
    # struct ifinfomsg: family, padding, type, index, flags, change.
    for content in _answers(_RTM_GETLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0)):
        kind, _, flags = struct.unpack_from("=HiI", content, 2)
        yield kind, flags, content


def _answers(kind: int, body: bytes) -> list[bytes]:
    try:
        return _dump(sockets.NETLINK_ROUTE, kind, body)
    except OSError as error:
        raise _refused(error, "routes and addresses") from error
