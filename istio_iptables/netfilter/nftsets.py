"""Sets of ports and networks, in one spelling: what overlaps or touches is one, in ascending order.

nft merges them so when it lists what it was given, if it takes it at all.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["network_set", "port_set"]


def port_set(ranges: Iterable[tuple[int, int]]) -> str:
    """Ranges of ports, both ends included, as ``80,443,8000:8010``."""
    return ",".join(
        str(first) if first == last else f"{first}:{last}" for first, last in _merged(ranges)
    )


def network_set(networks: Iterable[str]) -> str:
    """Networks of one address family as ``10.0.0.0/8,10.2.0.0-10.2.2.255``."""
    numbers = {}
    for network in networks:
        address, _, prefix = network.partition("/")
        family, bits = (AF_INET6, 128) if ":" in address else (AF_INET, 32)
        first = int.from_bytes(inet_pton(family, address), "big")
        numbers[first, first + (1 << bits - int(prefix)) - 1] = family, bits
    ((family, bits),) = set(numbers.values())
    return ",".join(_spelled(*each, family, bits) for each in _merged(numbers))


def _spelled(first: int, last: int, family: int, bits: int) -> str:
    """A range of addresses, as a network if it is one."""
    ends = [inet_ntop(family, end.to_bytes(bits // 8, "big")) for end in (first, last)]
    size = last - first + 1
    if size & size - 1 or first % size:
        return "-".join(ends)
    return f"{ends[0]}/{bits - size.bit_length() + 1}"


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start = end = None
    for first, last in sorted(ranges):
        if start is None or end is None:
            start, end = first, last
        elif first <= end + 1:
            end = max(end, last)
        else:
            yield start, end
            start, end = first, last
    if start is not None and end is not None:
        yield start, end
