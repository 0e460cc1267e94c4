"""istio-iptables: the rules that bend a pod's traffic through Envoy, as Istio installs them.

The names below are the Python API (docs/api.md). Each is loaded when it is first used, so that
importing this package imports neither click nor python-iptables nor pyroute2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.errors import IstioIptablesError

if TYPE_CHECKING:
    from istio_iptables.api.capture import Capture, Plan, plan
    from istio_iptables.api.rendering import render

__version__ = "0.1.0"

__all__ = ["Capture", "IstioIptablesError", "Plan", "__version__", "plan", "render"]

#: The module of each name.
_PLACES = {"Capture": "capture", "Plan": "capture", "plan": "capture", "render": "rendering"}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    found: object = getattr(import_module(f"{__name__}.api.{_PLACES[name]}"), name)
    globals()[name] = found
    return found
