"""Which matches and targets the kernel lacks, told without loading anything."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from istio_iptables.netfilter.model import Family

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_iptables.netfilter.model import Ruleset

__all__ = ["lacking"]

_MODULES = "/lib/modules"
_NETWORK = "/proc/thread-self/net"
#: The modules of extensions that are not named like them; they are in lower case on some kernels.
_FILES = {"tcp": "xt_tcpudp", "udp": "xt_tcpudp"}


def lacking(rulesets: Iterable[Ruleset]) -> tuple[str, ...] | None:
    """The extensions of *rulesets* that are neither in the kernel nor among its modules' files.

    Such as ``match owner (xt_owner)``. None where that can't be told: the kernel does not have them
    yet, and the files are not to be seen, as in most containers.
    """
    wanted = dict.fromkeys(
        found
        for ruleset in rulesets
        for table in ruleset.tables
        for chain in table.chains
        for rule in chain.rules
        for found in (
            *((ruleset.family, "match", match.name) for match in rule.matches),
            *(
                [(ruleset.family, "target", rule.target.name)]
                if rule.target and rule.target.options
                else []
            ),
        )
    )
    absent = [each for each in wanted if each[2] not in _registered(each[0], each[1])]
    if not absent:
        return ()
    files = _files()
    if files is None:
        return None
    return tuple(
        dict.fromkeys(
            f"{kind} {name} ({_module(name)})"
            for _, kind, name in absent
            if _module(name).lower() not in files
        )
    )


def _module(name: str) -> str:
    return _FILES.get(name, f"xt_{name}")


def _registered(family: Family, kind: str) -> set[str]:
    """What the kernel has ready; empty where it does not tell."""
    number = "" if family is Family.IPV4 else "6"
    suffix = "matches" if kind == "match" else "targets"
    try:
        with open(f"{_NETWORK}/ip{number}_tables_{suffix}", encoding="ascii") as file:
            return set(file.read().split())
    except OSError:
        return set()


def _files() -> set[str] | None:
    """The modules that this kernel could load or has built in; None if that can't be read."""
    directory = f"{_MODULES}/{os.uname().release}"
    names: set[str] = set()
    try:
        for name in ("modules.builtin", "modules.dep"):
            with open(f"{directory}/{name}", encoding="utf-8", errors="replace") as file:
                for line in file:
                    path = line.partition(":")[0].strip()
                    names.add(path.rpartition("/")[2].partition(".")[0].replace("-", "_").lower())
    except OSError:
        return None
    return names
