"""Which rules of a namespace are ours, by what they are and not by what was once installed.

Undo needs no memory, so this has to tell from the rules alone:

* a chain is ours when its name starts with ``ISTIO_``;
* a rule in a built-in chain is ours when it jumps to such a chain;
* TPROXY's rules in mangle are ours by their shape, which is told by the marks they share:
  ``OUTPUT … -j MARK --set-xmark 0x53a``, and the three rules about one mark that stand in
  PREROUTING and OUTPUT around it;
* ``-i X -j RETURN`` and ``-o X -j RETURN`` are how an interface is excluded. Anyone may write
  such a rule, so it counts as ours only where Istio's order puts it: right before our jump out
  of OUTPUT, and for the same interfaces, in the same order, before our jump in PREROUTING;
* ``-i K -j RETURN`` spares a virtual interface: ours right behind the rules that send K's
  traffic to ISTIO_REDIRECT, or at the very head of nat's PREROUTING where no destination is
  captured, so that there are no such rules.

A foreign chain may jump to ours: that rule stays, unless the chain it jumps to goes.

Where this ends: a foreign bare RETURN for an interface that stands exactly in one of those
places, in a namespace that also has our chains, can't be told from ours. Nothing else can be
mistaken, and in a table without chains, jumps or marks of ours nothing is ours. Chains of
Istio's ambient mode have such names too and count as ours.
"""

from __future__ import annotations

from istio_iptables.istio.plan import build_address
from istio_iptables.istio.rules import (
    CHAIN_PREFIX,
    DIVERT,
    NATIVE_TABLE,
    OUTBOUND_MARK,
    OUTPUT,
    REDIRECT,
)
from istio_iptables.netfilter.model import is_built_in
from istio_iptables.netfilter.ownership import NativeOwnership, Owned, Ownership, Position
from istio_iptables.settings.declarations import setting
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_iptables.netfilter.model import Chain, Rule, Table

__all__ = ["NATIVE_NAMES", "OWNERSHIP", "find_owned", "has_foreign"]


def find_owned(table: Table) -> Owned:
    """Our part of *table*."""
    own = tuple(chain.name for chain in table.chains if _is_own_chain(chain.name))
    shared: dict[str, dict[int, Position]] = {}
    for chain in table.chains:
        if is_built_in(table.name, chain.name) and (jumps := _jumps(chain)):
            shared[chain.name] = jumps
    # Interfaces and marks are looked at only where there is something that is ours for sure.
    if table.name == "mangle":
        _add_marks(table, shared)
    if own or shared:
        _add_excluded(table, shared)
        if table.name == "nat":
            _add_virtual(table, shared)
    return Owned(own, {chain: dict(sorted(rules.items())) for chain, rules in shared.items()})


def has_foreign(table: Table) -> bool:
    """Whether a built-in chain of *table* has a rule that is not ours, or a policy that drops."""
    shared = find_owned(table).shared
    return any(
        len(chain.rules) > len(shared.get(chain.name, ())) or chain.policy == "DROP"
        for chain in table.chains
        if is_built_in(table.name, chain.name)
    )


def _is_own_chain(name: str) -> bool:
    return name.startswith(CHAIN_PREFIX)


def _jumps(chain: Chain) -> dict[int, Position]:
    """The rules that jump to chains of ours."""
    return {
        number: Position.HEAD if _rerouted(chain.name, rule) else Position.TAIL
        for number, rule in enumerate(chain.rules)
        if _jumps_to_us(rule)
    }


def _jumps_to_us(rule: Rule) -> bool:
    if rule.verbatim and CHAIN_PREFIX not in rule.verbatim:
        # Others may have very many, which need not be read.
        return False
    return rule.target is not None and _is_own_chain(rule.target.name)


def _rerouted(chain: str, rule: Rule) -> bool:
    """Whether the rule sends a virtual interface's traffic to Envoy; those are put in at the head."""
    return chain == "PREROUTING" and rule.target is not None and rule.target.name == REDIRECT


