"""Whose pod it is, as far as its manifest tells: the names that Istio gives a workload."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.kubernetes.manifest import as_text

if TYPE_CHECKING:
    from istio_iptables.kubernetes.manifest import Workload

__all__ = ["Owner", "owner_of"]

#: The name of a Job that a CronJob made: its own, and the time.
_CRON_JOB = re.compile(r"(.+)-[0-9]{8,10}")


class Owner(NamedTuple):
    """The object that makes the pod, or the pod itself."""

    api_version: str
    kind: str
    namespace: str
    name: str

    @property
    def address(self) -> str:
        """Istio's name for it; "" without a name."""
        if not self.api_version or not self.name:
            return ""
        namespace = self.namespace or "default"
        kind = f"{self.kind.lower()}s"
        return f"kubernetes://apis/{self.api_version}/namespaces/{namespace}/{kind}/{self.name}"


def owner_of(workload: Workload) -> Owner:
    """The object of the manifest, or for a Pod with a generated name its controller."""
    name, namespace = (as_text(workload.top.get(key)) for key in ("name", "namespace"))
    found = Owner(as_text(workload.document.get("apiVersion")), workload.kind, namespace, name)
    if workload.kind != "Pod" or not workload.top.get("generateName"):
        return found
    references = workload.top.get("ownerReferences") or []
    for each in references if isinstance(references, list) else []:
        if isinstance(each, dict) and each.get("controller") is True:
            kind, name, version = (as_text(each.get(k)) for k in ("kind", "name", "apiVersion"))
            return _above(Owner(version, kind, namespace, name), workload.labels)
    return found


def _above(owner: Owner, labels: dict[str, str]) -> Owner:
    """What made *owner*, if its name or the pod's *labels* tell."""
    if owner.kind == "ReplicaSet":
        for label, kind, version in (
            ("pod-template-hash", "Deployment", owner.api_version),
            ("rollouts-pod-template-hash", "Rollout", "v1alpha1"),
        ):
            label_text = labels.get(label)
            if label_text and owner.name.endswith(label_text):
                name = owner.name.removesuffix(f"-{label_text}")
                return Owner(version, kind, owner.namespace, name)
    if owner.kind == "ReplicationController" and labels.get("deploymentconfig"):
        return owner._replace(kind="DeploymentConfig", name=labels["deploymentconfig"])
    job = _CRON_JOB.fullmatch(owner.name) if owner.kind == "Job" else None
    return owner._replace(api_version="batch/v1", kind="CronJob", name=job[1]) if job else owner
