"""Attributes that OpenTelemetry puts on a pod's traces, where a provider of the mesh asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_iptables.kubernetes.manifest import as_text

if TYPE_CHECKING:
    from istio_iptables.kubernetes.injection import Injection

__all__ = ["resource_attributes"]

_ANNOTATION = "resource.opentelemetry.io/"
_ASKED = "OTEL_SEMANTIC_CONVENTIONS"


def resource_attributes(
    injection: Injection, namespace: str, containers: list[dict[str, Any]]
) -> str:
    """The text of the variable; "" if no provider asks."""
    providers = injection.installation.setting("extensionProviders").value
    if not any(_asks(each) for each in providers):
        return ""
    given = injection.annotations
    version = injection.pod.labels.get("app.kubernetes.io/version", "")
    if not version and len(containers) == 1:
        version = _version(as_text(containers[0].get("image")))
    instance = f"{namespace}.$(POD_NAME).{containers[0]['name']}" if containers else ""
    found = {
        "service.namespace": namespace,
        "service.version": version,
        "service.instance.id": instance,
    }
    texts = {name: given.get(f"{_ANNOTATION}{name}") or text for name, text in found.items()}
    return ",".join(f"{name}={text}" for name, text in texts.items() if text)


def _asks(provider: object) -> bool:
    inner = provider.get("opentelemetry") if isinstance(provider, dict) else None
    return isinstance(inner, dict) and inner.get("serviceAttributeEnrichment") == _ASKED


def _version(image: str) -> str:
    """The tag and the digest of an image's name."""
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return "@".join(each for each in (tag, digest) if each)
