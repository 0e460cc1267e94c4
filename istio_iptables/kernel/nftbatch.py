"""Our own tables in nf_tables: made with a mark, and taken away only while they hold nothing.

Both are single transactions in raw netlink. iptables-nft takes any table of the right name for
its own, so what says that a table was made by us is its comment, which the kernel keeps and
iptables neither shows nor changes.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import closing

from istio_iptables import sockets
from istio_iptables.errors import KernelRefused
from istio_iptables.kernel import nftables
from istio_iptables.kernel.capabilities import missing
from istio_iptables.kernel.netlink import as_attribute, attributes
from istio_iptables.netfilter.model import BUILT_IN_CHAINS
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_iptables.netfilter.model import Family

__all__ = ["COMMENT", "make_table", "remove_table"]

#: What `nft list ruleset` shows of a table that we made.
COMMENT = "made by istio-iptables"

_NETLINK_NETFILTER = 12
_REQUEST, _ACK = 0x1, 0x4
_EXCL, _CREATE = 0x200, 0x400
#: In a deletion: not what is in it too.
_NONREC = 0x100
_ERROR = 2
_BATCH_BEGIN, _BATCH_END = 16, 17
_NFTABLES = 10
_NEWTABLE, _GETTABLE, _DELTABLE = 0, 1, 2
_GETCHAIN, _DELCHAIN = 4, 5
_GETGEN = 16

_BATCH_GENID = _GEN_ID = 1
_TABLE_NAME, _TABLE_FLAGS, _TABLE_USERDATA = 1, 2, 6
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_CHAIN_FLAGS, _CHAIN_USERDATA = 10, 12
_BASE_CHAIN = 1
_UDATA_COMMENT = 0

_HEADER = struct.Struct("=IHHII")

#: Where rules of ours stand: the chains that iptables makes for them.
_OURS = frozenset({"PREROUTING", "OUTPUT"})

#: The kernel's word for a batch that rests on what is no longer so.
_ERESTART = 85
_ATTEMPTS = 20


class _Message(NamedTuple):
    kind: int
    flags: int
    body: bytes


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big")


def _message(family: int, kind: int, flags: int, *parts: bytes) -> _Message:
    # struct nfgenmsg: family, version, resource id.
    body = struct.pack("=BBH", family, 0, 0) + b"".join(parts)
    return _Message(_NFTABLES << 8 | kind, flags, body)


def _talk(link: sockets.socket, messages: Iterable[_Message]) -> list[bytes]:
    """The answers to *messages*, which go in one datagram; OSError has the first error's number."""
    data = b"".join(
        _HEADER.pack(_HEADER.size + len(each.body), each.kind, _REQUEST | each.flags, number, 0)
        + each.body
        for number, each in enumerate(messages, start=1)
    )
    link.send(data)
    answers, errors = [], []
    while True:
        try:
            # All of them are there when the kernel has taken what was sent.
            data = link.recv(1 << 16, sockets.MSG_DONTWAIT)
        except BlockingIOError:
            break
        position = 0
        while position < len(data):
            size, kind, _flags, _sequence, _port = _HEADER.unpack_from(data, position)
            content = data[position + _HEADER.size : position + size]
            if kind == _ERROR:
                errors.append(-struct.unpack_from("=i", content)[0])
            else:
                answers.append(content)
            position += (size + 3) & ~3
    for number in filter(None, errors):
        raise OSError(number, os.strerror(number))
    return answers


def _ask(link: sockets.socket, question: _Message) -> dict[int, bytes] | None:
    """The attributes of what is asked for; None if there is no such thing."""
    try:
        answers = _talk(link, [question])
    except FileNotFoundError:
        return None
    return dict(attributes(answers[0][4:])) if answers else None


def _batch(link: sockets.socket, generation: bytes, messages: Iterable[_Message]) -> None:
    """One transaction; OSError ERESTART if the ruleset is not of that *generation* any more."""
    ends = struct.pack("!BBH", 0, 0, _NFTABLES)
    begin = _Message(_BATCH_BEGIN, 0, ends + generation)
    _talk(link, [begin, *messages, _Message(_BATCH_END, 0, ends)])


