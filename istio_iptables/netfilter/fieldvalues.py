"""The numbers inside a rule's text: addresses, ports, marks, protocols, in any spelling."""

from __future__ import annotations

from functools import lru_cache

from istio_iptables.netfilter.model import Family
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from istio_iptables.netfilter.model import Option

__all__ = [
    "MAX_PORT",
    "PROTOCOLS",
    "WHOLE_MARK",
    "Range",
    "address_number",
    "address_text",
    "map_network",
    "network",
    "number",
    "number_range",
    "option_number",
    "port_range",
    "protocol_name",
    "protocol_number",
    "read_masked",
]

WHOLE_MARK = 0xFFFFFFFF
MAX_PORT = 65535
#: More than 64 bits have in any base; Python refuses numbers of thousands of digits.
_MAX_DIGITS = 64

#: The protocols that iptables prints by name, with their numbers.
PROTOCOLS = {
    "all": 0,
    "icmp": 1,
    "igmp": 2,
    "ipencap": 4,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ipv6-icmp": 58,
    "ospf": 89,
    "sctp": 132,
    "mobility-header": 135,
    "udplite": 136,
}
_NAMES = {value: name for name, value in PROTOCOLS.items()}
_OTHER_NAMES = {"icmpv6": "ipv6-icmp", "ipv6-mh": "mobility-header", "mh": "mobility-header"}

#: Services whose ports people write by name; iptables-save prints numbers.
_SERVICES = {"ssh": 22, "domain": 53, "http": 80, "https": 443}


class Range(NamedTuple):
    """Numbers from *first* to *last*, both included."""

    first: int
    last: int

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and self.first <= value <= self.last

    def spelt(self, between: str) -> str:
        """The only number, or both ends with *between* between them."""
        return f"{self.first}" if self.first == self.last else f"{self.first}{between}{self.last}"


def number(text: str) -> int | None:
    """A number as C's strtoul reads it with base 0 (decimal, 0x, leading 0 is octal), or None.

    One of more digits than any option takes is None as well.
    """
    if not (text.isascii() and text.isalnum()) or len(text) > _MAX_DIGITS:
        return None
    try:
        if text[:2] in {"0x", "0X"}:
            return int(text, 16)
        if not text.isdigit():
            return None
        return int(text, 8) if text[0] == "0" else int(text)
    except ValueError:
        return None


def number_range(text: str) -> Range | None:
    """The numbers of ``1337`` or ``0-999``, or None for another text."""
    first, dash, last = text.partition("-")
    low, high = number(first), number(last if dash else first)
    return None if low is None or high is None else Range(low, high)


def option_number(option: Option | None, default: int | None = None) -> int | None:
    """The number that an option has, *default* without the option, None for another text."""
    return default if option is None else number(option.value)


def protocol_name(text: str) -> str:
    """The name that iptables-save prints for a protocol given by name or number."""
    lower = text.lower()
    lower = _OTHER_NAMES.get(lower, lower)
    if lower in PROTOCOLS:
        return lower
    value = number(text)
    return text if value is None else _NAMES.get(value, str(value))


def protocol_number(text: str) -> int | None:
    """The number of a protocol given by name or number, or None."""
    name = protocol_name(text)
    return PROTOCOLS[name] if name in PROTOCOLS else number(name)


def port_range(text: str) -> Range | None:
    """The ports of ``80``, ``80:90``, ``:90`` or ``80:``, or None for another text."""
    first, colon, last = text.partition(":")
    low = _port(first) if first else 0
    high = (_port(last) if last else MAX_PORT) if colon else low
    if low is None or high is None or not text or low > high:
        return None
    return Range(low, high)


def _port(text: str) -> int | None:
    value = number(text)
    if value is None:
        return _SERVICES.get(text)
    return value if value <= MAX_PORT else None


def read_masked(text: str) -> tuple[int, int] | None:
    """The value and the mask of ``0x1/0xff`` or ``0x1`` (whose mask is the whole), or None."""
    value_text, slash, mask_text = text.partition("/")
    value = number(value_text)
    mask = number(mask_text) if slash else WHOLE_MARK
    if value is None or mask is None or value > WHOLE_MARK or mask > WHOLE_MARK:
        return None
    return value, mask


# A packet is held against a million rules: its own address is read once.
@lru_cache(maxsize=64)
def address_number(text: str, family: Family) -> int | None:
    """The address as a number, or None if *text* is no address of this family."""
    if family is Family.IPV4:
        return _ipv4(text)
    # Importing it takes longer than everything else that a question about IPv4 needs.
    from istio_iptables.sockets import AF_INET6, inet_pton

    try:
        return int.from_bytes(inet_pton(AF_INET6, text), "big")
    except (OSError, ValueError):
        return None


def _ipv4(text: str) -> int | None:
    parts = text.split(".")
    if len(parts) != 4 or not text.isascii():  # noqa: PLR2004 - the bytes of an address
        return None
    value = 0
    for part in parts:
        if not part.isdigit() or (part[0] == "0" and part != "0") or len(part) > 3:  # noqa: PLR2004
            return None
        byte = int(part)
        if byte > 255:  # noqa: PLR2004 - one byte
            return None
        value = value << 8 | byte
    return value


def address_text(value: int, family: Family) -> str:
    """The address that a number is, as iptables prints it."""
    if family is Family.IPV4:
        return f"{value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}"
    from istio_iptables.sockets import AF_INET6, inet_ntop

    return inet_ntop(AF_INET6, value.to_bytes(16, "big"))


def network(text: str, family: Family) -> tuple[str, int] | None:
    """The address, host bits cleared, and the prefix length of ``10.0.0.0/8``, else None.

    A bare address and a netmask (``10.0.0.0/255.0.0.0``) are read too; a mask with holes is not.
    """
    address, slash, length = text.partition("/")
    value = address_number(address, family)
    if value is None:
        return None
    bits = family.bits
    prefix = _prefix(length, family) if slash else bits
    if prefix is None:
        return None
    clear = bits - prefix
    value = value >> clear << clear
    return address_text(value, family), prefix


def map_network(text: str, address: str | None, family: Family) -> str | None:
    """*address* with the network of *text* (``10.0.0.0/8``) in place of its own, if that is known."""
    read = network(text, family)
    value = None if address is None else address_number(address, family)
    if read is None or value is None:
        return None
    base, prefix = read
    host = value & ((1 << family.bits - prefix) - 1)
    return address_text((address_number(base, family) or 0) | host, family)


def _prefix(text: str, family: Family) -> int | None:
    if text.isascii() and text.isdigit():
        prefix = int(text) if len(text) <= _MAX_DIGITS else family.bits + 1
        return prefix if prefix <= family.bits else None
    mask = address_number(text, family)
    if mask is None:
        return None
    holes = ~mask & ((1 << family.bits) - 1)
    return None if holes & (holes + 1) else family.bits - holes.bit_length()
