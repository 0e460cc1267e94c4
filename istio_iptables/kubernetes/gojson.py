"""JSON of parts of a pod as Go writes it: fields in the order of their declaration, empty ones left out."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["compact", "go_json"]

#: The fields of Kubernetes' structures for a container, in one order that holds for each of them.
_FIELDS = [
    "containers",
    "initContainers",
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "readOnly",
    "recursiveReadOnly",
    "mountPath",
    "subPath",
    "mountPropagation",
    "subPathExpr",
    "devicePath",
    "hostPort",
    "containerPort",
    "protocol",
    "hostIP",
    "value",
    "valueFrom",
    "ports",
    "envFrom",
    "env",
    "limits",
    "requests",
    "claims",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "volumeMounts",
    "volumeDevices",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "postStart",
    "preStop",
    "exec",
    "httpGet",
    "tcpSocket",
    "grpc",
    "path",
    "port",
    "host",
    "scheme",
    "httpHeaders",
    "service",
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
    "terminationGracePeriodSeconds",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "securityContext",
    "capabilities",
    "add",
    "drop",
    "privileged",
    "seLinuxOptions",
    "windowsOptions",
    "runAsUser",
    "runAsGroup",
    "runAsNonRoot",
    "readOnlyRootFilesystem",
    "allowPrivilegeEscalation",
    "procMount",
    "seccompProfile",
    "appArmorProfile",
    "stdin",
    "stdinOnce",
    "tty",
]
_RANKS = {name: rank for rank, name in enumerate(_FIELDS)}
#: Of these 0 and false are left out, since they are no pointers in Go.
_PLAIN = frozenset(
    [
        "hostPort",
        "readOnly",
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
        "stdin",
        "stdinOnce",
        "tty",
    ]
)
#: Written even if empty.
_KEPT = frozenset({"resources"})


def go_json(value: Any) -> str:  # noqa: ANN401 - of YAML
    """The text of *value*."""
    return compact(_ordered(value))


def compact(value: Any) -> str:  # noqa: ANN401 - of JSON
    """JSON without blanks, and with the escapes that Go has for HTML."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _ordered(value: Any) -> Any:  # noqa: ANN401 - of YAML
    if isinstance(value, list):
        return [_ordered(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _ordered(value[key])
        for key in sorted(value, key=lambda key: _RANKS.get(key, len(_RANKS)))
        if key in _KEPT
        or not (value[key] in (None, "", [], {}) or (key in _PLAIN and not value[key]))
    }
