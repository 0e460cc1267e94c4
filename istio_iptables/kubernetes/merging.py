"""Lists of containers: one put over another as Kubernetes merges them, and their order."""

from __future__ import annotations

from typing import Any

from istio_iptables.kubernetes.manifest import as_text

__all__ = ["move", "overlay"]

#: The lists of a container whose items are merged, and what tells items of them apart.
_KEYS = {"env": "name", "volumeMounts": "mountPath", "ports": "containerPort"}


def overlay(containers: list[dict[str, Any]], patch: dict[str, Any]) -> None:
    """Put *patch* over the container of its name, as Kubernetes' strategic merge does."""
    for number, each in enumerate(containers):
        if each["name"] == patch["name"]:
            containers[number] = _merge(each, patch)
            return
    containers.append(patch)


def _merge(below: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    found = dict(below)
    for key, value in over.items():
        under = found.get(key)
        if value is None:
            found.pop(key, None)
        elif isinstance(value, dict) and isinstance(under, dict):
            found[key] = _merge(under, value)
        elif key in _KEYS and isinstance(value, list) and isinstance(under, list):
            name = _KEYS[key]
            mine = {as_text(each.get(name)): each for each in value if isinstance(each, dict)}
            found[key] = [
                _merge(each, mine.pop(as_text(each.get(name)), {}))
                for each in under
                if isinstance(each, dict)
            ]
            found[key] += mine.values()
        else:
            found[key] = value
    return found


def move(containers: list[dict[str, Any]], name: str, *, first: bool) -> None:
    """Put the container *name* first or last, if it is there."""
    found = [each for each in containers if each["name"] == name][-1:]
    others = [each for each in containers if each["name"] != name]
    containers[:] = [*found, *others] if first else [*others, *found]
