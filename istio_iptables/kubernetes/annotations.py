"""Istio's annotations of a pod: their names, and what its injector refuses in them."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from istio_iptables.kubernetes.quantity import canonical
from istio_iptables.settings.converters import FALSE, TRUE
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "AGENT_LOG_LEVEL",
    "APPLICATION_PORTS",
    "EXCLUDE_INBOUND_PORTS",
    "EXCLUDE_INTERFACES",
    "EXCLUDE_OUTBOUND_PORTS",
    "EXCLUDE_OUTBOUND_RANGES",
    "IMAGE_TYPE",
    "INCLUDE_INBOUND_PORTS",
    "INCLUDE_OUTBOUND_PORTS",
    "INCLUDE_OUTBOUND_RANGES",
    "INJECT",
    "KUBEVIRT_INTERFACES",
    "MERGE_METRICS",
    "MODE",
    "NATIVE_SIDECAR",
    "OVERRIDES",
    "PROXY_CONFIG",
    "PROXY_IMAGE",
    "READINESS",
    "REROUTE_INTERFACES",
    "RESOURCES",
    "REWRITE_PROBES",
    "STATUS",
    "STATUS_PORT",
    "TEMPLATES",
    "TRAFFIC",
    "problems",
    "refused_by_cni",
]

MODE = "sidecar.istio.io/interceptionMode"
INCLUDE_OUTBOUND_RANGES = "traffic.sidecar.istio.io/includeOutboundIPRanges"
EXCLUDE_OUTBOUND_RANGES = "traffic.sidecar.istio.io/excludeOutboundIPRanges"
INCLUDE_INBOUND_PORTS = "traffic.sidecar.istio.io/includeInboundPorts"
EXCLUDE_INBOUND_PORTS = "traffic.sidecar.istio.io/excludeInboundPorts"
INCLUDE_OUTBOUND_PORTS = "traffic.sidecar.istio.io/includeOutboundPorts"
EXCLUDE_OUTBOUND_PORTS = "traffic.sidecar.istio.io/excludeOutboundPorts"
EXCLUDE_INTERFACES = "traffic.sidecar.istio.io/excludeInterfaces"
KUBEVIRT_INTERFACES = "traffic.sidecar.istio.io/kubevirtInterfaces"
REROUTE_INTERFACES = "istio.io/reroute-virtual-interfaces"
STATUS_PORT = "status.sidecar.istio.io/port"
AGENT_LOG_LEVEL = "sidecar.istio.io/agentLogLevel"
PROXY_CONFIG = "proxy.istio.io/config"
PROXY_IMAGE = "sidecar.istio.io/proxyImage"
IMAGE_TYPE = "sidecar.istio.io/proxyImageType"
NATIVE_SIDECAR = "sidecar.istio.io/nativeSidecar"
INJECT = "sidecar.istio.io/inject"
STATUS = "sidecar.istio.io/status"
OVERRIDES = "proxy.istio.io/overrides"
REWRITE_PROBES = "sidecar.istio.io/rewriteAppHTTPProbers"
TEMPLATES = "inject.istio.io/templates"
MERGE_METRICS = "prometheus.istio.io/merge-metrics"
#: What each says about the resources of the containers: requests or limits, and of which.
RESOURCES = {
    "sidecar.istio.io/proxyCPU": ("requests", "cpu"),
    "sidecar.istio.io/proxyMemory": ("requests", "memory"),
    "sidecar.istio.io/proxyCPULimit": ("limits", "cpu"),
    "sidecar.istio.io/proxyMemoryLimit": ("limits", "memory"),
}

#: Those that become arguments of istio-init.
TRAFFIC = (
    INCLUDE_OUTBOUND_RANGES,
    EXCLUDE_OUTBOUND_RANGES,
    INCLUDE_INBOUND_PORTS,
    EXCLUDE_INBOUND_PORTS,
    INCLUDE_OUTBOUND_PORTS,
    EXCLUDE_OUTBOUND_PORTS,
    EXCLUDE_INTERFACES,
    KUBEVIRT_INTERFACES,
    REROUTE_INTERFACES,
)
#: About the readiness probe of istio-proxy.
READINESS = tuple(
    f"readiness.status.sidecar.istio.io/{each}"
    for each in ("initialDelaySeconds", "periodSeconds", "failureThreshold")
)
APPLICATION_PORTS = "readiness.status.sidecar.istio.io/applicationPorts"

_MAX_PORT = 65535
_MAX_UINT32 = 2**32 - 1
_MAX_INTERFACE = 15
_INTERFACE = re.compile(r"[a-zA-Z][a-zA-Z0-9_.\-]*")
#: A number of the prefix as Go reads it: no sign, no leading zero.
_PREFIX = re.compile(r"0|[1-9][0-9]{0,2}")


def _port(text: str) -> str:
    digits = text.strip()
    if not digits.isascii() or not digits.isdigit() or int(digits[-9:]) > _MAX_PORT:
        return "is no port (0 to 65535)"
    return "" if len(digits.lstrip("0")) <= len(str(_MAX_PORT)) else "is no port (0 to 65535)"


def _cidr(text: str) -> str:
    address, slash, length = text.partition("/")
    if not slash:
        return "is no network: the prefix length is missing"
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return "is no network"
    if "%" in address:
        return "has a zone"
    if not _PREFIX.fullmatch(length) or int(length) > found.max_prefixlen:
        return "has no prefix length that there is"
    return ""


def _interface(text: str) -> str:
    name = text.strip()
    if not name:
        return "is an empty name"
    if len(name) > _MAX_INTERFACE:
        return f"is longer than {_MAX_INTERFACE} letters"
    return "" if _INTERFACE.fullmatch(name) else "has letters that Istio takes in no interface"


def _items(check: Callable[[str], str], *, star: bool = False) -> Callable[[str], str]:
    """A check of a list with commas; nothing, and with *star* ``*``, is a list too."""

    def checked(text: str) -> str:
        # Of ports the blanks around the list don't count, of the others they do.
        if not (text.strip() if check is _port else text) or (star and text == "*"):
            return ""
        for number, item in enumerate(text.split(","), 1):
            if reason := check(item):
                return f"item {number}: {excerpt(item)} {reason}"
        return ""

    return checked


def _mode(text: str) -> str:
    return "" if text in {"REDIRECT", "TPROXY", "NONE"} else "is not REDIRECT, TPROXY or NONE"


def _mode_of_cni(text: str) -> str:
    return "" if text in {"REDIRECT", "TPROXY"} else f"{excerpt(text)} is not REDIRECT or TPROXY"


def _uint32(text: str) -> str:
    digits = text.lstrip("0") or text[:1]
    good = text.isascii() and text.isdigit() and len(digits) <= len(str(_MAX_UINT32))
    good = good and int(digits) <= _MAX_UINT32
    return "" if good else "is no number from 0 to 4294967295"


def _boolean(text: str) -> str:
    return "" if text in TRUE or text in FALSE else "is no boolean"


def _quantity(text: str) -> str:
    return "" if canonical(text) is not None else "is no quantity"


_interfaces = _items(_interface)
_ports_or_all = _items(_port, star=True)
_ranges = _items(_cidr)
_ranges_or_all = _items(_cidr, star=True)

#: What the injector looks at; of the other annotations (includeOutboundPorts among them) nothing.
_CHECKS: dict[str, Callable[[str], str]] = {
    MODE: _mode,
    STATUS_PORT: _port,
    INCLUDE_OUTBOUND_RANGES: _ranges_or_all,
    EXCLUDE_OUTBOUND_RANGES: _ranges,
    INCLUDE_INBOUND_PORTS: _ports_or_all,
    EXCLUDE_INBOUND_PORTS: _items(_port),
    EXCLUDE_OUTBOUND_PORTS: _items(_port),
    EXCLUDE_INTERFACES: _interfaces,
    KUBEVIRT_INTERFACES: _interfaces,
    REROUTE_INTERFACES: _interfaces,
    MERGE_METRICS: _boolean,
    **dict.fromkeys(READINESS, _uint32),
    **dict.fromkeys(RESOURCES, _quantity),
}
#: What Istio's CNI plugin looks at, on a pod that is injected.
_CHECKS_OF_CNI: dict[str, Callable[[str], str]] = {
    MODE: _mode_of_cni,
    INCLUDE_OUTBOUND_RANGES: _ranges_or_all,
    EXCLUDE_OUTBOUND_RANGES: _ranges,
    INCLUDE_INBOUND_PORTS: _ports_or_all,
    EXCLUDE_INBOUND_PORTS: _ports_or_all,
    INCLUDE_OUTBOUND_PORTS: _ports_or_all,
    EXCLUDE_OUTBOUND_PORTS: _ports_or_all,
    EXCLUDE_INTERFACES: _interfaces,
    KUBEVIRT_INTERFACES: _interfaces,
    REROUTE_INTERFACES: _interfaces,
}


def refused_by_cni(name: str, text: str) -> str:
    """Why Istio's CNI plugin refuses a pod whose annotation *name* is *text*; "" if it does not."""
    return _CHECKS_OF_CNI[name](text) if name in _CHECKS_OF_CNI else ""


def problems(annotations: Mapping[str, str]) -> list[str]:
    """One line for each annotation for which Istio's injector rejects the pod."""
    found = []
    for name, text in sorted(annotations.items()):
        reason = _CHECKS[name](text) if name in _CHECKS else ""
        if reason:
            subject = "" if reason.startswith("item ") else f"{excerpt(text)} "
            found.append(f"annotation {name}: {subject}{reason}")
    return found
