"""Values that nft lists as numbers or as names, by its options: each in the spelling that it has without any.

``nft -n`` and ``-p`` print numbers where there are names, ``-S`` the names of ports.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["usual"]

_FAMILIES = {"2": "ipv4", "10": "ipv6"}
_PROTOCOLS = {
    "1": "icmp",
    "2": "igmp",
    "6": "tcp",
    "17": "udp",
    "33": "dccp",
    "47": "gre",
    "50": "esp",
    "51": "ah",
    "58": "ipv6-icmp",
    "132": "sctp",
    "136": "udplite",
}
_STATES = {"1": "invalid", "2": "established", "4": "related", "8": "new", "64": "untracked"}
_ICMP = {
    "0": "echo-reply",
    "3": "destination-unreachable",
    "4": "source-quench",
    "5": "redirect",
    "8": "echo-request",
    "9": "router-advertisement",
    "10": "router-solicitation",
    "11": "time-exceeded",
    "12": "parameter-problem",
    "13": "timestamp-request",
    "14": "timestamp-reply",
    "15": "info-request",
    "16": "info-reply",
    "17": "address-mask-request",
    "18": "address-mask-reply",
}
_ICMPV6 = {
    "1": "destination-unreachable",
    "2": "packet-too-big",
    "3": "time-exceeded",
    "4": "parameter-problem",
    "128": "echo-request",
    "129": "echo-reply",
    "130": "mld-listener-query",
    "131": "mld-listener-report",
    "132": "mld-listener-done",
    "133": "nd-router-solicit",
    "134": "nd-router-advert",
    "135": "nd-neighbor-solicit",
    "136": "nd-neighbor-advert",
    "137": "nd-redirect",
    "138": "router-renumbering",
    "141": "ind-neighbor-solicit",
    "142": "ind-neighbor-advert",
    "143": "mld2-listener-report",
}
_NAMES: Mapping[str, Mapping[str, str]] = {
    "meta nfproto": _FAMILIES,
    "meta l4proto": _PROTOCOLS,
    "ip protocol": _PROTOCOLS,
    "ip6 nexthdr": _PROTOCOLS,
    "ct state": _STATES,
    "icmp type": _ICMP,
    "icmpv6 type": _ICMPV6,
}

_FIELD = re.compile(
    # Words of people, which may be anything.
    r'(?:comment|prefix|[io]ifname(?: !=)?) "[^"]*"'
    rf"|\b({'|'.join(_NAMES)}|(?:tcp|udp|udplite|sctp|dccp|th) [ds]port)"
    r" ((?:!= |vmap )?)(\{[^}]*\}|[^ ]+)"
)
#: A number, alone or in a list: in a map, what is looked for and not what it says.
_NUMBER = re.compile(r"(?<![\w:-])(?:0x[0-9a-f]+|[0-9]+)(?![\w:-])")
_PORT_KEY = re.compile(r'"?(?<![@\w.+-])([A-Za-z][\w.+-]*)"?(?= :)')
_PORT_NAME = re.compile(r'"?(?<![@\w.+-])([A-Za-z][\w.+-]*)"?')


def usual(text: str) -> str:
    """The statements *text* with its values as nft lists them without options."""
    return _FIELD.sub(_rewritten, text)


def _rewritten(found: re.Match[str]) -> str:
    field, operator, value = found.groups()
    if field is None:
        return found[0]
    names = _NAMES.get(field)
    if names is not None:
        value = _NUMBER.sub(lambda each: names.get(str(int(each[0], 0)), each[0]), value)
    else:
        protocol = field.partition(" ")[0]
        pattern = _PORT_KEY if " : " in value else _PORT_NAME
        value = pattern.sub(lambda each: _port(each, protocol), value)
    return f"{field} {operator}{value}"


def _port(name: re.Match[str], protocol: str) -> str:
    """The number of a service; a name that is not known here stays."""
    import socket  # most listings have numbers

    try:
        if protocol in {"tcp", "udp"}:
            return str(socket.getservbyname(name[1], protocol))
        return str(socket.getservbyname(name[1]))
    except OSError:
        return name[0]
