"""Admission reviews: a pod that is to be made, and the answer that lets it in injected, as it is, or not."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes.annotations import PROXY_CONFIG
from istio_iptables.kubernetes.injection import Injection, reason_to_skip
from istio_iptables.kubernetes.lint import lint, lint_image, lint_installation
from istio_iptables.kubernetes.manifest import workloads
from istio_iptables.kubernetes.sidecar import inject
from istio_iptables.kubernetes.typed import require_types
from istio_iptables.text import printable
from istio_iptables.webhook.patch import json_patch

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_iptables.kubernetes.manifest import Workload
    from istio_iptables.kubernetes.values import Installation

__all__ = ["NoReview", "ReviewAnswer", "Settings", "answer", "require_injection", "variables_of"]

#: Both have the same fields, as far as they are used here; the answer is in the version of the question.
_VERSIONS = frozenset({"admission.k8s.io/v1", "admission.k8s.io/v1beta1"})
_POD = {"group": "", "version": "v1", "kind": "Pod"}
#: How much of a pod's names and annotations is looked at: Kubernetes' own limit is on the latter.
_MOST_CONTAINERS = 250
_MOST_ANNOTATIONS = 256 * 1024
#: Read as YAML, which takes seconds for as much as an annotation may hold, while others wait.
_LONGEST_CONFIG = 32 * 1024
_LONGEST_UID = 256
#: What is looked through for mistakes: each name is held against all of Istio's while others wait.
_MOST_LINTED = 100
_LONGEST_LINTED = 317
_LONGEST_LINTED_CONFIG = 4096
#: Kubernetes cuts a warning at 256 letters, and drops those behind 4096.
_LONGEST_WARNING = 256
_MOST_WARNINGS = 10
_WITH_WARNINGS = "admission.k8s.io/v1"
#: The names that istiod has in its paths for two variables.
_VARIABLES = {"cluster": "ISTIO_META_CLUSTER_ID", "net": "ISTIO_META_NETWORK"}
_OLD_VARIABLE = ":ENV:"


class NoReview(Exception):
    """What came is no review that could be answered."""


class Settings(NamedTuple):
    """What injection goes by beside the pod."""

    installation: Installation
    native: bool
    revision: str
    init_image: str
    #: What is said of a pod beside its injection.
    lint: Callable[[Injection], list[str]] = lambda _: []


class ReviewAnswer(NamedTuple):
    """What is said to a review, and what a log says about it."""

    document: dict[str, Any]
    uid: str
    namespace: str
    name: str
    kind: str
    #: injected, skipped, refused, or failed: refused for a mistake of this program's.
    verdict: str
    reason: str
    warnings: tuple[str, ...] = ()


def require_injection(settings: Settings) -> list[str]:
    """What is likely not meant so in *settings* themselves.

    Raises UsageProblems if not even a pod without any wishes can be injected.
    """
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "any"},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    }
    (found,) = workloads([pod], "a pod")
    injection = _injection(found, settings)
    warnings = [*lint_installation(settings.installation), *lint_image(injection)]
    inject(injection, settings.revision)
    return warnings


def variables_of(path: str) -> dict[str, str]:
    """The variables for istio-proxy in a path of istiod's: ``/inject/cluster/NAME/net/NAME``."""
    rest = unquote(path).removeprefix("/inject").strip("/")
    if rest.startswith(_OLD_VARIABLE):
        pairs = [each.partition("=") for each in rest.split(_OLD_VARIABLE)]
        return {name: text for name, equals, text in pairs if name and equals}
    words = rest.split("/")
    return {
        _VARIABLES.get(name, name.upper()): text.replace("--slash--", "/")
        for name, text in zip(words[::2], words[1::2], strict=False)
        if name
    }


def answer(body: bytes, path: str, settings: Settings) -> ReviewAnswer:
    """The answer to the review in *body* that came to *path*; raises NoReview if there can be none."""
    version, request = _read(body)
    uid = request["uid"]
    pod = request.get("object")
    metadata = pod.get("metadata") if isinstance(pod, dict) else None
    metadata = metadata if isinstance(metadata, dict) else {}
    kind = request.get("kind")
    names = (
        _text(request.get("namespace")),
        _text(request.get("name")) or _text(metadata.get("name") or metadata.get("generateName")),
        _text(kind.get("kind")) if isinstance(kind, dict) else "",
    )
    verdict, reason = "injected", ""
    warnings: list[str] = []
    try:
        _require_new_pod(request)
        told = _response(uid, _patch(body, request, variables_of(path), settings, warnings))
        if warnings and version == _WITH_WARNINGS:
            told["warnings"] = warnings
    except _Skipped as skipped:
        verdict, reason = "skipped", str(skipped)
        told = _response(uid, [])
    except UsageProblems as error:
        verdict, reason = "refused", "; ".join(error.lines)
        told = _refusal(uid, "\n".join(error.lines), 400, "BadRequest")
    except RecursionError:
        verdict, reason = "refused", "the pod is nested too deep"
        told = _refusal(uid, reason, 400, "BadRequest")
    except Exception as error:  # noqa: BLE001 - a pod that is not understood must not get in
        verdict, reason = "failed", f"internal error: {type(error).__name__}: {error}"
        told = _refusal(uid, reason, 500, "InternalError")
    document = {"apiVersion": version, "kind": "AdmissionReview", "response": told}
    return ReviewAnswer(document, uid, *names, verdict, reason, tuple(warnings))


class _Skipped(Exception):
    """Istio leaves the pod as it is."""