def _mark(rule: Rule, match: str) -> str | None:
    """The mark a rule asks for, when that and tcp (and perhaps ``-o lo``) is all it asks for."""
    if (
        len(rule.matches) != 1
        or rule.matches[0].name != match
        or rule.protocol is None
        or rule.protocol.value != "tcp"
        or rule.source
        or rule.destination
        or rule.in_interface
    ):
        return None
    option = rule.matches[0].option("--mark")
    return option.values[0] if option and option.values and not option.negated else None


def _add_marks(table: Table, shared: dict[str, dict[int, Position]]) -> None:
    """TPROXY's rules in PREROUTING and OUTPUT: they belong together by their mark."""
    output = table.chain("OUTPUT")
    prerouting = table.chain("PREROUTING")
    if output is None or prerouting is None:
        return
    kept = _numbers_by_mark(output.rules, "mark", "RETURN")
    restored = _numbers_by_mark(output.rules, "connmark", "CONNMARK", "--restore-mark")
    saved = _numbers_by_mark(prerouting.rules, "mark", "CONNMARK", "--save-mark")
    for mark in saved.keys() & kept.keys() & restored.keys():
        ends = (*kept[mark], *restored[mark])
        between = range(min(ends), max(ends))
        calls = (number for number in between if _is_outbound_mark(output.rules[number]))
        shared.setdefault("PREROUTING", {}).update(dict.fromkeys(saved[mark], Position.TAIL))
        shared.setdefault("OUTPUT", {}).update(dict.fromkeys((*ends, *calls), Position.TAIL))


def _numbers_by_mark(
    rules: tuple[Rule, ...], match: str, target: str, *options: str
) -> dict[str, list[int]]:
    """For each mark the rules that ask for it with *match* and end at *target*."""
    found: dict[str, list[int]] = {}
    for number, rule in enumerate(rules):
        if (
            rule.target is not None
            and rule.target.name == target
            and all(rule.target.option(option) for option in options)
            and (mark := _mark(rule, match)) is not None
        ):
            found.setdefault(mark, []).append(number)
    return found


def _is_outbound_mark(rule: Rule) -> bool:
    option = rule.target.option("--set-xmark") if rule.target else None
    return (
        option is not None
        and option.values == (f"{OUTBOUND_MARK:#x}/0xffffffff",)
        and rule.out_interface is not None
        and rule.out_interface.value == "lo"
        and len(rule.matches) == 1
        and rule.matches[0].name == "owner"
    )


def _bare_return(rule: Rule, *, inbound: bool) -> str | None:
    """The interface, when the rule is ``-i X -j RETURN`` (or ``-o X``) and nothing more."""
    term = rule.in_interface if inbound else rule.out_interface
    text = f"{'-i' if inbound else '-o'} {term.value} -j RETURN" if term else "-j RETURN"
    return (term.value if term else "+") if rule.text == text else None


def _add_excluded(table: Table, shared: dict[str, dict[int, Position]]) -> None:
    """Excluded interfaces, by where Istio's order puts them."""
    output = table.chain("OUTPUT")
    prerouting = table.chain("PREROUTING")
    anchor = _first_tail(shared.get("OUTPUT", {}))
    if output is None or prerouting is None or anchor is None:
        return
    names = _names_before(output.rules, anchor)
    if not names:
        return
    placed = shared.get("PREROUTING", {})
    jump = _first_tail(placed)
    rest = range(len(prerouting.rules) if jump is None else jump)
    free = [number for number in rest if number not in placed]
    found = _last_run(prerouting.rules, free, names, adjacent=jump is not None)
    # A foreign pair may stand before ours: as many as are paired, counted from our jump.
    shared["OUTPUT"] |= dict.fromkeys(range(anchor - len(found), anchor), Position.TAIL)
    if found:
        shared.setdefault("PREROUTING", {}).update(dict.fromkeys(found, Position.TAIL))


def _first_tail(places: Mapping[int, Position]) -> int | None:
    return min((number for number, place in places.items() if place is Position.TAIL), default=None)


