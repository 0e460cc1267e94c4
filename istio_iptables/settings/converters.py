"""The text of a setting to its typed value, or to what is wrong with each of its items.

What Istio accepts and the kernel takes is accepted; everything else is named with its item,
before anything is touched.
"""

from __future__ import annotations

from istio_iptables.settings.declarations import ValueKind
from istio_iptables.settings.types import ALL, IPV4, IPV6, IdRange, Mode, Network, PortRange
from istio_iptables.text import pattern
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

__all__ = [
    "FALSE",
    "LISTS",
    "MAX_ID",
    "MAX_INTERFACE_BYTES",
    "TRUE",
    "Names",
    "Problem",
    "parse",
]

#: The spellings of booleans that Go's strconv.ParseBool knows, and so Istio.
TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})

#: The largest uid or gid that an owner match takes: the kernel keeps 4294967295 for "none".
MAX_ID = 2**32 - 2
#: The kernel's IFNAMSIZ, without the byte that ends a name.
MAX_INTERFACE_BYTES = 15

_MAX_PORT = 65535
_MAX_NUMBER = 2**32 - 1
#: No number that is accepted has as many digits, or is as large.
_MOST_DIGITS = 19
_TOO_LARGE = 10**_MOST_DIGITS

_IPV4_BYTES = 4
#: IPv4 loopback is 127.0.0.0/8: its first byte, and the length of the prefix.
_LOOPBACK_BYTE = 127
_LOOPBACK_PREFIX = 8


#: Control characters, and the two that end a line beside them.
_CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"


class Problem(NamedTuple):
    """What is wrong with a value, or with one item of it (counted from 1; 0 is the whole)."""

    item: int
    text: str
    reason: str


class Names(NamedTuple):
    """Looks up the ids of users and groups; None for a name that does not exist."""

    uid: Callable[[str], int | None]
    gid: Callable[[str], int | None]


class _Refused(Exception):
    """The reason why an item can't be used."""


def parse(kind: ValueKind, text: str, names: Names) -> tuple[object, list[Problem]]:
    """The typed value of *text*, and its faults; with faults the value means nothing.

    Lists are separated by commas; empty items and blanks around items are dropped.
    """
    control = None if text.isprintable() else pattern(_CONTROL).search(text)
    if control is not None:
        reason = f"holds the control character {control[0]!a}; items are separated by commas"
        return None, [Problem(0, text, reason)]
    if kind in _WITH_ALL and text.strip() == "*":
        return ALL, []
    if kind in _ITEM:
        return _parse_items(kind, text, names)
    try:
        return _SINGLE[kind](text, names), []
    except _Refused as refused:
        return None, [Problem(0, text, str(refused))]


def _parse_items(kind: ValueKind, text: str, names: Names) -> tuple[object, list[Problem]]:
    read = _ITEM[kind]
    values, faults = [], []
    for number, item in enumerate(
        filter(None, (part.strip(" ") for part in text.split(","))), start=1
    ):
        try:
            if item == "*":
                _refuse_star(kind)
            values.append(read(item, names))
        except _Refused as refused:
            faults.append(Problem(number, item, str(refused)))
    return tuple(values), faults


def _refuse_star(kind: ValueKind) -> NoReturn:
    if kind in _WITH_ALL:
        reason = "stands for all of them and can't be one item of a list"
        raise _Refused(reason)
    reason = "is not accepted here: name each item"
    raise _Refused(reason)


def _number(text: str) -> int | None:
    """A decimal number without sign, blanks or leading zeros, else None.

    One that is larger than anything here may be is not read out: Python refuses thousands of
    digits with an error of its own.
    """
    if text.isascii() and text.isdigit() and (text[0] != "0" or text == "0"):
        return int(text) if len(text) <= _MOST_DIGITS else _TOO_LARGE
    return None


def _refuse_option(text: str) -> None:
    if text.startswith("-") and len(text) > 1:
        reason = "looks like an option: is the value before it missing?"
        raise _Refused(reason)


def _flag(text: str, _: Names) -> bool:
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    reason = "is not a boolean: write true or false"
    raise _Refused(reason)


def _port(text: str, _: Names) -> int:
    _refuse_option(text)
    number = _number(text.strip(" "))
    if number is None or not 1 <= number <= _MAX_PORT:
        reason = f"is not a port: a port is a number from 1 to {_MAX_PORT}"
        raise _Refused(reason)
    return number


