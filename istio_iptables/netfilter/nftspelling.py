"""Rules of the model in the words of nft, as nft lists them.

Known are the matches and targets of our own rules; another is a KeyError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.netfilter.model import Family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from istio_iptables.netfilter.model import Match, Rule, Term

__all__ = ["action", "conditions"]


def conditions(rule: Rule, family: Family) -> dict[str, str]:
    """What a packet has to be, by kind; the whole is the texts in any order, blanks between.

    The kinds are ``interface``, ``address``, ``protocol`` (with ports), ``state`` (of the
    connection) and ``others``; one that the rule does not have is left out.
    """
    found: dict[str, list[str]] = {}
    for kind, word, term in (
        ("interface", "iifname", rule.in_interface),
        ("interface", "oifname", rule.out_interface),
        ("address", f"{_ip(family)} saddr", rule.source),
        ("address", f"{_ip(family)} daddr", rule.destination),
    ):
        if term is not None:
            value = _interface(term.value) if kind == "interface" else _address(term.value, family)
            found.setdefault(kind, []).append(_compared(word, value, negated=term.negated))
    for match in rule.matches:
        for kind, text in _MATCHES[match.name](match, rule.protocol):
            found.setdefault(kind, []).append(text)
    if rule.protocol is not None and "protocol" not in found:
        protocol = rule.protocol
        found["protocol"] = [
            _compared("meta l4proto", protocol.value, negated=protocol.negated),
        ]
    return {kind: " ".join(texts) for kind, texts in found.items()}


def action(rule: Rule, family: Family, chain: Callable[[str], str]) -> str:
    """What is done with the packet, with the counter; *chain* names a chain to jump to."""
    target = rule.target
    if target is None:
        return "counter"
    values = {option.name: option.value for option in target.options}
    match target.name:
        case "RETURN" | "ACCEPT" | "DROP":
            done = target.name.lower()
        case "REDIRECT":
            done = f"redirect to :{_range(values['--to-ports'])}"
        case "MARK":
            done = f"meta mark set {_mark(values['--set-xmark'])}"
        case "CONNMARK" if "--save-mark" in values:
            done = "ct mark set meta mark"
        case "CONNMARK":
            done = "meta mark set ct mark"
        case "CT":
            done = f"ct zone set {values['--zone']}"
        case "TPROXY":
            # nft's statement neither marks nor accepts, as iptables' target does.
            port, mark = values["--on-port"], _mark(values["--tproxy-mark"])
            return f"tproxy {_ip(family)} to :{port} meta mark set {mark} counter accept"
        case _:
            done = f"jump {chain(target.name)}"
    return f"counter {done}"


def _ip(family: Family) -> str:
    return "ip" if family is Family.IPV4 else "ip6"


def _compared(word: str, value: str, *, negated: bool) -> str:
    return f"{word} != {value}" if negated else f"{word} {value}"


def _interface(name: str) -> str:
    """The name in quotes; nft's wildcard is a ``*`` at the end, where iptables has ``+``."""
    if name.endswith("+"):
        return f'"{name[:-1]}*"'
    return f'"{name[:-1]}\\*"' if name.endswith("*") else f'"{name}"'


def _address(network: str, family: Family) -> str:
    """A network, a range of addresses, or a set of these, which commas part."""
    single = f"/{family.bits}"
    if "," not in network:
        return network.removesuffix(single)
    return _set(each.removesuffix(single) for each in network.split(","))


def _set(elements: Iterable[str]) -> str:
    return f"{{ {', '.join(elements)} }}"


def _range(text: str) -> str:
    return text.replace(":", "-")


def _mark(text: str) -> str:
    """A mark as nft lists it; a mask over all bits is none."""
    return f"{int(text.partition('/')[0], 16):#010x}"


_Condition = tuple[str, str]


def _ports(match: Match, protocol: Term | None) -> Iterator[_Condition]:
    for option in match.options:
        word = "sport" if option.name.startswith("--s") else "dport"
        name = match.name if protocol is None else protocol.value
        ports = _range(option.value)
        if "," in ports:
            # nft lists a set in order, and one of a single port as that port.
            listed = sorted(set(ports.split(",")), key=lambda each: int(each.partition("-")[0]))
            ports = _set(listed) if len(listed) > 1 else listed[0]
        yield "protocol", _compared(f"{name} {word}", ports, negated=option.negated)


def _owner(match: Match, _: Term | None) -> Iterator[_Condition]:
    for option in match.options:
        word = "skuid" if option.name == "--uid-owner" else "skgid"
        yield "others", _compared(f"meta {word}", option.value, negated=option.negated)


def _state(match: Match, _: Term | None) -> Iterator[_Condition]:
    for option in match.options:
        # nft lists states by their bits.
        states = sorted(option.value.lower().split(","), key=_STATES.index)
        yield "state", _compared("ct state", ",".join(states), negated=option.negated)


_STATES = ("invalid", "established", "related", "new", "untracked")


def _marked(word: str) -> Callable[[Match, Term | None], Iterator[_Condition]]:
    def spell(match: Match, _: Term | None) -> Iterator[_Condition]:
        for option in match.options:
            yield "others", _compared(word, _mark(option.value), negated=option.negated)

    return spell


_MATCHES: dict[str, Callable[[Match, Term | None], Iterator[_Condition]]] = {
    "tcp": _ports,
    "udp": _ports,
    "multiport": _ports,
    "owner": _owner,
    "conntrack": _state,
    "mark": _marked("meta mark"),
    "connmark": _marked("ct mark"),
}
