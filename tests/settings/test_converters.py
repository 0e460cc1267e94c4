"""The text of each kind of setting: what it becomes, and what is said when it can't be used."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from istio_iptables.settings.converters import MAX_ID, Names, parse
from istio_iptables.settings.declarations import ValueKind
from istio_iptables.settings.types import ALL, IdRange, Mode, Network, PortRange
from tests.strategies import interfaces, lists_of, networks, numbers, port_items

NAMES = Names({"root": 0, "istio-proxy": 1337, "5000": 7}.get, {"root": 0, "wheel": 10}.get)


def value(kind: ValueKind, text: str) -> Any:
    """The value of a text that is all right."""
    parsed, faults = parse(kind, text, NAMES)
    assert not faults
    return parsed


def reasons(kind: ValueKind, text: str) -> list[str]:
    """What is wrong with a text, item by item."""
    _, faults = parse(kind, text, NAMES)
    return [f"{fault.item} {fault.text!r} {fault.reason}" for fault in faults]


ACCEPTED: list[tuple[ValueKind, str, object]] = [
    (ValueKind.PORT, "1", 1),
    (ValueKind.PORT, " 65535 ", 65535),
    (ValueKind.PORTS, "", ()),
    (ValueKind.PORTS, ",, ,", ()),
    (ValueKind.PORTS, "80, 90,,443", (PortRange(80, 80), PortRange(90, 90), PortRange(443, 443))),
    (ValueKind.PORTS, "80:90,80:80", (PortRange(80, 90), PortRange(80, 80))),
    (ValueKind.PORTS, ":90,65535:", (PortRange(0, 90), PortRange(65535, 65535))),
    (ValueKind.PORTS, "0,0:90", (PortRange(0, 0), PortRange(0, 90))),
    (ValueKind.PORTS_OR_ALL, "0:65535,:65535,0:", (PortRange(0, 65535),) * 3),
    (ValueKind.TUNNEL_PORT, " 0 ", 0),
    (ValueKind.TUNNEL_PORT, "15008", 15008),
    (ValueKind.PORTS_OR_ALL, "*", ALL),
    (ValueKind.PORTS_OR_ALL, " * ", ALL),
    (ValueKind.CIDRS_OR_ALL, "*", ALL),
    (ValueKind.CIDRS, "10.96.0.1/24", (Network(4, "10.96.0.0", 24),)),
    (ValueKind.CIDRS, "1.2.3.4/0", (Network(4, "0.0.0.0", 0),)),  # noqa: S104 - a network
    (ValueKind.CIDRS, "127.9.9.9/8", (Network(4, "127.0.0.0", 8, loopback=True),)),
    (ValueKind.CIDRS, "127.0.0.1/0", (Network(4, "0.0.0.0", 0, loopback=True),)),  # noqa: S104 - a network
    (ValueKind.CIDRS, "FD00::1/8", (Network(6, "fd00::", 8),)),
    (ValueKind.CIDRS, "::1/128", (Network(6, "::1", 128, loopback=True),)),
    (
        ValueKind.CIDRS,
        "::ffff:127.0.0.1/128",
        (Network(6, "::ffff:127.0.0.1", 128, loopback=True),),
    ),
    (ValueKind.CIDRS, "::ffff:10.0.0.0/104", (Network(6, "::ffff:10.0.0.0", 104),)),
    (ValueKind.CIDR, "127.0.0.1/32", Network(4, "127.0.0.1", 32, loopback=True)),
    (ValueKind.CIDR, "127.0.0.1/8", Network(4, "127.0.0.0", 8, loopback=True)),
    (ValueKind.UIDS, "0,1337", (IdRange(0, 0), IdRange(1337, 1337))),
    (ValueKind.UIDS, str(MAX_ID), (IdRange(MAX_ID, MAX_ID),)),
    (ValueKind.UIDS, "1000-1999,5:9,7-7", (IdRange(1000, 1999), IdRange(5, 9), IdRange(7, 7))),
    (ValueKind.UIDS, "root,istio-proxy", (IdRange(0, 0), IdRange(1337, 1337))),
    (ValueKind.GIDS, "wheel", (IdRange(10, 10),)),
    (ValueKind.GIDS_OR_ALL, "*", ALL),
    (ValueKind.INTERFACES, "eth0, br+", ("eth0", "br+")),
    (ValueKind.INTERFACES, "+", ("+",)),
    (ValueKind.INTERFACES, "abcdefghijklmno", ("abcdefghijklmno",)),
    (ValueKind.MODE, "TPROXY", Mode.TPROXY),
    (ValueKind.MODE, "", Mode.REDIRECT),
    (ValueKind.NUMBER, "1337", 1337),
    (ValueKind.NUMBER, "0x539", 1337),
    (ValueKind.NUMBER, "0XFFFFFFFF", 2**32 - 1),
    (ValueKind.DURATION, "5s", 5.0),
    (ValueKind.DURATION, "1m30s", 90.0),
    (ValueKind.DURATION, "500ms", 0.5),
    (ValueKind.DURATION, "1.5h", 5400.0),
    (ValueKind.DURATION, "+.5s", 0.5),
    # A socket can't wait for longer than 24 days.
    (ValueKind.DURATION, "1000h", 2147483),
    (ValueKind.FLAG, "T", True),
    (ValueKind.FLAG, "False", False),
    (ValueKind.BACKEND, "", ""),
    (ValueKind.BACKEND, "nft", "nft"),
    (ValueKind.FAMILY, "ipv6", "ipv6"),
    (ValueKind.IP_FAMILY, "dual", "dual"),
    (ValueKind.FORMAT, "annotated", "annotated"),
    (ValueKind.PATH, "/proc/1/ns/net", "/proc/1/ns/net"),
]


@pytest.mark.parametrize(("kind", "text", "expected"), ACCEPTED)
def test_accepted(kind: ValueKind, text: str, expected: object) -> None:
    """A text that Istio accepts and the kernel takes becomes this value."""
    assert value(kind, text) == expected


REFUSED: list[tuple[ValueKind, str, str]] = [
    (ValueKind.PORT, "0", "from 1 to 65535"),
    (ValueKind.PORT, "-b", "looks like an option"),
    (ValueKind.PORT, "", "is not a port"),
    (ValueKind.PORT, "80:90", "is not a port"),
    (ValueKind.TUNNEL_PORT, "00", "is not a port"),
    (ValueKind.TUNNEL_PORT, "65536", "from 1 to 65535"),
    (ValueKind.PORTS, "65536", "from 1 to 65535"),
    (ValueKind.PORTS, "080", "is not a port"),
    (ValueKind.PORTS, "\u0668\u0660", "is not a port"),
    (ValueKind.PORTS, "http", "is not a port"),
    (ValueKind.PORTS, "80-90", "write a range as 80:90"),
    (ValueKind.PORTS, "90:80", "90 is larger than 80"),
    (ValueKind.PORTS, "80:90:100", "both ends are numbers"),
    (ValueKind.PORTS, "80:65536", "both ends are numbers"),
    (ValueKind.PORTS, ":", "both ends are numbers"),
    (ValueKind.PORTS, "1 2", "is not a port"),
    (ValueKind.PORTS, "-d", "looks like an option"),
    (ValueKind.PORTS, "*", "is not accepted here"),
    (ValueKind.PORTS_OR_ALL, "*,80", "can't be one item of a list"),
    (ValueKind.CIDRS, "*", "is not accepted here"),
    (ValueKind.CIDRS, "10.0.0.1", "write 10.0.0.1/32"),
    (ValueKind.CIDRS, "fd00::1", "write fd00::1/128"),
    (ValueKind.CIDRS, "10.0.0.0/33", "from 0 to 32"),
    (ValueKind.CIDRS, "fd00::/129", "from 0 to 128"),
    (ValueKind.CIDRS, "10.0.0.0/08", "from 0 to 32"),
    (ValueKind.CIDRS, "10.0.0.0/", "from 0 to 32"),
    (ValueKind.CIDRS, "10.0.0.0/255.0.0.0", "from 0 to 32"),
    (ValueKind.CIDRS, "10.0/8", "is not a CIDR"),
    (ValueKind.CIDRS, "010.0.0.0/8", "is not a CIDR"),
    (ValueKind.CIDRS, "fe80::1%eth0/64", "is not a CIDR"),
    (ValueKind.CIDRS, "example.com", "is not a CIDR"),
    (ValueKind.CIDRS, "-b", "looks like an option"),
    (ValueKind.CIDRS_OR_ALL, "10.0.0.0/8,*", "can't be one item of a list"),
    (ValueKind.CIDR, "10.0.0.0/8", "has to lie in 127.0.0.0/8"),
    (ValueKind.CIDR, "127.0.0.0/7", "has to lie in 127.0.0.0/8"),
    (ValueKind.CIDR, "::1/128", "has to lie in 127.0.0.0/8"),
    (ValueKind.CIDR, "", "is not a CIDR"),
    (ValueKind.UIDS, "nosuch", "neither a number nor a user"),
    (ValueKind.GIDS, "istio-proxy", "neither a number nor a group"),
    (ValueKind.UIDS, "4294967295", f"from 0 to {MAX_ID}"),
    (ValueKind.UIDS, "9-5", f"from 0 to {MAX_ID}"),
    (ValueKind.UIDS, "-5", "looks like an option"),
    (ValueKind.UIDS, "*", "is not accepted here"),
    (ValueKind.INTERFACES, "abcdefghijklmnop", "longer than 15 bytes"),
    (ValueKind.INTERFACES, "ääääääää", "longer than 15 bytes"),
    (ValueKind.INTERFACES, "!eth0", "start with"),
    (ValueKind.INTERFACES, "-eth0", "looks like an option"),
    (ValueKind.INTERFACES, "-", "start with"),
    (ValueKind.INTERFACES, "..", "start with"),
    (ValueKind.INTERFACES, "a/b", "holds '/'"),
    (ValueKind.INTERFACES, "a b", "holds ' '"),
    (ValueKind.INTERFACES, 'a"b', "holds '\"'"),
    (ValueKind.INTERFACES, "eth0:1", "holds ':'"),
    (ValueKind.INTERFACES, "*", "is not accepted here"),
    (ValueKind.MODE, "tproxy", "did you mean TPROXY?"),
    (ValueKind.MODE, "BOGUS", "is not one of REDIRECT, TPROXY"),
    (ValueKind.NUMBER, "0", "from 1 to 4294967295"),
    (ValueKind.NUMBER, "4294967296", "from 1 to 4294967295"),
    (ValueKind.NUMBER, "0x", "decimal or 0x"),
    (ValueKind.NUMBER, "-1", "looks like an option"),
    (ValueKind.NUMBER, "010", "decimal or 0x"),
    (ValueKind.DURATION, "5", "is not a duration"),
    (ValueKind.DURATION, "-5s", "is not a duration"),
    (ValueKind.DURATION, "0s", "is zero"),
    (ValueKind.FLAG, "yes", "write true or false"),
    (ValueKind.BACKEND, "NFT", "did you mean nft?"),
    (ValueKind.FORMAT, "yaml", "is not one of"),
    (ValueKind.FAMILY, "IPv4", "did you mean ipv4?"),
    (ValueKind.IP_FAMILY, "ipv6", "is not one of auto, ipv4, dual"),
    (ValueKind.PATH, "--dry-run", "looks like an option"),
]


@pytest.mark.parametrize(("kind", "text", "fragment"), REFUSED)
def test_refused(kind: ValueKind, text: str, fragment: str) -> None:
    """A text that can't be used is named with the reason."""
    (reason,) = reasons(kind, text)
    assert fragment in reason
    assert any(repr(item) in reason for item in (text, *text.split(",")))


