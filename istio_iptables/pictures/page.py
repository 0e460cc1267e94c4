"""Pages of HTML that need nothing else: their style, script and pictures are in them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from istio_iptables.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["element", "listing", "page", "scrolling", "section", "table"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #57606a; --paper: #ffffff;
  --box: #f3f5f8; --line: #d0d7de; --way: #0a58ca; --bad: #a8071a; --warn: #7a4b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #a5b0bb; --paper: #0d1117;
  --box: #1a212b; --line: #30363d; --way: #79b8ff; --bad: #ff9492; --warn: #f0c674; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 100rem; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
code, pre, .mono { font: 0.85rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 5px; padding: 0.7rem;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; color: var(--faint); padding: 0.3rem 0; }
table + table { margin-top: 1rem; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.6rem;
  border-bottom: 1px solid var(--line); }
td code { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 5px; }
.scroll > svg { display: block; max-width: 100%; height: auto; min-width: var(--least); }
a { color: var(--way); }
nav a { margin-right: 1rem; }
:focus-visible { outline: 3px solid var(--way); outline-offset: 2px; }
form { display: flex; flex-wrap: wrap; gap: 0.7rem; align-items: end; }
label { display: flex; flex-direction: column; font-size: 0.85rem; color: var(--faint); }
input, select, button { font: inherit; color: var(--ink); background: var(--paper);
  border: 1px solid var(--faint); border-radius: 4px; padding: 0.3rem 0.5rem; }
.error { color: var(--bad); font-weight: bold; } .warning { color: var(--warn); font-weight: bold; }
.foreign { color: var(--bad); } .faint { color: var(--faint); }
@media (max-width: 45rem) { table.wide, .wide caption, .wide tbody, .wide tr, .wide td {
    display: block; }
  .wide thead { display: none; } .wide td { border: 0; padding: 0.1rem 0; }
  .wide td[data-head]::before { content: attr(data-head) ": "; color: var(--faint); }
  .wide tr { border-bottom: 1px solid var(--line); padding: 0.4rem 0; } }
@media print { body { max-width: none; padding: 0; font-size: 0.8rem; }
  nav, #follow { display: none; } h2 { break-after: avoid; } tr { break-inside: avoid; }
  .scroll { overflow: visible; border: 0; } .scroll > svg { min-width: 0; } }
"""


#: How small a picture may be made to fit the width: letters of 12 px stay readable.
_LEAST = 0.7
#: What holds text of ours alone.
_RAW = frozenset({"script", "style"})


def element(tag: str, *content: ET.Element | str, **attributes: str) -> ET.Element:
    """An element with texts and elements in it; a trailing ``_`` of an attribute's name is dropped."""
    made = ET.Element(
        tag, {name.rstrip("_").replace("_", "-"): attributes[name] for name in attributes}
    )
    for each in content:
        if not isinstance(each, str):
            made.append(each)
            continue
        text = each if tag in _RAW else "\n".join(map(printable, each.split("\n")))
        if len(made):
            made[-1].tail = (made[-1].tail or "") + text
        else:
            made.text = (made.text or "") + text
    return made


def section(name: str, heading: str, *content: ET.Element | str) -> ET.Element:
    """A part of the page that links can name."""
    title = element("h2", heading, id=f"{name}-heading")
    return element("section", title, *content, id=name, aria_labelledby=f"{name}-heading")


def table(
    heads: Sequence[str], rows: Iterable[Sequence[ET.Element | str]], caption: str
) -> ET.Element:
    """A table; on a narrow screen each row becomes a few lines."""
    return element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *(element("th", head, scope="col") for head in heads))),
        element(
            "tbody",
            *(
                element(
                    "tr",
                    *(
                        element("td", cell, data_head=head)
                        for head, cell in zip(heads, row, strict=True)
                    ),
                )
                for row in rows
            ),
        ),
        class_="wide",
    )


def scrolling(picture: ET.Element, label: str) -> ET.Element:
    """A picture made as small as the page if it can be read then, else the keyboard scrolls it too."""
    picture.set("style", f"--least: {_LEAST * int(picture.attrib['width']):.0f}px")
    return element("div", picture, class_="scroll", tabindex="0", role="region", aria_label=label)


def listing(text: str) -> ET.Element:
    """Text as a terminal shows it."""
    return element("pre", text, tabindex="0")


def page(title: str, content: Iterable[ET.Element], *, script: str = "", data: str = "") -> str:
    """The page as a file; *script* finds *data*, which is JSON, in the element ``data``."""
    body = element("body", element("main", element("h1", title), *content))
    if script:
        # In a script nothing is escaped, so that this must not end it.
        held = data.replace("<", "\\u003c")
        body.append(element("script", held, type="application/json", id="data"))
        body.append(element("script", script))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Nothing is loaded, whatever a text from outside may say.
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
        ),
        element("title", title),
        element("style", _STYLE),
    )
    html = element("html", head, body, lang="en")
    return f"<!DOCTYPE html>\n{ET.tostring(html, encoding='unicode', method='html')}\n"
