"""What nf_tables hold, asked of the kernel itself: iptables-nft shows a part of it, and not always right.

Names of tables, chains and expressions are all that is needed: whether our chains are there,
whether the kernel applies a table, and which rules iptables-nft-save can't be believed about.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from istio_iptables.kernel.netlink import attributes, nft, text
from istio_iptables.netfilter.model import PRIORITIES, SOURCE_NAT
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FAMILIES",
    "NftBase",
    "NftChain",
    "NftTable",
    "Shown",
    "chain_of",
    "chains",
    "hook_name",
    "is_iptables",
    "rules",
    "shown",
    "tables",
]

_GET_TABLE, _GET_CHAIN, _GET_RULE = 1, 4, 7
_TABLE_NAME, _TABLE_FLAGS, _TABLE_HANDLE, _TABLE_OWNER = 1, 2, 4, 7
_DORMANT, _OWNED = 1, 2
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_NF_DROP = 0
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2

IP, IP6, INET, NETDEV = 2, 10, 1, 5
#: The families whose chains see a pod's packets, by the name that nft gives them.
FAMILIES = {IP: "ip", IP6: "ip6", INET: "inet", NETDEV: "netdev"}
_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING", "INGRESS", "INGRESS")
_NETDEV_HOOKS = ("INGRESS", "EGRESS")


class NftTable(NamedTuple):
    """A table; *owner* is the netlink port of the process that alone may change it, or None."""

    family: int
    name: str
    #: The kernel applies none of its rules.
    dormant: bool
    owner: int | None
    #: Another one than any table had before it in this namespace.
    handle: int


class NftBase(NamedTuple):
    """Where the kernel asks a chain: its type, hook and priority."""

    kind: str
    hook: int
    priority: int


class NftChain(NamedTuple):
    """A chain; *base* is None if only other chains lead to it."""

    family: int
    table: str
    name: str
    base: NftBase | None
    #: What no rule decides is dropped.
    drops: bool


def tables(family: int = 0) -> tuple[NftTable, ...]:
    """The tables of one family, or of all of them."""
    found = []
    for number, parts in nft(_GET_TABLE, family):
        flags = _number(parts.get(_TABLE_FLAGS))
        # Other processes are told the owner's port; the flag alone says that there is one.
        owner = _number(parts.get(_TABLE_OWNER)) if flags & _OWNED else None
        handle = _number(parts.get(_TABLE_HANDLE))
        name = text(parts.get(_TABLE_NAME))
        found.append(NftTable(number, name, bool(flags & _DORMANT), owner, handle))
    return tuple(found)


def chains(family: int = 0) -> tuple[NftChain, ...]:
    """The chains of one family, or of all of them."""
    return tuple(chain_of(number, parts) for number, parts in nft(_GET_CHAIN, family))


def chain_of(family: int, parts: dict[int, bytes]) -> NftChain:
    """The chain that the kernel tells of in these attributes."""
    base = None
    if hook := parts.get(_CHAIN_HOOK):
        where = dict(attributes(hook))
        (priority,) = struct.unpack(">i", where.get(_HOOK_PRIORITY, bytes(4)))
        base = NftBase(
            text(parts.get(_CHAIN_TYPE)), _number(where.get(_HOOK_NUMBER)), int(priority)
        )
    policy = parts.get(_CHAIN_POLICY)
    return NftChain(
        family,
        text(parts.get(_CHAIN_TABLE)),
        text(parts.get(_CHAIN_NAME)),
        base,
        policy is not None and _number(policy) == _NF_DROP,
    )


def rules(family: int = 0) -> Iterator[tuple[int, str, str, bytes]]:
    """The rules in their order, each as (family, table, chain, its expressions' bytes)."""
    for number, parts in nft(_GET_RULE, family):
        yield (
            number,
            text(parts.get(_RULE_TABLE)),
            text(parts.get(_RULE_CHAIN)),
            parts.get(_RULE_EXPRESSIONS, b""),
        )


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big")


def hook_name(family: int, hook: int) -> str:
    """``PREROUTING``, ``OUTPUT``, ... as iptables names a hook."""
    names = _NETDEV_HOOKS if family == NETDEV else _HOOKS
    return names[hook] if hook < len(names) else str(hook)


def is_iptables(chain: NftChain) -> bool:
    """Whether a base chain of a table of iptables' is one that iptables itself makes and shows."""
    if chain.base is None:
        return False
    hook = hook_name(chain.family, chain.base.hook)
    if chain.table == "nat":
        before = hook in {"PREROUTING", "OUTPUT"}
        wanted = NftBase("nat", chain.base.hook, PRIORITIES["nat"] if before else SOURCE_NAT)
    else:
        kind = "route" if (chain.table, hook) == ("mangle", "OUTPUT") else "filter"
        wanted = NftBase(kind, chain.base.hook, PRIORITIES.get(chain.table, 0))
    return chain.name == hook and chain.base == wanted


# What iptables-nft-save 1.8.9 leaves out without a word, tried with every expression that nft
# 1.0.6 makes: `iifname { a, b } accept` comes out as `-j ACCEPT`. iptables writes none of it.

_PAYLOAD_BASE, _PAYLOAD_OFFSET, _PAYLOAD_LENGTH, _PAYLOAD_SOURCE = 2, 3, 4, 5
_NETWORK, _TRANSPORT, _INNER = 1, 2, 3
#: The fields behind the network header that iptables has words for, as (offset, length): ICMP's
#: type and code, ports, TCP's flags.
_TRANSPORT_FIELDS = frozenset({(0, 1), (1, 1), (0, 2), (2, 2), (13, 1)})
_META_KEY, _META_SOURCE = 2, 3
_META_MARK = 3
#: What was found goes on into a verdict or another expression.
_LOOKUP_TARGET = 3
_CMP_OPERATION = 2
_EQUALITY = frozenset({0, 1})


class Shown(NamedTuple):
    """How far iptables-nft-save's text of a rule can be believed."""

    matches: bool
    target: bool


def shown(expressions: bytes) -> Shown:
    """Whether iptables-nft-save shows all that a rule asks for, and all that it does."""
    matches = target = True
    loaded: set[tuple[int, ...]] = set()
    last: tuple[int, ...] = ()
    port = logs = decides = False
    for _, element in attributes(expressions):
        part = _part(element)
        if part is None:
            continue
        if part.writes:
            target = False
        elif part.loads:
            # Of two conditions on one field, the last is shown.
            matches = matches and part.loads not in loaded and _has_words(part.loads)
            loaded.add(part.loads)
            last = part.loads
            port = last[:2] == (_PAYLOAD, _TRANSPORT)
        matches = matches and not part.looks_up and (port or not part.compares)
        # A mask is shown of an address, a mark and TCP's flags alone.
        matches = matches and (not part.masks or last in _MASKED)
        logs, decides = logs or part.logs, decides or part.decides
    # Of a rule that logs and then decides, one of the two is shown.
    return Shown(matches, target and not (logs and decides))


def _has_words(field: tuple[int, ...]) -> bool:
    kind, *place = field
    if kind != _PAYLOAD:
        return True
    base, offset, length = place
    return base != _INNER and (base != _TRANSPORT or (offset, length) in _TRANSPORT_FIELDS)


class _Part(NamedTuple):
    """What matters of one expression."""

    #: The field that it loads for the next comparison.
    loads: tuple[int, ...] = ()
    #: It compares by order rather than for equality, which is shown of ports alone.
    compares: bool = False
    looks_up: bool = False
    #: It changes the packet, or goes on by what it found.
    writes: bool = False
    masks: bool = False
    logs: bool = False
    decides: bool = False


_PAYLOAD, _META = 0, 1
#: The fields of which iptables shows a mask: addresses of IPv4 and IPv6, what -f asks about, TCP's
#: flags, the mark.
_MASKED = frozenset(
    {
        (_PAYLOAD, _NETWORK, 12, 4),
        (_PAYLOAD, _NETWORK, 16, 4),
        (_PAYLOAD, _NETWORK, 8, 16),
        (_PAYLOAD, _NETWORK, 24, 16),
        (_PAYLOAD, _NETWORK, 6, 2),
        (_PAYLOAD, _TRANSPORT, 13, 1),
        (_META, _META_MARK),
    }
)


# Most expressions of thousands of rules are the same ones.
@lru_cache(maxsize=4096)
def _part(element: bytes) -> _Part | None:
    parts = dict(attributes(element))
    name = text(parts.get(_EXPRESSION_NAME))
    if name in {"bitwise", "log", "immediate"}:
        return _Part(masks=name == "bitwise", logs=name == "log", decides=name == "immediate")
    if name not in {"lookup", "payload", "meta", "cmp", "range"}:
        return None
    data = dict(attributes(parts.get(_EXPRESSION_DATA, b"")))
    if name == "lookup":
        # A set, or a map: of verdicts, of addresses.
        return _Part(looks_up=True, writes=_LOOKUP_TARGET in data)
    if name == "payload":
        attribute = (_PAYLOAD_BASE, _PAYLOAD_OFFSET, _PAYLOAD_LENGTH)
        place = tuple(_number(data.get(each)) for each in attribute)
        return _Part((_PAYLOAD, *place), writes=_PAYLOAD_SOURCE in data)
    if name == "meta":
        return _Part((_META, _number(data.get(_META_KEY))), writes=_META_SOURCE in data)
    return _Part(compares=name == "range" or _number(data.get(_CMP_OPERATION)) not in _EQUALITY)