def _read(body: bytes) -> tuple[str, dict[str, Any]]:
    """The version of a review, and what it asks."""
    try:
        review = json.loads(body.decode(), parse_constant=_number, parse_float=_number)
    except RecursionError as error:
        message = "the body is nested too deep"
        raise NoReview(message) from error
    except ValueError as error:
        message = f"the body is no JSON: {error}"
        raise NoReview(message) from error
    if not isinstance(review, dict) or review.get("kind") != "AdmissionReview":
        message = "the body is no AdmissionReview"
        raise NoReview(message)
    version = review.get("apiVersion")
    if not isinstance(version, str) or version not in _VERSIONS:
        message = f"apiVersion is not one of {', '.join(sorted(_VERSIONS))}"
        raise NoReview(message)
    request = review.get("request")
    uid = request.get("uid") if isinstance(request, dict) else None
    if (
        not isinstance(request, dict)
        or not isinstance(uid, str)
        or not 1 <= len(uid) <= _LONGEST_UID
    ):
        message = "the review has no request with a uid"
        raise NoReview(message)
    return version, request


def _number(text: str) -> float:
    found = float(text)
    if not isfinite(found):
        message = f"{text} is no number, or too large"
        raise ValueError(message)
    return found


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _require_new_pod(request: dict[str, Any]) -> None:
    """Raise _Skipped if the request makes no pod, and UsageProblems if it is about something else."""
    if request.get("kind") != _POD:
        message = "this webhook is for pods: its MutatingWebhookConfiguration asks it about others"
        raise UsageProblems([message])
    operation = _text(request.get("operation"))
    if operation != "CREATE":
        # A pod's containers can't be changed any more.
        message = f"the operation is {operation or 'not said'}"
        raise _Skipped(message)
    if resource := _text(request.get("subResource")):
        message = f"it is about pods/{resource}"
        raise _Skipped(message)


def _patch(
    body: bytes,
    request: dict[str, Any],
    variables: dict[str, str],
    settings: Settings,
    warnings: list[str],
) -> list[dict[str, Any]]:
    """The operations that inject the pod of *request*; raises UsageProblems or _Skipped.

    What is likely not meant so in it is added to *warnings*.
    """
    before = request.get("object")
    if not isinstance(before, dict):
        raise UsageProblems(["the review has no object"])
    after = json.loads(body)["request"]["object"]
    metadata = after.get("metadata")
    if isinstance(metadata, dict) and not metadata.get("namespace") and request.get("namespace"):
        # As a pod of a Deployment comes from old API servers.
        metadata["namespace"] = _text(request["namespace"])
    found = list(workloads([after], "the review"))
    if after.get("kind") != "Pod" or not found:
        raise UsageProblems(["the object of the review is no Pod of v1"])
    pod = found[0]
    require_types(pod)
    if reason := reason_to_skip(pod):
        raise _Skipped(reason)
    containers = pod.containers("containers")
    if not containers:
        # With istio-proxy in it, it would be a pod that Kubernetes takes.
        raise UsageProblems([f"{pod.title}: it has no containers"])
    if len(containers) + len(pod.containers("initContainers")) > _MOST_CONTAINERS:
        raise UsageProblems([f"{pod.title}: it has more than {_MOST_CONTAINERS} containers"])
    if sum(len(name) + len(text) for name, text in pod.annotations.items()) > _MOST_ANNOTATIONS:
        raise UsageProblems([f"{pod.title}: its annotations are more than 256 KiB"])
    if len(pod.annotations.get(PROXY_CONFIG, "")) > _LONGEST_CONFIG:
        raise UsageProblems([f"{pod.title}: annotation {PROXY_CONFIG}: is more than 32 KiB"])
    injection = _injection(pod, settings)
    found_mistakes = _mistakes(injection, settings)
    inject(injection, settings.revision, variables)
    warnings += found_mistakes
    return json_patch(before, after)


def _mistakes(injection: Injection, settings: Settings) -> list[str]:
    """A few lines, as short as Kubernetes hands them on."""
    pod = injection.pod
    names = [*pod.annotations, *pod.labels]
    if (
        len(names) > _MOST_LINTED
        or max(map(len, names), default=0) > _LONGEST_LINTED
        or len(pod.annotations.get(PROXY_CONFIG, "")) > _LONGEST_LINTED_CONFIG
    ):
        return []
    # A mistake of this program's in what it says of a pod is none that keeps the pod out.
    with suppress(Exception):
        lines = [printable(line) for line in (*lint(pod), *settings.lint(injection))]
        return [
            line if len(line) <= _LONGEST_WARNING else f"{line[: _LONGEST_WARNING - 3]}..."
            for line in lines[:_MOST_WARNINGS]
        ]
    return []


def _injection(pod: Workload, settings: Settings) -> Injection:
    return Injection(
        pod, settings.installation, native=settings.native, init_image=settings.init_image
    )


def _response(uid: str, patch: list[dict[str, Any]]) -> dict[str, Any]:
    if not patch:
        return {"uid": uid, "allowed": True}
    text = json.dumps(patch, separators=(",", ":"), allow_nan=False)
    encoded = base64.b64encode(text.encode()).decode()
    return {"uid": uid, "allowed": True, "patchType": "JSONPatch", "patch": encoded}


def _refusal(uid: str, message: str, code: int, reason: str) -> dict[str, Any]:
    status = {"status": "Failure", "message": message, "reason": reason, "code": code}
    return {"uid": uid, "allowed": False, "status": status}
