"""Pictures of rules and traffic: what they show, and that what draws each format takes them."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from istio_iptables import Capture, explain, plan
from istio_iptables.api.describing import describe
from istio_iptables.api.drawing import draw_description, draw_way
from istio_iptables.api.rules import Live, rules_of
from istio_iptables.netfilter.model import Family
from istio_iptables.pictures import dot, mermaid, svg
from istio_iptables.pictures.flow import Box, Flow, Note, Place, chart
from istio_iptables.pictures.sequence import Hop, Sequence
from tests.golden import cases
from tests.pictures.conftest import script

if TYPE_CHECKING:
    from pathlib import Path

    from selenium.webdriver import Chrome

_SVG = "{http://www.w3.org/2000/svg}"
_DOCUMENTED = {
    "istio_service_cidr": "*",
    "istio_inbound_ports": "*",
    "istio_local_exclude_ports": "15090,15021,15020",
    "ip_family": "ipv4",
}
#: Comments that a format may take for its own, and what no XML may hold.
_HOSTILE = """*nat
:PREROUTING ACCEPT [0:0]
:odd"]--><b> - [0:0]
:round - [0:0]
-A PREROUTING -m comment --comment "</title><script>alert(1)</script> ]]> &amp; \\"quoted\\"" -j round
-A PREROUTING -m comment --comment "` { } [ ] | \\\\ % ; # end --> \x01\x1b[31m é 💥" -j DROP
-A round -j round
-A round -p tcp -j DNAT --to-destination [fd00::1]:80
COMMIT
"""


def _drawn() -> list[tuple[Flow, ...]]:
    """The pictures of every golden case that prints rules, and of rules by others."""
    texts = [each.expected for each in cases() if each.format == "save" and "\n-A" in each.expected]
    assert len(texts) > 30
    return [_chart(text) for text in (*texts, _HOSTILE)]


def _chart(text: str) -> tuple[Flow, ...]:
    rulesets = rules_of(text, Family.IPV4 if text is _HOSTILE else None, "the text")
    assert not isinstance(rulesets, Live)
    return chart(rulesets, {}, {"15001": "Envoy, outbound"})


def _sequences() -> tuple[Sequence, ...]:
    return (
        Sequence('app "to" itself; <b> \\', (Hop("app", "app", "10.0.0.1 -> 10.0.0.1:80"),)),
        Sequence(
            "client to app",
            (
                Hop("client", "Envoy", "10.0.0.2 -> 10.0.0.1:80", ("nat PREROUTING 1",)),
                Hop("Envoy", "app", "127.0.0.6 -> 10.0.0.1:80"),
                Hop("app", "client", "10.0.0.1 -> 10.0.0.2:99"),
            ),
            ("app saw 127.0.0.6", "wrong"),
            frozenset({"wrong"}),
        ),
        Sequence("nobody", (), ("nothing came back",)),
    )


def _box(flow: Flow, title: str) -> Box:
    (found,) = (box for box in flow.boxes if box.title == title)
    return found


def test_a_chart_shows_where_rules_lead() -> None:
    """Chains stand in the order in which a packet meets them; ends have their listener's name."""
    (flow,) = chart(plan(Capture(**_DOCUMENTED)).rulesets, {}, {"15001": "Envoy, outbound"})
    assert flow.title == "IPv4 nat"
    columns = [_box(flow, name).column for name in ("OUTPUT", "ISTIO_OUTPUT", "ISTIO_REDIRECT")]
    assert columns == sorted(set(columns))
    redirect, end = _box(flow, "ISTIO_REDIRECT"), _box(flow, "Envoy, outbound, port 15001")
    assert redirect.lines[0].to == (end.name,)
    assert end.is_end
    assert not redirect.is_end
    # A port that nobody is known to listen on is still an end.
    assert _box(flow, "REDIRECT 15006").is_end


def test_a_long_run_is_shortened() -> None:
    """Of thousands of alike rules a few are drawn, and the picture says how many are not."""
    ports = ",".join(map(str, range(1, 2001)))
    capture = Capture(**{**_DOCUMENTED, "istio_local_exclude_ports": ports})
    (flow,) = chart(plan(capture).rulesets, {}, {})
    lines = _box(flow, "ISTIO_INBOUND").lines
    assert len(lines) < 12
    (left_out,) = (line for line in lines if not line.number)
    shown = sum(bool(line.number) for line in lines)
    chain = plan(capture).rulesets[0].table("nat").chain("ISTIO_INBOUND")  # type: ignore[union-attr]
    assert chain is not None
    assert left_out.text == f"... {len(chain.rules) - shown} more like these"


def test_a_rule_on_the_way_is_never_left_out() -> None:
    """The rule that decides about a packet is drawn, however many are like it."""
    ports = ",".join(map(str, range(1, 2001)))
    wanted = plan(Capture(**{**_DOCUMENTED, "istio_local_exclude_ports": ports}))
    flows = draw_way(explain(wanted, incoming=True, dst="10.0.0.5:1234"))
    passed = [line.text for line in _box(flows[0], "ISTIO_INBOUND").lines if line.note.passed]
    assert passed == ["-p tcp -m tcp --dport 1234 -j RETURN"]


