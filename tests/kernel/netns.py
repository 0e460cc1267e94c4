"""Run commands, many in one go, inside a network namespace that is gone afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from istio_iptables.netfilter.model import Family

__all__ = ["BACKENDS", "TOOLS", "Done", "Step", "inside", "program", "rules_of", "why_not"]

#: The two stores of rules that the kernel has, by the name of their tools.
BACKENDS = ("legacy", "nft")

TOOLS = ("unshare", "ip", "iptables-legacy-restore", "iptables-nft-restore")

# Runs in the namespace: reads the steps, answers with what became of each.
_DRIVER = """
import json, subprocess, sys
done = []
for argv, text in json.load(sys.stdin):
    each = subprocess.run(argv, input=text, capture_output=True, encoding="utf-8")
    done.append((each.returncode, each.stdout, each.stderr))
json.dump(done, sys.stdout)
"""


class Step(NamedTuple):
    """A command and the text of its stdin."""

    argv: Sequence[str]
    stdin: str = ""


class Done(NamedTuple):
    """What became of a step."""

    status: int
    out: str
    err: str


def why_not() -> str:
    """The reason why the real kernel can't be used here; "" if it can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def inside(steps: Iterable[Step]) -> list[Done]:
    """What became of each step, run one after the other in a fresh network namespace."""
    answer = subprocess.run(
        ["unshare", "--net", sys.executable, "-S", "-E", "-c", _DRIVER],
        input=json.dumps([(list(step.argv), step.stdin) for step in steps]),
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
        timeout=120,
    )
    return [Done(*each) for each in json.loads(answer.stdout)]


def program(family: Family, backend: str, what: str = "") -> str:
    """The name of a tool, such as ``ip6tables-nft-save``."""
    name = "iptables" if family.value == "ipv4" else "ip6tables"
    return f"{name}-{backend}-{what}" if what else f"{name}-{backend}"


def rules_of(save: str) -> str:
    """What a text of iptables-save says: no counters and comments, no tables without rules.

    The kernel makes a table when it is first looked at, so an empty one means nothing.
    """
    tables: list[list[str]] = []
    for line in save.splitlines():
        if line.startswith("*"):
            tables.append([line])
        elif line.startswith(":"):
            tables[-1].append(line.rpartition(" ")[0])
        elif line.startswith("-"):
            tables[-1].append(line)
    order = ("*raw", "*mangle", "*nat", "*filter", "*security")
    full = [table for table in tables if any(line.startswith("-") for line in table)]
    return "".join(
        f"{line}\n" for table in sorted(full, key=lambda t: order.index(t[0])) for line in table
    )
