"""What was predicted beside what was seen, and whether they are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.lab.clients import RequestKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_iptables.lab.clients import Seen
    from istio_iptables.lab.counters import Counts
    from istio_iptables.lab.predict import Prediction, RuleAddress
    from istio_iptables.lab.scenarios import TrafficPath

__all__ = ["PathResult", "compare", "place_text"]


class PathResult(NamedTuple):
    """One path: what was expected, what came, and one line for each difference."""

    path: TrafficPath
    expected: Prediction
    seen: tuple[Seen, ...]
    counts: Counts
    differences: tuple[str, ...]


def compare(
    path: TrafficPath, expected: Prediction, seen: Sequence[Seen], counts: Counts
) -> PathResult:
    """The verdict on one path."""
    differences = [
        *_answers(path, expected, seen),
        *_listeners(path, expected, counts),
        *_rules(path, expected, counts),
    ]
    return PathResult(path, expected, tuple(seen), counts, tuple(differences))


def place_text(place: RuleAddress) -> str:
    """A rule's place as it is written: ``nat ISTIO_OUTPUT 3``."""
    return f"{place.table} {place.chain} {place.number}"


def _answers(path: TrafficPath, expected: Prediction, seen: Sequence[Seen]) -> list[str]:
    if expected.loops:
        return [f"predicted: {expected.problem}"]
    lines = []
    for each in dict.fromkeys(seen):
        times = f" ({seen.count(each)} of {len(seen)})" if len(seen) > 1 else ""
        lines += [f"{line}{times}" for line in _answer(path, expected, each)]
    return lines


def _answer(path: TrafficPath, expected: Prediction, seen: Seen) -> list[str]:
    """The differences of one answer."""
    if expected.problem or seen.problem:
        if bool(expected.problem) is bool(seen.problem):
            return []
        return [f"{seen.problem or 'an answer'}, predicted {expected.problem or 'an answer'}"]
    pairs = [("answered", seen.server, expected.server), ("peer", seen.peer, expected.peer)]
    if path.request.kind is RequestKind.HTTP:
        pairs += [
            ("hops", ", ".join(seen.hops), ", ".join(expected.hops)),
            ("path", seen.path, expected.path),
        ]
    if path.request.kind is RequestKind.PLAIN_HTTP and not expected.server:
        pairs = []  # Envoy's statistics: any text will do
    return [
        f"{name} {was or 'none'}, predicted {wanted or 'none'}"
        for name, was, wanted in pairs
        if was != wanted
    ]


def _listeners(path: TrafficPath, expected: Prediction, counts: Counts) -> list[str]:
    if expected.loops:
        return []
    wanted = expected.listeners
    lines = []
    for node, listener in sorted({*wanted, *counts.listeners}):
        was = counts.listeners[node, listener]
        predicted = wanted[node, listener] * path.request.times
        if was != predicted:
            took = f"{was} connection{'' if was == 1 else 's'}"
            lines.append(f"{node}: Envoy {listener} took {took}, predicted {predicted}")
    return lines


def _rules(path: TrafficPath, expected: Prediction, counts: Counts) -> list[str]:
    if expected.loops:
        return []
    wanted = expected.rules
    lines = []
    for place in dict.fromkeys([*wanted, *sorted(counts.rules, key=_in_order)]):
        was, predicted = counts.rules[place], wanted[place] * path.request.times
        # Elsewhere replies are counted too, and the prediction is about first packets.
        differs = was != predicted if place.counts_connections else was < predicted
        if differs:
            lines.append(f"{place.node}: {place_text(place)} counted {was}, predicted {predicted}")
    return lines


def _in_order(place: RuleAddress) -> tuple[str, str, str, int]:
    return place.node, place.table, place.chain, place.number
