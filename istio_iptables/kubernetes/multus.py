"""The annotation by which Multus attaches Istio's network to a pod."""

from __future__ import annotations

import json

__all__ = ["with_network"]

_NAMESPACE, _NAME = "default", "istio-cni"


def with_network(text: str) -> str:
    """*text*, a list with commas or of JSON, with Istio's network at its end."""
    network = f"{_NAMESPACE}/{_NAME}"
    if not text:
        return network
    end = text.rfind("]")
    if end < 0:
        listed = {each.strip() for each in text.split(",")}
        return text if network in listed else f"{text}, {network}"
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(listed, list) or any(
        not isinstance(each, dict)
        or (each.get("name") == _NAME and each.get("namespace") == _NAMESPACE)
        for each in listed
    ):
        return text
    return f'{text[:end]}, {{"name": "{_NAME}", "namespace": "{_NAMESPACE}"}}{text[end:]}'
