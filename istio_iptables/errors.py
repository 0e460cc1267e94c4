"""What can go wrong, as one base and a few leaves, with the exit status of each beside it."""

from __future__ import annotations

from enum import IntEnum

from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

__all__ = [
    "CannotTell",
    "Differs",
    "ExitStatus",
    "IstioIptablesError",
    "KernelRefused",
    "SaveFileError",
    "UsageProblems",
    "ValidationFailed",
    "status_of_failure",
]


class ExitStatus(IntEnum):
    """What the program's exit status says (docs/contract.md, section 4)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    VALIDATION_FAILED = 126


#: Commands that answer a question: their status 1 is an answer, and who failed has none.
_QUESTIONS = frozenset({"check", "compare", "describe", "diff", "explain", "matrix"})


def status_of_failure(arguments: Sequence[str]) -> ExitStatus:
    """What the program ends with when it could not do what its *arguments* say."""
    # Istio's pods give the name of the program first.
    command = next((each for each in arguments[:2] if each != "istio-iptables"), "")
    return ExitStatus.USAGE if command in _QUESTIONS else ExitStatus.FAILED


class IstioIptablesError(Exception):
    """The base of every error that is told in a clear line and not as a traceback."""

    status = ExitStatus.FAILED

    @property
    def lines(self) -> tuple[str, ...]:
        """What to tell the user: one line a problem."""
        return tuple(str(argument) for argument in self.args)


class UsageProblems(IstioIptablesError):
    """The settings can't be used; every problem found is a line of its own."""

    status = ExitStatus.USAGE

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(*problems)

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[str, ...]]]:
        return type(self), (self.lines,)


class KernelRefused(IstioIptablesError):
    """The machine can't or won't do what was asked; nothing is left half done."""

    #: True if the reason may pass: another program changed the same table meanwhile.
    busy = False


class Differs(IstioIptablesError):
    """The namespace holds other rules of ours than the ones asked for."""


class CannotTell(IstioIptablesError):
    """The question can't be answered, so neither yes nor no is said."""

    status = ExitStatus.USAGE


class ValidationFailed(IstioIptablesError):
    """A connection that the rules should capture did not arrive; Istio's CNI looks for this status."""

    status = ExitStatus.VALIDATION_FAILED


class SaveFileError(IstioIptablesError):
    """A text is not what iptables-save writes; names the line."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason

    def __reduce__(self) -> tuple[type[Self], tuple[int, str]]:
        return type(self), (self.line, self.reason)
