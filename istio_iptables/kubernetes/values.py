"""What Istio's installation says beside a pod: Helm values, and the mesh configuration."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes.manifest import as_text, read_documents
from istio_iptables.kubernetes.proxyconfig import MESH_FIELDS, camel_case, typed
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["CHART", "MESH", "Found", "Installation", "merged", "read_installation"]

#: The values of Istio's chart that decide about what is injected, as the chart has them.
CHART: dict[str, Any] = {
    "global": {
        "hub": "registry.istio.io/testing",
        "tag": "latest",
        "variant": "",
        "imagePullPolicy": "",
        "logAsJson": False,
        "nativeNftables": False,
        "logging": {"level": "default:info"},
        "istioNamespace": "istio-system",
        "imagePullSecrets": [],
        "caAddress": "",
        "caName": "",
        "meshID": "",
        "mountMtlsCerts": False,
        "multiCluster": {"clusterName": ""},
        "network": "",
        "pilotCertProvider": "istiod",
        "sds": {"token": {"aud": "istio-ca"}},
        "sts": {"servicePort": 0},
        "trustBundleName": "",
        "trustDomain": "",
        "proxy": {
            "image": "proxyv2",
            "capNetBindService": "",
            "clusterDomain": "cluster.local",
            "componentLogLevel": "misc:error",
            "logLevel": "warning",
            "lifecycle": {},
            "outlierLogPath": "",
            "readinessFailureThreshold": 4,
            "readinessInitialDelaySeconds": 0,
            "readinessPeriodSeconds": 15,
            "startupProbe": {"enabled": True, "failureThreshold": 600},
            "tracer": "none",
            "excludeInboundPorts": "",
            "includeInboundPorts": "*",
            "includeIPRanges": "*",
            "excludeIPRanges": "",
            "includeOutboundPorts": "",
            "excludeOutboundPorts": "",
            "privileged": False,
            "seccompProfile": {},
            "resources": {
                "requests": {"cpu": "100m", "memory": "128Mi"},
                "limits": {"cpu": "2000m", "memory": "1024Mi"},
            },
            "statusPort": 15020,
            "holdApplicationUntilProxyStarts": False,
        },
        "proxy_init": {"image": "proxyv2", "forceApplyIptables": False},
    },
    "pilot": {"cni": {"enabled": False, "provider": "default"}, "crlConfigMapName": "", "env": {}},
    "gateways": {"securityContext": {}},
    "sidecarInjectorWebhook": {"rewriteAppHTTPProbe": True},
    "revision": "",
}
#: Values that Istio's injector takes as they are. Of every other one it has the type, which is that of
#: the chart's own value: it reads them into the messages of operator/pkg/apis/values_types.proto.
_OF_ANY_TYPE = frozenset(
    {
        "global.proxy.capNetBindService",
        "global.proxy.seccompProfile",
        "global.proxy.lifecycle",
        "global.proxy_init.forceApplyIptables",
        "global.sds.token",
        "global.tag",
        "global.trustDomain",
        "gateways.securityContext",
        "pilot.crlConfigMapName",
        "pilot.env",
    }
)
_TRACERS = ("zipkin", "lightstep", "datadog", "stackdriver", "openCensusAgent", "none")
#: A number as Go reads one out of JSON, which may be in quotes.
_UINT32 = re.compile(r"[ \t\r\n]*(0|[1-9][0-9]{0,9})[ \t\r\n]*")
_MAX_UINT32 = 2**32 - 1
#: The mesh configuration without any.
MESH: dict[str, Any] = {
    "proxyListenPort": 15001,
    "proxyInboundListenPort": 15006,
    "enablePrometheusMerge": True,
    "trustDomain": "cluster.local",
    "extensionProviders": [],
    "defaultConfig": {
        "interceptionMode": "REDIRECT",
        "statusPort": 15020,
        "holdApplicationUntilProxyStarts": False,
        "proxyMetadata": {},
    },
}
#: ``helm get values`` without ``-o yaml`` begins with one of these, which YAML reads as a key.
_HEADINGS = ("USER-SUPPLIED VALUES", "COMPUTED VALUES")


class Found(NamedTuple):
    """A value, and where it is from as a reader would say it."""

    value: Any
    place: str

    @property
    def text(self) -> str:
        """The value as the template of the injector writes it."""
        return as_text(self.value)


class Installation(NamedTuple):
    """Helm values and mesh configuration, over the defaults of both."""

    values: dict[str, Any]
    mesh: dict[str, Any]
    #: The paths that were given, and where: ``value global.hub``, ``mesh proxyListenPort``.
    places: Mapping[str, str]

    def value(self, path: str) -> Found:
        """The Helm value at *path*; raises UsageProblems for a mapping or list where it has none."""
        return self._find(self.values, CHART, "value", path)

    def setting(self, path: str) -> Found:
        """The same of the mesh configuration."""
        return self._find(self.mesh, MESH, "mesh", path)

    def setting_of(self, path: str, key: str) -> Found:
        """One entry of a mapping of the mesh configuration; its name may have dots."""
        label = f"mesh {path}.{key}"
        return Found(self.setting(path).value[key], self.places.get(label, f"default of {label}"))

    def _find(self, tree: Any, defaults: Any, what: str, path: str) -> Found:  # noqa: ANN401 - of YAML
        keys = path.split(".")
        for number, key in enumerate(keys):
            if not isinstance(tree, dict | None):
                raise UsageProblems([f"{what} {'.'.join(keys[:number])}: is no mapping"])
            tree = tree.get(key) if tree else None
            defaults = defaults.get(key) if isinstance(defaults, dict) else None
        label = f"{what} {path}"
        if isinstance(defaults, dict):
            if not isinstance(tree, dict | None):
                raise UsageProblems([f"{label}: is no mapping"])
        elif isinstance(defaults, list):
            if not isinstance(tree, list | None):
                raise UsageProblems([f"{label}: is no list"])
        elif isinstance(tree, dict | list):
            raise UsageProblems([f"{label}: a mapping or a list can't be used"])
        place = self.places.get(label, f"default of {label}")
        if tree is None:
            # A mapping or a list is there unless it was taken away.
            tree = type(defaults)() if isinstance(defaults, dict | list) else defaults
        return Found(tree, place)

    def with_proxy_config(self, text: str, place: str) -> Installation:
        """Its defaultConfig under that of a pod's annotation; raises UsageProblems for a bad one."""
        documents = read_documents(text, place) or [{}]
        if not isinstance(documents[0], dict):
            raise UsageProblems([f"{place}: {excerpt(text)} is no mapping"])
        mine, problems = typed(documents[0])
        if problems:
            raise UsageProblems([f"{place}: {each}" for each in problems])
        mesh = {**self.mesh, "defaultConfig": merged(self.mesh["defaultConfig"], mine)}
        places = {f"mesh defaultConfig.{path}": f"{place}, {path}" for path in _paths(mine)}
        return self._replace(mesh=_checked(mesh, place), places={**self.places, **places})


