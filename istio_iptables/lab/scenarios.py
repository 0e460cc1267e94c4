"""Who is there and what is sent, for each scenario; everything that a test or a reader may ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.lab.bootstrap import STATISTICS_PATH
from istio_iptables.lab.clients import Request, RequestKind
from istio_iptables.lab.nodes import (
    Interface,
    LabServer,
    Listener,
    Node,
    Proxy,
    Rewrite,
    ServerProtocol,
    SourceAddress,
    Upstream,
)
from istio_iptables.lab.processes import ROOT, Identity
from istio_iptables.lab.syscalls import CAP_NET_ADMIN
from istio_iptables.netfilter.model import Family
from istio_iptables.settings.types import Mode

if TYPE_CHECKING:
    from istio_iptables.settings.config import Config

__all__ = [
    "DEFAULTS",
    "NAMESERVERS",
    "POD_ADDRESSES",
    "SCENARIOS",
    "Scenario",
    "TrafficPath",
    "make",
]

APP_PORT = 8080
SERVER_PORT = 9000
#: Left out of capture by the lab's own settings, as are the interface and the networks below.
EXCLUDED_PORT = 9100
SERVICE_PORT = 80
AGENT_PORT, HEALTH_PORT, STATISTICS_PORT, DNS_PORT = 15020, 15021, 15090, 15053

#: The service's addresses, which no interface has: Envoy knows that it ends at the pod.
SERVICE = ("10.96.0.10", "fd96::10")
#: Outside servers that the mesh reaches through its egress gateway.
OUTSIDE = ("10.77.0.90", "fd77::90")
_EXCLUDED_NETWORKS = ("10.79.0.0/24", "fd79::/64")
_SERVICE_NETWORKS = ("10.96.0.0/24", "fd96::/64")

PARALLEL = 100

#: What the lab takes for a setting that is not given: the documented arguments, and one of
#: each kind of exclusion, so that every path has its rule.
DEFAULTS = {
    "istio_service_cidr": "*",
    "istio_inbound_ports": "*",
    "istio_local_exclude_ports": "15090,15021,15020",
    "istio_service_exclude_cidr": ",".join(_EXCLUDED_NETWORKS),
    "istio_local_outbound_ports_exclude": str(EXCLUDED_PORT),
    "istio_exclude_interfaces": "eth1",
    "redirect_dns": "true",
    "dual_stack": "true",
}

_APP = Identity(1000, 1000)


def _ends(host: int) -> Interface:
    return Interface("eth0", "mesh", (f"10.77.0.{host}/24", f"fd77::{host}/64"))


def _side(host: int) -> Interface:
    return Interface("eth1", "side", (f"10.78.0.{host}/24", f"fd78::{host}/64"))


def _plain(interface: Interface) -> tuple[str, ...]:
    return tuple(each.partition("/")[0] for each in interface.addresses)


POD_ADDRESSES = _plain(_ends(10))
#: The servers that the pod's resolv.conf would name.
NAMESERVERS = _plain(_ends(30))


class TrafficPath(NamedTuple):
    """What is sent, from where, by whom."""

    name: str
    title: str
    node: str
    identity: Identity
    request: Request

    @property
    def family(self) -> Family:
        """The family that it is sent in."""
        return Family.IPV6 if ":" in self.request.address else Family.IPV4


class Scenario(NamedTuple):
    """Nodes, and what is sent between them."""

    name: str
    nodes: tuple[Node, ...]
    paths: tuple[TrafficPath, ...]


def make(name: str, config: Config, envoy_uid: int | None = None) -> Scenario:
    """The scenario of that name (one of SCENARIOS) under *config*."""
    return SCENARIOS[name](name, config, _proxy_identity(config, envoy_uid))


def _proxy_identity(config: Config, envoy_uid: int | None) -> Identity:
    """Who Envoy runs as: the proxy's user, under TPROXY uid 0 with the proxy's group."""
    gid = config.proxy_gids[0].first
    if config.mode is Mode.TPROXY:
        return Identity(envoy_uid or 0, gid, (CAP_NET_ADMIN,))
    return Identity(config.proxy_uids[0].first if envoy_uid is None else envoy_uid, gid)


def _sidecar(
    name: str,
    config: Config,
    identity: Identity,
    upstreams: tuple[Upstream, ...] = (),
    rewrites: tuple[Rewrite, ...] = (),
) -> Proxy:
    """Istio's two listeners, and the ports by which a pod is looked after."""
    tproxy = config.mode is Mode.TPROXY
    return Proxy(
        name,
        identity,
        (
            Listener(
                "outbound",
                config.envoy_port,
                upstreams=upstreams,
                transparent=tproxy,
                rewrites=rewrites,
            ),
            Listener(
                "inbound",
                config.inbound_capture_port,
                source=SourceAddress.CLIENT if tproxy else SourceAddress.BOUND,
                transparent=tproxy,
                mark=config.tproxy_mark,
            ),
            Listener("health", HEALTH_PORT, answer="ready"),
            Listener("statistics", STATISTICS_PORT, passes_on=False, statistics=True),
        ),
    )