def _names_before(rules: tuple[Rule, ...], anchor: int) -> list[str]:
    """The interfaces of the run of ``-o X -j RETURN`` that ends right before the rule *anchor*."""
    names: list[str] = []
    for rule in reversed(rules[:anchor]):
        name = _bare_return(rule, inbound=False)
        if name is None:
            break
        names.insert(0, name)
    return names


def _last_run(
    rules: tuple[Rule, ...], free: list[int], names: list[str], *, adjacent: bool
) -> list[int]:
    """The numbers of the ``-i X -j RETURN`` for the longest tail of *names* that ends *free*.

    Unless it has to be *adjacent* to the end, where our jump is, foreign rules behind it are
    passed over.
    """
    for end in range(len(free), len(free) - 1 if adjacent else 0, -1):
        found: list[int] = []
        for name in reversed(names):
            position = end - 1 - len(found)
            if position < 0 or _bare_return(rules[free[position]], inbound=True) != name:
                break
            found.insert(0, free[position])
        if found:
            return found
    return []


def _add_virtual(table: Table, shared: dict[str, dict[int, Position]]) -> None:
    """What spares virtual interfaces: behind what sends them to Envoy, else at the very head."""
    prerouting = table.chain("PREROUTING")
    rules = prerouting.rules if prerouting else ()
    placed = shared.get("PREROUTING", {})
    rerouted = [number for number, place in placed.items() if place is Position.HEAD]
    if not rerouted and _captures_destinations(table):
        return
    names = {_interface(rules[number]) for number in rerouted}
    for number in range(max(rerouted, default=-1) + 1, len(rules)):
        name = None if number in placed else _bare_return(rules[number], inbound=True)
        # Foreign rules may stand before ours, but not between a jump and the RETURN that goes with it.
        if name is None or (name not in names if rerouted else name == "+"):
            break
        shared.setdefault("PREROUTING", {})[number] = Position.HEAD


def _captures_destinations(table: Table) -> bool:
    """Whether what the application sends is captured by destination, as virtual interfaces' is."""
    chain = table.chain(OUTPUT)
    return any(
        rule.target is not None
        and rule.target.name == REDIRECT
        and rule.protocol is None
        and not rule.matches
        for rule in (chain.rules if chain else ())
    )


def _interface(rule: Rule) -> str:
    return rule.in_interface.value if rule.in_interface else "+"


def _route_marks(table: Table) -> tuple[int, ...]:
    """The marks that TPROXY's rules set for their policy routes."""
    divert = table.chain(DIVERT)
    options = [
        rule.target.option("--set-xmark", "--set-mark")
        for rule in (divert.rules if divert else ())
        if rule.target is not None
    ]
    return tuple(
        int(option.values[0].partition("/")[0], 0) for option in options if option and option.values
    )


def _native_chains(table: str) -> frozenset[str]:
    from istio_iptables.istio.native import native_chains  # few namespaces have native rules

    return native_chains(table)


def _native_route_marks(listing: str) -> tuple[int, ...]:
    """The marks that TPROXY's native rules set for their policy routes, from nft's listing."""
    _, _, rest = listing.partition("\tchain istio-divert {\n")
    chain, _, _ = rest.partition("\n\t}")
    found = (line.partition(" meta mark set ")[2].split() for line in f" {chain}".splitlines())
    return tuple(int(words[0], 0) for words in found if words and words[0][:1].isdigit())


#: What the kernel package is told of all this.
_TABLES = ("raw", "mangle", "nat")
OWNERSHIP = Ownership(
    find_owned,
    _route_marks,
    _is_own_chain,
    _TABLES,
    build_address(),
    int(setting("istio_inbound_tproxy_route_table").default),
    NativeOwnership(
        tuple(f"{NATIVE_TABLE}{table}" for table in _TABLES), _native_chains, _native_route_marks
    ),
)

#: The names of our native tables, as nft has them.
NATIVE_NAMES = frozenset(f"inet {name}" for name in OWNERSHIP.native.tables)