def merged(below: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """*below* with what *over* gives; mappings are merged, and null gives nothing."""
    return _laid(below, _filled(over))


def _laid(below: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """*below* with *over* on it, nulls too."""
    found = dict(below)
    for key, value in over.items():
        under = found.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            value = _laid(under, value)  # noqa: PLW2901 - what is laid
        found[key] = value
    return found


def _filled(tree: Mapping[str, Any]) -> dict[str, Any]:
    """*tree* without its nulls."""
    return {
        key: _filled(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None
    }


def _paths(tree: Mapping[str, Any], before: str = "") -> Iterable[str]:
    for key, value in tree.items():
        path = f"{before}{as_text(key)}"
        if isinstance(value, dict):
            yield from _paths(value, f"{path}.")
        if value is not None:
            yield path


def read_installation(
    values: Sequence[tuple[str, str]],
    sets: Sequence[str],
    mesh: tuple[str, str] | None,
    texts: Sequence[str] = (),
) -> Installation:
    """The installation of Helm *values* and *mesh* (each a name and its text), and of ``--set`` texts.

    *texts* are those of ``--set-string``. Without *mesh* the chart makes the mesh configuration from the value ``meshConfig``. Raises
    UsageProblems for what can't be used.
    """
    given: dict[str, Any] = {}
    for name, text in values:
        given = _laid(given, _of_object(name, text, "values", "Helm values"))
    for text in sets:
        given = _laid(given, _set(text))
    for text in texts:
        given = _laid(given, _set(text, typed=False))
    for heading in _HEADINGS:
        given.pop(heading, None)
    own = given.get("meshConfig") or {}
    if mesh:
        own = _of_object(*mesh, "mesh", "mesh configuration")
    if not isinstance(own, dict):
        raise UsageProblems(["value meshConfig: is no mapping"])
    # The proxies' own part is looked for under the one name alone.
    own = {camel_case(key): value for key, value in own.items() if key != "default_config"}
    places = {f"value {path}": f"value {path}" for path in _paths(given)}
    places |= {f"mesh {path}": f"mesh {path}" for path in _paths(own)}
    # With `helm get values --all` the chart's own defaults are here.
    chart = given.get("_internal_defaults_do_not_set")
    # As with Helm, null takes away what is beneath.
    everything = _filled(_laid(_laid(CHART, chart if isinstance(chart, dict) else {}), given))
    for key in ("global", "pilot", "gateways", "sidecarInjectorWebhook"):
        if not isinstance(everything.get(key, {}), dict):
            raise UsageProblems([f"value {key}: is no mapping"])
    if problems := [*_mistyped(everything, CHART)]:
        raise UsageProblems(problems)
    return Installation(everything, _checked(merged(MESH, own), "mesh"), places)


def _mistyped(tree: Mapping[str, Any], types: Mapping[str, Any], before: str = "") -> Iterable[str]:
    """A line for each value that Istio's injector can't read into the type it has for it."""
    for key, value in tree.items():
        path = f"{before}{key}"
        if key not in types or path in _OF_ANY_TYPE or value is None:
            continue
        if path == "global.proxy.resources":
            yield from _mistyped_amounts(path, value)
        elif isinstance(types[key], dict):
            if isinstance(value, dict):
                yield from _mistyped(value, types[key], f"{path}.")
            else:
                yield f"value {path}: is no mapping"
        elif reason := _no_value(path, value, types[key]):
            shown = "" if isinstance(value, dict | list) else f" {excerpt(as_text(value))}"
            yield f"value {path}:{shown} {reason}"


def _mistyped_amounts(path: str, resources: Any) -> Iterable[str]:  # noqa: ANN401 - of YAML
    kinds = resources.items() if isinstance(resources, dict) else ()
    for kind, amounts in kinds:
        if kind not in {"limits", "requests"} or amounts is None:
            continue
        if not isinstance(amounts, dict):
            yield f"value {path}.{kind}: is no mapping"
            continue
        for name, amount in amounts.items():
            if amount is not None and not isinstance(amount, str):
                yield f"value {path}.{kind}.{as_text(name)}: {excerpt(as_text(amount))} {_NO_TEXT}"


_NO_TEXT = "is no text: put it in quotes (--set-string)"


def _no_value(path: str, value: Any, like: Any) -> str:  # noqa: ANN401 - of YAML
    """Why *value* is none where *like* is one; "" if it is."""
    if path == "global.proxy.tracer" and not isinstance(value, dict | list):
        known = value in _TRACERS if isinstance(value, bool | str) else True
        return "" if known else f"is none of {', '.join(_TRACERS)}"
    if isinstance(like, bool):
        return "" if isinstance(value, bool) else "is not true or false, without quotes"
    if isinstance(like, int):
        found = None if isinstance(value, bool) else _UINT32.fullmatch(as_text(value))
        good = found and int(found[1]) <= _MAX_UINT32
        return "" if good else f"is no number from 0 to {_MAX_UINT32}"
    if isinstance(like, list):
        texts = isinstance(value, list) and all(isinstance(each, str | None) for each in value)
        return "" if texts else "is no list of texts"
    return "" if isinstance(value, str) else _NO_TEXT


def _mapping(name: str, text: str) -> dict[str, Any]:
    documents = read_documents(text, name)
    if len(documents) > 1 or not all(isinstance(each, dict) for each in documents):
        raise UsageProblems([f"{name}: is no mapping of names to values"])
    return documents[0] if documents else {}


def _of_object(name: str, text: str, key: str, what: str) -> dict[str, Any]:
    """The mapping in *text*, which may be a ConfigMap that has it as text at *key* of its data."""
    found = _mapping(name, text)
    kind = found.get("kind")
    if kind != "ConfigMap":
        if kind is not None and "apiVersion" in found:
            raise UsageProblems([f"{name}: is a {as_text(kind)} of Kubernetes, and no {what}"])
        return found
    data = found.get("data")
    inner = data.get(key) if isinstance(data, dict) else None
    if not isinstance(inner, str):
        raise UsageProblems([f"{name}: the ConfigMap has no data.{key}"])
    return _mapping(f"{name}, data.{key}", inner)


def _checked(mesh: dict[str, Any], label: str) -> dict[str, Any]:
    """*mesh* with its ports as numbers and its mode as a name."""
    proxy = mesh["defaultConfig"]
    if not isinstance(proxy, dict) or not isinstance(proxy["proxyMetadata"], dict):
        raise UsageProblems([f"{label}: defaultConfig or its proxyMetadata is no mapping"])
    proxy, refused = typed(proxy)
    mesh, more = typed({**mesh, "defaultConfig": proxy}, MESH_FIELDS)
    problems = [f"{label}: {each}" for each in (*more, *refused)]
    problems += [
        f"{label}: proxyMetadata.{name}: {as_text(text)} is no text: put it in quotes"
        for name, text in proxy["proxyMetadata"].items()
        if not isinstance(text, str)
    ]
    if problems:
        raise UsageProblems(problems)
    return mesh


#: Up to a comma, or to the ``=`` or a dot of a path, that no backslash stands before.
_COMMA = re.compile(r"(?<!\\),")
_DOT = re.compile(r"(?<!\\)\.")
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None}
#: What Go's ParseInt takes, of what does not begin with a zero.
_NUMBER = re.compile(r"[-+][0-9]+|[1-9][0-9]*|0")
_INT64 = range(-(2**63), 2**63)
#: Of a number's digits: Python refuses thousands of them.
_LONGEST = 4000
#: As in Helm.
_DEEPEST = 30


def _set(text: str, *, typed: bool = True) -> dict[str, Any]:
    """The tree of a ``--set`` as Helm reads it: ``a.b=1,c=x``; lists are not read.

    Not *typed* it is one of ``--set-string``, whose values are texts.
    """
    option = "--set" if typed else "--set-string"
    found: dict[str, Any] = {}
    for each in _COMMA.split(text):
        path, equals, value = each.partition("=")
        if not equals or not path or value.startswith("{") or "[" in path:
            raise UsageProblems([f"{option}: {excerpt(each)} is not KEY=VALUE, with one value"])
        plain = value.replace("\\,", ",")
        # TRUE and False are constants too.
        tree: Any = _CONSTANTS.get(plain.casefold(), plain) if typed else plain
        if typed and _NUMBER.fullmatch(plain) and len(plain) <= _LONGEST and int(plain) in _INT64:
            tree = int(plain)
        keys = _DOT.split(path)
        if not all(keys):
            raise UsageProblems([f"{option}: {excerpt(each)} has a key without a name"])
        if len(keys) > _DEEPEST:
            raise UsageProblems([f"{option}: {excerpt(each)} is nested too deep"])
        for key in reversed(keys):
            tree = {key.replace("\\.", "."): tree}
        found = _laid(found, tree)
    return found
