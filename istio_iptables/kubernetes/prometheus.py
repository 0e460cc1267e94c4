"""Ports that Istio's injector refuses where the agent is to merge a pod's metrics with Envoy's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from istio_iptables.kubernetes.annotations import MERGE_METRICS
from istio_iptables.settings.converters import FALSE, TRUE
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_iptables.kubernetes.values import Installation

__all__ = ["prometheus_problem"]

_RESERVED = frozenset({15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090})
_MAX_PORT = 65535
_NO_NAME = re.compile(r"[^a-zA-Z0-9_]")


def prometheus_problem(annotations: Mapping[str, str], installation: Installation) -> list[str]:
    """The line about an annotation prometheus.io/port or scrape-targets that can't be merged."""
    # Prometheus takes all of these spellings for one: prometheus.io/port, prometheus-io/port.
    texts = {_NO_NAME.sub("_", name): (name, text) for name, text in annotations.items()}
    own_port = str(installation.setting("defaultConfig.statusPort").value)
    merge = annotations.get(MERGE_METRICS, "")
    merged = (
        merge in TRUE
        if merge in TRUE or merge in FALSE
        else installation.setting("enablePrometheusMerge").value
    )
    _, scrape = texts.get("prometheus_io_scrape", ("", ""))
    name, port = texts.get("prometheus_io_port", ("", ""))
    if scrape in FALSE or not merged or port == own_port:
        return []
    targets_name, targets = texts.get("prometheus_istio_io_scrape_targets", ("", ""))
    ports = [each.strip().partition(":")[0].strip() for each in targets.split(",") if each.strip()]
    # One without a port makes the whole list void.
    if ports and all(ports):
        name, listed = targets_name, ports
    else:
        listed = [port] if port else []
    for each in listed:
        number = int(each) if re.fullmatch(r"[+-]?[0-9]{1,9}", each) else 0
        if not 1 <= number <= _MAX_PORT or number in _RESERVED or str(number) == own_port:
            return [f"annotation {name}: {excerpt(each)} is no port, or one of Istio's own"]
    return []
