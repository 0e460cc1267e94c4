"""The pods in the documents of a manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes.yamlnodes import plain_value, read_nodes
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NO_POD", "Workload", "as_text", "mapping", "read_documents", "workloads"]

#: Where each kind that holds a pod has it. Lists are walked into.
_PLACES = {
    ("v1", "Pod"): (),
    ("v1", "ReplicationController"): ("spec", "template"),
    ("apps/v1", "Deployment"): ("spec", "template"),
    ("apps/v1", "StatefulSet"): ("spec", "template"),
    ("apps/v1", "DaemonSet"): ("spec", "template"),
    ("apps/v1", "ReplicaSet"): ("spec", "template"),
    ("batch/v1", "Job"): ("spec", "template"),
    ("batch/v1", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
}
#: What is told of a text without any of these.
NO_POD = "holds no Pod, nor what makes one (Deployment, Job, ...)"
#: istioctl reads the annotations of a CronJob's pod here, and a cluster's webhook in the pod.
_ISTIOCTL_METADATA = {"CronJob": ("spec", "jobTemplate")}


class Workload(NamedTuple):
    """One object of a manifest that has a pod in it; the mappings are those of the document."""

    kind: str
    name: str
    namespace: str
    metadata: dict[str, Any]
    spec: dict[str, Any]
    #: What ``metadata`` is in, if the document has it.
    holder: dict[str, Any]
    #: The object that has the pod in it, and its metadata.
    document: dict[str, Any]
    top: dict[str, Any]
    #: Where in the document the annotations are: ``spec.template.metadata.annotations``.
    place: str
    #: Where else annotations of a pod are looked for by mistake, and the metadata there.
    around: tuple[tuple[str, dict[str, Any]], ...]

    @property
    def title(self) -> str:
        """How a message calls it: ``Deployment shop/web``."""
        return f"{self.kind} {self.full_name or 'without a name'}"

    @property
    def full_name(self) -> str:
        """The name, behind the namespace if there is one: ``shop/web``."""
        return "/".join(each for each in (self.namespace, self.name) if each)

    @property
    def annotations(self) -> dict[str, str]:
        """The pod's annotations as texts."""
        return _texts(self.metadata, "annotations", self.title)

    @property
    def labels(self) -> dict[str, str]:
        """The pod's labels as texts."""
        return _texts(self.metadata, "labels", self.title)

    def containers(self, key: str) -> list[dict[str, Any]]:
        """The list of ``containers`` or ``initContainers``, each a mapping with a name."""
        found = self.spec.get(key) or []
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise UsageProblems([f"{self.title}: {key} is no list of containers"])
        if bad := [
            f"{self.title}: {key}, item {number}: has no name that is a text"
            for number, each in enumerate(found, 1)
            if not isinstance(each.get("name"), str)
        ]:
            raise UsageProblems(bad)
        return found


def read_documents(text: str, name: str, doubles: list[str] | None = None) -> list[Any]:
    """The documents of YAML or JSON *text*, empty ones left out; raises UsageProblems for no YAML.

    A line is added to *doubles* for each key that a mapping has twice.
    """
    return [plain_value(each) for each in read_nodes(text, name, doubles)]


def workloads(documents: list[Any], name: str, *, istioctl: bool = False) -> Iterator[Workload]:
    """What has a pod in it, lists walked into; *istioctl* as its ``kube-inject`` finds annotations."""
    for document in documents:
        if not isinstance(document, dict):
            raise UsageProblems([f"{name}: {excerpt(str(document))} is no Kubernetes object"])
        kind = document.get("kind")
        if kind == "List":
            items = document.get("items") or []
            if not isinstance(items, list):
                raise UsageProblems([f"{name}: items of a List is no list"])
            yield from workloads(items, name, istioctl=istioctl)
            continue
        place = _PLACES.get((str(document.get("apiVersion")), str(kind)))
        if place is not None:
            yield _workload(document, place, str(kind), name, istioctl=istioctl)


def _workload(
    document: dict[str, Any], place: tuple[str, ...], kind: str, name: str, *, istioctl: bool
) -> Workload:
    def at(path: tuple[str, ...]) -> dict[str, Any]:
        found = document
        for number, key in enumerate(path, 1):
            found = mapping(found, key, f"{name}: {kind}: {'.'.join(path[:number])}")
        return found

    top = at(("metadata",))
    path = (*(_ISTIOCTL_METADATA.get(kind, place) if istioctl else place), "metadata")
    metadata = at(path)
    if at(place).get("spec") is None:
        raise UsageProblems([f"{name}: {kind}: {'.'.join((*place, 'spec'))} is missing"])
    title, namespace = (
        as_text(metadata.get(key) or top.get(key) or "") for key in ("name", "namespace")
    )
    title = title or as_text(top.get("generateName") or "")
    places = ((), place, _ISTIOCTL_METADATA.get(kind, place))
    others = {(*each, "metadata") for each in places} - {path}
    around = tuple(
        (".".join((*each, "annotations")), found)
        for each in sorted(others)
        if (found := _there(document, each))
    )
    return Workload(
        kind,
        title,
        namespace,
        metadata,
        at((*place, "spec")),
        at(path[:-1]),
        document,
        top,
        ".".join((*path, "annotations")),
        around,
    )


def _there(document: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The mapping at *path*; an empty one, of no document, if there is none."""
    found: Any = document
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def mapping(owner: dict[str, Any], key: str, label: str) -> dict[str, Any]:
    """The mapping at *key*, an empty one if there is none; raises UsageProblems for another value."""
    found = owner.get(key)
    if found is None:
        found = {}
    if not isinstance(found, dict):
        raise UsageProblems([f"{label} is no mapping"])
    return found


def _texts(metadata: dict[str, Any], key: str, title: str) -> dict[str, str]:
    found = metadata.get(key) or {}
    if not isinstance(found, dict) or any(isinstance(each, dict | list) for each in found.values()):
        raise UsageProblems([f"{title}: {key} is no mapping of texts"])
    return {as_text(name): as_text(text) for name, text in found.items()}


def as_text(value: object) -> str:
    """A scalar as Kubernetes and Go's templates write it where a text is wanted."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:  # noqa: PLR2004 - Go's %v
        return str(int(value))
    return str(value)