@pytest.mark.parametrize("kind", [kind for kind in ValueKind if kind is not ValueKind.TEXT])
@pytest.mark.parametrize("letter", ["\n", "\r", "\t", "\0", "\x1b", "\x7f", "\x85", "\u2028"])
def test_control_characters_are_refused_in_every_kind(kind: ValueKind, letter: str) -> None:
    """A newline in a list would be a rule of its own to iptables-restore, so nothing takes one."""
    (reason,) = reasons(kind, f"80{letter}")
    assert "control character" in reason


#: What has one number, and lists of them.
_NUMBERS = (
    ValueKind.PORT,
    ValueKind.PORTS,
    ValueKind.UIDS,
    ValueKind.GIDS,
    ValueKind.NUMBER,
    ValueKind.PORTS_OR_ALL,
)
_DIGITS = "9" * 5000


@pytest.mark.parametrize("kind", _NUMBERS)
@pytest.mark.parametrize(
    "text",
    [
        _DIGITS,
        "1" + "0" * 19,
        "1_0",
        "\u0661\u0662",
        "\u00b2",
        "+5",
        "-5",
        "1e3",
        "0b1",
        "0o7",
        "\uff11",
    ],
)
def test_what_only_python_takes_for_a_number_is_none(kind: ValueKind, text: str) -> None:
    """Thousands of digits, underscores, signs, other scripts."""
    (reason,) = reasons(kind, text)
    assert "is not a" in reason or "neither a number" in reason or "looks like an option" in reason


