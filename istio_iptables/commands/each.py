"""The same done in many network namespaces by one process, each all or nothing on its own."""

from __future__ import annotations

import sys
from contextlib import nullcontext

from istio_iptables.commands.load import tell
from istio_iptables.errors import ExitStatus, IstioIptablesError
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

    A failure in one stops none of the others; FAILED and a line with the names if there are any.
    With *as_json* a record of each namespace is printed at the end.
    """
    records: list[dict[str, Any]] = []
    waiting: list[tuple[str, list[str]]] = []
    shown = sys.stderr is not None and sys.stderr.isatty()
    with _progress(namespaces) if shown else nullcontext(namespaces) as names:
        for name in names:
            record = _record(name, act, waiting.append if shown else lambda each: tell(*each))
            records.append(record)
    for kind, lines in waiting:
        tell(kind, lines)
    if as_json:
        from istio_iptables.commands.documents import print_json

        print_json({"namespaces": records})
    failed = [record["namespace"] for record in records if record["errors"]]
    if not failed:
        return ExitStatus.DONE
    listed = ", ".join(failed[:_MOST_NAMES]) + (", ..." if failed[_MOST_NAMES:] else "")
    tell("error", (f"{len(failed)} of {len(records)} namespaces failed: {listed}",))
    return ExitStatus.FAILED


def _record(
    name: str,
    act: Callable[[str, Tell], object],
    say: Callable[[tuple[str, list[str]]], object],
) -> dict[str, Any]:
    """What was said while *act* worked in one namespace, by kind of line."""
    record: dict[str, Any] = {"namespace": name, "done": [], "warnings": [], "errors": []}
    places = {"info": "done", "warning": "warnings", "error": "errors"}

    def tell_of(kind: str, lines: Iterable[str]) -> None:
        lines = list(lines)
        record[places.get(kind, "done")] += lines
        if lines:
            say((kind, [f"{name}: {line}" if name else line for line in lines]))

    try:
        act(name, tell_of)
    except IstioIptablesError as error:
        tell_of("error", error.lines)
    except Exception as error:  # noqa: BLE001 - the others are to have their turn all the same
        tell_of("error", [f"{type(error).__name__}: {error}"])
    return record


def _progress(namespaces: Collection[str]) -> Any:  # noqa: ANN401 - click's
    import click  # on a terminal there is time for it

    return click.progressbar(namespaces, label="namespaces", file=sys.stderr)
