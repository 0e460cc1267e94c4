"""A pod in the types that Kubernetes' structures have: texts where they want texts, one spelling of amounts."""

from __future__ import annotations

from typing import Any

from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes.manifest import as_text
from istio_iptables.kubernetes.quantity import canonical

__all__ = ["EMPTY_STATUS", "typed_container", "typed_spec"]

#: What a status without anything has for these kinds; it is written even where there is none.
EMPTY_STATUS: dict[str, dict[str, int]] = {
    "DaemonSet": dict.fromkeys(
        (
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
        ),
        0,
    ),
    "ReplicaSet": {"replicas": 0},
    "ReplicationController": {"replicas": 0},
    "StatefulSet": {"replicas": 0, "availableReplicas": 0},
}
_TEXTS = ("image", "imagePullPolicy", "workingDir", "restartPolicy", "terminationMessagePath")
_LISTS = ("command", "args")
#: What has to be a mapping, or a list of mappings, since the template is merged with it.
_MAPPINGS = (
    "resources",
    "securityContext",
    "lifecycle",
    "readinessProbe",
    "livenessProbe",
    "startupProbe",
)
_ITEMS = ("env", "ports", "volumeMounts", "volumeDevices", "volumes", "imagePullSecrets")


def _checked(owner: dict[str, Any], label: str) -> dict[str, Any]:
    """*owner* without its nulls; raises UsageProblems for what can't be merged."""
    found = {key: each for key, each in owner.items() if each is not None}
    for key in _MAPPINGS:
        if not isinstance(found.get(key, {}), dict):
            raise UsageProblems([f"{label}: {key} is no mapping"])
    for key in _ITEMS:
        items = found.get(key, [])
        if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
            raise UsageProblems([f"{label}: {key} is no list of mappings"])
    if any(not isinstance(each.get("name"), str) for each in found.get("env", [])):
        raise UsageProblems([f"{label}: env has a variable without a name"])
    return found


def typed_spec(spec: dict[str, Any], title: str) -> dict[str, Any]:
    """The *spec* of a pod as it can be merged, but for its containers."""
    return _checked(spec, title)


def typed_container(container: dict[str, Any], title: str) -> dict[str, Any]:
    """*container* with its texts as texts, and its amounts as Kubernetes writes them."""
    found = _checked(container, f"{title}: {container['name']}")
    for key in _TEXTS:
        if isinstance(found.get(key), bool | int | float):
            found[key] = as_text(found[key])
    for key in _LISTS:
        if isinstance(found.get(key), list):
            found[key] = [
                as_text(each) if isinstance(each, bool | int | float) else each
                for each in found[key]
            ]
    if "env" in found:
        found["env"] = [
            {**each, "value": as_text(each["value"])}
            if isinstance(each.get("value"), bool | int | float)
            else {key: text for key, text in each.items() if key != "value" or text}
            for each in found["env"]
        ]
    if "resources" in found:
        found["resources"] = {key: _amounts(each) for key, each in found["resources"].items()}
    return found


def _amounts(amounts: Any) -> Any:  # noqa: ANN401 - of YAML
    if not isinstance(amounts, dict):
        return amounts
    return {name: canonical(as_text(each)) or each for name, each in amounts.items()}
