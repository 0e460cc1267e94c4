"""What a run has found, as text and as JSON."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Any

from istio_iptables.lab.compare import place_text
from istio_iptables.lab.nodes import addresses_of
from istio_iptables.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.lab.compare import PathResult
    from istio_iptables.lab.nodes import Node
    from istio_iptables.lab.predict import Leg, RuleAddress
    from istio_iptables.lab.runner import LabOutcome, Up
    from istio_iptables.netfilter.model import Rule
    from istio_iptables.netfilter.plan import DesiredState

__all__ = [
    "answer_text",
    "as_json",
    "kept",
    "leg_where",
    "legend",
    "path_lines",
    "rule_line",
    "summary",
    "text",
]

_SHOWN_OF_A_CIRCLE = 3
_COLUMNS = 80


def text(
    outcome: LabOutcome, nodes: Iterable[Node], plan: DesiredState, *, full: bool = False
) -> str:
    """The report for people: who is there, each path hop by hop, and its verdict.

    With *full* each rule has a line of its own, with its text and its reason.
    """
    lines = [
        *legend(nodes),
        "",
        "Below each connection: the rules that it meets, and who takes it. In brackets:",
        "how often that rule or listener was counted on this path; raw and mangle count",
        "packets, nat counts connections.",
        "",
    ]
    rules = plan if full else None
    for result in outcome.results:
        lines += path_lines(result, rules)
    lines.append(summary(outcome))
    # Addresses, names and paths are what other programs answered.
    return "".join(f"{printable(line)}\n" for line in lines)


def summary(outcome: LabOutcome) -> str:
    """The run in one line: what was tried, and how much of it went as predicted."""
    good = sum(not result.differences for result in outcome.results)
    return (
        f"{outcome.scenario}, {outcome.mode}, {outcome.backend}: {good} of {len(outcome.results)}"
        f" paths as predicted, in {outcome.seconds:.1f} s"
    )


def legend(nodes: Iterable[Node]) -> Iterator[str]:
    """Who is there: addresses, what runs, and where the rules are; one line or more a node."""
    for node in nodes:
        addresses = [each for interface in node.interfaces for each in addresses_of(interface)]
        runs = [f"{each.name} on port {each.port}" for each in dict.fromkeys(node.servers)]
        if node.proxy:
            runs.append(f"Envoy as user {node.proxy.identity.uid}")
        if node.captured:
            runs.append("the rules")
        yield from _wrapped(f"{node.name + ':':<9}", addresses, ",")
        yield from _wrapped(" " * 9, runs, ",")


def _wrapped(start: str, items: Iterable[str], separator: str) -> list[str]:
    """The items on lines of at most 80 columns, each item whole."""
    text = f"{separator} ".join(item.replace(" ", "\xa0") for item in items)
    lines = wrap(
        text,
        _COLUMNS,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\xa0", " ") for line in lines]


def path_lines(result: PathResult, plan: DesiredState | None) -> Iterator[str]:
    """One path hop by hop; with *plan* each rule has a line of its own, with its reason."""
    verdict = "not as predicted" if result.differences else "as predicted"
    yield f"{result.path.title}, {result.path.family.title}: {verdict}"
    legs = result.expected.legs
    shown = legs[:_SHOWN_OF_A_CIRCLE] if result.expected.loops else legs
    for leg in shown:
        yield f"  {leg.origin} {leg_where(leg)}"
        yield from _met(leg, result) if plan is None else _met_in_full(leg, result, plan)
        yield f"    => {_taker(leg, result)}"
    if len(shown) < len(legs):
        yield "  ... and so on, in a circle"
    yield f"  {answer_text(result)}"
    yield from (f"  ! {line}" for line in result.differences)
    yield ""


def leg_where(leg: Leg) -> str:
    """A connection's addresses: ``10.0.0.1 -> 10.0.0.2:80``."""
    address = f"[{leg.destination}]" if ":" in leg.destination else leg.destination
    return f"{leg.source} -> {address}:{leg.port}"


def _met(leg: Leg, result: PathResult) -> list[str]:
    """The rules that a connection meets, grouped by table."""
    words = []
    table = ""
    for place in leg.places:
        name = place_text(place) if place.table != table else f"{place.chain} {place.number}"
        table = place.table
        words.append(f"{name} [{result.counts.rules[place]}]")
    return _wrapped("    ", words, ",")


def _met_in_full(leg: Leg, result: PathResult, plan: DesiredState) -> Iterator[str]:
    """The same with the text of each rule and its reason, as explain shows them."""
    for place in leg.places:
        yield f"    {place_text(place)} [{result.counts.rules[place]}] {rule_line(place, plan)}"
        yield from _wrapped("        ", _rule(place, plan).reason.split(), "")


