"""What a shell may complete the value of an option to; imported only when it asks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from click.shell_completion import CompletionItem

from istio_iptables.settings.declarations import ValueKind

if TYPE_CHECKING:
    from istio_iptables.settings.declarations import Setting

__all__ = ["files", "listed", "values"]

#: Where iproute2 keeps the names of network namespaces.
_NAMESPACES = "/run/netns"
#: Kinds whose name is the list of their values.
_CHOICES = frozenset(
    {ValueKind.MODE, ValueKind.BACKEND, ValueKind.FORMAT, ValueKind.FAMILY, ValueKind.IP_FAMILY}
)


def values(setting: Setting, incomplete: str) -> list[CompletionItem]:
    """The values of *setting* that begin with *incomplete*; empty where there is no list of them."""
    if setting.name == "network_namespace":
        return _beginning(incomplete, _namespaces()) or files(incomplete)
    if setting.kind is ValueKind.PATH:
        return files(incomplete)
    if setting.kind in _CHOICES:
        return listed(setting.kind.value, incomplete)
    return []


def listed(words: str, incomplete: str) -> list[CompletionItem]:
    """Those of *words*, with ``|`` between them, that begin with *incomplete*."""
    return _beginning(incomplete, words.split("|"))


def files(incomplete: str) -> list[CompletionItem]:
    """Leave it to the shell, which knows the files."""
    return [CompletionItem(incomplete, type="file")]


def _namespaces() -> list[str]:
    try:
        return sorted(os.listdir(_NAMESPACES))  # noqa: PTH208 - names, not paths
    except OSError:
        return []


def _beginning(incomplete: str, words: list[str]) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]