@pytest.mark.parametrize(
    "text",
    [
        f"10.0.0.0/{_DIGITS}",
        f"{_DIGITS}.0.0.0/8",
        "10.0.0.0/\u00b2",
        "10.0.0.0/1_0",
        "10.0.0.0/+8",
        f"fd00::/{_DIGITS}",
    ],
)
@pytest.mark.parametrize("kind", [ValueKind.CIDR, ValueKind.CIDRS, ValueKind.CIDRS_OR_ALL])
def test_what_only_python_takes_for_a_length_is_none(kind: ValueKind, text: str) -> None:
    """The same behind an address."""
    (reason,) = reasons(kind, text)
    assert "is not a" in reason


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (f"{_DIGITS}s", "too long"),
        (f"0.{_DIGITS}h{_DIGITS}h", "too long"),
        ("9223372037s", "too long"),
        ("1e5s", "is not a duration"),
        ("infs", "is not a duration"),
        ("nan", "is not a duration"),
        ("1_0s", "is not a duration"),
        ("\u0661s", "is not a duration"),
        # A reader that tries every way to split the digits would need hours.
        ("9" * 100_000, "is not a duration"),
    ],
)
def test_durations_have_an_end(text: str, fragment: str) -> None:
    """As Go's."""
    (reason,) = reasons(ValueKind.DURATION, text)
    assert fragment in reason