def _pod(config: Config, identity: Identity, upstreams: tuple[Upstream, ...] = ()) -> Node:
    agent = identity._replace(capabilities=())
    return Node(
        "pod",
        (_ends(10), _side(10)),
        (
            LabServer("app", APP_PORT, _APP),
            LabServer("agent", AGENT_PORT, agent),
            LabServer("agent", DNS_PORT, agent, ServerProtocol.DNS, on_loopback=True),
        ),
        _sidecar("pod", config, identity, upstreams),
        captured=True,
        reaches=_EXCLUDED_NETWORKS,
        asks_router=_SERVICE_NETWORKS,
    )


def _server() -> Node:
    extra = Interface("eth0", "mesh", (*_ends(30).addresses, "10.79.0.30/24", "fd79::30/64"))
    return Node(
        "server",
        (extra, _side(30)),
        (
            LabServer("server", SERVER_PORT, ROOT),
            LabServer("server", EXCLUDED_PORT, ROOT),
            LabServer("server", 53, ROOT, ServerProtocol.DNS),
        ),
    )


def _scenario_sidecar(name: str, config: Config, identity: Identity) -> Scenario:
    service = Upstream(SERVICE, tuple((each, APP_PORT) for each in POD_ADDRESSES), "app")
    pod = _pod(config, identity, (service,))
    client, server = Node("client", (_ends(20), _side(20))), _server()
    agent = identity._replace(capabilities=())
    http, dns_udp, dns_tcp = RequestKind.HTTP, RequestKind.DNS_UDP, RequestKind.DNS_TCP
    paths = []
    for family in Family:
        here, there = pod.address(family), server.address(family)
        side_here, side_there = pod.address(family, "eth1"), server.address(family, "eth1")
        number = list(Family).index(family)
        localhost = ("127.0.0.1", "::1")[number]
        excluded = ("10.79.0.30", "fd79::30")[number]
        health = Request(RequestKind.PLAIN_HTTP, here, HEALTH_PORT, "/healthz/ready")
        statistics = Request(RequestKind.PLAIN_HTTP, here, STATISTICS_PORT, STATISTICS_PATH)
        rows: tuple[tuple[str, str, str, Identity, Request], ...] = (
            ("client-app", "client to the app", "client", _APP, Request(http, here, APP_PORT)),
            ("client-health", "client to the health port", "client", _APP, health),
            ("client-statistics", "client to the statistics port", "client", _APP, statistics),
            (
                "client-agent",
                "client to the agent's port",
                "client",
                _APP,
                Request(http, here, AGENT_PORT),
            ),
            (
                "client-app-side",
                "client to the app over eth1",
                "client",
                _APP,
                Request(http, side_here, APP_PORT),
            ),
            ("app-server", "app to a server", "pod", _APP, Request(http, there, SERVER_PORT)),
            (
                "app-itself",
                "app to itself by the pod's address",
                "pod",
                _APP,
                Request(http, here, APP_PORT),
            ),
            (
                "app-localhost",
                "app to itself by localhost",
                "pod",
                _APP,
                Request(http, localhost, APP_PORT),
            ),
            (
                "app-service",
                "app to itself by the service's address",
                "pod",
                _APP,
                Request(http, SERVICE[number], SERVICE_PORT),
            ),
            (
                "app-excluded-port",
                f"app to a server's port {EXCLUDED_PORT}",
                "pod",
                _APP,
                Request(http, there, EXCLUDED_PORT),
            ),
            (
                "app-excluded-cidr",
                f"app to a server in {_EXCLUDED_NETWORKS[number]}",
                "pod",
                _APP,
                Request(http, excluded, SERVER_PORT),
            ),
            (
                "app-server-side",
                "app to a server over eth1",
                "pod",
                _APP,
                Request(http, side_there, SERVER_PORT),
            ),
            (
                "envoy-server",
                "Envoy's user to a server",
                "pod",
                agent,
                Request(http, there, SERVER_PORT),
            ),
            ("app-dns-udp", "app asks DNS over udp", "pod", _APP, Request(dns_udp, there, 53)),
            ("app-dns-tcp", "app asks DNS over tcp", "pod", _APP, Request(dns_tcp, there, 53)),
            ("agent-dns-udp", "agent asks DNS over udp", "pod", agent, Request(dns_udp, there, 53)),
            ("agent-dns-tcp", "agent asks DNS over tcp", "pod", agent, Request(dns_tcp, there, 53)),
            (
                "client-app-parallel",
                f"{PARALLEL} clients to the app at once",
                "client",
                _APP,
                Request(http, here, APP_PORT, times=PARALLEL),
            ),
            (
                "app-server-parallel",
                f"{PARALLEL} connections of the app at once",
                "pod",
                _APP,
                Request(http, there, SERVER_PORT, times=PARALLEL),
            ),
        )
        paths += [TrafficPath(*row) for row in rows]
    return Scenario(name, (pod, client, server), tuple(paths))