def _tunnel_port(text: str, names: Names) -> int:
    # Nobody listens on it and nothing is sent to it, so that Istio and the kernel take a 0.
    return 0 if text.strip(" ") == "0" else _port(text, names)


def _ports(text: str, _: Names) -> PortRange:
    number = _number(text)
    if number is not None and number <= _MAX_PORT:
        return PortRange(number, number)
    _refuse_option(text)
    dashed = pattern(r"(?a)(\d{1,5})-(\d{1,5})").fullmatch(text)
    if dashed:
        reason = f"is not a port: write a range as {dashed[1]}:{dashed[2]}"
        raise _Refused(reason)
    first, colon, last = text.partition(":")
    if not colon:
        reason = f"is not a port: a port is a number from 1 to {_MAX_PORT}, a range is 80:90"
        raise _Refused(reason)
    # iptables reads an open end as the lowest or the highest port there is.
    low, high = _number(first) if first else 0, _number(last) if last else _MAX_PORT
    if low is None or high is None or high > _MAX_PORT or not (first or last):
        reason = f"is not a port range: both ends are numbers from 1 to {_MAX_PORT}"
        raise _Refused(reason)
    if low > high:
        reason = f"is not a port range: {low} is larger than {high}"
        raise _Refused(reason)
    return PortRange(low, high)


def _network(text: str, _: Names) -> Network:
    # Imported where it is used: the arguments most pods have, '*', need no addresses.
    from istio_iptables.sockets import AF_INET, AF_INET6, inet_ntop, inet_pton

    _refuse_option(text)
    address, slash, length = text.partition("/")
    version, number, bits = (IPV6, AF_INET6, 128) if ":" in address else (IPV4, AF_INET, 32)
    try:
        packed = inet_pton(number, address)
    except (OSError, UnicodeError):
        reason = "is not a CIDR: write a network such as 10.0.0.0/8 or fd00::/8"
        raise _Refused(reason) from None
    if not slash:
        reason = f"is a bare address: write {text}/{bits} for this address alone"
        raise _Refused(reason)
    prefix = _number(length)
    if prefix is None or prefix > bits:
        reason = f"is not a CIDR: the length behind / is a number from 0 to {bits}"
        raise _Refused(reason)
    clear = bits - prefix
    read_masked = (int.from_bytes(packed, "big") >> clear << clear).to_bytes(bits // 8, "big")
    return Network(version, inet_ntop(number, read_masked), prefix, _is_loopback(packed))


def _is_loopback(packed: bytes) -> bool:
    if len(packed) == _IPV4_BYTES:
        return packed[0] == _LOOPBACK_BYTE
    return packed == bytes(15) + b"\x01" or packed[:13] == bytes(10) + b"\xff\xff\x7f"


def _loopback_network(text: str, names: Names) -> Network:
    if text == "127.0.0.1/32":
        return Network(IPV4, "127.0.0.1", 32, loopback=True)
    network = _network(text, names)
    if network.version != IPV4 or not network.loopback or network.prefix < _LOOPBACK_PREFIX:
        reason = "is not an IPv4 loopback network: it has to lie in 127.0.0.0/8"
        raise _Refused(reason)
    return network


def _uid(text: str, names: Names) -> IdRange:
    return _id(text, names.uid, "user")


def _gid(text: str, names: Names) -> IdRange:
    return _id(text, names.gid, "group")


def _id(text: str, lookup: Callable[[str], int | None], what: str) -> IdRange:
    number = _number(text)
    if number is not None and number <= MAX_ID:
        return IdRange(number, number)
    _refuse_option(text)
    if number is None:
        found = lookup(text)
        if found is not None:
            return IdRange(found, found)
        ends = pattern(r"(?a)(\d+)[-:](\d+)").fullmatch(text)
        if ends is None:
            reason = f"is neither a number nor a {what} that exists here"
            raise _Refused(reason)
        first, last = _number(ends[1]), _number(ends[2])
        if first is not None and last is not None and first <= last <= MAX_ID:
            return IdRange(first, last)
    reason = f"is not a {what} id: an id is a number from 0 to {MAX_ID}"
    raise _Refused(reason)


def _interface(text: str, _: Names) -> str:
    _refuse_option(text)
    if len(text.encode(errors="surrogateescape")) > MAX_INTERFACE_BYTES:
        reason = f"is not an interface name: longer than {MAX_INTERFACE_BYTES} bytes"
        raise _Refused(reason)
    if text[0] in "-!" or text in {".", ".."}:
        reason = "is not an interface name: it can't be '.', '..' or start with '-' or '!'"
        raise _Refused(reason)
    bad = next((letter for letter in text if letter.isspace() or letter in "/:\"'\\"), None)
    if bad is not None:
        reason = f"is not an interface name: it holds {bad!r}"
        raise _Refused(reason)
    return text


def _mode(text: str, _: Names) -> Mode:
    # Istio takes an empty mode for REDIRECT.
    return Mode(_choice("REDIRECT", "TPROXY")(text or "REDIRECT", _))


def _positive(text: str, _: Names) -> int:
    _refuse_option(text)
    stripped = text.strip(" ")
    number = _number(stripped)
    if number is None and pattern("0[xX][0-9a-fA-F]+").fullmatch(stripped):
        number = int(stripped, 16)
    if number is None or not 1 <= number <= _MAX_NUMBER:
        reason = f"is not a number from 1 to {_MAX_NUMBER}, decimal or 0x..."
        raise _Refused(reason)
    return number


_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_GO_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)"
#: Go's durations end here: nanoseconds in 64 bits.
_MAX_SECONDS = (2**63 - 1) / 1e9
#: A socket can't wait for longer (milliseconds in 31 bits): whoever asks for more waits so long.
_LONGEST_WAIT = (2**31 - 1) // 1000