def test_every_bad_item_is_named_with_its_number() -> None:
    """Items are counted from 1 as they are read, without the empty ones; good ones are no fault."""
    assert [each.split()[:2] for each in reasons(ValueKind.PORTS, "x,80,,y, 70000")] == [
        ["1", "'x'"],
        ["3", "'y'"],
        ["4", "'70000'"],
    ]


class TestItems:
    """What is true of every item that is accepted."""

    @given(lists_of(port_items()))
    def test_ports(self, text: str) -> None:
        """A port's text reads as the same port again."""
        for each in value(ValueKind.PORTS, text):
            assert 0 <= each.first <= each.last <= 65535
            assert value(ValueKind.PORTS, str(each)) == (each,)

    @given(lists_of(networks))
    def test_networks(self, text: str) -> None:
        """A network is what Python's ipaddress takes it for, and reads as the same again."""
        given_items = [item.strip() for item in text.split(",") if item.strip()]
        for item, each in zip(given_items, value(ValueKind.CIDRS, text), strict=True):
            right = ipaddress.ip_network(item, strict=False)
            assert ipaddress.ip_network(str(each)) == right
            assert [str(again) for again in value(ValueKind.CIDRS, str(each))] == [str(each)]

    @given(lists_of(interfaces))
    def test_interfaces(self, text: str) -> None:
        """A name is kept as it is."""
        given_items = tuple(item.strip() for item in text.split(",") if item.strip())
        assert value(ValueKind.INTERFACES, text) == given_items

    @given(numbers)
    def test_numbers(self, text: str) -> None:
        """Decimal and hexadecimal are the same number."""
        assert value(ValueKind.NUMBER, text) == int(text, 0)

    @given(
        st.sampled_from([kind for kind in ValueKind if kind is not ValueKind.TEXT]),
        # Bytes that are no UTF-8 are half of what a shell may hand over.
        st.one_of(st.text(), st.binary().map(lambda data: data.decode(errors="surrogateescape"))),
    )
    @example(ValueKind.CIDRS, "\udcf9/8")
    @example(ValueKind.UIDS, "\udcf9")
    @example(ValueKind.INTERFACES, "\udcf9" * 16)
    def test_any_text_has_a_value_or_a_reason(self, kind: ValueKind, text: str) -> None:
        """Nothing a user types makes the reader of settings stumble."""
        parsed, faults = parse(kind, text, NAMES)
        assert faults or parsed is not None
        assert all(fault.reason and "\n" not in fault.reason for fault in faults)
