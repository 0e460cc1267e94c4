"""A proxy as Envoy's configuration, built as Istio's is: the same filters, clusters and marks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_iptables.lab.nodes import Listener, Proxy, SourceAddress, Upstream

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["HOP_HEADER", "MAX_CONNECTIONS", "STATISTICS_PATH", "bootstrap"]

#: Each listener adds itself to this header, so the target sees who has handled a request.
HOP_HEADER = "x-lab-hop"

STATISTICS_PATH = "/stats/prometheus"

#: Rules that send Envoy's own traffic back to it end here; well above what the paths need.
MAX_CONNECTIONS = 300

_TYPE = "type.googleapis.com/envoy"
_FILTERS = f"{_TYPE}.extensions.filters"
_ADMIN = "admin"
_ONWARD = "onward from "

_Json = dict[str, Any]


def bootstrap(proxy: Proxy, admin_socket: str) -> _Json:
    """The configuration of *proxy*, to be written as JSON; it is asked on *admin_socket*."""
    admin = {"pipe": {"path": admin_socket}}
    clusters = [_static_cluster(_ADMIN, [{"address": admin}])]
    for listener in proxy.listeners:
        if listener.passes_on and not listener.answer:
            clusters.append(_original_cluster(listener))
        clusters += (
            _static_cluster(f"{each.name} by {family_port[0]}", [_endpoint(*family_port)])
            for each in listener.upstreams
            for family_port in each.targets
        )
    return {
        "node": {"id": proxy.name, "cluster": "lab"},
        "admin": {"address": admin, "ignore_global_conn_limit": True},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_TYPE}.extensions.resource_monitors.downstream_connections.v3"
                        ".DownstreamConnectionsConfig",
                        "max_active_downstream_connections": MAX_CONNECTIONS,
                    },
                }
            ]
        },
        "static_resources": {
            "listeners": [_listener(proxy, each) for each in proxy.listeners],
            "clusters": clusters,
        },
    }


def _socket(address: str, port: int) -> _Json:
    return {"socket_address": {"address": address, "port_value": port}}


def _endpoint(address: str, port: int) -> _Json:
    return {"address": _socket(address, port)}


def _listener(proxy: Proxy, listener: Listener) -> _Json:
    filters: list[_Json] = []
    if listener.passes_on and not listener.answer:
        filters.append(
            _typed("envoy.filters.listener.original_dst", "listener.original_dst.v3.OriginalDst")
        )
        if listener.source is SourceAddress.CLIENT:
            filters.append(
                _typed(
                    "envoy.filters.listener.original_src",
                    "listener.original_src.v3.OriginalSrc",
                    mark=listener.mark,
                )
            )
        # As in Istio: what speaks HTTP is handled as such, all else is passed on as it is.
        filters.append(
            _typed(
                "envoy.filters.listener.http_inspector",
                "listener.http_inspector.v3.HttpInspector",
            )
        )
    chains = [
        {
            "filter_chain_match": {
                "prefix_ranges": [
                    {"address_prefix": destination, "prefix_len": 128 if ":" in destination else 32}
                ]
            },
            "filters": [_http(proxy, listener, _cluster_of(each, destination))],
        }
        for each in listener.upstreams
        for destination in each.destinations
    ]
    words: _Json = {
        "name": listener.name,
        "stat_prefix": listener.name,
        "address": _socket("0.0.0.0", listener.port),  # noqa: S104 - in a namespace of its own
        "additional_addresses": [{"address": _socket("::", listener.port)}],
        "transparent": listener.transparent,
        "listener_filters": filters,
        "filter_chains": chains,
    }
    if listener.answer or listener.statistics:
        words["filter_chains"] = [{"filters": [_http(proxy, listener, "")]}]
    elif not listener.passes_on:
        words["filter_chains"] = [
            {
                "filter_chain_match": {
                    "prefix_ranges": [{"address_prefix": anywhere, "prefix_len": 0}]
                },
                "filters": [_http(proxy, listener, _cluster_of(each, anywhere))],
            }
            for each in listener.upstreams
            for anywhere in ("0.0.0.0", "::")  # noqa: S104 - destinations of each family
        ]
    else:
        name = _ONWARD + listener.name
        chains.append(
            {
                "filter_chain_match": {"application_protocols": ["http/1.0", "http/1.1", "h2c"]},
                "filters": [_http(proxy, listener, name)],
            }
        )
        tcp = _typed(
            "envoy.filters.network.tcp_proxy",
            "network.tcp_proxy.v3.TcpProxy",
            stat_prefix=listener.name,
            cluster=name,
        )
        words["default_filter_chain"] = {"filters": [tcp]}
    return words


def _cluster_of(upstream: Upstream, destination: str) -> str:
    same = [each for each in upstream.targets if (":" in each[0]) is (":" in destination)]
    address, _ = (same or upstream.targets)[0]
    return f"{upstream.name} by {address}"


def _typed(name: str, kind: str, **settings: object) -> _Json:
    return {"name": name, "typed_config": {"@type": f"{_FILTERS}.{kind}", **settings}}


def _http(proxy: Proxy, listener: Listener, cluster: str) -> _Json:
    """The filter that reads requests, and sends them to *cluster* or answers them."""
    routes: list[_Json] = [
        {
            "match": {"prefix": each.prefix},
            "route": {"cluster": cluster, "prefix_rewrite": each.to},
        }
        for each in listener.rewrites
    ]
    if listener.statistics:
        routes.append({"match": {"path": STATISTICS_PATH}, "route": {"cluster": _ADMIN}})
    if listener.answer:
        answer = {"status": 200, "body": {"inline_string": listener.answer}}
        routes.append({"match": {"prefix": "/"}, "direct_response": answer})
    elif cluster:
        routes.append({"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "3s"}})
    return _typed(
        "envoy.filters.network.http_connection_manager",
        "network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=listener.name,
        route_config={
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}],
            "request_headers_to_add": [
                {
                    "header": {"key": HOP_HEADER, "value": f"{proxy.name} {listener.name}"},
                    "append_action": "APPEND_IF_EXISTS_OR_ADD",
                }
            ],
        },
        http_filters=[_typed("envoy.filters.http.router", "http.router.v3.Router")],
    )


#: One request a connection, so that each request is a connection that rules count.
_ONE_REQUEST = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": {"max_requests_per_connection": 1},
        "explicit_http_config": {"http_protocol_options": {}},
    }
}


def _original_cluster(listener: Listener) -> _Json:
    """The cluster whose only endpoint is where a connection was addressed to."""
    cluster: _Json = {
        "name": _ONWARD + listener.name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "2s",
        "typed_extension_protocol_options": _ONE_REQUEST,
    }
    # Istio binds under TPROXY too, where the client's address takes precedence.
    if listener.source is not SourceAddress.ANY:
        cluster["upstream_bind_config"] = {
            "source_address": {"address": "127.0.0.6", "port_value": 0},
            "extra_source_addresses": [{"address": {"address": "::6", "port_value": 0}}],
        }
    return cluster


def _static_cluster(name: str, endpoints: Iterable[_Json]) -> _Json:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "typed_extension_protocol_options": _ONE_REQUEST,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": each} for each in endpoints]}],
        },
    }
