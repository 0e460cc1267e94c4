"""docs/troubleshooting.md: each incident happens, is found and is mended as the page shows it."""

from __future__ import annotations

import re

import pytest

from tests.incidents import Incident, incidents, outputs, told, why_not
from tests.readme import TROUBLESHOOTING, agrees, anchors, links

PAGE = TROUBLESHOOTING.read_text(encoding="utf-8")
INCIDENTS = incidents(PAGE)


@pytest.fixture(scope="module")
def printed() -> dict[str, list[str]]:
    """What the commands of each incident print; all of them on one lab."""
    titles = [each.title for each in INCIDENTS]
    return dict(zip(titles, outputs(INCIDENTS), strict=True))


@pytest.mark.kernel
@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize("incident", INCIDENTS, ids=[each.title for each in INCIDENTS])
def test_it_happens_as_shown(incident: Incident, printed: dict[str, list[str]]) -> None:
    """Symptom, findings and mend, each command with what stands below it."""
    for step, output in zip(incident.steps, printed[incident.title], strict=True):
        if step.prompt:
            shown = f"{step.prompt}{step.command}{output}"
            assert agrees(told(step.output), told(output)), shown


@pytest.mark.parametrize("incident", INCIDENTS, ids=[each.title for each in INCIDENTS])
def test_it_is_told_in_order(incident: Incident) -> None:
    """Every incident is found from the top, is broken first, and has all that the reader needs."""
    section = PAGE.partition(f"\n## {incident.title}\n")[2].partition("\n## ")[0]
    words = re.findall(r"^\*\*(See|Ask|It means|Do)\*\*", section, re.MULTILINE)
    assert words == ["See", "Ask", "It means", "Do"]
    assert not incident.steps[0].prompt
    assert any("istio-iptables" in each.command for each in incident.steps if each.prompt)


def test_the_top_lists_them_all() -> None:
    """The symptoms link to every section, each once."""
    top = PAGE.partition("\n## ")[0]
    linked = [each.removeprefix("#") for each in links(top) if each.startswith("#")]
    sections = anchors(PAGE) - anchors(top)
    assert sorted(linked) == sorted(sections - {"diff-and-explain"})


def test_other_programs_have_their_own_words() -> None:
    """What differs between versions of curl and dig is not held, what they tell is."""
    assert told("curl: (7) Failed to connect\n") == told("curl: (7) connect: refused\n")
    assert told("curl: (7) a\n") != told("curl: (28) a\n")
    assert told(";; a: timed out\n") == told(";; connection timed out; no servers\n")
    assert told(";; a: timed out\n") != told(";; a: refused\n")
