"""One pod laid over another as Kubernetes' strategic merge does it, and the order of containers."""

from __future__ import annotations

from typing import Any

from istio_iptables.kubernetes.manifest import as_text

__all__ = ["find", "merge", "move", "overlay"]

#: The lists whose items are merged, and what tells items of them apart; another list is replaced.
_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
}


def overlay(containers: list[dict[str, Any]], patch: dict[str, Any]) -> list[dict[str, Any]]:
    """*containers* with *patch* over the one of its name."""
    found: list[dict[str, Any]] = merge({"containers": containers}, {"containers": [patch]})[
        "containers"
    ]
    return found


def merge(below: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """*below* with what *over* gives; null takes a key away."""
    found = dict(below)
    for key, value in over.items():
        under = found.get(key)
        if value is None:
            found.pop(key, None)
        elif isinstance(value, dict):
            found[key] = merge(under if isinstance(under, dict) else {}, value)
        elif key in _KEYS and isinstance(value, list) and isinstance(under, list):
            found[key] = _merge_items(under, value, _KEYS[key])
        else:
            found[key] = value
    return found


def _merge_items(below: list[Any], over: list[Any], name: str) -> list[Any]:
    """The items of both: those of *over* in its order, which come first where *below* has no say."""

    def key(item: Any) -> str:  # noqa: ANN401 - of YAML
        return as_text(item.get(name)) if isinstance(item, dict) else as_text(item)

    places: dict[str, int] = {}
    for number, each in enumerate(below):
        places.setdefault(key(each), number)
    given = {key(each) for each in over}
    left = [each for each in below if key(each) not in given]
    found = []
    for each in over:
        place = places.get(key(each))
        if place is None or not isinstance(each, dict) or not isinstance(below[place], dict):
            found.append(each)
            continue
        while left and places[key(left[0])] < place:
            found.append(left.pop(0))
        found.append(merge(below[place], each))
    return found + left


def find(containers: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The first container of that name."""
    return next((each for each in containers if each["name"] == name), None)


def move(containers: list[dict[str, Any]], name: str, *, first: bool) -> None:
    """Put the container *name* first or last, if it is there."""
    found = [each for each in containers if each["name"] == name][-1:]
    others = [each for each in containers if each["name"] != name]
    containers[:] = [*found, *others] if first else [*others, *found]
