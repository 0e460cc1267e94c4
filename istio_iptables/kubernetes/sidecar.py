"""``inject``: a pod with the templates of its injection laid over it, as Istio's injector does it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes import annotations as names
from istio_iptables.kubernetes.filling import fill, template
from istio_iptables.kubernetes.gojson import compact, go_json
from istio_iptables.kubernetes.injection import INIT_NAMES, PROXY
from istio_iptables.kubernetes.manifest import as_text, mapping
from istio_iptables.kubernetes.marks import Marks
from istio_iptables.kubernetes.merging import find, merge, move, overlay
from istio_iptables.kubernetes.probes import APP_PROBERS, known_probers, redirect_probes
from istio_iptables.kubernetes.prometheus import SCRAPE_CONFIG, add_secure_port, merge_metrics
from istio_iptables.kubernetes.typed import EMPTY_STATUS, typed_container, typed_spec
from istio_iptables.settings.converters import FALSE, TRUE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_iptables.kubernetes.injection import Injection

__all__ = ["inject"]

_LISTS = ("containers", "initContainers")
_NETWORK = "topology.istio.io/network"
_CLUSTER_ID, _NETWORK_ID = "ISTIO_META_CLUSTER_ID", "ISTIO_META_NETWORK"


def inject(injection: Injection, revision: str, variables: Mapping[str, str] | None = None) -> None:
    """Change the pod of *injection* in its document; raises UsageProblems if it can't be done.

    *variables* are those that the path of a webhook has for istio-proxy.
    """
    pod = injection.pod
    own = {
        key: [typed_container(each, pod.title) for each in pod.containers(key)] for key in _LISTS
    }
    before = _listed(injection, names.STATUS)
    kept = _listed(injection, names.OVERRIDES)
    # Without what an earlier injection added, but with what it was added to.
    apps = [each for each in own["containers"] if each["name"] not in before["containers"]]
    apps += [each for each in kept["containers"] if not find(apps, each["name"])]
    metadata = {key: each for key in ("annotations", "labels") if (each := getattr(pod, key))}
    merged = {
        "metadata": metadata,
        "spec": {**typed_spec(pod.spec, pod.title), **own},
    }
    added: dict[str, Any] = {}
    marks = Marks(injection, apps, revision)
    for name in injection.templates:
        layer = _layer(name, marks)
        added = merge(added, layer)
        if injection.moves and find(added["spec"].get("initContainers", []), PROXY):
            _move_proxy(merged["spec"])
        merged = merge(merged, layer)
    spec = merged["spec"]
    overrides = _put_own_back(spec, added["spec"], own, before, kept)
    annotations, labels = (
        merged["metadata"]["annotations"],
        merged["metadata"].setdefault("labels", {}),
    )
    if overrides and names.STATUS not in annotations:
        annotations[names.OVERRIDES] = go_json(overrides)
    _put_user(injection, spec)
    proxy = find([*spec["containers"], *spec.get("initContainers", [])], PROXY)
    if proxy is not None:
        _put_variables(injection, proxy, variables or {}, merged["metadata"], spec)
    annotations[names.STATUS] = _status(added["spec"], revision)
    _order(injection, spec)
    pod.metadata.update(annotations=annotations, labels=labels)
    pod.holder["metadata"] = pod.metadata
    pod.spec.update(spec)
    if empty := EMPTY_STATUS.get(pod.kind):
        pod.document["status"] = {
            **empty,
            **mapping(pod.document, "status", f"{pod.title}: status"),
        }
    if not pod.spec.get("initContainers"):
        pod.spec.pop("initContainers", None)


def _layer(name: str, marks: Marks) -> dict[str, Any]:
    """The template *name* filled in."""
    parts = template(name)

    def look(mark: str) -> Any:  # noqa: ANN401 - of YAML
        return fill(parts["proxy"], marks.look) if mark == "proxy" else marks.look(mark)

    return {key: fill(parts[key], look) for key in ("metadata", "spec")}


def _listed(injection: Injection, annotation: str) -> dict[str, list[Any]]:
    """The containers in the JSON of an annotation, by lists; none of what is not readable."""
    try:
        found = json.loads(injection.annotations.get(annotation, "{}"))
    except (ValueError, RecursionError) as error:
        if annotation == names.OVERRIDES:
            title = injection.pod.title
            raise UsageProblems([f"{title}: annotation {annotation} is no JSON"]) from error
        found = {}
    found = found if isinstance(found, dict) else {}
    listed = {key: found.get(key) for key in _LISTS}
    lists = {key: each if isinstance(each, list) else [] for key, each in listed.items()}
    if annotation == names.OVERRIDES:
        return {
            key: [c for c in each if isinstance(c, dict) and isinstance(c.get("name"), str)]
            for key, each in lists.items()
        }
    return lists


def _move_proxy(spec: dict[str, Any]) -> None:
    """A container istio-proxy of the pod's own goes where the template has it."""
    mine = find(spec["containers"], PROXY)
    if mine is not None:
        spec["containers"] = [each for each in spec["containers"] if each is not mine]
        spec["initContainers"] = [*spec.get("initContainers", []), mine]


