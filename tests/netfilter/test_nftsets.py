"""Sets of ports and networks: the same items, none twice, none that touch."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, collapse_addresses, summarize_address_range
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_iptables.netfilter.nftsets import network_set, port_set

ends = st.integers(0, 40)
ranges = st.lists(st.tuples(ends, ends).map(lambda pair: (min(pair), max(pair))), min_size=1)
prefixes = st.integers(20, 32)
ipv4 = st.builds(
    lambda low, prefix: str(IPv4Network((0x0A000000 + (low << 4), prefix), strict=False)),
    st.integers(0, 400),
    prefixes,
)


@given(ranges)
def test_a_set_of_ports_holds_the_same_ports(given_ranges: list[tuple[int, int]]) -> None:
    """In ascending order, with a gap before each element."""
    found = []
    for each in port_set(given_ranges).split(","):
        first, _, last = each.partition(":")
        found.append((int(first), int(last or first)))
    assert {port for first, last in found for port in range(first, last + 1)} == {
        port for first, last in given_ranges for port in range(first, last + 1)
    }
    assert all(one[1] + 1 < other[0] for one, other in pairwise(found))


@given(st.lists(ipv4, min_size=1))
def test_a_set_of_networks_holds_the_same_addresses(networks: list[str]) -> None:
    """By the standard library's own merging."""
    found: list[IPv4Network] = []
    for each in network_set(networks).split(","):
        first, dash, last = each.partition("-")
        if dash:
            found += summarize_address_range(IPv4Address(first), IPv4Address(last))
        else:
            found.append(IPv4Network(each))
    wanted = collapse_addresses(map(IPv4Network, networks))
    assert list(collapse_addresses(found)) == list(wanted)


@pytest.mark.parametrize(
    ("networks", "text"),
    [
        (["10.0.0.0/8"], "10.0.0.0/8"),
        (["10.0.0.0/9", "10.128.0.0/9"], "10.0.0.0/8"),
        (["10.0.1.0/24", "10.0.0.0/24", "10.0.2.0/24"], "10.0.0.0-10.0.2.255"),
        (["10.0.0.1/32", "10.0.0.2/32", "10.9.0.0/16"], "10.0.0.1-10.0.0.2,10.9.0.0/16"),
        (["0.0.0.0/1", "128.0.0.0/1"], "0.0.0.0/0"),
        (["fd00::/8", "::1/128", "fd00:1::/32"], "::1/128,fd00::/8"),
        (["::/0", "ff00::/8"], "::/0"),
    ],
)
def test_a_range_that_is_a_network_is_written_as_one(networks: list[str], text: str) -> None:
    """And another as its ends."""
    assert network_set(networks) == text