def _taker(leg: Leg, result: PathResult) -> str:
    port = f" on port {leg.taken_to}" if leg.taken_to else ""
    if leg.listener:
        counted = result.counts.listeners[leg.at, leg.listener]
        return f"Envoy {leg.listener} of {leg.at}{port} [{counted}]"
    return f"{leg.server}{port}" if leg.server else leg.problem


def answer_text(result: PathResult) -> str:
    """Who answered the request, and what that one saw of it."""
    seen = result.seen[0]
    many = f" ({len(result.seen)} times)" if len(result.seen) > 1 else ""
    if seen.problem:
        return f"nothing came back: {seen.problem}{many}"
    if not seen.peer:
        return f"Envoy answered: {seen.server}{many}"
    hops = f", by way of {' and '.join(seen.hops)}" if seen.hops else ""
    path = f", asked for {seen.path}" if seen.path not in {"", "/"} else ""
    return f"{seen.server} saw {seen.peer}{hops}{path}{many}"


def as_json(outcome: LabOutcome, plan: DesiredState) -> dict[str, Any]:
    """The report for programs."""
    return {
        "scenario": outcome.scenario,
        "mode": outcome.mode,
        "backend": outcome.backend,
        "seconds": round(outcome.seconds, 3),
        "as_predicted": outcome.as_predicted,
        "paths": [_path_json(result, plan) for result in outcome.results],
    }


def _path_json(result: PathResult, plan: DesiredState) -> dict[str, Any]:
    path, expected = result.path, result.expected
    request = path.request
    places = dict.fromkeys([*expected.rules, *sorted(result.counts.rules, key=str)])
    listeners = dict.fromkeys([*expected.listeners, *result.counts.listeners])
    return {
        "name": path.name,
        "title": path.title,
        "family": path.family.value,
        "as_predicted": not result.differences,
        "differences": list(result.differences),
        "request": {
            "from": path.node,
            "uid": path.identity.uid,
            "gid": path.identity.gid,
            "kind": request.kind.name.lower(),
            "address": request.address,
            "port": request.port,
            "times": request.times,
        },
        "legs": [_leg_json(leg, plan) for leg in expected.legs],
        "predicted": {
            "server": expected.server or None,
            "peer": expected.peer or None,
            "hops": list(expected.hops),
            "path": expected.path or None,
            "problem": expected.problem or None,
        },
        "seen": [
            {
                "server": each.server or None,
                "peer": each.peer or None,
                "hops": list(each.hops),
                "path": each.path or None,
                "problem": each.problem or None,
            }
            for each in dict.fromkeys(result.seen)
        ],
        "rules": [
            {
                **_place_json(place),
                "predicted": expected.rules[place] * request.times,
                "counted": result.counts.rules[place],
            }
            for place in places
        ],
        "listeners": [
            {
                "node": node,
                "listener": listener,
                "predicted": expected.listeners[node, listener] * request.times,
                "counted": result.counts.listeners[node, listener],
            }
            for node, listener in listeners
        ],
    }


def _place_json(place: RuleAddress) -> dict[str, Any]:
    return {
        "node": place.node,
        "table": place.table,
        "chain": place.chain,
        "rule": place.number,
    }


def _leg_json(leg: Leg, plan: DesiredState) -> dict[str, Any]:
    return {
        "from": leg.origin,
        "source": leg.source,
        "destination": leg.destination,
        "port": leg.port,
        "path": [{**_place_json(each), **_rule_json(each, plan)} for each in leg.places],
        "to_port": leg.taken_to or None,
        "at": leg.at or None,
        "listener": leg.listener or None,
        "server": leg.server or None,
    }


def _rule_json(place: RuleAddress, plan: DesiredState) -> dict[str, str]:
    return {"text": rule_line(place, plan), "reason": _rule(place, plan).reason}


def rule_line(place: RuleAddress, plan: DesiredState) -> str:
    """The rule as iptables-save prints it."""
    return _rule(place, plan).line(place.chain)


def _rule(place: RuleAddress, plan: DesiredState) -> Rule:
    (ruleset,) = (each for each in plan.rulesets if each.family is place.family)
    table = ruleset.table(place.table)
    chain = table.chain(place.chain) if table else None
    if chain is None:
        raise LookupError(place)
    return chain.rules[place.number - 1]


def kept(up: Up, nodes: tuple[Node, ...]) -> str:
    """How to look around in a lab that is still up."""
    lines = ["", "The lab is up until it is interrupted (Ctrl-C). Another terminal can enter it:"]
    for node in nodes:
        command = f"nsenter --target {up.process} --mount --pid --net=/proc/{up.process}/root/run/netns/{node.name}"
        lines.append(f"  {node.name + ':':<9} {command} bash")
        if node.proxy:
            socket = up.sockets[node.name]
            lines.append(f"  {'':<9} ... curl --unix-socket {socket} http://envoy/stats")
    return "".join(f"{printable(line)}\n" for line in lines)
