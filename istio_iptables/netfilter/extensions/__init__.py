"""What is known about each match and target of iptables: one module each, loaded when it is met.

A module has its extension's name in lower case. Its ``MATCHES`` and ``TARGETS`` say, by the name
in a rule, how the extension is spelled, whether it matches a packet, what it does, and its bytes in
a legacy table. What a module leaves out is unknown, and so is a name without a module.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from importlib import import_module

from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType

    from istio_iptables.netfilter.model import Family, Match, Option, Target
    from istio_iptables.netfilter.packet import Packet, Surroundings

__all__ = [
    "Effect",
    "MatchExtension",
    "Next",
    "Situation",
    "TargetExtension",
    "in_order",
    "match_extension",
    "target_extension",
]


class Situation(NamedTuple):
    """A packet at one hook: all that a match or a target may look at."""

    packet: Packet
    #: The built-in chain's name.
    hook: str
    world: Surroundings
    #: Whether a nat rule has given the connection another destination.
    translated: bool = False


class Next(Enum):
    """Where a packet goes from a rule."""

    CONTINUE = "continue"
    RETURN = "return"
    JUMP = "jump"
    GOTO = "goto"
    #: Done with this table.
    ACCEPT = "accept"
    DROP = "drop"
    UNKNOWN = "unknown"


class Effect(NamedTuple):
    """What came of a rule."""

    next: Next
    packet: Packet
    change: str = ""
    #: Whether the packet is handed to a local port whatever it asked for, and which one; None if
    #: that can't be known.
    takes: bool = False
    to_port: int | None = None
    #: Whether nat gave the connection another destination.
    translated: bool = False
    #: The target's name, the chain's, or "" for a rule without a target.
    verdict: str = ""
    #: What takes the packet, if that is not the verdict: a rule of nftables may do several things.
    taken_by: str = ""


class MatchExtension(NamedTuple):
    """What is known about a match; a field is None where nothing is."""

    #: Returns the match in iptables-save's spelling; None if it has no condition.
    spell: Callable[[Match], Match | None] | None = None
    #: Of a match that only looks at the packet, so that its place makes no difference: where it
    #: stands among others of its kind. The order is the one in which the documented rules have them.
    rank: int | None = None
    #: The number of the protocol whose packets alone it can match.
    protocol: int | None = None
    #: Whether one of its options holds; None if that can't be known from here.
    holds: Callable[[Option, Situation, Match], bool | None] | None = None
    #: Describes what the packet has, for a rule that nearly matched.
    has: Callable[[Packet], str] | None = None
    #: Its bytes; ValueError, KeyError or IndexError say that they are not known.
    encode: Callable[[Match], bytes] | None = None


class TargetExtension(NamedTuple):
    """What is known about a target; a field is None where nothing is."""

    #: Returns the target in iptables-save's spelling.
    spell: Callable[[Target, Family], Target] | None = None
    #: What it does to a packet, but for the verdict's name; None if that can't be known from here.
    effect: Callable[[Target, Situation], Effect | None] | None = None
    #: Its bytes; ValueError, KeyError or IndexError say that they are not known.
    encode: Callable[[Target, Family], bytes] | None = None


#: The modules of extensions that share one.
_SHARED = {
    **dict.fromkeys(("tcp", "udp", "sctp", "dccp", "udplite"), "ports"),
    **dict.fromkeys(("DNAT", "SNAT", "MASQUERADE", "NETMAP", "DNPT", "SNPT"), "nat"),
    "state": "conntrack",
    "HMARK": "mark",
    "SET": "mark",
    "NOTRACK": "ct",
    "TARPIT": "reject",
}


# Bounded, since the names are those of foreign rules; an import that fails is what costs.
@lru_cache(maxsize=1024)
def match_extension(name: str) -> MatchExtension:
    """What is known about the match *name*."""
    found: Mapping[str, MatchExtension] = getattr(_module(name), "MATCHES", {})
    return found.get(name, MatchExtension())


@lru_cache(maxsize=1024)
def target_extension(name: str) -> TargetExtension:
    """What is known about the target *name*."""
    found: Mapping[str, TargetExtension] = getattr(_module(name), "TARGETS", {})
    return found.get(name, TargetExtension())


def _module(name: str) -> ModuleType | None:
    name = _SHARED.get(name, name.lower())
    # A name from a rule may be any text: nothing but a plain module is imported.
    if not name.isidentifier() or name.startswith("_"):
        return None
    full = f"{__name__}.{name}"
    try:
        return import_module(full)
    except ModuleNotFoundError as error:
        if error.name != full:
            raise
        return None


def in_order(options: Iterable[Option], order: Mapping[str, int]) -> tuple[Option, ...]:
    """The options in the order in which iptables-save prints them; unknown ones at the end."""
    return tuple(sorted(options, key=lambda option: order.get(option.name, len(order))))
