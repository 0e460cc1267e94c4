"""What Istio's injector makes of a pod, as far as its init container goes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes import annotations as names
from istio_iptables.kubernetes.annotations import problems
from istio_iptables.kubernetes.manifest import as_text, mapping
from istio_iptables.kubernetes.merging import move, overlay
from istio_iptables.kubernetes.prometheus import prometheus_problem
from istio_iptables.kubernetes.quantity import canonical
from istio_iptables.kubernetes.template import (
    ARGUMENTS,
    CNI,
    INIT_CONTEXT,
    MODE,
    VALIDATION_CONTEXT,
    Argument,
)
from istio_iptables.kubernetes.values import MESH, Found

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from istio_iptables.kubernetes.manifest import Workload
    from istio_iptables.kubernetes.values import Installation

__all__ = ["INIT_NAMES", "PROXY", "InitContainer", "Injection", "reason_to_skip"]

PROXY = "istio-proxy"
INIT_NAMES = ("istio-init", "istio-validation")
_UID = "1337"
#: Envoy's own ports, which no pod leaves out of what is excluded.
_ENVOY_PORTS = "15090,15021"
_IGNORED_NAMESPACES = frozenset(
    {"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}
)
_TEMPLATES = frozenset({"sidecar", "gateway"})
_IMAGE_TYPES = ("distroless", "debug")


def reason_to_skip(workload: Workload) -> str:
    """Why Istio leaves a pod as it is; "" if it does not."""
    if workload.spec.get("hostNetwork"):
        return "it has host networking"
    namespace = as_text(workload.metadata.get("namespace"))
    if namespace in _IGNORED_NAMESPACES:
        return f"Istio leaves the namespace {namespace} alone"
    asked = workload.labels.get(names.INJECT, workload.annotations.get(names.INJECT, ""))
    return f"{names.INJECT} is false" if asked == "false" else ""


class InitContainer(NamedTuple):
    """The init container that injection adds."""

    name: str
    #: The words of each argument, and where its value is from.
    arguments: tuple[tuple[tuple[str, ...], str], ...]
    environment: tuple[tuple[str, Found], ...]
    image: str
    context: dict[str, Any]
    resources: dict[str, Any]
    pull_policy: str

    @property
    def manifest(self) -> dict[str, Any]:
        """The container as a manifest has it."""
        words = ["istio-iptables", *(word for words, _ in self.arguments for word in words)]
        found: dict[str, Any] = {"name": self.name, "image": self.image, "args": words}
        if self.pull_policy:
            found["imagePullPolicy"] = self.pull_policy
        if self.environment:
            found["env"] = [{"name": name, "value": each.text} for name, each in self.environment]
        return {**found, "resources": self.resources, "securityContext": self.context}


class Injection:
    """One pod under an installation's template; raises UsageProblems if Istio rejects the pod."""

    def __init__(
        self, workload: Workload, installation: Installation, *, native: bool, init_image: str = ""
    ) -> None:
        self._pod = workload
        self._init_image = init_image
        self._annotations = workload.annotations
        found = [*problems(self._annotations), *_template_problems(self._annotations)]
        # What the mesh says of every pod, which some decisions go by.
        self._installation = installation
        if names.PROXY_CONFIG in self._annotations:
            place = f"annotation {names.PROXY_CONFIG}"
            try:
                self._installation = installation.with_proxy_config(
                    self._annotations[names.PROXY_CONFIG], place
                )
            except UsageProblems as error:
                found += error.lines
        found += prometheus_problem(self._annotations, self._installation)
        if found:
            raise UsageProblems([f"{workload.title}: {line}" for line in found])
        #: What the template goes by: any text but "false" is a yes.
        asked = self._annotations.get(names.NATIVE_SIDECAR)
        self._native = asked != "false" if asked else native
        #: What moves a container istio-proxy of the pod's own.
        self._moves = {"true": True, "false": False}.get(asked or "", native)

    @property
    def reason_for_none(self) -> str:
        """Why injection adds no init container; "" if it does."""
        if not self._has_sidecar:
            return f"annotation {names.TEMPLATES} asks for another template than sidecar"
        mode = self._look(MODE)
        return f"the mode is NONE ({mode.place})" if mode.text == "NONE" else ""

    @property
    def _has_sidecar(self) -> bool:
        asked = self._annotations.get(names.TEMPLATES, "sidecar")
        return "sidecar" in {each.strip() for each in asked.split(",")}

    def init_container(self) -> InitContainer | None:
        """What injection adds; None if the mode NONE or a template without it says so."""
        if self.reason_for_none:
            return None
        installation = self._installation
        cni = bool(installation.value(CNI).value)
        privileged = installation.value("global.proxy.privileged").value
        context = {
            "allowPrivilegeEscalation": privileged,
            "privileged": privileged,
            **(VALIDATION_CONTEXT if cni else INIT_CONTEXT),
        }
        if profile := installation.value("global.proxy.seccompProfile").value:
            context["seccompProfile"] = profile
        mine = self._own_proxy_context()
        if cni and not self._any_tproxy:
            context |= {key: mine[key] for key in ("runAsUser", "runAsGroup") if key in mine}
        arguments = [found for each in ARGUMENTS if (found := self._argument(each)) is not None]
        return InitContainer(
            INIT_NAMES[cni],
            tuple(arguments),
            self._environment(),
            self._init_image or self._image("global.proxy_init.image"),
            context,
            self._resources(),
            installation.value("global.imagePullPolicy").text,
        )

    @property
    def _any_tproxy(self) -> bool:
        asked = self._installation.setting("defaultConfig.interceptionMode").value
        return "TPROXY" in {asked, self._annotations.get(names.MODE)}

    def _own_proxy_context(self) -> dict[str, Any]:
        """The user and group of a container istio-proxy that the pod brings along."""
        for key in ("containers", "initContainers"):
            for each in self._pod.containers(key):
                if each["name"] == PROXY:
                    context = each.get("securityContext") or {}
                    return {
                        name: context[name]
                        for name in ("runAsUser", "runAsGroup")
                        if isinstance(context, dict) and isinstance(context.get(name), int)
                    }
        return {}

    def _look(self, argument: Argument) -> Found:
        for name in argument.annotations:
            if name in self._annotations:
                return Found(self._annotations[name], f"annotation {name}")
        if argument.mesh:
            found = self._installation.setting(argument.mesh)
            # A port that is 0 is none, for the template.
            return found if found.value else found._replace(value=MESH[argument.mesh])
        return self._installation.value(argument.value) if argument.value else Found("", "")

    def _argument(self, argument: Argument) -> tuple[tuple[str, ...], str] | None:
        found = self._look(argument)
        if argument.option == "-u":
            found = self._uid()
        elif argument.option == "-d":
            found = self._excluded(found)
        if argument.unless and self._installation.value(argument.unless).value:
            return None
        if argument.switch:
            return ((argument.option,), found.place) if found.value else None
        if argument.optional and not found.text and not found.place.startswith("annotation "):
            return None
        if argument.option.endswith("="):
            return (f"{argument.option}{found.text}",), found.place
        return (argument.option, found.text), found.place

    def _uid(self) -> Found:
        mine = self._own_proxy_context().get("runAsUser")
        if mine:
            return Found(mine, f"securityContext.runAsUser of {PROXY}")
        return Found(_UID, "Istio's template")

    def _excluded(self, listed: Found) -> Found:
        status = self._look(Argument("", (names.STATUS_PORT,), "global.proxy.statusPort"))
        ports = _with_port(listed.text, status.text.strip())
        places = [listed.place] if listed.text else []
        if ports != listed.text:
            places.append(status.place)
        return Found(
            f"{_ENVOY_PORTS},{ports}" if ports else _ENVOY_PORTS,
            ", ".join(["Istio's template", *places]),
        )

    def _environment(self) -> tuple[tuple[str, Found], ...]:
        metadata = self._installation.setting("defaultConfig.proxyMetadata").value
        return tuple(
            (name, self._installation.setting_of("defaultConfig.proxyMetadata", name))
            for name in sorted(metadata)
        )

    def _image(self, path: str) -> str:
        value = self._installation.value
        named = self._annotations.get(names.PROXY_IMAGE, value(path).text)
        if "/" in named:
            return named
        tag = value("global.tag").text
        kind = self._annotations.get(names.IMAGE_TYPE, value("global.variant").text)
        if kind:
            for each in _IMAGE_TYPES:
                if tag.endswith(f"-{each}"):
                    tag = tag.removesuffix(f"-{each}")
                    break
            tag = tag if kind == "default" else f"{tag}-{kind}"
        return f"{value('global.hub').text}/{value(path).text or 'proxyv2'}:{tag}"

    def _resources(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, (kind, of) in names.RESOURCES.items():
            if name in self._annotations:
                found.setdefault(kind, {})[of] = canonical(self._annotations[name])
        if found:
            return found
        given = self._installation.value("global.proxy.resources").value
        return {
            kind: {
                of: canonical(Found(amount, "").text) or amount
                for of, amount in amounts.items()
                if amount is not None
            }
            if isinstance(amounts, dict)
            else amounts
            for kind, amounts in given.items()
        }

    def inject(self, revision: str) -> None:
        """Change the pod in its document as Istio does; istio-proxy gets its name and image only."""
        pod, init = self._pod, self.init_container()
        mapping(pod.metadata, "annotations", "annotations")[names.REVISION] = revision
        native = self._native and self._has_sidecar
        proxy: dict[str, Any] = {"name": PROXY, "image": self._image("global.proxy.image")}
        if native:
            proxy["restartPolicy"] = "Always"
        template = {
            "initContainers": [*([init.manifest] if init else []), *([proxy] if native else [])],
            "containers": [] if native else [proxy],
        }
        own = {key: list(pod.containers(key)) for key in template}
        theirs = {key: list(each) for key, each in own.items()}
        if native and self._moves:
            theirs["initContainers"] += [
                each for each in theirs["containers"] if each["name"] == PROXY
            ]
            theirs["containers"] = [each for each in theirs["containers"] if each["name"] != PROXY]
        before = _injected_before(self._annotations)
        for key, added in template.items():
            where = [key] if key == "containers" else ["initContainers", "containers"]
            for each in added:
                overlay(theirs[key], each)
                mine = next((c for k in where for c in own[k] if c["name"] == each["name"]), None)
                if mine is not None and each["name"] not in before[key]:
                    # What the pod says of the container itself stands, but for an image "auto".
                    auto = mine.get("image") == "auto"
                    overlay(
                        theirs[key], {k: v for k, v in mine.items() if k != "image" or not auto}
                    )
        self._put_uid(theirs["initContainers"])
        self._order(theirs)
        pod.spec.update({key: each for key, each in theirs.items() if each or key in pod.spec})

    def _put_uid(self, containers: list[dict[str, Any]]) -> None:
        """The user of the pod's own istio-proxy into an init container that the pod has as well."""
        uid = self._own_proxy_context().get("runAsUser")
        init = next((each for each in containers if each["name"] in INIT_NAMES), None)
        words = init.get("args") if init else None
        if uid and isinstance(words, list) and "-u" in words[:-1]:
            at = words.index("-u")
            words[at + 1 : at + 2] = [str(uid)]

    def _order(self, theirs: dict[str, list[dict[str, Any]]]) -> None:
        hold = bool(
            self._installation.setting("defaultConfig.holdApplicationUntilProxyStarts").value
            or self._installation.value("global.proxy.holdApplicationUntilProxyStarts").value
        )
        move(theirs["containers"], PROXY, first=hold)
        init = theirs["initContainers"]
        if any(each["name"] == PROXY for each in init):
            for name in ("enable-core-dump", PROXY, "istio-validation", "istio-init"):
                move(init, name, first=True)
        else:
            move(init, "istio-validation", first=True)
            move(init, "istio-init", first=False)
            move(init, "enable-core-dump", first=False)


def _with_port(ports: str, port: str) -> str:
    """*ports* with *port* at the end, as the template's excludeInboundPort has it."""
    items = ports.split(",")
    if port in {"", "0"} or port in items:
        return ports
    return ",".join([*(item.strip() for item in items if item.strip()), port])


def _template_problems(annotations: Mapping[str, str]) -> list[str]:
    asked = annotations.get(names.TEMPLATES, "sidecar").split(",")
    return [
        f"annotation {names.TEMPLATES}: template {each.strip()!r} is not known here"
        for each in asked
        if each.strip() not in _TEMPLATES
    ]


def _injected_before(annotations: Mapping[str, str]) -> dict[str, Sequence[str]]:
    """The containers that an earlier injection added, which are no wishes of the pod's own."""
    try:
        found = json.loads(annotations.get(names.STATUS, "{}"))
    except (ValueError, RecursionError):
        found = {}
    found = found if isinstance(found, dict) else {}
    listed = {key: found.get(key) for key in ("containers", "initContainers")}
    return {key: each if isinstance(each, list) else () for key, each in listed.items()}
