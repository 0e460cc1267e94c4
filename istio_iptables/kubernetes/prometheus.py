"""Metrics of a pod that the agent is to merge with Envoy's: ports that are refused, and what is told it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from istio_iptables.kubernetes.annotations import MERGE_METRICS
from istio_iptables.kubernetes.gojson import compact
from istio_iptables.kubernetes.manifest import as_text
from istio_iptables.settings.converters import FALSE, TRUE
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_iptables.kubernetes.values import Installation

__all__ = ["SCRAPE_CONFIG", "add_secure_port", "merge_metrics", "prometheus_problem"]

_RESERVED = frozenset({15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090})
_MAX_PORT = 65535
_NO_NAME = re.compile(r"[^a-zA-Z0-9_]")


#: What the annotations are called whatever their spelling, and the agent's names for them.
_NAMES = {
    "prometheus_io_scrape": "scrape",
    "prometheus_io_path": "path",
    "prometheus_io_port": "port",
    "prometheus_istio_io_scrape_targets": "targets",
}
#: Where Prometheus finds the metrics of both, but for the port.
_MERGED = {"prometheus.io/path": "/stats/prometheus", "prometheus.io/scrape": "true"}
SCRAPE_CONFIG = "ISTIO_PROMETHEUS_ANNOTATIONS"
_DEFAULT_PATH = "/metrics"


def _texts(annotations: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """By the agent's names, the name and text of each annotation of Prometheus."""
    # Prometheus takes all of these spellings for one: prometheus.io/port, prometheus-io/port.
    found = {_NO_NAME.sub("_", name): (name, text) for name, text in annotations.items()}
    return {short: found[name] for name, short in _NAMES.items() if name in found}


def _is_merged(annotations: Mapping[str, str], installation: Installation) -> bool:
    merge = annotations.get(MERGE_METRICS, "")
    if merge in TRUE or merge in FALSE:
        asked = merge in TRUE
    else:
        asked = bool(installation.setting("enablePrometheusMerge").value)
    texts = _texts(annotations)
    _, scrape = texts.get("scrape", ("", ""))
    _, port = texts.get("port", ("", ""))
    return asked and scrape not in FALSE and port != _agent_port(installation)


def _agent_port(installation: Installation) -> str:
    return as_text(installation.setting("defaultConfig.statusPort").value)


def _targets(text: str) -> list[dict[str, str]]:
    """The ports and paths of a list; none at all if one is without a port."""
    found = []
    for each in text.split(","):
        port, _, path = each.strip().partition(":")
        if each.strip():
            found.append({"port": port.strip(), "path": path.strip() or _DEFAULT_PATH})
    return found if all(each["port"] for each in found) else []


def prometheus_problem(annotations: Mapping[str, str], installation: Installation) -> list[str]:
    """The line about an annotation prometheus.io/port or scrape-targets that can't be merged."""
    if not _is_merged(annotations, installation):
        return []
    texts = _texts(annotations)
    name, port = texts.get("port", ("", ""))
    listed = [port] if port else []
    targets_name, text = texts.get("targets", ("", ""))
    if targets := _targets(text):
        name, listed = targets_name, [each["port"] for each in targets]
    for each in listed:
        number = int(each) if re.fullmatch(r"[+-]?[0-9]{1,9}", each) else 0
        reserved = number in _RESERVED or str(number) == _agent_port(installation)
        if not 1 <= number <= _MAX_PORT or reserved:
            return [f"annotation {name}: {excerpt(each)} is no port, or one of Istio's own"]
    return []


def merge_metrics(annotations: dict[str, str], installation: Installation) -> str:
    """Point *annotations* at the agent; what it is told of where they pointed, "" for nothing."""
    if not _is_merged(annotations, installation):
        return ""
    texts = _texts(annotations)
    told: dict[str, Any] = {
        short: texts.get(short, ("", ""))[1] for short in ("scrape", "path", "port")
    }
    if targets := _targets(texts.get("targets", ("", ""))[1]):
        told |= {"path": targets[0]["path"], "port": targets[0]["port"], "targets": targets}
    for name, _ in texts.values():
        annotations.pop(name, None)
    annotations |= {**_MERGED, "prometheus.io/port": _agent_port(installation)}
    return compact(told) if any(told.values()) else ""


def add_secure_port(annotations: dict[str, str], environment: list[dict[str, Any]]) -> None:
    """Say in *annotations* at which port the agent has the metrics with TLS."""
    if any(_NO_NAME.sub("_", name) == "prometheus_istio_io_secure_port" for name in annotations):
        return
    for each in environment:
        port = each.get("value")
        if each["name"] == "ENVOY_SECURE_MERGED_METRICS_PORT" and port not in {None, "", "0"}:
            annotations["prometheus.istio.io/secure-port"] = as_text(port)
            return
