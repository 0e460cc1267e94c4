"""Values to YAML that every reader reads the same: block style, keys in their order, quotes where needed."""

from __future__ import annotations

from typing import Any

import yaml

from istio_iptables.kubernetes.yamlnodes import resolve

__all__ = ["write"]

#: Written in C, five times as fast.
_Writer: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


#: No text is broken into lines.
_WIDEST = 1 << 30


class _Dumper(_Writer):  # type: ignore[misc]  # one of two
    """Writes each value where it stands, without anchors."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML calls it so
        return True


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None
    if {"\x85", "\u2028", "\u2029"} & set(text):
        # PyYAML would write these line ends as they are, and read them as blanks.
        style = '"'
    elif "\n" in text:
        style = "|"
    elif resolve(text) != text:
        # Kubernetes takes for something else what PyYAML may not.
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent)


def write(value: Any, indent: str = "") -> str:  # noqa: ANN401 - of YAML
    """The lines of *value*, without the first one's *indent* and without an end of the last."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDEST)
    # Behind a text alone stands the end of a document.
    lines = text.removesuffix("...\n").removesuffix("\n").split("\n")
    return "\n".join([lines[0], *(f"{indent}{line}" if line else "" for line in lines[1:])])
