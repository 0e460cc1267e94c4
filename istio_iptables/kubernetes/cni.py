"""What Istio's CNI plugin makes of a pod: it reads annotations and istio-proxy, where istio-init has arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes import annotations as names
from istio_iptables.kubernetes.injection import PROXY, Injection
from istio_iptables.kubernetes.lint import lint_injection
from istio_iptables.kubernetes.manifest import as_text
from istio_iptables.kubernetes.merging import find
from istio_iptables.kubernetes.sidecar import inject
from istio_iptables.kubernetes.template import ARGUMENTS, CNI
from istio_iptables.kubernetes.values import merged
from istio_iptables.settings.converters import FALSE, TRUE
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_iptables.kubernetes.manifest import Workload
    from istio_iptables.kubernetes.values import Installation

__all__ = ["cni_arguments"]

#: What of a value is the plugin's own.
_PLUGIN = "istio-cni"
_UID = 1337
_INIT = "istio-init"
_ROLE = "sidecar"
#: The plugin's default for a list of ports that are left out, in both directions.
_STATUS_PORT = "15020"
#: Left out of what is captured whatever the pod says, behind the pod's own.
_OWN_PORTS = ("15020", "15021", "15090")
_NAMESPACE = "kube-system"
#: A value of both charts, the injector's and the plugin's.
_NATIVE = "global.nativeNftables"
_NO_ENVOY = "DISABLE_ENVOY"


class _Row(NamedTuple):
    """An option of istio-iptables, and the annotations that it is taken from, the first that there is."""

    option: str
    annotations: tuple[str, ...]
    default: str


_ROWS = (
    _Row("-m", (names.MODE,), "REDIRECT"),
    _Row("-i", (names.INCLUDE_OUTBOUND_RANGES,), "*"),
    _Row("-x", (names.EXCLUDE_OUTBOUND_RANGES,), ""),
    _Row("-b", (names.INCLUDE_INBOUND_PORTS,), "*"),
    _Row("-d", (names.EXCLUDE_INBOUND_PORTS,), _STATUS_PORT),
    _Row("-q", (names.INCLUDE_OUTBOUND_PORTS,), ""),
    _Row("-o", (names.EXCLUDE_OUTBOUND_PORTS,), _STATUS_PORT),
    _Row("-k", (names.REROUTE_INTERFACES, names.KUBEVIRT_INTERFACES), ""),
    _Row("-c", (names.EXCLUDE_INTERFACES,), ""),
)
#: Variables of istio-proxy, and the options that each switches on.
_SWITCHES = {
    "ISTIO_META_DNS_CAPTURE": ("--redirect-dns", "--capture-all-dns"),
    "ISTIO_DUAL_STACK": ("--dual-stack",),
    "INVALID_DROP": ("--drop-invalid",),
}
#: The words of an argument, and where its value is from.
Argument = tuple[tuple[str, ...], str]


def cni_arguments(
    workload: Workload, installation: Installation
) -> tuple[tuple[Argument, ...], tuple[str, ...]]:
    """The arguments for the rules that the plugin gives a pod, each with its place, and warnings.

    A pod that is not injected yet is injected first, as an installation with the plugin does it, which
    changes *workload*. Raises UsageProblems for a pod that the plugin refuses or leaves alone.
    """
    places: dict[str, str] = {}
    warnings: list[str] = []
    if names.STATUS not in workload.annotations:
        places, warnings = _inject(workload, installation)
    proxy = find(workload.containers("containers") + workload.containers("initContainers"), PROXY)
    if reason := _reason_to_skip(workload, proxy):
        raise UsageProblems([f"{workload.title}: {_PLUGIN} leaves it alone: {reason}"])
    found: list[Argument] = []
    problems = []
    annotations = workload.annotations
    for row in _ROWS:
        name = next((each for each in row.annotations if each in annotations), "")
        text = annotations.get(name, row.default)
        place = places.get(name) or f"annotation {name}" if name else f"default of {_PLUGIN}"
        if name and (reason := names.refused_by_cni(name, text)):
            problems.append(f"{workload.title}: {_PLUGIN} refuses it: {place}: {reason}")
        if row.option == "-d":
            items = [*(each for each in text.strip().split(",") if each), *_OWN_PORTS]
            place = place if place.endswith(_PLUGIN) else f"{place}, {_PLUGIN}"
            text = ",".join(dict.fromkeys(items))
        found.append(((row.option, text), place))
    if problems:
        raise UsageProblems(problems)
    found += _owner(proxy or {})
    native = installation.value(_NATIVE)
    if native.value:
        found.append((("--native-nftables",), native.place))
    switches, more = _switches(workload, proxy or {})
    return (*found, *switches), (*warnings, *more)


def _inject(workload: Workload, installation: Installation) -> tuple[dict[str, str], list[str]]:
    """Inject *workload* with the plugin in use; the place of what each annotation then says, and lint."""
    keys = CNI.split(".")
    tree: Any = True
    for key in reversed(keys):
        tree = {key: tree}
    injection = Injection(
        workload,
        installation._replace(values=merged(installation.values, tree)),
        native=False,
    )
    places = {
        name: injection.look_up(row).place for row in ARGUMENTS for name in row.annotations[:1]
    }
    places |= {name: f"annotation {name}" for name in injection.annotations}
    places[names.EXCLUDE_INBOUND_PORTS] = injection.excluded_inbound_ports.place
    warnings = lint_injection(injection)
    inject(injection, "default")
    return places, warnings


def _reason_to_skip(workload: Workload, proxy: Mapping[str, Any] | None) -> str:
    """Why the plugin does nothing for an injected pod; "" if it does."""
    if proxy is None:
        return f"it has no {PROXY}"
    inject_asked = workload.labels.get(names.INJECT, workload.annotations.get(names.INJECT))
    words = proxy.get("args")
    role = words[1] if isinstance(words, list) and words[:1] == ["proxy"] and words[1:] else _ROLE
    reasons = {
        f"it has {_INIT}": find(workload.containers("initContainers"), _INIT),
        f"it is in the namespace {_NAMESPACE}": workload.namespace == _NAMESPACE,
        f"{names.INJECT} is false": inject_asked in FALSE,
        f"{_NO_ENVOY} is true": _variables(workload, proxy).get(_NO_ENVOY) in TRUE,
        f"its {PROXY} is a {as_text(role)} and no {_ROLE}": role != _ROLE,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _owner(proxy: Mapping[str, Any]) -> list[Argument]:
    context = proxy.get("securityContext")
    found: list[Argument] = []
    for option, key in (("-u", "runAsUser"), ("-g", "runAsGroup")):
        given = context.get(key) if isinstance(context, dict) else None
        place = f"securityContext.{key} of {PROXY}" if given else f"default of {_PLUGIN}"
        found.append(((option, as_text(given or _UID)), place))
    return found


def _variables(workload: Workload, proxy: Mapping[str, Any]) -> dict[str, str]:
    listed = proxy.get("env") or []
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise UsageProblems([f"{workload.title}: env of {PROXY} is no list of names and values"])
    return {as_text(each.get("name")): as_text(each.get("value")) for each in listed}


def _switches(workload: Workload, proxy: Mapping[str, Any]) -> tuple[list[Argument], list[str]]:
    found: list[Argument] = []
    warnings = []
    variables = _variables(workload, proxy)
    for name, options in _SWITCHES.items():
        text = variables.get(name)
        if text in TRUE:
            found += [((option,), f"env {name} of {PROXY}") for option in options]
        elif text is not None and text not in FALSE:
            warnings.append(
                f"{workload.title}: env {name} of {PROXY}: {excerpt(text)} is not a boolean and is"
                " ignored"
            )
    return found, warnings
