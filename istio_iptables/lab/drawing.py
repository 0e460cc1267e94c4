"""A run of the lab as pictures: each path's connections, from process to process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.lab.compare import place_text
from istio_iptables.lab.report import answer_text, leg_where, legend, path_lines, rule_line, summary
from istio_iptables.pictures.page import element, listing, scrolling, section
from istio_iptables.pictures.page import page as write_page
from istio_iptables.pictures.sequence import Hop, Sequence
from istio_iptables.pictures.svg import sequence_element
from istio_iptables.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.lab.compare import PathResult
    from istio_iptables.lab.nodes import Node
    from istio_iptables.lab.predict import Leg
    from istio_iptables.lab.runner import LabOutcome
    from istio_iptables.netfilter.plan import DesiredState

__all__ = ["page", "sequences"]

#: Of a circle: as many as show that it is one.
_MOST_LEGS = 12


def sequences(outcome: LabOutcome, plan: DesiredState) -> tuple[Sequence, ...]:
    """Each path as a Sequence; its remarks say who answered, and what was not as predicted."""
    return tuple(_path(result, plan) for result in outcome.results)


def page(outcome: LabOutcome, nodes: Iterable[Node], plan: DesiredState) -> str:
    """The run as one page of HTML that needs nothing else: who is there, and each path's picture."""
    parts = [section("nodes", "Who is there", listing("\n".join(legend(nodes))))]
    for number, result in enumerate(outcome.results):
        drawn = _path(result, plan)
        picture = sequence_element((drawn._replace(title=""),), drawn.title)
        rules = element(
            "details",
            element("summary", "The rules that it meets"),
            listing("\n".join(path_lines(result, plan))),
        )
        name = f"path{number}"
        parts.append(section(name, drawn.title, scrolling(picture, f"Hops: {drawn.title}"), rules))
    return write_page(summary(outcome), parts)


def _path(result: PathResult, plan: DesiredState) -> Sequence:
    verdict = "not as predicted" if result.differences else "as predicted"
    hops = []
    # Its node makes the first connection, and whoever took one makes the next.
    origin = f"{result.path.node}, user {result.path.identity.uid}"
    for leg in result.expected.legs[:_MOST_LEGS]:
        taker = _taker(leg)
        hops.append(Hop(origin, taker, leg_where(leg), tuple(_rules(leg, result, plan))))
        origin = taker
    return Sequence(
        f"{result.path.title}, {result.path.family.title}: {verdict}",
        tuple(hops),
        tuple(map(printable, (answer_text(result), *result.differences))),
        frozenset(map(printable, result.differences)),
    )


def _rules(leg: Leg, result: PathResult, plan: DesiredState) -> Iterator[str]:
    """The rules that a connection meets, and how often each was counted on the whole path."""
    for place in leg.places:
        counted = result.counts.rules[place]
        yield f"{place_text(place)} [{counted}] {rule_line(place, plan)}"


def _taker(leg: Leg) -> str:
    if leg.listener:
        return f"Envoy {leg.listener} of {leg.at}"
    if leg.server:
        return leg.server if leg.at in leg.server else f"{leg.server} of {leg.at}"
    return "nobody"
