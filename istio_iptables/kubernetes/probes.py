"""Probes of the application, which the agent in istio-proxy takes over: they would not pass its rules."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from istio_iptables.kubernetes.gojson import compact, go_json

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["APP_PROBERS", "known_probers", "redirect_probes"]

#: The variable that tells the agent what the probes were.
APP_PROBERS = "ISTIO_KUBE_APP_PROBERS"
#: Where a container has each probe, and the path under which the agent answers it.
_PROBES = (
    (("readinessProbe",), "/app-health/{}/readyz"),
    (("livenessProbe",), "/app-health/{}/livez"),
    (("startupProbe",), "/app-health/{}/startupz"),
    (("lifecycle", "preStop"), "/app-lifecycle/{}/prestopz"),
    (("lifecycle", "postStart"), "/app-lifecycle/{}/poststartz"),
)
_KINDS = ("httpGet", "tcpSocket", "grpc")


def known_probers(containers: Iterable[dict[str, Any]], agent_port: int, before: str) -> str:
    """What the agent is told of the probes of *containers*; *before* is what it was told already."""
    found: dict[str, Any] = {}
    for container in containers:
        for path, url in _PROBES:
            if told := _told(container, path, agent_port):
                found[url.format(container["name"])] = told
    if not found:
        return before
    try:
        earlier = json.loads(before or "{}")
    except (ValueError, RecursionError):
        return before
    found |= earlier if isinstance(earlier, dict) else {}
    return compact({key: found[key] for key in sorted(found)})


def _told(container: dict[str, Any], path: tuple[str, ...], agent_port: int) -> dict[str, Any]:
    """What the agent is told of the probe at *path*; nothing of one that asks it already."""
    probe = _at(container, path)
    kind = _kind(probe, path)
    if not kind:
        return {}
    asked = probe[kind]
    if kind == "grpc":
        told: dict[str, Any] = {"port": asked.get("port"), "service": asked.get("service")}
    else:
        port = _number(container, asked.get("port"))
        if port is None or (port == agent_port and port == asked["port"]):
            return {}
        told = json.loads(go_json({**asked, "port": port}))
    timeout = probe.get("timeoutSeconds") if path[0] != "lifecycle" else None
    return {kind: told, **({"timeoutSeconds": timeout} if timeout else {})}


def _number(container: dict[str, Any], port: object) -> object:
    """The number of a port, which a name may stand for; None for a name that there is not."""
    if not isinstance(port, str):
        return port
    for each in reversed(container.get("ports") or []):
        if isinstance(each, dict) and each.get("name") == port:
            return each.get("containerPort")
    return None


def redirect_probes(container: dict[str, Any], port: int) -> dict[str, Any]:
    """*container* with its probes asking the agent at *port*."""
    found = dict(container)
    for path, url in _PROBES:
        probe = _at(found, path)
        kind = _kind(probe, path)
        if not kind:
            continue
        asked = dict(probe["httpGet"]) if kind == "httpGet" else {}
        asked |= {"path": url.format(container["name"]), "port": port}
        if asked.get("scheme") == "HTTPS":
            asked["scheme"] = "HTTP"
        probe = {key: each for key, each in probe.items() if key != kind} | {"httpGet": asked}
        found[path[0]] = {**found["lifecycle"], path[1]: probe} if len(path) > 1 else probe
    return found


def _at(container: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    found: Any = container
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _kind(probe: dict[str, Any], path: tuple[str, ...]) -> str:
    """How *probe* asks; "" if the agent leaves it alone."""
    kinds = _KINDS[:2] if path[0] == "lifecycle" else _KINDS
    return next((each for each in kinds if isinstance(probe.get(each), dict)), "")
