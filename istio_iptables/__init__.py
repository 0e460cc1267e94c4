"""istio-iptables: the rules that bend a pod's traffic through Envoy, as Istio installs them.

The names below are the Python API (docs/api.md). Each is loaded when it is first used, so that
importing this package imports neither click nor python-iptables nor pyroute2.
"""

from __future__ import annotations

from istio_iptables.errors import (
    CannotTell,
    Differs,
    IstioIptablesError,
    KernelRefused,
    UsageProblems,
)
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_iptables.api.capture import Capture, Plan, plan
    from istio_iptables.api.checking import check
    from istio_iptables.api.comparing import Differences, diff
    from istio_iptables.api.contrasting import Comparison, Side, compare
    from istio_iptables.api.describing import Description, describe
    from istio_iptables.api.diagnostics import Diagnostic, Report, Severity
    from istio_iptables.api.explaining import explain
    from istio_iptables.api.explanation import Explanation
    from istio_iptables.api.installing import Installed, clean, install
    from istio_iptables.api.matrix import Matrix, matrix
    from istio_iptables.api.rendering import render
    from istio_iptables.api.reporting import Page, report
    from istio_iptables.api.rules import LIVE, Live

__version__ = "0.1.0"

__all__ = [
    "LIVE",
    "CannotTell",
    "Capture",
    "Comparison",
    "Description",
    "Diagnostic",
    "Differences",
    "Differs",
    "Explanation",
    "Installed",
    "IstioIptablesError",
    "KernelRefused",
    "Live",
    "Matrix",
    "Page",
    "Plan",
    "Report",
    "Severity",
    "Side",
    "UsageProblems",
    "__version__",
    "check",
    "clean",
    "compare",
    "describe",
    "diff",
    "explain",
    "install",
    "matrix",
    "plan",
    "render",
    "report",
]

#: The module of each name, in the package api.
_PLACES = {
    "Capture": "capture",
    "Comparison": "contrasting",
    "Description": "describing",
    "Diagnostic": "diagnostics",
    "Differences": "comparing",
    "Explanation": "explanation",
    "Installed": "installing",
    "LIVE": "rules",
    "Live": "rules",
    "Matrix": "matrix",
    "Page": "reporting",
    "Plan": "capture",
    "Report": "diagnostics",
    "Severity": "diagnostics",
    "Side": "contrasting",
    "check": "checking",
    "clean": "installing",
    "compare": "contrasting",
    "describe": "describing",
    "diff": "comparing",
    "explain": "explaining",
    "install": "installing",
    "matrix": "matrix",
    "plan": "capture",
    "render": "rendering",
    "report": "reporting",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    found: object = getattr(import_module(f"{__name__}.api.{_PLACES[name]}"), name)
    globals()[name] = found
    return found
