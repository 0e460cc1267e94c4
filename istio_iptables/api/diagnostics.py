"""What a check finds, as values: each with what shows it and what to do."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from istio_iptables.api.recovering import Recovered

__all__ = ["Diagnostic", "Report", "Severity"]


class Severity(Enum):
    """How bad it is; the value is the word for it in text and JSON."""

    #: Traffic is lost, or goes past Envoy.
    ERROR = "error"
    #: It may be, or will be.
    WARNING = "warning"
    #: As it was asked for, and worth knowing; nothing that has to be mended.
    INFO = "info"


class Diagnostic(NamedTuple):
    """One thing that is wrong: what shows it, and what to do about it."""

    kind: str
    severity: Severity
    evidence: str
    remedy: str

    @property
    def line(self) -> str:
        """All of it in one line."""
        return f"{self.severity.value}: {self.evidence}; {self.remedy}"


class Report(NamedTuple):
    """What a check has found, the worst first."""

    #: What was looked at, such as ``this namespace (legacy)``.
    what: str
    findings: tuple[Diagnostic, ...]
    #: What could not be read, and so was not checked.
    unread: tuple[str, ...]
    #: The settings that were read off the rules, which these are held against; None where some were
    #: given, or there is nothing to read them off.
    settings: Recovered | None = None

    @property
    def wrong(self) -> bool:
        """Whether there is anything to mend."""
        return any(each.severity is not Severity.INFO for each in self.findings)
