"""Interfaces in rules match the interface of that name, in IPv6 too, and none that is like it.

python-iptables' own interface masks in IPv6 cover one bit a letter: its rule for ``-o lo`` takes
packets of net1 and veth0 as well.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from istio_iptables.netfilter.model import Family
from tests.kernel.sandbox import command, install
from tests.namespaces import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

NETWORKS = {Family.IPV4: "10.{}.0.1/24", Family.IPV6: "fd00:{}::1/64"}


def _links(names: Iterable[str]) -> None:
    """An interface of each name, with an address of a network of its own."""
    for number, name in enumerate(names, start=1):
        command("ip", "link", "add", "name", name, "type", "veth", "peer", "name", f"x{number}")
        command("ip", "link", "set", "dev", name, "up")
        command("ip", "link", "set", f"x{number}", "up")
        command("ip", "addr", "add", NETWORKS[Family.IPV4].format(number), "dev", name)
        command("ip", "addr", "add", NETWORKS[Family.IPV6].format(number), "nodad", "dev", name)


def _send(family: Family, number: int) -> None:
    """A packet to a neighbour out of the interface of that number."""
    kind = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    address = NETWORKS[family].format(number).partition("/")[0]
    with socket.socket(kind, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"", (address[:-1] + "2", 9))


def _count(backend: str, family: Family, rule: str) -> int:
    """How many packets the rule has counted."""
    program = "iptables" if family is Family.IPV4 else "ip6tables"
    saved = command(f"{program}-{backend}-save", "-c", "-t", "nat")
    (line,) = (line for line in saved.splitlines() if line.endswith(f"] {rule}"))
    return int(line[1:].partition(":")[0])


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rule_matches_its_interface_alone(backend: str, family: Family) -> None:
    """Out of lo, net1, net2, lo0, l and br5: -o net1 counts one of them, and -o br+ another."""
    names = ("net1", "net2", "net11", "lo0", "l", "br5", "brx", "b")
    _links(names)
    assert install(backend, "-i", "*", "-c", "net1,br+", "--ip-family", "dual").status == 0
    for number, _ in enumerate(names, start=1):
        _send(family, number)
    assert _count(backend, family, "-A OUTPUT -o net1 -j RETURN") == 1
    assert _count(backend, family, "-A OUTPUT -o br+ -j RETURN") == 2
    # All the others came by, and none of them is lo.
    assert _count(backend, family, "-A OUTPUT -j ISTIO_OUTPUT") == len(names) - 3
    not_lo = "-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN"
    assert _count(backend, family, not_lo) == 0
    # Another one's packet over lo is spared.
    kind = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"", ("127.0.0.1" if family is Family.IPV4 else "::1", 9))
    assert _count(backend, family, not_lo) >= 1
