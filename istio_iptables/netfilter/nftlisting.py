"""What ``nft list ruleset`` prints to tables: their chains with their rules, and what else they have.

A table's name is that of its family and its own, as nft has it: ``inet istio-proxy-nat``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from istio_iptables.errors import SaveFileError
from istio_iptables.netfilter.model import Base, Chain, Family, Ruleset, Table
from istio_iptables.netfilter.nftrules import NftRule
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_iptables.netfilter.native import NativeChain, NativePlan, NativeTable

__all__ = ["families", "planned_table", "planned_tables", "priority", "read_listing"]

#: The families that a table may have.
_FAMILIES = ("ip", "ip6", "inet", "arp", "bridge", "netdev")

#: The names that nft has for priorities; those of a bridge are others, and never a pod's.
_PRIORITIES = {
    "raw": -300,
    "mangle": -150,
    "dstnat": -100,
    "filter": 0,
    "security": 50,
    "srcnat": 100,
}

_TABLE = re.compile(r"table (\S+) (\S+) \{")
_BASE = re.compile(
    r"type (\w+) hook (prerouting|input|forward|output|postrouting|ingress|egress) "
    r'(?:devices? .+ )?priority ([^;]+);(?: policy (\w+);)?(?: comment "[^"]*")?'
)
_PRIORITY = re.compile(r"([a-z]+)?(?: ?([+-]) ?)?(\d{1,10})?")


def priority(text: str) -> int | None:
    """The number of ``dstnat``, ``mangle + 5`` or ``-100``; None for another text."""
    read = _PRIORITY.fullmatch(text)
    if read is None or not text or (read[1] and read[1] not in _PRIORITIES):
        return None
    number = int(read[3] or 0)
    return _PRIORITIES.get(read[1] or "", 0) + (-number if read[2] == "-" else number)


def families(tables: Iterable[Table]) -> tuple[Ruleset, ...]:
    """The tables that packets of each address family meet."""
    tables = tuple(tables)
    return tuple(
        Ruleset(family, tuple(each for each in tables if each.name.split(" ")[0] in names))
        for family, names in (
            (Family.IPV4, {"inet", "ip", "netdev"}),
            (Family.IPV6, {"inet", "ip6", "netdev"}),
        )
    )


def read_listing(lines: Iterable[str]) -> tuple[Table, ...]:
    """The tables that *lines* describe; raises SaveFileError, which names the line."""
    reader = _Reader()
    for number, line in enumerate(lines, start=1):
        reader.take(number, line)
    return reader.tables()


def planned_tables(plan: NativePlan) -> tuple[Table, ...]:
    """The tables of *plan* as those that are read: rules with their reasons."""
    return tuple(map(planned_table, plan.tables))


def planned_table(table: NativeTable) -> Table:
    """One of them."""
    return Table(f"inet {table.name}", tuple(map(_planned_chain, table.chains)))


def _planned_chain(chain: NativeChain) -> Chain:
    rules = tuple(NftRule(rule.text, rule.reason) for rule in chain.rules)
    if chain.hook is None:
        return Chain(chain.name, rules=rules)
    kind, hook, text = chain.hook
    return Chain(chain.name, "ACCEPT", rules, base=Base(kind, hook.upper(), priority(text) or 0))


class _Reader:
    """Takes the lines of a listing one by one."""

    def __init__(self) -> None:
        self._number = 0
        self._tables: dict[str, Table] = {}
        #: The table, and the chain or other block, that the next line is in.
        self._table = ""
        self._block = ""
        self._objects: dict[str, str] = {}
        self._chains: dict[str, _Chain] = {}
        #: Lines of a text that goes on, and how many of its braces are open.
        self._open: list[str] = []
        self._braces = 0

    def take(self, number: int, line: str) -> None:
        """Read one line."""
        self._number = number
        text = _without_comment(line).strip()
        if not text:
            return
        if not self._table:
            self._top(text)
        elif not self._block:
            self._in_table(text)
        elif text == "}" and not self._open:
            self._block = ""
        else:
            self._open.append(text)
            self._braces += _depth(text)
            if self._braces > 0:
                # The elements of a set go on in the next line.
                return
            whole = " ".join(self._open)
            self._open, self._braces = [], 0
            self._in_block(whole)

    def tables(self) -> tuple[Table, ...]:
        """The tables, all lines taken."""
        if self._table or self._open:
            raise SaveFileError(self._number, "ends within a table: a brace is not closed")
        return tuple(self._tables.values())

    def _top(self, text: str) -> None:
        read = _TABLE.fullmatch(text)
        if read is None or read[1] not in _FAMILIES:
            raise SaveFileError(
                self._number,
                f"expected a table such as 'table inet filter {{', found {excerpt(text)}",
            )
        self._table = f"{read[1]} {read[2]}"
        if self._table in self._tables:
            raise SaveFileError(self._number, f"table {excerpt(self._table)} is here a second time")
        self._objects, self._chains = {}, {}

    def _in_table(self, text: str) -> None:
        if text == "}":
            chains = tuple(each.made(name, self._objects) for name, each in self._chains.items())
            self._tables[self._table] = Table(self._table, chains, objects=self._objects)
            self._table = ""
            return
        first, _, rest = text.partition(" ")
        if first in {"flags", "comment"}:
            self._objects[first] = rest
            return
        kind, _, name = text.removesuffix(" {").rpartition(" ")
        if not text.endswith(" {") or not kind or kind.startswith("chain "):
            raise SaveFileError(
                self._number, f"expected a chain or set of the table, found {excerpt(text)}"
            )
        self._block = f"{kind} {name}"
        if kind == "chain":
            if name in self._chains:
                raise SaveFileError(self._number, f"chain {excerpt(name)} is here a second time")
            self._chains[name] = _Chain()
        else:
            self._objects[self._block] = ""

    def _in_block(self, text: str) -> None:
        if not self._block.startswith("chain "):
            before = self._objects[self._block]
            self._objects[self._block] = f"{before}; {text}" if before else text
            return
        chain = self._chains[self._block.removeprefix("chain ")]
        if text.startswith("type ") and not chain.lines and chain.base is None:
            chain.base, chain.policy = self._base(text)
        elif not (text.startswith("comment ") and not chain.lines):
            chain.lines.append(text)

    def _base(self, text: str) -> tuple[Base, str]:
        read = _BASE.fullmatch(text)
        number = None if read is None else priority(read[3])
        if read is None or number is None:
            raise SaveFileError(
                self._number, f"expected a chain's type, hook and priority, found {excerpt(text)}"
            )
        return Base(read[1], read[2].upper(), number), (read[4] or "accept").upper()


class _Chain:
    """A chain while its lines go by."""

    def __init__(self) -> None:
        self.base: Base | None = None
        self.policy: str | None = None
        self.lines: list[str] = []

    def made(self, name: str, objects: dict[str, str]) -> Chain:
        """The chain, all of its table's lines taken."""
        rules = tuple(NftRule.read(line, objects) for line in self.lines)
        return Chain(name, self.policy, rules, base=self.base)


def _without_comment(line: str) -> str:
    """*line* without what stands behind a # that is in no quotes."""
    if "#" not in line:
        return line
    parts = line.split('"')
    for number in range(0, len(parts), 2):
        before, sign, _ = parts[number].partition("#")
        if sign:
            return '"'.join([*parts[:number], before])
    return line


def _depth(text: str) -> int:
    """How many braces are open behind *text*."""
    parts = text.split('"')[::2]
    return sum(part.count("{") - part.count("}") for part in parts)
