"""What is around the rules of a live namespace: sockets, processes, connections, DNS servers."""

from __future__ import annotations

from typing import NamedTuple

from istio_iptables.errors import KernelRefused
from istio_iptables.kernel import conntrack, modules, netlink, node, sockets
from istio_iptables.kernel.host import ThisHost
from istio_iptables.kernel.namespace import entered
from istio_iptables.kernel.processes import Process, processes
from istio_iptables.kernel.tablenames import legacy_tables
from istio_iptables.netfilter.model import Family, Ruleset
from istio_iptables.settings.config import resolv_conf_of
from istio_iptables.settings.declarations import setting

__all__ = ["Evidence", "gather"]


class Evidence(NamedTuple):
    """What could be read; None is what could not."""

    sockets: tuple[sockets.Socket, ...] | None
    processes: tuple[Process, ...] | None
    #: Tracked connections and the most there may be.
    connections: tuple[int, int] | None
    nameservers: tuple[str, ...] | None
    #: What shows that this is a node's namespace; "" for nothing.
    node: str
    #: Whether the interface ``lo`` is up, over which everything captured comes to Envoy.
    loopback_up: bool
    #: Whether the namespace has legacy tables, rules in them or not.
    has_legacy: bool
    #: Extensions of the rules that the kernel lacks.
    lacking: tuple[str, ...]
    #: What was not read, in words.
    unread: tuple[str, ...]


def gather(
    namespace: str,
    rulesets: tuple[Ruleset, ...],
    missing: tuple[Ruleset, ...] = (),
) -> Evidence:
    """What is there now in *namespace* ("" is the current one), which has *rulesets*.

    *missing* are rulesets that are to be there, and are not.

    Raises KernelRefused if the namespace can't be entered.
    """
    with entered(namespace):
        there = sockets.sockets()
        running = processes()
        tracked = conntrack.connections()
        signs = node.signs(rulesets)
        loopback = netlink.loopback_is_up()
        extensions = modules.lacking(missing)
        legacy = any(legacy_tables(family, ()) for family in Family)
    path = resolv_conf_of(namespace) or setting("resolv_conf").default
    servers: tuple[str, ...] | None
    try:
        servers = ThisHost().nameservers(path)
    except KernelRefused:
        servers = None
    unread = {
        "sockets (/proc/thread-self/net/tcp)": there is None,
        "processes (/proc)": running is None,
        "the connection table (/proc/sys/net/netfilter)": tracked is None,
        "the kernel's modules (/lib/modules)": extensions is None,
        f"the DNS servers ({path})": servers is None,
    }
    return Evidence(
        there,
        running,
        tracked,
        servers,
        signs,
        loopback,
        legacy,
        extensions or (),
        tuple(what for what, is_unread in unread.items() if is_unread),
    )
