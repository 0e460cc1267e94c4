"""The one spelling of each extension whose older or looser spellings are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.netfilter.fieldvalues import WHOLE_MARK, masked, number, port_range
from istio_iptables.netfilter.model import Family, Match, Option, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["SPELL_MATCH", "SPELL_TARGET"]

_PORTS_LAST = 65535


def _ordered(options: Iterable[Option], order: Mapping[str, int]) -> tuple[Option, ...]:
    """The options in the order in which iptables-save prints them; unknown ones at the end."""
    return tuple(sorted(options, key=lambda option: order.get(option.name, len(order))))


# Matches.

_PORT_NAMES = {"--source-port": "--sport", "--destination-port": "--dport"}
_PORT_ORDER = {"--sport": 0, "--dport": 1, "--tcp-option": 2, "--tcp-flags": 3}
_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")


def _ports(match: Match) -> Match | None:
    """``-m tcp``, ``-m udp`` and their like; without an option they say what -p says."""
    options = []
    for option in match.options:
        name = _PORT_NAMES.get(option.name, option.name)
        if name in _PORT_ORDER and _PORT_ORDER[name] <= 1 and len(option.values) == 1:
            ports = port_range(option.values[0])
            if ports is None:
                options.append(option._replace(name=name))
            elif ports != (0, _PORTS_LAST) or option.negated:
                text = f"{ports.first}" if ports.first == ports.last else f"{ports[0]}:{ports[1]}"
                options.append(Option(name, (text,), option.negated))
        elif name == "--syn":
            options.append(Option("--tcp-flags", ("FIN,SYN,RST,ACK", "SYN"), option.negated))
        elif name == "--tcp-flags":
            options.append(option._replace(values=tuple(map(_flags, option.values))))
        else:
            options.append(option)
    return Match(match.name, _ordered(options, _PORT_ORDER)) if options else None


def _flags(text: str) -> str:
    if text in {"ALL", "NONE"}:
        flags = set(_TCP_FLAGS if text == "ALL" else ())
    else:
        flags = set(text.upper().split(","))
        if not flags <= set(_TCP_FLAGS):
            return text
    return ",".join(flag for flag in _TCP_FLAGS if flag in flags) or "NONE"


_MULTIPORT_NAMES = {
    "--source-ports": "--sports",
    "--destination-ports": "--dports",
}


def _multiport(match: Match) -> Match:
    options = []
    for option in match.options:
        values = option.values
        if len(values) == 1:
            ranges = [(item, port_range(item)) for item in values[0].split(",")]
            values = (
                ",".join(
                    item
                    if ports is None
                    else str(ports.first)
                    if ports.first == ports.last and ":" not in item
                    else f"{ports.first}:{ports.last}"
                    for item, ports in ranges
                ),
            )
        name = _MULTIPORT_NAMES.get(option.name, option.name)
        options.append(Option(name, values, option.negated))
    return Match(match.name, tuple(options))


def _mark(match: Match) -> Match:
    """``--mark 1337`` is ``--mark 0x539``; a whole mask is not printed."""
    options = []
    for option in match.options:
        read = masked(option.values[0]) if len(option.values) == 1 else None
        if option.name == "--mark" and read is not None:
            value, mask = read
            text = f"{value:#x}" if mask == WHOLE_MARK else f"{value:#x}/{mask:#x}"
            options.append(Option("--mark", (text,), option.negated))
        else:
            options.append(option)
    return Match(match.name, tuple(options))


_OWNER_ORDER = {"--uid-owner": 0, "--gid-owner": 1, "--socket-exists": 2, "--suppl-groups": 3}


def _owner(match: Match) -> Match:
    """``--uid-owner 0x539`` and ``1337-1337`` are ``1337``; names stay."""
    options = []
    for option in match.options:
        if option.name in {"--uid-owner", "--gid-owner"} and len(option.values) == 1:
            first_text, dash, last_text = option.values[0].partition("-")
            first, last = number(first_text), number(last_text if dash else first_text)
            if first is not None and last is not None:
                text = str(first) if first == last else f"{first}-{last}"
                options.append(Option(option.name, (text,), option.negated))
                continue
        options.append(option)
    return Match(match.name, _ordered(options, _OWNER_ORDER))


_STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")


def _states(match: Match) -> Match:
    """States in one order; ``-m state --state`` asks the same of fewer of them."""
    options = []
    for option in match.options:
        name = "--ctstate" if option.name in {"--state", "--ctstate"} else option.name
        if name == "--ctstate" and len(option.values) == 1:
            asked = set(option.values[0].upper().split(","))
            if asked <= set(_STATES):
                text = ",".join(state for state in _STATES if state in asked)
                options.append(Option(name, (text,), option.negated))
                continue
        options.append(option)
    if match.name == "state" and not all(option.name == "--ctstate" for option in options):
        return match
    return Match("conntrack", tuple(options))


#: How to spell a match; None instead of a match means that it asks for nothing.
SPELL_MATCH: dict[str, Callable[[Match], Match | None]] = {
    "tcp": _ports,
    "udp": _ports,
    "sctp": _ports,
    "dccp": _ports,
    "udplite": _ports,
    "multiport": _multiport,
    "mark": _mark,
    "connmark": _mark,
    "owner": _owner,
    "conntrack": _states,
    "state": _states,
}


# Targets.


def _one_number(option: Option | None, default: int | None = None) -> int | None:
    if option is None:
        return default
    return number(option.values[0]) if len(option.values) == 1 else None


def _set_xmark(target: Target, _: Family) -> Target:
    """Every way to change a mark as the one that the kernel keeps: ``--set-xmark``."""
    if len(target.options) != 1 or len(target.options[0].values) != 1:
        return target
    option = target.options[0]
    read = masked(option.values[0])
    if read is None:
        return target
    value, mask = read
    if option.name == "--set-mark":
        mask |= value
    elif option.name == "--and-mark":
        value, mask = 0, ~value & WHOLE_MARK
    elif option.name == "--or-mark":
        mask = value
    elif option.name == "--xor-mark":
        mask = 0
    elif option.name != "--set-xmark":
        return target
    return Target(target.name, (Option("--set-xmark", (f"{value:#x}/{mask:#x}",)),))


def _connmark(target: Target, family: Family) -> Target:
    """Saved and restored marks get both of their masks."""
    which = next((each for each in target.options if each.name in _SAVE_OR_RESTORE), None)
    if which is None:
        return _set_xmark(target, family)
    both = _one_number(target.option("--mask"), WHOLE_MARK)
    nfmask = _one_number(target.option("--nfmask"), both)
    ctmask = _one_number(target.option("--ctmask"), both)
    if nfmask is None or ctmask is None:
        return target
    masks = (Option("--nfmask", (f"{nfmask:#x}",)), Option("--ctmask", (f"{ctmask:#x}",)))
    return Target(target.name, (Option(which.name), *masks))


_SAVE_OR_RESTORE = frozenset({"--save-mark", "--restore-mark"})


def _redirect(target: Target, _: Family) -> Target:
    options = []
    for option in target.options:
        if option.name in {"--to-port", "--to-ports"} and len(option.values) == 1:
            first, dash, last = option.values[0].partition("-")
            if dash and first == last:
                dash = ""
            ends = [number(first), number(last if dash else first)]
            if None not in ends:
                text = f"{ends[0]}-{ends[1]}" if dash else f"{ends[0]}"
                options.append(Option("--to-ports", (text,)))
                continue
        options.append(option)
    return Target(target.name, tuple(options))


_TPROXY_NAMES = frozenset({"--on-port", "--on-ip", "--tproxy-mark"})


def _tproxy(target: Target, family: Family) -> Target:
    """All three of its options, in one order; the address of an unasked one is any."""
    port = _one_number(target.option("--on-port"))
    mark = target.option("--tproxy-mark")
    read = (0, 0) if mark is None else masked(mark.values[0]) if len(mark.values) == 1 else None
    if port is None or read is None or any(o.name not in _TPROXY_NAMES for o in target.options):
        return target
    any_address = "0.0.0.0" if family is Family.IPV4 else "::"  # noqa: S104 - a rule's text
    on_ip = target.option("--on-ip")
    return Target(
        target.name,
        (
            Option("--on-port", (str(port),)),
            Option("--on-ip", on_ip.values if on_ip else (any_address,)),
            Option("--tproxy-mark", (f"{read[0]:#x}/{read[1]:#x}",)),
        ),
    )


def _ct(target: Target, _: Family) -> Target:
    options = []
    for option in target.options:
        zone = _one_number(option) if option.name == "--zone" else None
        options.append(option if zone is None else Option("--zone", (str(zone),)))
    return Target(target.name, tuple(options))


def _notrack(_target: Target, _: Family) -> Target:
    return Target("CT", (Option("--notrack"),))


def _reject(target: Target, family: Family) -> Target:
    """What it answers is always printed, the default too."""
    if target.options:
        return target
    answer = "icmp-port-unreachable" if family is Family.IPV4 else "icmp6-port-unreachable"
    return Target(target.name, (Option("--reject-with", (answer,)),))


#: How to spell a target.
SPELL_TARGET: dict[str, Callable[[Target, Family], Target]] = {
    "MARK": _set_xmark,
    "CONNMARK": _connmark,
    "REDIRECT": _redirect,
    "TPROXY": _tproxy,
    "CT": _ct,
    "NOTRACK": _notrack,
    "REJECT": _reject,
}