def _go_seconds(text: str) -> float:
    if not pattern(rf"(?a)\+?({_GO_PART})+").fullmatch(text):
        reason = "is not a duration: write 5s, 1m30s or 500ms"
        raise _Refused(reason)
    parts = pattern(_GO_PART).findall(text)
    return sum(float(size) * _GO_UNITS[unit] for size, unit in parts)


def _duration(text: str, _: Names) -> float:
    whole = _number(text.removesuffix("s")) if text.endswith("s") else None
    # The default is read without a regular expression.
    seconds = _go_seconds(text) if whole is None else float(whole)
    if not seconds > 0:
        reason = "is zero: the duration has to be longer than nothing"
        raise _Refused(reason)
    if seconds > _MAX_SECONDS:
        reason = "is too long: a duration ends at 292 years"
        raise _Refused(reason)
    return min(seconds, _LONGEST_WAIT)


def _text(text: str, _: Names) -> str:
    _refuse_option(text)
    return text


def _choice(*choices: str) -> Callable[[str, Names], str]:
    def read(text: str, _: Names) -> str:
        if text in choices:
            return text
        hint = ""
        if text.upper() in choices or text.lower() in choices:
            hint = f" (did you mean {text.upper() if text.upper() in choices else text.lower()}?)"
        reason = f"is not one of {', '.join(choices)}{hint}"
        raise _Refused(reason)

    return read


def _optional(read: Callable[[str, Names], str]) -> Callable[[str, Names], str]:
    return lambda text, names: read(text, names) if text else ""


_WITH_ALL = frozenset({ValueKind.PORTS_OR_ALL, ValueKind.CIDRS_OR_ALL, ValueKind.GIDS_OR_ALL})

_ITEM: dict[ValueKind, Callable[[str, Names], object]] = {
    ValueKind.PORTS: _ports,
    ValueKind.PORTS_OR_ALL: _ports,
    ValueKind.CIDRS: _network,
    ValueKind.CIDRS_OR_ALL: _network,
    ValueKind.UIDS: _uid,
    ValueKind.GIDS: _gid,
    ValueKind.GIDS_OR_ALL: _gid,
    ValueKind.INTERFACES: _interface,
}

#: The kinds of settings that take a list of items.
LISTS = frozenset(_ITEM)

_SINGLE: dict[ValueKind, Callable[[str, Names], object]] = {
    ValueKind.FLAG: _flag,
    ValueKind.PORT: _port,
    ValueKind.TUNNEL_PORT: _tunnel_port,
    ValueKind.CIDR: _loopback_network,
    ValueKind.MODE: _mode,
    ValueKind.NUMBER: _positive,
    ValueKind.DURATION: _duration,
    ValueKind.BACKEND: _optional(_choice("legacy", "nft")),
    ValueKind.FORMAT: _choice("save", "restore", "commands", "annotated", "json"),
    ValueKind.FAMILY: _optional(_choice("ipv4", "ipv6")),
    ValueKind.IP_FAMILY: _choice("auto", "ipv4", "dual"),
    ValueKind.TEXT: _text,
    ValueKind.PATH: _text,
}