def _put_own_back(
    spec: dict[str, Any],
    added: dict[str, Any],
    own: dict[str, list[dict[str, Any]]],
    before: dict[str, list[Any]],
    kept: dict[str, list[dict[str, Any]]],
) -> dict[str, list[dict[str, Any]]]:
    """What the pod says itself of an added container stands, but for an image "auto"."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key in _LISTS:
        for each in added.get(key, []):
            name = each["name"]
            mine = find(kept[key], name) or find(own["containers"], name)
            if mine is None and key == "initContainers":
                mine = find(own[key], name)
            if mine is None or name in before[key]:
                continue
            auto = mine.get("image") == "auto"
            wish = {k: v for k, v in mine.items() if k != "image" or not auto}
            found.setdefault(key, []).append({**wish, "resources": wish.get("resources") or {}})
            spec[key] = overlay(spec[key], wish)
    return found


def _put_user(injection: Injection, spec: dict[str, Any]) -> None:
    """The user of the pod's own istio-proxy for the init container; with TPROXY it runs as root."""
    uid = injection.own_proxy_context().get("runAsUser")
    containers = spec.get("initContainers", [])
    init = next((find(containers, name) for name in INIT_NAMES if find(containers, name)), None)
    if uid is None or init is None:
        return
    for key in _LISTS if injection.any_tproxy else ():
        spec[key] = [
            merge(each, {"securityContext": {"runAsUser": 0}}) if each["name"] == PROXY else each
            for each in spec.get(key, [])
        ]
    words = init.get("args")
    if uid and isinstance(words, list) and "-u" in words[:-1]:
        at = words.index("-u") + 1
        args = [*words[:at], str(uid), *words[at + 1 :]]
        spec["initContainers"] = [
            {**each, "args": args} if each["name"] == init["name"] else each
            for each in spec["initContainers"]
        ]


def _put_variables(
    injection: Injection,
    proxy: dict[str, Any],
    variables: Mapping[str, str],
    metadata: dict[str, dict[str, str]],
    spec: dict[str, Any],
) -> None:
    """What istio-proxy is told beyond the template, and what follows from it for the pod."""
    value = injection.installation.value
    annotations, labels = metadata["annotations"], metadata["labels"]
    cluster = variables.get(_CLUSTER_ID) or value("global.multiCluster.clusterName").text
    network = variables.get(_NETWORK_ID) or value("global.network").text
    network = labels.get(_NETWORK, network)
    given = {_CLUSTER_ID: cluster, _NETWORK_ID: network}
    last = {**variables, **{name: text for name, text in given.items() if text}}
    environment = [each for each in proxy.get("env", []) if each["name"] not in last]
    environment += [{"name": name, "value": last[name]} for name in sorted(last)]
    if network:
        labels[_NETWORK] = network
    if told := merge_metrics(annotations, injection.installation):
        environment.append({"name": SCRAPE_CONFIG, "value": told})
    add_secure_port(annotations, environment)
    if _rewrites(injection):
        _rewrite_probes(injection, annotations, environment, spec)
    for key in _LISTS:
        if key in spec:
            spec[key] = [
                {**each, "env": environment} if each["name"] == PROXY else each
                for each in spec[key]
            ]


def _rewrites(injection: Injection) -> bool:
    asked = injection.annotations.get(names.REWRITE_PROBES, "")
    if asked in TRUE or asked in FALSE:
        return asked in TRUE
    return bool(injection.installation.value("sidecarInjectorWebhook.rewriteAppHTTPProbe").value)


def _rewrite_probes(
    injection: Injection,
    annotations: dict[str, str],
    environment: list[dict[str, Any]],
    spec: dict[str, Any],
) -> None:
    agent = injection.installation.setting("defaultConfig.statusPort").value
    apps = [
        each
        for key in ("initContainers", "containers")
        for each in spec.get(key, [])
        if each["name"] != PROXY
    ]
    earlier = find(environment, APP_PROBERS) if names.STATUS in annotations else None
    told = known_probers(apps, agent, as_text(earlier.get("value")) if earlier else "")
    if told and earlier is not None:
        environment[environment.index(earlier)] = {"name": APP_PROBERS, "value": told}
    elif told:
        environment.append({"name": APP_PROBERS, "value": told})
    asked = injection.annotations.get(names.STATUS_PORT)
    port = agent
    if asked is not None:
        # Go's Atoi takes no blanks, and its failure leaves 0; lint tells of it.
        port = int(asked) if asked.isdecimal() else 0
    for key in _LISTS:
        if key in spec:
            spec[key] = [
                each if each["name"] == PROXY else redirect_probes(each, port) for each in spec[key]
            ]


def _status(added: dict[str, Any], revision: str) -> str:
    """What was added, for a later injection to know."""
    keys = ("initContainers", "containers", "volumes", "imagePullSecrets")
    found: dict[str, Any] = {
        key: [each["name"] for each in added.get(key, [])] or None for key in keys
    }
    return compact({**found, "revision": revision})


def _order(injection: Injection, spec: dict[str, Any]) -> None:
    move(spec["containers"], PROXY, first=injection.holds)
    init = spec.setdefault("initContainers", [])
    if find(init, PROXY):
        for name in ("enable-core-dump", PROXY, "istio-validation", "istio-init"):
            move(init, name, first=True)
    else:
        move(init, "istio-validation", first=True)
        move(init, "istio-init", first=False)
        move(init, "enable-core-dump", first=False)
