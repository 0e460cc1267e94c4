"""Nodes wired together: interfaces, addresses and routes, made with pyroute2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from istio_iptables.lab.nodes import family_of
from istio_iptables.lab.sandbox import on_network

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from istio_iptables.lab.nodes import Node

__all__ = ["connect"]

_NO_DUPLICATE_DETECTION = 2

#: The router: the switch itself, on its first wire.
_ROUTER = ("10.77.0.1/24", "fd77::1/64")


def connect(nodes: Sequence[Node], networks: Mapping[str, int], switch: int) -> None:
    """Connect *nodes*, whose namespaces are *networks*, by bridges in the namespace *switch*."""
    from pyroute2 import IPRoute  # 0.2 s: only the process that wires has to load it

    with on_network(switch), IPRoute() as ip:
        bridges = {}
        for link in dict.fromkeys(each.link for node in nodes for each in node.interfaces):
            # Without snooping no membership queries travel, which rules could count.
            ip.link("add", ifname=link, kind="bridge", br_mcast_snooping=0)
            (bridges[link],) = ip.link_lookup(ifname=link)
            ip.link("set", index=bridges[link], state="up")
        for each in _ROUTER:
            _add_address(ip, next(iter(bridges.values())), each)
        for switch_on in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", switch_on).write_text("1", encoding="ascii")
        for number, node in enumerate(nodes):
            for interface in node.interfaces:
                port = f"port{number}-{interface.name}"
                end = {"ifname": interface.name, "net_ns_fd": networks[node.name]}
                ip.link("add", ifname=port, kind="veth", peer=end)
                (index,) = ip.link_lookup(ifname=port)
                ip.link("set", index=index, master=bridges[interface.link], state="up")
    for node in nodes:
        with on_network(networks[node.name]), IPRoute() as ip:
            _furnish(ip, node)


def _furnish(ip: Any, node: Node) -> None:  # noqa: ANN401 - pyroute2 has no types
    """Give a node's interfaces their addresses and routes."""
    # A new namespace has this machine's value, and a strict one drops what TPROXY delivers.
    for check in Path("/proc/sys/net/ipv4/conf").glob("*/rp_filter"):
        check.write_text("0", encoding="ascii")
    for interface in node.interfaces:
        (index,) = ip.link_lookup(ifname=interface.name)
        ip.link("set", index=index, state="up")
        for each in interface.addresses:
            _add_address(ip, index, each)
    (first,) = ip.link_lookup(ifname=node.interfaces[0].name)
    for destination in node.reaches:
        ip.route("add", family=family_of(destination).number, dst=destination, oif=first)
    for destination in node.asks_router:
        family = family_of(destination)
        router = next(each for each in _ROUTER if family_of(each) is family)
        gateway = router.partition("/")[0]
        ip.route("add", family=family.number, dst=destination, gateway=gateway)


def _add_address(ip: Any, index: int, text: str) -> None:  # noqa: ANN401 - see above
    address, _, prefix = text.partition("/")
    ip.addr(
        "add",
        family=family_of(address).number,
        index=index,
        address=address,
        prefixlen=int(prefix),
        **({"flags": _NO_DUPLICATE_DETECTION} if ":" in address else {}),
    )
