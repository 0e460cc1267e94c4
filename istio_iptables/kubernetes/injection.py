"""What an installation of Istio decides about a pod, and the init container that it adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes import annotations as names
from istio_iptables.kubernetes.annotations import problems
from istio_iptables.kubernetes.manifest import as_text
from istio_iptables.kubernetes.merging import find
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
from istio_iptables.kubernetes.yamlnodes import between_quotes
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_iptables.kubernetes.manifest import Workload
    from istio_iptables.kubernetes.values import Installation

__all__ = [
    "INIT_NAMES",
    "PROXY",
    "PROXY_IMAGE",
    "InitContainer",
    "Injection",
    "RunAs",
    "reason_to_skip",
    "variables",
]

PROXY = "istio-proxy"
#: The value with the name of its image.
PROXY_IMAGE = "global.proxy.image"
INIT_NAMES = ("istio-init", "istio-validation")
_UID = "1337"
#: Envoy's own ports, which no pod leaves out of what is excluded.
_ENVOY_PORTS = "15090,15021"
_IGNORED_NAMESPACES = frozenset(
    {"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}
)
_TEMPLATES = frozenset({"sidecar", "gateway"})
_CAP_NET_BIND = "sidecar.istio.io/capNetBindService"
_STATUS = Argument("", (names.STATUS_PORT,), "global.proxy.statusPort")
_IMAGE_TYPES = ("distroless", "debug")


class RunAs(NamedTuple):
    """A user and a group; None for what a manifest does not tell."""

    uid: int | None = None
    gid: int | None = None


def reason_to_skip(workload: Workload) -> str:
    """Why Istio leaves a pod as it is; "" if it does not."""
    if workload.spec.get("hostNetwork"):
        return "it has host networking"
    namespace = as_text(workload.metadata.get("namespace"))
    if namespace in _IGNORED_NAMESPACES:
        return f"Istio leaves the namespace {namespace} alone"
    asked = workload.labels.get(names.INJECT, workload.annotations.get(names.INJECT, ""))
    return f"{names.INJECT} is false" if asked == "false" else ""


def variables(environment: tuple[tuple[str, Found], ...]) -> list[dict[str, str]]:
    """The list of a container's env; an empty text is left out of it."""
    return [
        {"name": name, "value": each.text} if each.text else {"name": name}
        for name, each in environment
    ]


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
            found["env"] = variables(self.environment)
        return {**found, "resources": self.resources, "securityContext": self.context}


