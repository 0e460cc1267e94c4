"""Rules of others in the same namespace: whole layouts, and single rules around ours."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from istio_iptables.netfilter.model import BUILT_IN_CHAINS, Family
from tests.kernel.sandbox import load, save, tables

__all__ = ["LAYOUTS", "Chains", "add_around", "chains", "is_ours", "load_layout", "place_of"]

_FIXTURES = Path(__file__).parent / "fixtures"

#: What Docker and kube-proxy make; each in both families.
LAYOUTS = ("docker", "kube-proxy")

#: The rules of each chain of each table, without counters: {"nat": {"OUTPUT": ["-j ..."]}}.
Chains = dict[str, dict[str, list[str]]]


def load_layout(name: str, backend: str) -> None:
    """Load a layout in both families."""
    for family in Family:
        load(backend, family, (_FIXTURES / f"{name}.{family.value}.save").read_text())


def add_around(backend: str) -> None:
    """Put foreign rules before and behind everything in each chain that Istio uses.

    Bare RETURNs for an interface behind ours are what is most like a rule of ours.
    """
    lines = []
    for table in ("raw", "mangle", "nat"):
        lines.append(f"*{table}")
        for chain, flag in (("PREROUTING", "-i"), ("OUTPUT", "-o")):
            lines += (
                f'-I {chain} -p tcp -m tcp --dport 9 -m comment --comment "a stranger\'s" -j ACCEPT',
                f"-A {chain} {flag} eth9 -j RETURN",
                f"-A {chain} -p udp -m udp --dport 9 -m comment --comment last -j ACCEPT",
            )
        lines.append("COMMIT")
    for family in Family:
        load(backend, family, "\n".join(lines) + "\n")


def chains(backend: str, family: Family) -> Chains:
    """The rules there are now."""
    return _split(tables(save(backend, family)))


def _split(text: dict[str, str]) -> Chains:
    found: Chains = {}
    for name, table in text.items():
        lines = table.splitlines()
        found[name] = {line[1:].split()[0]: [] for line in lines if line.startswith(":")}
        for line in lines:
            if line.startswith("-A "):
                _, chain, *rest = line.split(" ", 2)
                found[name][chain].append(rest[0] if rest else "")
    return found


def is_ours(table: str, chain: str) -> bool:
    """Whether a chain is Istio's altogether."""
    return chain.startswith("ISTIO_") and chain not in BUILT_IN_CHAINS[table]


class Position(NamedTuple):
    """The rules of a plan in a chain that others use too."""

    head: list[str]
    tail: list[str]


def place_of(text: dict[str, str], table: str, chain: str) -> Position:
    """Where the rules of a plan (the tables of its dry run) stand in one built-in chain."""
    rules = _split(text).get(table, {}).get(chain, [])
    if (table, chain) != ("nat", "PREROUTING"):
        return Position([], rules)
    # Only -k puts rules at the head, and only the tests' -k names net1 and net2.
    head = [rule for rule in rules if rule.startswith("-i net")]
    return Position(head, [rule for rule in rules if rule not in head])