def _userdata() -> bytes:
    text = _text(COMMENT)
    return bytes((_UDATA_COMMENT, len(text))) + text


def _refused(family: Family, table: str, what: str, error: OSError) -> KernelRefused:
    return KernelRefused(
        f"can't {what} the {family.title} table {table} (nft): {error.strerror}{missing()}"
    )


def make_table(family: Family, table: str) -> None:
    """Make an empty table with our mark, if there is no table of that name.

    Raises KernelRefused if the kernel won't.
    """
    name = as_attribute(_TABLE_NAME, _text(table))
    flags = _CREATE | _EXCL | _ACK
    mark = as_attribute(_TABLE_USERDATA, _userdata())
    try:
        with closing(sockets.netlink(_NETLINK_NETFILTER)) as link:
            # A transaction that fails waits for all processors, 10 ms; a question does not.
            if _ask(link, _message(family.number, _GETTABLE, 0, name)) is not None:
                return
            _batch(link, b"", [_message(family.number, _NEWTABLE, flags, name, mark)])
    except FileExistsError:
        return
    except OSError as error:
        raise _refused(family, table, "make", error) from error


def remove_table(family: Family, table: str) -> bool:
    """Take a table away that we made and that holds nothing; returns whether it is gone now.

    It goes with the base chains that iptables made for our rules, in one transaction that the
    kernel refuses as a whole if there is a rule, a chain, a set or anything else in the table.
    A table without our mark stays, as does one with a chain that iptables made for others, or
    that others made. Raises KernelRefused for any other refusal.
    """
    try:
        with closing(sockets.netlink(_NETLINK_NETFILTER)) as link:
            for _ in range(_ATTEMPTS):
                try:
                    return _remove_once(link, family.number, table)
                except OSError as error:
                    if error.errno == errno.EBUSY:
                        return False
                    # Somebody has changed something, be it in another table: look again.
                    if error.errno not in {_ERESTART, errno.ENOENT, errno.EINTR}:
                        raise
    except OSError as error:
        raise _refused(family, table, "remove the empty", error) from error
    return False


def _remove_once(link: sockets.socket, family: int, table: str) -> bool:
    generation = _ask(link, _message(0, _GETGEN, 0))
    name = as_attribute(_TABLE_NAME, _text(table))
    found = _ask(link, _message(family, _GETTABLE, 0, name))
    if found is None or generation is None:
        return True
    if found.get(_TABLE_USERDATA) != _userdata() or _number(found.get(_TABLE_FLAGS)):
        return False
    owner = as_attribute(_CHAIN_TABLE, _text(table))
    chains = {}
    for chain in BUILT_IN_CHAINS[table]:
        named = as_attribute(_CHAIN_NAME, _text(chain))
        there = _ask(link, _message(family, _GETCHAIN, 0, owner, named))
        if there is not None:
            if not _is_as_iptables_makes_it(family, there):
                return False
            chains[chain] = named
    # iptables makes the chains that it needs for a rule; before 1.8.3 it made all of the table.
    if not chains.keys() <= _OURS and len(chains) < len(BUILT_IN_CHAINS[table]):
        return False
    messages = [_message(family, _DELCHAIN, _NONREC, owner, each) for each in chains.values()]
    messages.append(_message(family, _DELTABLE, _NONREC | _ACK, name))
    _batch(link, as_attribute(_BATCH_GENID, generation[_GEN_ID]), messages)
    return True


def _is_as_iptables_makes_it(family: int, found: dict[int, bytes]) -> bool:
    chain = nftables.chain_of(family, found)
    return (
        nftables.is_iptables(chain)
        and not chain.drops
        and _number(found.get(_CHAIN_FLAGS)) in {0, _BASE_CHAIN}
        and _CHAIN_USERDATA not in found
    )
