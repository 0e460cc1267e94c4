"""Random packets, and the class of a matrix that one is in, as a reader of its JSON would find it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Protocol, TypeVar

from istio_iptables.netfilter.fieldvalues import address_text, protocol_number
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.packet import STATES, WITH_PORTS, Packet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from random import Random

    from istio_iptables.api.conditions import Condition

__all__ = ["Fields", "asked", "class_of", "packet_of", "random_packets"]

#: A packet by the names of the fields in conditions; addresses are numbers.
Fields = dict[str, int | str]


class _Class(Protocol):
    """A class of packets, by its conditions."""

    @property
    def family(self) -> Family: ...

    @property
    def direction(self) -> str: ...

    @property
    def conditions(self) -> tuple[Condition, ...]: ...


_C = TypeVar("_C", bound=_Class)

_IDS = (0, 1000, 1337, 1338, 2**32 - 2)


def _holds(field: str, item: str) -> Callable[[int | str], bool]:
    """Whether a value is what one item of a condition says."""
    if field.endswith("_interface") and item.endswith("+"):
        return lambda value: str(value).startswith(item[:-1])
    if field == "state" or field.endswith("_interface"):
        return lambda value: value == item
    if field in {"mark", "connmark"}:
        wanted, _, mask = item.partition("/")
        return lambda value: int(value) & int(mask or "0xffffffff", 16) == int(wanted, 16)
    first, last = _ends(field, item)
    return lambda value: first <= int(value) <= last


def _condition(condition: Condition) -> Callable[[Fields], bool]:
    among = [_holds(condition.field, item) for item in condition.among]
    but = [_holds(condition.field, item) for item in condition.but]

    def answer(fields: Fields) -> bool:
        value = fields.get(condition.field)
        if value is None:
            # A protocol without ports: whatever is said of them.
            return True
        return (not among or any(each(value) for each in among)) and not any(
            each(value) for each in but
        )

    return answer


def class_of(
    classes: Sequence[_C],
) -> Callable[[Family, str, Fields], list[_C]]:
    """A function that gives the classes whose conditions a packet meets: one, if all is well."""
    tests = [(each, [_condition(condition) for condition in each.conditions]) for each in classes]

    def found(family: Family, direction: str, fields: Fields) -> list[_C]:
        return [
            each
            for each, conditions in tests
            if (each.family, each.direction) == (family, direction)
            and all(condition(fields) for condition in conditions)
        ]

    return found


def _numbers(classes: Iterable[_Class], family: Family, field: str) -> list[int]:
    """Numbers at the ends of what conditions say of a field, and beside them."""
    found: set[int] = set()
    for each in classes:
        for condition in each.conditions:
            if each.family is not family or condition.field != field:
                continue
            for item in (*condition.among, *condition.but):
                for number in _ends(field, item):
                    found.update((number - 1, number, number + 1))
    return sorted(found)


def _ends(field: str, item: str) -> tuple[int, int]:
    """The first and the last number that one item of a condition means."""
    if field in {"mark", "connmark"}:
        first = last = item.partition("/")[0]
        return int(first, 16), int(last, 16)
    if field in {"source", "destination"} and "-" not in item:
        network = ip_network(item)
        return int(network[0]), int(network[-1])
    number = protocol_number(item) if field == "protocol" else None
    if number is not None:
        return number, number
    low, _, high = item.partition("-")
    if field in {"source", "destination"}:
        return int(ip_address(low)), int(ip_address(high))
    return int(low), int(high or low)


def _names(classes: Iterable[_Class]) -> list[str]:
    found = {"eth0", "lo", "net1", "br0"}
    for each in classes:
        for condition in each.conditions:
            if condition.field.endswith("_interface"):
                for item in (*condition.among, *condition.but):
                    found.add(item.removesuffix("+") or "x")
                    found.add(f"{item.removesuffix('+')[:14]}0")
    return sorted(found)


def random_packets(
    classes: Sequence[_Class], family: Family, random: Random, count: int
) -> Iterable[tuple[str, Fields]]:
    """Packets that rules may tell apart: most values are at the ends of what conditions say."""
    bits = 32 if family is Family.IPV4 else 128
    limits = {
        "source": (0, 2**bits - 1),
        "destination": (1, 2**bits - 1),
        "source_port": (0, 65535),
        "destination_port": (0, 65535),
        "uid": (0, 2**32 - 2),
        "gid": (0, 2**32 - 2),
        "mark": (0, 2**32 - 1),
        "connmark": (0, 2**32 - 1),
    }
    usual = {
        "source": [int(ip_address("10.244.0.2" if bits == 32 else "fd00:10:244::2"))],
        "destination": [int(ip_address("192.0.2.1" if bits == 32 else "2001:db8::1"))],
        "destination_port": [80, 53],
        "uid": list(_IDS),
        "gid": list(_IDS),
        "mark": [0],
        "connmark": [0],
    }
    near = {
        field: [
            each
            for each in _numbers(classes, family, field)
            if limits[field][0] <= each <= limits[field][1]
        ]
        for field in limits
    }
    names = _names(classes)
    while count:
        direction = random.choice(("in", "out"))
        fields: Fields = {
            field: random.choice(near[field] or [0])
            if near[field] and random.random() < 0.5
            else random.choice(usual.get(field) or [0])
            if random.random() < 0.8
            else random.randint(*limits[field])
            for field in limits
        }
        fields["protocol"] = random.choice((6, 6, 6, 17, 17, 1, 58, 132, 255, 2))
        fields["in_interface" if direction == "in" else "out_interface"] = random.choice(names)
        fields["state"] = random.choice(("NEW", "NEW", "NEW", *STATES))
        if direction == "in":
            del fields["uid"], fields["gid"]
        if fields["protocol"] not in WITH_PORTS:
            del fields["source_port"], fields["destination_port"]
        mapped = bits == 128 and any(
            int(fields[end]) >> 32 == 0xFFFF for end in ("source", "destination")
        )
        # What the classes leave out: docs/matrix.md.
        if fields["source"] == fields["destination"] or fields["destination"] == 0 or mapped:
            continue
        count -= 1
        yield direction, fields


def packet_of(family: Family, fields: Fields) -> Packet:
    """The packet itself."""
    texts = {end: address_text(int(fields[end]), family) for end in ("source", "destination")}
    return Packet(family=family, **{**fields, **texts})  # type: ignore[arg-type]


def asked(family: Family, direction: str, fields: Fields) -> dict[str, str | bool]:
    """The keywords of ``explain`` for a packet."""
    found: dict[str, str | bool] = {"incoming": direction == "in", "proto": str(fields["protocol"])}
    for end, name in (("source", "src"), ("destination", "dst")):
        address = ip_address(int(fields[end]).to_bytes(4 if family is Family.IPV4 else 16, "big"))
        port = fields.get(f"{end}_port")
        text = f"[{address}]" if ":" in str(address) else f"{address}"
        found[name] = f"{address}" if port is None else f"{text}:{port}"
    found["iface"] = str(fields.get("in_interface", fields.get("out_interface")))
    for name in ("uid", "gid", "mark", "connmark"):
        if name in fields:
            found[name] = str(fields[name])
    found["ctstate"] = str(fields["state"])
    return found
