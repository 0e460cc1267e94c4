"""Which tables a network namespace has, asked without making one."""

from __future__ import annotations

import os

from istio_iptables.errors import KernelRefused
from istio_iptables.kernel import netlink
from istio_iptables.netfilter.model import TABLES, Family
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["hidden_legacy_tables", "inet_tables", "legacy_tables", "nft_tables"]

# Not /proc/net: a /proc mounted with subset=pid has no such link.
_NETWORK = "/proc/thread-self/net"
_INET = 1
_NAMES_FILES = {
    Family.IPV4: f"{_NETWORK}/ip_tables_names",
    Family.IPV6: f"{_NETWORK}/ip6_tables_names",
}


def legacy_tables(family: Family, if_hidden: Iterable[str]) -> tuple[str, ...] | None:
    """The legacy tables this namespace has, or None for a kernel without them.

    Reading this file makes no table, unlike any question to iptables-legacy. Only user 0 and group
    0 may read it: for others these are the tables *if_hidden*, and whoever opens them to look makes
    them. Raises KernelRefused where it can't be told.
    """
    path = _NAMES_FILES[family]
    try:
        with open(path, encoding="utf-8") as file:
            names = file.read().split()
    except FileNotFoundError as error:
        if not os.path.isdir(_NETWORK):  # noqa: PTH112 - pathlib costs 5 ms
            message = f"can't tell which legacy tables there are: no {_NETWORK}: is /proc mounted?"
            raise KernelRefused(message) from error
        return None
    except PermissionError:
        return tuple(if_hidden)
    except OSError as error:
        message = f"can't tell which legacy tables there are: {path}: {error.strerror or error}"
        raise KernelRefused(message) from error
    return tuple(name for name in TABLES if name in names)


def hidden_legacy_tables(family: Family, if_hidden: Iterable[str]) -> tuple[str, ...]:
    """The other legacy tables, where this user can't be told whether they are there; see above."""
    path = _NAMES_FILES[family]
    if os.access(path, os.R_OK) or not os.access(path, os.F_OK):
        return ()
    return tuple(name for name in TABLES if name not in if_hidden)


def nft_tables(family: Family) -> tuple[str, ...]:
    """The nftables tables of this namespace that iptables-nft uses."""
    names = [name for number, name in netlink.nft_tables() if number == family.number]
    return tuple(name for name in TABLES if name in names)


def inet_tables(names: Iterable[str]) -> tuple[str, ...]:
    """Those of *names* that are nftables tables of the family inet here, in the kernel's order."""
    wanted = frozenset(names)
    found = (name for number, name in netlink.nft_tables() if number == _INET)
    return tuple(name for name in found if name in wanted)
