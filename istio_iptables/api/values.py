"""Python values as the texts that a command line has."""

from __future__ import annotations

import os

from istio_iptables.settings.converters import LISTS
from istio_iptables.settings.declarations import ValueKind
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
    from typing import TypeGuard

    #: What one item may be beside text; an address or network is not taken for its addresses.
    Item = str | int | float | IPv4Address | IPv6Address | IPv4Network | IPv6Network
    #: Of a setting: text as on the command line, an item, or a list of items.
    SettingValue = Item | bool | os.PathLike[str] | Iterable[Item]

__all__ = ["Unusable", "text_of"]

#: No number that any setting takes is as large; Python does not print much larger ones.
_LARGEST = 10**19


class Unusable(ValueError):
    """A value is none that a setting can have; the message says why."""


def text_of(kind: ValueKind, value: SettingValue) -> str:
    """*value* as the command line has it, for a setting of *kind*; raises Unusable."""
    if isinstance(value, bool):
        if kind is not ValueKind.FLAG:
            message = f"{value} is a boolean, which only a switch can be"
            raise Unusable(message)
        return "true" if value else "false"
    if isinstance(value, os.PathLike) and kind is ValueKind.PATH:
        return os.fspath(value)
    if kind in LISTS and _is_list(value):
        return ",".join(_item(each) for each in value)
    return _item(value)


def _is_list(value: object) -> TypeGuard[Iterable[object]]:
    """Whether *value* is a list of items; networks can be gone through as well, address by address."""
    return hasattr(value, "__iter__") and not (
        isinstance(value, str | bytes | bytearray | memoryview) or _is_network(value)
    )


def _is_network(value: object) -> bool:
    return type(value).__module__ == "ipaddress"


def _item(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) >= _LARGEST:
            message = "the number is too large"
            raise Unusable(message)
        return str(value)
    if _is_network(value):
        return str(value)
    message = f"a {type(value).__name__} is not a value of this setting"
    raise Unusable(message)
