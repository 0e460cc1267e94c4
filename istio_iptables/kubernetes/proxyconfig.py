"""A pod's ProxyConfig: what each field has to be, what Istio refuses in it, and its JSON for istio-proxy."""

from __future__ import annotations

import ipaddress
import json
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_iptables.kubernetes.manifest import as_text
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from istio_iptables.kubernetes.values import Installation

__all__ = ["FIELDS", "MESH_FIELDS", "camel_case", "proxy_config", "typed"]

_MAX_PORT = 65535
_MAX_INT = 2**31 - 1
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,9})")
#: Labels of letters and digits, the last of them not digits alone.
_HOST = re.compile(
    r"(?!.{256})(?:[a-zA-Z0-9](?:[-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?\.)*"
    r"(?![0-9]+\.?$)[a-zA-Z0-9](?:[-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?\.?"
)
_ADDRESS = re.compile(r"(?:\[(?P<six>[^]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_NANOSECONDS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6}
_NANOSECONDS |= {"s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


class _Kind(NamedTuple):
    """What a field has to be."""

    #: The value as Protobuf's JSON has it; None for a bad one.
    read: Callable[[Any], Any]
    #: What a bad one is.
    reason: str


def _number(value: Any) -> int | None:  # noqa: ANN401 - of YAML
    text = "" if isinstance(value, bool) else as_text(value)
    good = _NUMBER.fullmatch(text) and -_MAX_INT - 1 <= int(text) <= _MAX_INT
    return int(text) if good else None


def _port(value: Any) -> int | None:  # noqa: ANN401 - of YAML
    found = _number(value)
    return found if found is not None and 1 <= found <= _MAX_PORT else None


def _address(value: Any) -> str | None:  # noqa: ANN401 - of YAML
    found = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if not found or not 1 <= int(found["port"]) <= _MAX_PORT:
        return None
    host = found["six"] or found["host"]
    if not _HOST.fullmatch(host):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return None
    return str(value)


def _duration(value: Any) -> str | None:  # noqa: ANN401 - of YAML
    """Go's spelling of a duration (``1m30s``) in seconds."""
    text = value.lstrip("+-") if isinstance(value, str) else ""
    parts = _PART.findall(text)
    if text != "0" and (not parts or "".join(map("".join, parts)) != text):
        return None
    nanoseconds = sum(int(Fraction(f"0{n}") * _NANOSECONDS[unit]) for n, unit in parts)
    seconds, rest = divmod(nanoseconds, 10**9)
    digits = f".{rest:09}".removesuffix("000").removesuffix("000") if rest else ""
    return f"{'-' if nanoseconds and '-' in value else ''}{seconds}{digits}s"


def _seconds(value: Any) -> str | None:  # noqa: ANN401 - of YAML
    found = _duration(value)
    return found if found and re.fullmatch(r"[1-9][0-9]*s", found) else None


def _one_of(*names: str) -> _Kind:
    """A name, or the number that stands for it."""

    def read(value: Any) -> str | None:  # noqa: ANN401 - of YAML
        number = (
            isinstance(value, int) and not isinstance(value, bool) and value in range(len(names))
        )
        return names[value] if number else value if value in names else None

    return _Kind(read, f"is not {', '.join(names[:-1])} or {names[-1]}")


def _instance(of: type) -> Callable[[Any], Any]:
    return lambda value: value if isinstance(value, of) else None


_TEXT = _Kind(_instance(str), "is no text: put it in quotes")
_FILLED = _Kind(lambda value: _TEXT.read(value) or None, "is no text, or an empty one")
_BOOLEAN = _Kind(_instance(bool), "is not true or false")
_MAPPING = _Kind(_instance(dict), "is no mapping")
_LIST = _Kind(_instance(list), "is no list")
_WHOLE = _Kind(_number, "is no whole number, or out of range")
_PORT = _Kind(_port, "is no port")
_HOST_AND_PORT = _Kind(_address, "is no address with a port")
_DURATION = _Kind(_duration, "is no duration, such as 45s")
#: The fields in the order of their declaration.
FIELDS: dict[str, _Kind] = {
    "configPath": _FILLED,
    "binaryPath": _FILLED,
    "serviceCluster": _FILLED,
    "tracingServiceName": _one_of(
        "APP_LABEL_AND_NAMESPACE", "CANONICAL_NAME_ONLY", "CANONICAL_NAME_AND_NAMESPACE"
    ),
    "drainDuration": _Kind(_seconds, "is no duration of whole seconds, such as 45s"),
    "discoveryAddress": _HOST_AND_PORT,
    "discoveryRefreshDelay": _DURATION,
    "zipkinAddress": _TEXT,
    "statsdUdpAddress": _HOST_AND_PORT,
    "envoyMetricsServiceAddress": _HOST_AND_PORT,
    "proxyAdminPort": _PORT,
    "availabilityZone": _TEXT,
    "controlPlaneAuthPolicy": _one_of("NONE", "MUTUAL_TLS"),
    "customConfigFile": _TEXT,
    "statNameLength": _WHOLE,
    "concurrency": _WHOLE,
    "proxyBootstrapTemplatePath": _TEXT,
    "interceptionMode": _one_of("REDIRECT", "TPROXY", "NONE"),
    "tracing": _MAPPING,
    "sds": _MAPPING,
    "envoyAccessLogService": _MAPPING,
    "envoyMetricsService": _MAPPING,
    "proxyMetadata": _MAPPING,
    "runtimeValues": _MAPPING,
    "statusPort": _PORT,
    "extraStatTags": _LIST,
    "gatewayTopology": _MAPPING,
    "terminationDrainDuration": _DURATION,
    "meshId": _TEXT,
    "readinessProbe": _MAPPING,
    "proxyStatsMatcher": _MAPPING,
    "holdApplicationUntilProxyStarts": _BOOLEAN,
    "caCertificatesPem": _LIST,
    "image": _MAPPING,
    "privateKeyProvider": _MAPPING,
    "proxyHeaders": _MAPPING,
    "fileFlushInterval": _DURATION,
    "fileFlushMinSizeKb": _WHOLE,
    "statsCompression": _BOOLEAN,
    "connectionSettings": _MAPPING,
}
#: Those of the mesh configuration that have to be something.
MESH_FIELDS = {"proxyListenPort": _PORT, "proxyInboundListenPort": _WHOLE}
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


def camel_case(name: object) -> str:
    """The name of a field, which Protobuf takes with underlines too."""
    return re.sub(r"_([a-z])", lambda letter: letter[1].upper(), as_text(name))


def typed(
    config: Mapping[str, Any], fields: Mapping[str, _Kind] = FIELDS
) -> tuple[dict[str, Any], list[str]]:
    """*config* with each of its *fields* as JSON has it, and a line for each that Istio refuses.

    What there is no field for stays as it is.
    """
    found: dict[str, Any] = {}
    problems = []
    for given, value in config.items():
        name = camel_case(given)
        kind = fields.get(name)
        if kind is None or value is None:
            found[given] = value
            continue
        found[name] = kind.read(value)
        if found[name] is None:
            shown = "" if isinstance(value, dict | list) else f" {excerpt(as_text(value))}"
            problems.append(f"{name}{shown} {kind.reason}")
    return found, problems


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
        if written and name in FIELDS:
            found[name] = dict(sorted(value.items())) if name == "proxyMetadata" else value
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False)
