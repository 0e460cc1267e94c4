"""Traffic as a picture shows it: who makes each connection, and who takes it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Hop", "Sequence"]


class Hop(NamedTuple):
    """One connection, from a process to the one that the rules let it end at."""

    origin: str
    taker: str
    #: Its addresses, in a few words.
    label: str
    #: The rules that it meets, one a line.
    details: tuple[str, ...] = ()


class Sequence(NamedTuple):
    """What one request makes happen."""

    title: str
    hops: tuple[Hop, ...]
    #: What came of it.
    remarks: tuple[str, ...] = ()
    #: Those of the remarks that are not as predicted.
    wrong: frozenset[str] = frozenset()

    @property
    def actors(self) -> tuple[str, ...]:
        """Everybody, in the order in which they come in; somebody is always there."""
        names = (name for hop in self.hops for name in (hop.origin, hop.taker))
        return tuple(dict.fromkeys(names)) or ("nobody",)
