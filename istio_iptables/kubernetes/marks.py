"""What the marks of a template stand for, for one pod."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes.gojson import compact, go_json
from istio_iptables.kubernetes.injection import PROXY, PROXY_IMAGE, variables
from istio_iptables.kubernetes.manifest import as_text
from istio_iptables.kubernetes.multus import with_network
from istio_iptables.kubernetes.opentelemetry import resource_attributes
from istio_iptables.kubernetes.owner import owner_of
from istio_iptables.kubernetes.proxyconfig import proxy_config
from istio_iptables.kubernetes.template import MODE

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_iptables.kubernetes.injection import Injection

__all__ = ["Marks"]

_LONGEST_LABEL = 63
_CANONICAL = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_USER_VOLUMES = "sidecar.istio.io/userVolume"
_USER_MOUNTS = "sidecar.istio.io/userVolumeMount"
_DATADOG = "apm.datadoghq.com/env"
_NETWORKS = "k8s.v1.cni.cncf.io/networks"


class Marks:
    """Looks up the marks for the pod of *injection*.

    *containers* are the pod's own, those that an earlier injection added left out.
    """

    def __init__(
        self, injection: Injection, containers: list[dict[str, Any]], revision: str
    ) -> None:
        self._injection = injection
        self._containers = containers
        self._revision = revision
        self._apps = [each["name"] for each in containers if each["name"] != PROXY]
        self._owner = owner_of(injection.pod)
        self._labels = injection.pod.labels
        self._computed: dict[str, Callable[[], Any]] = {
            "revision": lambda: self._revision,
            "canonical name": lambda: self._canonical_name()[:_LONGEST_LABEL].strip("-_."),
            "uncut canonical name": self._canonical_name,
            "first container": lambda: self._apps[0] if self._apps else None,
            "app containers": lambda: ",".join(self._apps),
            "pod ports": self._pod_ports,
            "workload name": lambda: self._owner.name,
            "owner": lambda: self._owner.address,
            "mode": lambda: injection.look_up(MODE).text,
            "native": lambda: injection.native,
            "runs as root": lambda: injection.runs_as_root,
            "holds the application": lambda: injection.holds and not injection.native,
            "status port": lambda: injection.status_port if injection.status_port != "0" else None,
            "excluded inbound ports": lambda: injection.excluded_inbound_ports.text,
            "init container": self._init_container,
            "proxy image": lambda: injection.image(PROXY_IMAGE),
            "proxy config": lambda: f"{proxy_config(injection.installation)}\n",
            "resources": injection.resources,
            "variables of proxyMetadata": lambda: variables(injection.environment()),
            "datadog environment": self._datadog,
            "opentelemetry attributes": lambda: resource_attributes(
                injection, self._owner.namespace, containers
            ),
            "multus networks": lambda: with_network(injection.annotations.get(_NETWORKS, "")),
            "service account": lambda: injection.pod.spec.get("serviceAccountName") or "default",
            "user volumes": lambda: self._user_items(_USER_VOLUMES),
            "user volume mounts": lambda: self._user_items(_USER_MOUNTS),
            "tracing certificates": self._tracing_certificates,
            "image pull secrets": self._pull_secrets,
        }

    def look(self, name: str) -> Any:  # noqa: ANN401 - of YAML
        """What *name* stands for; None for nothing."""
        kind, _, rest = name.partition(" ")
        installation = self._injection.installation
        if kind == "annotation":
            return self._injection.annotations.get(rest)
        if kind == "label":
            return self._labels.get(rest)
        if kind == "value":
            return installation.value(rest).value
        if kind == "mesh":
            return installation.setting(rest).value
        if kind == "metadata":
            return installation.setting("defaultConfig.proxyMetadata").value.get(rest)
        return self._computed[name]()

    def _canonical_name(self) -> str:
        found = (self._labels.get(each) for each in _CANONICAL)
        return next((each for each in found if each), self._owner.name)

    def _pod_ports(self) -> str:
        ports = [go_json(port) for each in self._containers for port in each.get("ports") or []]
        lines = [f"\n    {',' * bool(number)}{port}" for number, port in enumerate(ports)]
        return f"[{''.join(lines)}\n]"

    def _init_container(self) -> dict[str, Any] | None:
        init = self._injection.init_container()
        return init.manifest if init else None

    def _datadog(self) -> list[dict[str, Any]]:
        found = self._json(_DATADOG, {})
        if not isinstance(found, dict):
            return []
        return [{"name": name, "value": as_text(found[name])} for name in sorted(found)]

    def _user_items(self, annotation: str) -> list[dict[str, Any]]:
        """A list of mappings with names, or a mapping of names to the rest of them."""
        found = self._json(annotation, [])
        if isinstance(found, dict):
            found = [
                {"name": name, **found[name]}
                for name in sorted(found)
                if isinstance(found[name], dict)
            ]
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            title = self._injection.pod.title
            raise UsageProblems([f"{title}: annotation {annotation} is no list of items"])
        # The template names an item by its place, until it has a name itself.
        return [{"name": str(place), **each} for place, each in enumerate(found)]

    def _json(self, annotation: str, nothing: Any) -> Any:  # noqa: ANN401 - of JSON
        try:
            return json.loads(self._injection.annotations.get(annotation, compact(nothing)))
        except (ValueError, RecursionError) as error:
            title = self._injection.pod.title
            raise UsageProblems([f"{title}: annotation {annotation} is no JSON"]) from error

    def _tracing_certificates(self) -> str | None:
        """The folder of the certificate that a tracer is checked with."""
        proxy = self._injection.installation.mesh["defaultConfig"]
        for key in ("tracing", "tlsSettings"):
            proxy = proxy.get(key) if isinstance(proxy, dict) else None
        if not isinstance(proxy, dict):
            return None
        folder, slash, _ = as_text(proxy.get("caCertificates")).rpartition("/")
        return folder + slash

    def _pull_secrets(self) -> list[dict[str, Any]]:
        secrets = self._injection.installation.value("global.imagePullSecrets").value
        return [{"name": as_text(each)} for each in secrets]
