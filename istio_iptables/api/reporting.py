"""Everything about rules on one page: settings, picture, traffic, rules, findings, and a packet to follow."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_iptables.api.capture import CAPTURE_NAMES
from istio_iptables.api.checking import check
from istio_iptables.api.describing import describe
from istio_iptables.api.drawing import draw_description
from istio_iptables.api.explaining import explain
from istio_iptables.api.matrix import matrix
from istio_iptables.api.packets import usual_values
from istio_iptables.api.rendering import effective_text
from istio_iptables.api.rules import LIVE
from istio_iptables.errors import CannotTell
from istio_iptables.netfilter.fieldvalues import PROTOCOLS, address_text
from istio_iptables.netfilter.packet import STATES, Surroundings
from istio_iptables.pictures.page import element, listing, page, scrolling, section, table
from istio_iptables.pictures.svg import flow_element
from istio_iptables.settings.sources import Origin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from xml.etree.ElementTree import Element

    from istio_iptables.api.capture import Plan
    from istio_iptables.api.checking import Report
    from istio_iptables.api.describing import Description
    from istio_iptables.api.matrix import Matrix, Row, TrafficClass
    from istio_iptables.api.rules import Source
    from istio_iptables.netfilter.model import Family

__all__ = ["Page", "report"]

#: How much of the page the answers about packets may be, in characters, and how many rules are listed.
_MOST_DATA = 250_000
_MOST_RULES = 400
_FROM = {Origin.FLAG: "command line", Origin.KEYWORD: "keyword"}
#: How the place of a value begins that injection gives every pod (kubernetes.values, kubernetes.template).
_OF_INJECTION = ("default of ", "Istio's template")
_WAYS = {"out": "What a process in the pod sends", "in": "What arrives at the pod"}


class Page(NamedTuple):
    """A page about rules, and what is to be said beside it."""

    html: str
    #: One line for everything that was not seen or is not in force; they stand in the page too.
    warnings: tuple[str, ...]


def report(
    plan: Plan | None = None,
    rules: Source = LIVE,
    *,
    family: Family | None = None,
    name: str = "the text",
) -> Page:
    """A page of HTML about *rules* that needs no other file, and no network.

    *plan*, *rules*, *family* and *name* are as for ``check``. Raises CannotTell for rules that
    can't be read.
    """
    described = describe(rules, family=family, name=name)
    settings = plan or described.plan
    divided, refusal = _divide(plan, rules, family, name)
    unseen = divided.warnings if divided else ()
    warnings = tuple(dict.fromkeys((*described.warnings, *unseen)))
    of_settings = plan.warnings if plan else ()
    checked = check(plan, rules, family=family, name=name)
    told = dict.fromkeys((*of_settings, *warnings))
    parts = {
        "findings": ("Findings", [*_findings(checked, warned=bool(told)), *map(_warning, told)]),
        "settings": ("Settings", list(_settings(settings, recovered=plan is None))),
        "picture": ("The chains", [_picture(described)]),
        "traffic": ("Traffic", _traffic(divided.rows) if divided else [element("p", refusal)]),
        **({"follow": ("Follow a packet", _form())} if divided else {}),
        "rules": ("Rules", list(_rules(described))),
    }
    links = (element("a", heading, href=f"#{part}") for part, (heading, _) in parts.items())
    content = [
        element("p", described.verdict),
        *([listing(described.command)] if described.ours else []),
        element("nav", *links, aria_label="Parts of this page"),
        *(section(part, heading, *body) for part, (heading, body) in parts.items()),
    ]
    html = page(
        f"Traffic capture of {described.what}",
        content,
        **(_script(_data(settings, described, divided)) if divided else {}),
    )
    return Page(html, warnings)


def _divide(
    plan: Plan | None, rules: Source, family: Family | None, name: str
) -> tuple[Matrix | None, str]:
    """All traffic in classes, or why it can't be divided; the rest of the page doesn't need it."""
    try:
        return matrix(plan, rules, family=family, name=name), ""
    except CannotTell as error:
        return None, "; ".join(error.lines)


def _script(data: dict[str, Any]) -> dict[str, str]:
    """The script of the page that follows a packet, and what it answers from."""
    text = files("istio_iptables.pictures").joinpath("follow.js").read_text("utf-8")
    return {"script": text, "data": json.dumps(data, separators=(",", ":"))}


def _findings(found: Report, *, warned: bool) -> list[Element]:
    """What is wrong, and what could not be looked at; warnings follow if *warned*."""
    rows = [
        (
            element("span", each.severity.value, class_=each.severity.value),
            each.evidence,
            each.remedy,
        )
        for each in found.findings
    ]
    heads = ("severity", "what is so", "what to do")
    shown = [table(heads, rows, "What check finds, the worst first.")] if rows else []
    if not found.wrong:
        text = "check finds nothing wrong; there are warnings:" if warned else "Nothing is wrong."
        shown.append(element("p", text))
    if found.unread:
        unread = "; ".join(found.unread)
        shown.append(_warning(f"Not checked, since it can't be read: {unread}"))
    return shown


def _warning(text: str) -> Element:
    return element("p", text, class_="warning")


def _settings(plan: Plan, *, recovered: bool) -> Iterator[Element]:
    """The settings that differ from the defaults, those that injection gives every pod, and their sources."""
    chosen: list[tuple[Element | str, ...]] = []
    injected: list[tuple[Element | str, ...]] = []
    for value in plan.values.values():
        if value.origin is Origin.DEFAULT or value.setting.name not in CAPTURE_NAMES:
            continue
        row = (
            element("code", value.setting.label),
            element("code", effective_text(value, plan.config) or "(empty)"),
            "the rules" if recovered else _FROM.get(value.origin, value.source),
        )
        of_all = all(each.startswith(_OF_INJECTION) for each in value.source.split(", "))
        (injected if of_all else chosen).append(row)
    heads = ("setting", "value", "where it is from")
    if chosen:
        yield table(heads, chosen, "Settings that were given.")
    else:
        yield element("p", "No setting was given: these are the defaults.")
    if injected:
        yield table(heads, injected, "Defaults of Istio's injection.")


def _picture(described: Description) -> Element:
    label = "The chains, their rules and where they lead; the same rules are listed below"
    return scrolling(flow_element(draw_description(described), label), label)


def _traffic(rows: Iterable[Row]) -> list[Element]:
    """A table for each family and direction, as ``matrix`` prints them."""
    rows = list(rows)
    shown = []
    for family, way in dict.fromkeys((row.family, row.direction) for row in rows):
        mine = [
            (row.traffic, row.verdict, element("code", row.rules))
            for row in rows
            if (row.family, row.direction) == (family, way)
        ]
        caption = f"{_WAYS[way]} ({family.title}); the first line that fits counts."
        shown.append(table(("traffic", "what becomes of it", "rule"), mine, caption))
    return shown


def _rules(described: Description) -> Iterator[Element]:
    """All rules with their reasons, or as many as can be read."""
    rows = []
    for each in described.rules[:_MOST_RULES]:
        mark = " (foreign rule)" if each.foreign else "" if each.reason else " (not explained)"
        why = element("span", (each.reason + mark).strip(), class_="foreign" if mark else "")
        # A table of nft has its family in its name.
        family = f"{each.family.title} " if each.family else ""
        place = f"{family}{each.table} {each.chain} {each.number}"
        rows.append((place, element("code", each.text), each.counted, why))
    yield table(("place", "rule", "matched", "reason"), rows, "In the kernel's order.")
    left_out = len(described.rules) - len(rows)
    if left_out:
        yield element("p", f"{left_out} more rules are not listed here: describe lists them.")


# The packet to follow.


def _form() -> list[Element]:
    def choice(name: str, label: str, *values: str) -> Element:
        options = (element("option", each, value=each) for each in values)
        return element("label", label, element("select", *options, name=name))

    def text(name: str, label: str, value: str = "", hint: str = "") -> Element:
        return element(
            "label",
            label,
            element(
                "input", name=name, value=value, placeholder=hint, autocomplete="off", size="16"
            ),
        )

    fields = (
        choice("direction", "direction", "out", "in"),
        choice("protocol", "protocol", *_TYPED),
        text("destination", "to address", "93.184.216.34"),
        text("destination_port", "to port", "443"),
        text("source", "from address", hint="the pod's"),
        text("source_port", "from port", hint="40000"),
        text("interface", "interface", hint="eth0"),
        text("uid", "user", hint="1000"),
        text("gid", "group", hint="the user's"),
        text("mark", "mark", hint="0"),
        text("connmark", "connection mark", hint="0"),
        choice("state", "state", *STATES),
    )
    return [
        element(
            "p",
            "A packet that a process in the pod sends (out), or one that arrives (in). To an address"
            " of the pod itself it leaves by lo. The answers are those of istio-iptables explain,"
            " worked out when this page was made.",
        ),
        element("form", *fields, element("button", "Follow", type="submit"), id="packet"),
        element("div", id="answer", aria_live="polite"),
    ]


#: The protocols of the form.
_TYPED = ("tcp", "udp", "icmp", "ipv6-icmp", "sctp")


def _data(plan: Plan, described: Description, divided: Matrix) -> dict[str, Any]:
    """What the page's script answers from: each class of packets, and what becomes of them."""
    classes = divided.classes
    usual = {
        ruleset.family.value: {
            way: _usual_source(ruleset.family, incoming=way == "in") for way in _WAYS
        }
        for ruleset in described.rulesets
    }
    data: dict[str, Any] = {"protocols": PROTOCOLS, "usual": usual, "classes": [], "ways": []}
    room, longest = _MOST_DATA, 0
    ways: dict[str, int] = {}
    for each in classes:
        made = _class(each)
        room -= len(json.dumps(made))
        if room < 0:
            break
        # Each is asked of explain, as long as there is room for the answer.
        way = _way(plan, described, each) if room > longest else ""
        longest = max(longest, len(way))
        if way and way not in ways:
            room -= len(way)
            ways[way] = len(ways)
        if way:
            made["way"] = ways[way]
        data["classes"].append(made)
    data["ways"] = list(ways)
    return data


def _usual_source(family: Family, *, incoming: bool) -> str:
    number = usual_values(Surroundings(None), family, incoming=incoming)["source"][0]
    return address_text(int(number), family)


def _class(each: TrafficClass) -> dict[str, Any]:
    return {
        "family": each.family.value,
        "direction": each.direction,
        "conditions": [condition._asdict() for condition in each.conditions],
        "fate": each.fate,
        "captured": each.captured,
        "to_port": each.to_port,
        "rule": each.rule,
        "text": each.text,
    }


def _way(plan: Plan, described: Description, each: TrafficClass) -> str:
    """What ``explain`` says of the example of a class; "" where the rules alone don't tell it."""
    words = iter(each.words)
    asked: dict[str, Any] = {}
    for word in words:
        if word in {"--in", "--out"}:
            asked["incoming"] = word == "--in"
        else:
            asked[word.removeprefix("--")] = next(words)
    found = explain(plan, described.rulesets, family=each.family, **asked)
    # Live rules have routes and chains beside them, of which these rulesets know nothing.
    return found.text() if found.verdict == each.verdict else ""