def test_the_way_of_a_packet_is_marked() -> None:
    """Boxes, rules and arrows of a packet's way are, the others aren't; in every format."""
    found = explain(plan(Capture(**_DOCUMENTED)), dst="93.184.216.34:443")
    flows = draw_way(found)
    boxes = {box.title: box.passed for flow in flows for box in flow.boxes}
    assert boxes["OUTPUT"]
    assert boxes["ISTIO_OUTPUT"]
    assert boxes["ISTIO_REDIRECT"]
    assert boxes["Envoy, outbound, port 15001"]
    assert not boxes["ISTIO_IN_REDIRECT"]
    assert not boxes["PREROUTING"]
    drawing = svg.flow_element(flows, "")
    marked = [each for each in drawing.iter("path") if each.get("class") == "arrow way"]
    assert len(marked) == 3
    assert mermaid.flow_text(flows).count("linkStyle") == 1
    assert dot.flow_text(flows).count("-> ") > dot.flow_text(flows).count("penwidth=2.5]") > 0


def test_counters_and_reasons_are_shown() -> None:
    """Each rule has its reason where the pointer rests, and an arrow how often it was taken."""
    wanted = plan(Capture(**_DOCUMENTED))
    place = Place(Family.IPV4, "nat", "OUTPUT", 1)
    flows = chart(wanted.rulesets, {place: Note("Because.", "41 connections", foreign=True)}, {})
    for text in (
        svg.text(svg.flow_element(flows, "")),
        mermaid.flow_text(flows),
        dot.flow_text(flows),
    ):
        assert "Because." in text
        assert "41 connections" in text
    assert "foreign" in mermaid.flow_text(flows)
    drawn = draw_description(describe(wanted))
    reasons = [line.note.reason for flow in drawn for box in flow.boxes for line in box.lines]
    assert all(reasons)


def test_svg_is_xml_whatever_the_text() -> None:
    """Text of others stays text; nothing of it becomes an element."""
    for flows in _drawn():
        parsed = ET.fromstring(svg.text(svg.flow_element(flows, 'a "label" & <more>')))  # noqa: S314 - our own
        assert parsed.tag == f"{_SVG}svg"
        kinds = {each.tag.removeprefix(_SVG) for each in parsed.iter()}
        assert kinds <= {"svg", "style", "rect", "path", "text", "g", "title"}
    ET.fromstring(svg.text(svg.sequence_element(_sequences(), "")))  # noqa: S314 - our own


def test_no_box_of_the_svg_lies_over_another() -> None:
    """Boxes have room of their own, inside of the picture."""
    for flows in _drawn():
        drawing = svg.flow_element(flows, "")
        width, height = (float(drawing.get(name, "0")) for name in ("width", "height"))
        boxes = [
            tuple(float(each.get(name, "0")) for name in ("x", "y", "width", "height"))
            for each in drawing.iter("rect")
            if each.get("class", "").split(" ")[0] == "box"
        ]
        for number, (x, y, wide, high) in enumerate(boxes):
            assert x >= 0
            assert y >= 0
            assert x + wide <= width
            assert y + high <= height
            for other_x, other_y, other_wide, other_high in boxes[:number]:
                apart = x >= other_x + other_wide or other_x >= x + wide
                assert apart or y >= other_y + other_high or other_y >= y + high


@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
def test_graphviz_draws_them() -> None:
    """``dot`` takes every picture without a word on stderr."""
    texts = [*map(dot.flow_text, _drawn()), dot.sequence_text(_sequences())]
    done = subprocess.run(
        ["dot", "-Tplain"], input="".join(texts), capture_output=True, text=True, check=True
    )
    assert not done.stderr
    assert done.stdout.count("graph ") == len(texts)


def test_mermaid_draws_them(browser: Chrome, tmp_path: Path) -> None:
    """Mermaid itself parses every picture, and draws that with the oddest text."""
    texts = [*map(mermaid.flow_text, _drawn()), mermaid.sequence_text(_sequences())]
    page = tmp_path / "page.html"
    page.write_text(f"<!DOCTYPE html><script>{script('mermaid.min.js')}</script>", "utf-8")
    browser.get(page.as_uri())
    problems = browser.execute_async_script(
        """
        const [texts, done] = arguments;
        mermaid.initialize({startOnLoad: false, maxTextSize: 1000000});
        (async () => {
            const found = [];
            for (const text of texts) {
                try { await mermaid.parse(text); } catch (error) { found.push(`${error}\\n${text}`); }
            }
            for (const text of texts.slice(-2)) {
                try {
                    const drawn = await mermaid.render("drawn", text);
                    if (!drawn.svg.includes("<svg")) found.push("nothing is drawn");
                    if (drawn.svg.includes("<script")) found.push("text became a script");
                } catch (error) { found.push(`${error}\\n${text}`); }
            }
            done(found);
        })();
        """,
        texts,
    )
    assert problems == []