def _scenario_ingress(name: str, config: Config, identity: Identity) -> Scenario:
    pod = _pod(config, identity)
    target = Upstream((), tuple((each, APP_PORT) for each in POD_ADDRESSES), "app")
    entry = _gateway("ingress", _ends(50), target)
    outside = Node("outside", (_ends(90),))
    paths = tuple(
        TrafficPath(
            "outside-app",
            "outside, ingress gateway, sidecar, app",
            "outside",
            _APP,
            Request(RequestKind.HTTP, entry.address(family), APP_PORT),
        )
        for family in Family
    )
    return Scenario(name, (pod, entry, outside), paths)


def _gateway(name: str, interface: Interface, upstream: Upstream) -> Node:
    """An Envoy on a machine of its own, without rules: clients address it, and it sends on."""
    listener = Listener("gateway", APP_PORT, passes_on=False, upstreams=(upstream,))
    return Node(name, (interface,), proxy=Proxy(name, Identity(1337, 1337), (listener,)))


def _scenario_egress(name: str, config: Config, identity: Identity) -> Scenario:
    outside = Node("outside", (_ends(90),), (LabServer("outside server", SERVER_PORT, ROOT),))
    target = Upstream((), tuple((each, SERVER_PORT) for each in _plain(_ends(90))), "outside")
    way_out = _gateway("egress", _ends(60), target)
    by_gateway = Upstream(OUTSIDE, tuple((each, APP_PORT) for each in _plain(_ends(60))), "egress")
    pod = _pod(config, identity, (by_gateway,))
    paths = tuple(
        TrafficPath(
            "app-outside",
            "app, sidecar, egress gateway, outside server",
            "pod",
            _APP,
            Request(RequestKind.HTTP, outside.address(family), SERVER_PORT),
        )
        for family in Family
    )
    return Scenario(name, (pod, way_out, outside), paths)


def _scenario_plain_client(name: str, config: Config, identity: Identity) -> Scenario:
    """The same request with and without a sidecar where it is made."""
    pod = _pod(config, identity)
    route = Upstream(POD_ADDRESSES, tuple((each, APP_PORT) for each in POD_ADDRESSES), "app")
    proxy = _sidecar("caller", config, identity, (route,), (Rewrite("/v1", "/v2"),))
    caller = Node("caller", (_ends(40),), proxy=proxy, captured=True)
    plain = Node("plain", (_ends(20),))
    paths = []
    for family in Family:
        request = Request(RequestKind.HTTP, pod.address(family), APP_PORT, "/v1/reviews")
        paths += [
            TrafficPath("caller-app", "a caller with a sidecar", "caller", _APP, request),
            TrafficPath("plain-app", "a caller without a sidecar", "plain", _APP, request),
        ]
    return Scenario(name, (pod, caller, plain), tuple(paths))


#: The scenarios by name.
SCENARIOS = {
    "sidecar": _scenario_sidecar,
    "ingress": _scenario_ingress,
    "egress": _scenario_egress,
    "plain-client": _scenario_plain_client,
}
