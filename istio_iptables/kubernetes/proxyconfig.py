"""A pod's ProxyConfig as istio-proxy gets it: JSON of what is not a default."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from istio_iptables.kubernetes.values import Installation

__all__ = ["FIELDS", "proxy_config"]

#: The fields in the order of their declaration.
FIELDS = [
    "configPath",
    "binaryPath",
    "serviceCluster",
    "tracingServiceName",
    "drainDuration",
    "parentShutdownDuration",
    "discoveryAddress",
    "discoveryRefreshDelay",
    "zipkinAddress",
    "statsdUdpAddress",
    "envoyMetricsServiceAddress",
    "proxyAdminPort",
    "availabilityZone",
    "controlPlaneAuthPolicy",
    "customConfigFile",
    "statNameLength",
    "concurrency",
    "proxyBootstrapTemplatePath",
    "interceptionMode",
    "tracing",
    "sds",
    "envoyAccessLogService",
    "envoyMetricsService",
    "proxyMetadata",
    "runtimeValues",
    "statusPort",
    "extraStatTags",
    "gatewayTopology",
    "terminationDrainDuration",
    "meshId",
    "readinessProbe",
    "proxyStatsMatcher",
    "holdApplicationUntilProxyStarts",
    "caCertificatesPem",
    "image",
    "privateKeyProvider",
]
_RANKS = {name: rank for rank, name in enumerate(FIELDS)}
_DEFAULTS: dict[str, Any] = {
    "configPath": "./etc/istio/proxy",
    "binaryPath": "/usr/local/bin/envoy",
    "serviceCluster": "istio-proxy",
    "drainDuration": "45s",
    "terminationDrainDuration": "5s",
    "proxyAdminPort": 15000,
    "controlPlaneAuthPolicy": "MUTUAL_TLS",
    "discoveryAddress": "istiod.istio-system.svc:15012",
    "statNameLength": 189,
    "statusPort": 15020,
    "interceptionMode": "REDIRECT",
}
#: Written if they are given at all, whatever the value.
_GIVEN = frozenset({"concurrency", "holdApplicationUntilProxyStarts", "tracing"})


def proxy_config(installation: Installation) -> str:
    """The text for the variable PROXY_CONFIG."""
    found = {}
    proxy = installation.mesh["defaultConfig"]
    for name in sorted(proxy, key=lambda name: _RANKS.get(name, len(_RANKS))):
        value = proxy[name]
        if name in _GIVEN:
            written = f"mesh defaultConfig.{name}" in installation.places
        else:
            written = bool(value) and value != _DEFAULTS.get(name)
        if written:
            found[name] = dict(sorted(value.items())) if name == "proxyMetadata" else value
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False)