class Injection:
    """One pod under an installation's template; raises UsageProblems if Istio rejects the pod."""

    def __init__(
        self, workload: Workload, installation: Installation, *, native: bool, init_image: str = ""
    ) -> None:
        self.pod = workload
        self._init_image = init_image
        self.annotations = workload.annotations
        found = [*problems(self.annotations), *_template_problems(self.annotations)]
        # What the mesh says of every pod, which some decisions go by.
        self.installation = installation
        if names.PROXY_CONFIG in self.annotations:
            place = f"annotation {names.PROXY_CONFIG}"
            try:
                self.installation = installation.with_proxy_config(
                    self.annotations[names.PROXY_CONFIG], place
                )
            except UsageProblems as error:
                found += error.lines
        found += prometheus_problem(self.annotations, self.installation)
        try:
            self.annotations |= {
                name: between_quotes(self.annotations[name], f"annotation {name}")
                for name in names.TRAFFIC
                if name in self.annotations
            }
            self.environment()
            if not found and not self.reason_for_none:
                # What can't stand in the template is refused there.
                for each in ARGUMENTS:
                    self.look_up(each)
        except UsageProblems as error:
            found += error.lines
        if found:
            raise UsageProblems([f"{workload.title}: {line}" for line in found])
        #: What the template goes by: any text but "false" is a yes.
        asked = self.annotations.get(names.NATIVE_SIDECAR)
        self.native = asked != "false" if asked else native
        #: What moves a container istio-proxy of the pod's own.
        self.moves = {"true": True, "false": False}.get(asked or "", native)

    @property
    def reason_for_none(self) -> str:
        """Why injection adds no init container; "" if it does."""
        if "sidecar" not in self.templates:
            return f"annotation {names.TEMPLATES} asks for another template than sidecar"
        mode = self.look_up(MODE)
        return f"the mode is NONE ({mode.place})" if mode.text == "NONE" else ""

    @property
    def templates(self) -> list[str]:
        """The templates that the pod asks for, in their order."""
        asked = self.annotations.get(names.TEMPLATES, "sidecar")
        return [each.strip() for each in asked.split(",")]

    def init_container(self) -> InitContainer | None:
        """What injection adds; None if the mode NONE or a template without it says so."""
        if self.reason_for_none:
            return None
        installation = self.installation
        cni = bool(installation.value(CNI).value)
        privileged = installation.value("global.proxy.privileged").value
        context = {
            "allowPrivilegeEscalation": privileged,
            "privileged": privileged,
            **(VALIDATION_CONTEXT if cni else INIT_CONTEXT),
        }
        if profile := installation.value("global.proxy.seccompProfile").value:
            context["seccompProfile"] = profile
        mine = self.own_proxy_context()
        if cni and not self.any_tproxy:
            context |= {key: mine[key] for key in ("runAsUser", "runAsGroup") if key in mine}
        arguments = [found for each in ARGUMENTS if (found := self._argument(each)) is not None]
        return InitContainer(
            INIT_NAMES[cni],
            tuple(arguments),
            self.environment(),
            self._init_image or self.image("global.proxy_init.image"),
            context,
            self.resources(),
            installation.value("global.imagePullPolicy").text,
        )

    @property
    def runs_as_root(self) -> bool:
        """Whether the template has istio-proxy run as root."""
        default = self.installation.value("global.proxy.capNetBindService").text
        bind = self.annotations.get(_CAP_NET_BIND, default)
        return bind == "true" or self.look_up(MODE).text == "TPROXY"

    @property
    def proxy_owner(self) -> RunAs:
        """Whom istio-proxy will run as."""
        mine = self.own_proxy_context()
        metadata = self.installation.setting("defaultConfig.proxyMetadata").value
        traced = metadata.get("IPTABLES_TRACE_LOGGING") == "true"
        uid = mine.get("runAsUser", 0 if self.runs_as_root or traced else int(_UID))
        if "runAsUser" in mine and self.any_tproxy:
            uid = 0
        return RunAs(uid, mine.get("runAsGroup", int(_UID)))

    @property
    def any_tproxy(self) -> bool:
        """Whether the mesh or the pod asks for TPROXY, whichever is obeyed."""
        asked = self.installation.setting("defaultConfig.interceptionMode").value
        return "TPROXY" in {asked, self.annotations.get(names.MODE)}

    def own_proxy_context(self) -> dict[str, Any]:
        """The user and group of a container istio-proxy that the pod brings along."""
        mine = find(
            self.pod.containers("containers") + self.pod.containers("initContainers"), PROXY
        )
        context = mine.get("securityContext") if mine else None
        if not isinstance(context, dict):
            return {}
        asked = {name: context.get(name) for name in ("runAsUser", "runAsGroup")}
        return {name: each for name, each in asked.items() if isinstance(each, int)}

    @property
    def holds(self) -> bool:
        """Whether istio-proxy starts before the application."""
        found = self.installation
        return bool(
            found.setting("defaultConfig.holdApplicationUntilProxyStarts").value
            or found.value("global.proxy.holdApplicationUntilProxyStarts").value
        )

    def look_up(self, argument: Argument) -> Found:
        """Where the row of the template is looked for, what it gives and from where."""
        for name in argument.annotations:
            if name in self.annotations:
                return Found(self.annotations[name], f"annotation {name}")
        if argument.mesh:
            found = self.installation.setting(argument.mesh)
            # A port that is 0 is none, for the template.
            return found if found.value else found._replace(value=MESH[argument.mesh])
        if not argument.value:
            return Found("", "")
        found = self.installation.value(argument.value)
        if argument.annotations[:1] and argument.annotations[0] in names.TRAFFIC:
            found = found._replace(value=between_quotes(found.text, found.place))
        return found

    def _argument(self, argument: Argument) -> tuple[tuple[str, ...], str] | None:
        found = self.look_up(argument)
        if argument.option == "-u":
            found = self._uid()
        elif argument.option == "-d":
            found = self._excluded()
        if argument.unless and self.installation.value(argument.unless).value:
            return None
        if argument.switch:
            return ((argument.option,), found.place) if found.value else None
        if argument.optional and not found.text and not found.place.startswith("annotation "):
            return None
        if argument.option.endswith("="):
            return (f"{argument.option}{found.text}",), found.place
        return (argument.option, found.text), found.place

    def _uid(self) -> Found:
        mine = self.own_proxy_context().get("runAsUser")
        if mine:
            return Found(mine, f"securityContext.runAsUser of {PROXY}")
        return Found(_UID, "Istio's template")

    def _excluded(self) -> Found:
        ports = self.excluded_inbound_ports
        return Found(
            f"{_ENVOY_PORTS},{ports.text}" if ports.text else _ENVOY_PORTS,
            ", ".join(["Istio's template", *([ports.place] if ports.place else [])]),
        )

    @property
    def status_port(self) -> str:
        """The port of the agent as the template writes it."""
        return self.look_up(_STATUS).text

    @property
    def excluded_inbound_ports(self) -> Found:
        """What Istio's CNI plugin is told not to capture: as in -d, without Envoy's own ports."""
        listed = self.look_up(next(each for each in ARGUMENTS if each.option == "-d"))
        status = self.look_up(_STATUS)
        ports = _with_port(listed.text, status.text.strip())
        places = [listed.place] if listed.text else []
        if ports != listed.text:
            places.append(status.place)
        return Found(ports, ", ".join(places))

    def environment(self) -> tuple[tuple[str, Found], ...]:
        """The variables that both containers get from proxyMetadata."""
        metadata = self.installation.setting("defaultConfig.proxyMetadata").value
        found = {
            name: self.installation.setting_of("defaultConfig.proxyMetadata", name)
            for name in sorted(metadata)
        }
        return tuple(
            (name, each._replace(value=between_quotes(each.text, each.place)))
            for name, each in found.items()
        )

    def image(self, path: str) -> str:
        """The image that the value at *path* names, or the annotation."""
        value = self.installation.value
        named = self.annotations.get(names.PROXY_IMAGE, value(path).text)
        if "/" in named:
            return named
        tag = value("global.tag").text
        kind = value("global.variant").text
        if path == PROXY_IMAGE:
            kind = self.installation.setting("defaultConfig.image.imageType").text or kind
        kind = self.annotations.get(names.IMAGE_TYPE, kind)
        if kind:
            for each in _IMAGE_TYPES:
                if tag.endswith(f"-{each}"):
                    tag = tag.removesuffix(f"-{each}")
                    break
            tag = tag if kind == "default" else f"{tag}-{kind}"
        return f"{value('global.hub').text}/{value(path).text or 'proxyv2'}:{tag}"

    def resources(self) -> dict[str, Any]:
        """Requests and limits, which both containers have."""
        found: dict[str, Any] = {}
        for name, (kind, of) in names.RESOURCES.items():
            if name in self.annotations:
                found.setdefault(kind, {})[of] = canonical(self.annotations[name])
        if found:
            return found
        given = self.installation.value("global.proxy.resources").value
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


def _with_port(ports: str, port: str) -> str:
    """*ports* with *port* at the end, as the template's excludeInboundPort has it."""
    items = ports.split(",")
    if port in {"", "0"} or port in items:
        return ports
    return ",".join([*(item.strip() for item in items if item.strip()), port])


def _template_problems(annotations: Mapping[str, str]) -> list[str]:
    asked = annotations.get(names.TEMPLATES, "sidecar").split(",")
    return [
        f"annotation {names.TEMPLATES}: template {excerpt(each.strip())} is not known here"
        for each in asked
        if each.strip() not in _TEMPLATES
    ]
