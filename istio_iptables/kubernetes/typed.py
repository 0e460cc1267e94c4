"""A pod in the types that Kubernetes' structures have: texts where they want texts, one spelling of amounts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes.manifest import as_text
from istio_iptables.kubernetes.quantity import canonical
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from istio_iptables.kubernetes.manifest import Workload

__all__ = ["EMPTY_STATUS", "require_types", "typed_container", "typed_spec"]

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
_CONTAINERS = ("containers", "initContainers")
_OWNERS = ("runAsUser", "runAsGroup")
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
    for number, each in enumerate(found.get("env", []), 1):
        name = each.get("name")
        if name is None:
            raise UsageProblems([f"{label}: env, item {number}: has no name"])
        if not isinstance(name, str):
            raise UsageProblems(
                [f"{label}: env, item {number}: name: {_said(name)} is no text: put it in quotes"]
            )
    return found


def require_types(workload: Workload) -> None:
    """Raise UsageProblems for what decides whether and as whom a pod is captured, and is of another type."""
    spec = workload.spec
    problems = []
    host = spec.get("hostNetwork")
    if host is not None and not isinstance(host, bool):
        problems.append(f"hostNetwork: {_said(host)} is not true or false")
    owners = [("", spec)]
    owners += [
        (f"{each['name']}: ", each) for key in _CONTAINERS for each in workload.containers(key)
    ]
    for label, owner in owners:
        context = owner.get("securityContext")
        if not isinstance(context, dict):
            continue
        for key in _OWNERS:
            given = context.get(key)
            number = isinstance(given, float) and given.is_integer()
            number = number or (isinstance(given, int) and not isinstance(given, bool))
            if given is not None and not number:
                problems.append(
                    f"{label}securityContext.{key}: {_said(given)} is not a whole number"
                )
    if problems:
        raise UsageProblems([f"{workload.title}: {each}" for each in problems])


def _said(value: object) -> str:
    """*value* as a line says it."""
    return "this" if isinstance(value, dict | list) else excerpt(as_text(value))


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
