"""The typed values of settings: ports, ids, networks, and "all of them".

They are tuples: a range of ports equals one of ids with the same ends. mypy refuses every place
where the two could meet (strict equality), so that nothing at run time has to tell them apart.
"""

from __future__ import annotations

from enum import Enum

from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ALL", "IPV4", "IPV6", "IdRange", "Mode", "Network", "PortRange", "Wildcard", "within"]

#: The versions of the Internet Protocol, as a network has them.
IPV4 = 4
IPV6 = 6


class Wildcard(Enum):
    """The type of ``ALL``; an enum, so that type checkers can tell it from a list by ``is``."""

    ALL = "*"


#: What ``*`` means where a list is expected: everything, whatever it is.
ALL = Wildcard.ALL


class Mode(Enum):
    """How an inbound connection is handed to Envoy."""

    REDIRECT = "REDIRECT"
    TPROXY = "TPROXY"


class PortRange(NamedTuple):
    """Ports from *first* to *last*, both included; mostly a single one."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}:{self.last}"


class IdRange(NamedTuple):
    """User or group ids from *first* to *last*, both included; mostly a single one."""

    first: int
    last: int

    @classmethod
    def single(cls, number: int) -> IdRange:
        """The range of one id."""
        return cls(number, number)

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def within(number: int, ranges: Iterable[PortRange] | Iterable[IdRange]) -> bool:
    """Whether *number* is in one of *ranges*."""
    return any(each.first <= number <= each.last for each in ranges)


class Network(NamedTuple):
    """A network: its address with the host bits cleared, as the kernel's tools print it."""

    #: IPV4 or IPV6.
    version: int
    address: str
    prefix: int
    #: Whether the address, as it was written, is a loopback address.
    loopback: bool = False

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix}"
