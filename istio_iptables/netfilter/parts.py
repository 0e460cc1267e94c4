"""Matches and targets in the spelling that iptables-save prints (the canonical one).

Each function returns the value for one option people know from iptables' manual; rules made
of these need no clean-up before they can be compared with the kernel's text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.netfilter.model import Family, Match, Option, Target

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ACCEPT",
    "DROP",
    "RETURN",
    "conntrack_states",
    "conntrack_zone",
    "mark_is",
    "owner",
    "ports",
    "ports_except",
    "redirect",
    "restore_mark",
    "save_mark",
    "set_mark",
    "tproxy",
]

ACCEPT = Target("ACCEPT")
DROP = Target("DROP")
RETURN = Target("RETURN")

_EVERY_PORT = "0:65535"
_WHOLE_MARK = "0xffffffff"
_ANY_ADDRESS = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104 - text of a rule, not bound
_MARK_MASKS = (Option("--nfmask", (_WHOLE_MARK,)), Option("--ctmask", (_WHOLE_MARK,)))


def ports(
    protocol: str, *, dport: str | None = None, sport: str | None = None, negated: bool = False
) -> Match:
    """``-m tcp --dport 80``; a port is a number or a range ``80:90``.

    A range of all ports is no condition, and iptables-save leaves it out.
    """
    options = []
    if sport is not None and sport != _EVERY_PORT:
        options.append(Option("--sport", (sport,), negated))
    if dport is not None and dport != _EVERY_PORT:
        options.append(Option("--dport", (dport,), negated))
    return Match(protocol, tuple(options))


def ports_except(dports: Iterable[int]) -> Match:
    """``-m multiport ! --dports 53,15008``."""
    return Match("multiport", (Option("--dports", (",".join(map(str, dports)),), negated=True),))


def owner(*, uid: str | None = None, gid: str | None = None, negated: bool = False) -> Match:
    """``-m owner --uid-owner 1337``; an id is a number or a range ``1000-1999``."""
    if uid is not None:
        return Match("owner", (Option("--uid-owner", (uid,), negated),))
    if gid is not None:
        return Match("owner", (Option("--gid-owner", (gid,), negated),))
    message = "an owner match needs a uid or a gid"
    raise ValueError(message)


def mark_is(mark: int, *, of: str = "mark", negated: bool = False) -> Match:
    """``-m mark --mark 0x539``; *of* is ``mark`` (the packet's) or ``connmark``."""
    return Match(of, (Option("--mark", (hex(mark),), negated),))


def conntrack_states(*states: str) -> Match:
    """``-m conntrack --ctstate RELATED,ESTABLISHED``."""
    return Match("conntrack", (Option("--ctstate", (",".join(states),)),))


def redirect(port: int) -> Target:
    """``-j REDIRECT --to-ports 15001``."""
    return Target("REDIRECT", (Option("--to-ports", (str(port),)),))


def set_mark(mark: int) -> Target:
    """``-j MARK --set-xmark 0x539/0xffffffff``: what ``--set-mark 1337`` becomes in the kernel."""
    return Target("MARK", (Option("--set-xmark", (f"{mark:#x}/{_WHOLE_MARK}",)),))


def save_mark() -> Target:
    """``-j CONNMARK --save-mark``, with the masks that iptables adds."""
    return Target("CONNMARK", (Option("--save-mark"), *_MARK_MASKS))


def restore_mark() -> Target:
    """``-j CONNMARK --restore-mark``, with the masks that iptables adds."""
    return Target("CONNMARK", (Option("--restore-mark"), *_MARK_MASKS))


def tproxy(port: int, mark: int, family: Family) -> Target:
    """``-j TPROXY --on-port 15006 --on-ip 0.0.0.0 --tproxy-mark 0x539/0xffffffff``."""
    return Target(
        "TPROXY",
        (
            Option("--on-port", (str(port),)),
            Option("--on-ip", (_ANY_ADDRESS[family],)),
            Option("--tproxy-mark", (f"{mark:#x}/{_WHOLE_MARK}",)),
        ),
    )


def conntrack_zone(zone: int) -> Target:
    """``-j CT --zone 1``."""
    return Target("CT", (Option("--zone", (str(zone),)),))
