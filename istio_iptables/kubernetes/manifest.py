"""YAML as Kubernetes reads it, and the pods in its documents."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from istio_iptables.errors import UsageProblems
from istio_iptables.text import clip, excerpt

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Workload", "as_text", "mapping", "read_documents", "workloads", "write_documents"]

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
#: istioctl reads the annotations of a CronJob's pod here, and a cluster's webhook in the pod.
_ISTIOCTL_METADATA = {"CronJob": ("spec", "jobTemplate")}
#: An alias may stand for a document many times; no manifest has as many values.
_MOST_VALUES = 1_000_000
_DEEPEST = 100


class Workload(NamedTuple):
    """One object of a manifest that has a pod in it; the mappings are those of the document."""

    kind: str
    name: str
    namespace: str
    metadata: dict[str, Any]
    spec: dict[str, Any]
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
        return f"{self.kind} {f'{self.namespace}/' if self.namespace else ''}{self.name}"

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
        if not isinstance(found, list) or not all(
            isinstance(each, dict) and isinstance(each.get("name"), str) for each in found
        ):
            raise UsageProblems([f"{self.title}: {key} is no list of containers with names"])
        return found


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as Kubernetes' Go library reads it: no times, no numbers to the base of 60."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's way to say so
    bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}  # noqa: RUF012 - the same


for _tag, _pattern, _first in (
    (
        "bool",
        r"y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
        "yYnNtTfFoO",
    ),
    ("int", r"[-+]?(0b[01_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(rf"^(?:{_pattern})$"),
        ["" if letter == "\0" else letter for letter in _first],
    )


def read_documents(text: str, name: str) -> list[Any]:
    """The documents of YAML or JSON *text*, empty ones left out; raises UsageProblems for no YAML."""
    try:
        documents = [each for each in yaml.load_all(text, _Loader) if each is not None]
        _count(documents, 0, [0])
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        reason = error.problem or error.context or "is no YAML"
        raise UsageProblems([f"{name}: {line}{clip(reason)}"]) from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise UsageProblems([f"{name}: {clip(' '.join(str(error).split()))}"]) from error
    except RecursionError as error:
        raise UsageProblems([f"{name}: is nested too deep"]) from error
    return documents


def _count(value: object, depth: int, seen: list[int]) -> None:
    """Raise ValueError for what JSON can't hold, or for more than a manifest has."""
    seen[0] += 1
    if depth > _DEEPEST or seen[0] > _MOST_VALUES:
        message = "is nested too deep" if depth > _DEEPEST else "holds too many values"
        raise ValueError(message)
    if isinstance(value, dict):
        for key, each in value.items():
            _count(key, depth + 1, seen)
            _count(each, depth + 1, seen)
    elif isinstance(value, list):
        for each in value:
            _count(each, depth + 1, seen)
    elif not isinstance(value, str | int | float | None):
        message = f"holds a value that JSON has no name for: {type(value).__name__}"
        raise ValueError(message)  # noqa: TRY004 - a mistake in the text


class _Dumper(yaml.SafeDumper):
    """Writes each value where it stands, without anchors."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML calls it so
        return True


# Quoted is what YAML 1.1 or Kubernetes would take for something else than text.
_Dumper.yaml_implicit_resolvers = {
    letter: [
        *_Loader.yaml_implicit_resolvers.get(letter, ()),
        *yaml.SafeDumper.yaml_implicit_resolvers.get(letter, ()),
    ]
    for letter in {*_Loader.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
}


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Escape line ends that PyYAML would write as they are, and read as blanks."""
    style = '"' if {"\x85", "\u2028", "\u2029"} & set(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent)


def write_documents(documents: list[Any]) -> str:
    """The YAML of *documents*, keys in their order."""
    return "".join(
        "---\n" * bool(number)
        + yaml.dump(each, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
        for number, each in enumerate(documents)
    )


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
    if "spec" not in at(place):
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
    """The mapping at *key*, made if there is none; raises UsageProblems for another value."""
    found = owner.get(key)
    if found is None:
        found = owner[key] = {}
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
