"""The same done in many network namespaces by one process, each all or nothing on its own."""

from __future__ import annotations

import sys
from contextlib import nullcontext

from istio_iptables.commands.load import tell
from istio_iptables.errors import ExitStatus, IstioIptablesError
from istio_iptables.interrupts import Interrupted, held
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Any

    from istio_iptables.commands.load import Tell

__all__ = ["in_each"]

#: How many names a line about failures holds.
_MOST_NAMES = 10


def in_each(
    namespaces: Collection[str], act: Callable[[str, Tell], object], *, as_json: bool
) -> ExitStatus:
    """Have *act* work in each of *namespaces*; what it tells is told behind the namespace's name.

    A failure in one stops none of the others; then a line with the names, and the exit status of
    the failures if they have the same one, else FAILED. With *as_json* a record of each namespace is
    printed at the end, also of an interrupted run.
    """
    records: list[dict[str, Any]] = []
    failures: dict[str, ExitStatus] = {}
    shown = len(namespaces) > 1 and sys.stderr is not None and sys.stderr.isatty()
    try:
        with _progress(namespaces) if shown else nullcontext(namespaces) as names:
            for name in names:
                records.append({"namespace": name, "done": [], "warnings": [], "errors": []})
                status = _recorded(records[-1], act, _tell_beside_progress if shown else tell)
                if status:
                    failures[name] = status
    finally:
        if as_json:
            from istio_iptables.commands.documents import print_json

            # One that comes in the last namespace may be raised a moment later.
            with held():
                print_json({"namespaces": records})
    if not failures:
        return ExitStatus.DONE
    if len(records) > 1:
        named = list(failures)
        listed = ", ".join(named[:_MOST_NAMES]) + (", ..." if named[_MOST_NAMES:] else "")
        tell("error", (f"{len(failures)} of {len(records)} namespaces failed: {listed}",))
    statuses = {*failures.values()}
    return statuses.pop() if len(statuses) == 1 else ExitStatus.FAILED


def _recorded(record: dict[str, Any], act: Callable[[str, Tell], object], tell: Tell) -> ExitStatus:
    """How *act* ended in the namespace of *record*, which gets what it said by kind of line."""
    name = record["namespace"]
    places = {"info": "done", "warning": "warnings", "error": "errors"}

    def tell_of(kind: str, lines: Iterable[str]) -> None:
        lines = list(lines)
        record[places.get(kind, "done")] += lines
        if lines:
            tell(kind, [f"{name}: {line}" if name else line for line in lines])

    try:
        act(name, tell_of)
    except IstioIptablesError as error:
        tell_of("error", error.lines)
        return error.status
    except Interrupted:
        record["errors"].append("interrupted")
        raise
    except Exception as error:  # noqa: BLE001 - the others are to have their turn all the same
        tell_of("error", [f"{type(error).__name__}: {error}"])
        return ExitStatus.FAILED
    return ExitStatus.DONE


def _tell_beside_progress(kind: str, lines: Iterable[str]) -> None:
    # The bar is drawn again behind each namespace.
    sys.stderr.write("\r\x1b[K")
    tell(kind, lines)


def _progress(namespaces: Collection[str]) -> Any:  # noqa: ANN401 - click's
    import click  # on a terminal there is time for it

    return click.progressbar(namespaces, label="namespaces", file=sys.stderr)
