"""The arguments and the environment of a pod's istio-init: the one that it has, or would be given."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes.injection import (
    INIT_NAMES,
    PROXY,
    Injection,
    RunAs,
    reason_to_skip,
)
from istio_iptables.kubernetes.lint import lint, lint_injection, owner_in
from istio_iptables.kubernetes.manifest import NO_POD, as_text, read_documents, workloads
from istio_iptables.kubernetes.merging import find
from istio_iptables.kubernetes.typed import require_types
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from istio_iptables.kubernetes.manifest import Workload
    from istio_iptables.kubernetes.values import Installation

__all__ = ["Start", "start_of", "started_by"]

#: How the container starts a program with the arguments; another has arguments of its own.
_PROGRAM = "istio-iptables"
#: ``$(NAME)`` in an argument is a variable's value, and ``$$`` a dollar.
_VARIABLE = re.compile(r"\$(\$|\(([^()]+)\))")


Arguments = tuple[tuple[tuple[str, ...], str], ...]


class Start(NamedTuple):
    """How an init container starts istio-iptables."""

    #: The words of each argument, and where they are from.
    arguments: Arguments
    #: The text of each variable, and where it is from.
    environment: Mapping[str, tuple[str, str]]
    workload: Workload
    #: Whom istio-proxy runs as.
    proxy: RunAs
    #: What of it can't be told from the manifest, and what in that is a likely mistake.
    warnings: tuple[str, ...] = ()


def start_of(
    text: str, name: str, wanted: str | None, installation: Installation, *, cni: bool = False
) -> Start:
    """How istio-init starts in the pod of a manifest, the one called *wanted* if there are several.

    *name* is what messages call the text. With *cni* it is a start with the rules that Istio's CNI
    plugin gives the same pod. Raises UsageProblems where there is no such pod, or none
    that gets rules.
    """
    mistakes: list[str] = []
    documents = read_documents(text, name, mistakes)
    workload = _chosen(list(workloads(documents, name)), name, wanted)
    require_types(workload)
    mistakes += lint(workload)
    inits = [each for each in workload.containers("initContainers") if each["name"] in INIT_NAMES]
    if inits and not cni:
        arguments, environment, unknown = _given(inits[0], workload.title)
        return Start(arguments, environment, workload, _proxy(workload), (*mistakes, *unknown))
    reason = reason_to_skip(workload)
    if reason:
        raise UsageProblems([f"{workload.title}: is not injected: {reason}"])
    if cni:
        from istio_iptables.kubernetes.cni import cni_arguments

        arguments, warnings = cni_arguments(workload, installation)
        return Start(arguments, {}, workload, _proxy(workload), (*mistakes, *warnings))
    return started_by(Injection(workload, installation, native=False), mistakes)


def started_by(injection: Injection, mistakes: Iterable[str] = ()) -> Start:
    """How the istio-init starts that *injection* adds; *mistakes* are those in the manifest itself.

    Raises UsageProblems if it adds none.
    """
    init = injection.init_container()
    if init is None:
        reason = injection.reason_for_none
        raise UsageProblems([f"{injection.pod.title}: gets no init container: {reason}"])
    return Start(
        init.arguments,
        {name: (each.text, each.place) for name, each in init.environment},
        injection.pod,
        injection.proxy_owner,
        (*mistakes, *lint_injection(injection)),
    )


def _proxy(workload: Workload) -> RunAs:
    listed = workload.containers("containers") + workload.containers("initContainers")
    return owner_in(workload.spec, find(listed, PROXY) or {})


def _chosen(found: list[Workload], name: str, wanted: str | None) -> Workload:
    named = [
        each
        for each in found
        if wanted is None or wanted in {each.name, each.full_name, each.title}
    ]
    if len(named) == 1:
        return named[0]
    titles = ", ".join(each.title for each in found)
    if not found:
        line = f"{name}: {NO_POD}"
    elif wanted is None:
        line = f"{name}: holds several pods: give --pod-name with one of: {titles}"
    else:
        count = "several" if named else "no"
        line = f"--pod-name: {name} holds {count} {excerpt(wanted)}, but: {titles}"
    raise UsageProblems([line])


def _given(
    container: dict[str, Any], title: str
) -> tuple[Arguments, dict[str, tuple[str, str]], list[str]]:
    """What a container of a manifest says itself."""
    label = container["name"]
    environment: dict[str, tuple[str, str]] = {}
    warnings = []
    variables = container.get("env") or []
    if not isinstance(variables, list) or not all(
        isinstance(each, dict) and "name" in each for each in variables
    ):
        raise UsageProblems([f"{title}: env of {label} is no list of names and values"])
    for each in variables:
        variable = as_text(each["name"])
        if each.get("valueFrom"):
            warnings.append(f"{title}: env {variable} of {label} is known to the cluster only")
        else:
            text = _expanded(as_text(each.get("value")), environment)
            environment[variable] = text, f"env {variable} of {label}"
    if container.get("envFrom"):
        warnings.append(f"{title}: envFrom of {label} is known to the cluster only")
    words = []
    for key in ("command", "args"):
        given = container.get(key) or []
        if not isinstance(given, list) or any(isinstance(each, dict | list) for each in given):
            raise UsageProblems([f"{title}: {key} of {label} is no list of texts"])
        words += [_expanded(as_text(each), environment) for each in given]
    starts = [number for number, word in enumerate(words) if word.rpartition("/")[2] == _PROGRAM]
    if starts and starts[0] <= 1:
        words = words[starts[0] + 1 :]
    elif container.get("command"):
        message = f"{title}: {label} starts {excerpt(words[0])} and not {_PROGRAM}"
        raise UsageProblems([message])
    return ((tuple(words), f"args of {label}"),), environment, warnings


def _expanded(text: str, environment: Mapping[str, tuple[str, str]]) -> str:
    def value(found: re.Match[str]) -> str:
        if found[1] == "$":
            return "$"
        return environment[found[2]][0] if found[2] in environment else found[0]

    return _VARIABLE.sub(value, text)
