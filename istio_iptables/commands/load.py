"""Settings to a plan for a command: problems raised together, warnings told on stderr."""

from __future__ import annotations

import sys

from istio_iptables.api.capture import Capture, Plan, Purpose, plan
from istio_iptables.api.rendering import effective_text
from istio_iptables.errors import UsageProblems
from istio_iptables.text import paint, printable
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from istio_iptables.settings.sources import Value

    #: Tells lines of one kind: ``info``, ``warning``, ``error``, ``setting``.
    Tell = Callable[[str, Iterable[str]], object]

__all__ = ["PROGRAM", "Given", "Purpose", "load_plan", "tell", "warn"]

PROGRAM = "istio-iptables"


class Given(NamedTuple):
    """What gives the settings that a command line leaves open."""

    environ: Mapping[str, str]
    #: The values of a manifest by name; they stand where the defaults would.
    values: Mapping[str, Value] = {}
    warnings: tuple[str, ...] = ()
    #: The pod of a manifest, as messages name it.
    pod: str = ""


#: How kinds of lines that need attention look on a terminal.
_STYLES = {"error": "red", "warning": "yellow"}


def tell(kind: str, lines: Iterable[str]) -> None:
    """Write each line to stderr, behind the program's name and what kind of line it is."""
    shown = paint(kind, _STYLES[kind], sys.stderr) if kind in _STYLES else kind
    for line in lines:
        print(f"{PROGRAM}: {shown}: {printable(line)}", file=sys.stderr)


def warn(lines: Collection[str], *, strict: bool, tell: Tell = tell) -> None:
    """Tell warnings; with *strict* they are raised as UsageProblems."""
    if strict and lines:
        raise UsageProblems([f"{line} (--strict)" for line in lines])
    tell("warning", lines)


_ITSELF = Purpose()


def load_plan(
    flags: Mapping[str, str],
    extra: list[str],
    given: Given,
    purpose: Purpose = _ITSELF,
    *,
    tell: Tell = tell,
) -> Plan:
    """The plan of the settings; all problems raised together, the warnings told.

    *given* is what counts where *flags* leave a setting open.
    """
    try:
        found = plan(Capture.from_texts(flags, given.environ, given.values), purpose=purpose)
    except UsageProblems as error:
        raise UsageProblems([*extra, *error.lines]) from None
    if extra:
        raise UsageProblems(extra)
    found = found._replace(warnings=(*given.warnings, *found.warnings))
    warn(found.warnings, strict=found.config.strict, tell=tell)
    if found.config.verbose:
        tell(
            "setting",
            (
                f"{value.setting.label} = {effective_text(value, found.config)!r} ({value.source})"
                for value in found.values.values()
            ),
        )
    return found
