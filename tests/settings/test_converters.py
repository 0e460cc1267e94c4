"""The text of each kind of setting: what it becomes, and what is said when it can't be used."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from istio_iptables.settings.converters import MAX_ID, Names, parse
from istio_iptables.settings.declarations import Kind
from istio_iptables.settings.types import ALL, IdRange, Mode, Network, PortRange
from tests.strategies import interfaces, lists_of, networks, numbers, port_items

NAMES = Names({"root": 0, "istio-proxy": 1337, "5000": 7}.get, {"root": 0, "wheel": 10}.get)


def value(kind: Kind, text: str) -> Any:
    """The value of a text that is all right."""
    parsed, faults = parse(kind, text, NAMES)
    assert not faults
    return parsed


def reasons(kind: Kind, text: str) -> list[str]:
    """What is wrong with a text, item by item."""
    _, faults = parse(kind, text, NAMES)
    return [f"{fault.item} {fault.text!r} {fault.reason}" for fault in faults]


ACCEPTED: list[tuple[Kind, str, object]] = [
    (Kind.PORT, "1", 1),
    (Kind.PORT, " 65535 ", 65535),
    (Kind.PORTS, "", ()),
    (Kind.PORTS, ",, ,", ()),
    (Kind.PORTS, "80, 90,,443", (PortRange(80, 80), PortRange(90, 90), PortRange(443, 443))),
    (Kind.PORTS, "80:90,80:80", (PortRange(80, 90), PortRange(80, 80))),
    (Kind.PORTS, ":90,65535:", (PortRange(0, 90), PortRange(65535, 65535))),
    (Kind.PORTS, "0,0:90", (PortRange(0, 0), PortRange(0, 90))),
    (Kind.PORTS_OR_ALL, "0:65535,:65535,0:", (PortRange(0, 65535),) * 3),
    (Kind.TUNNEL_PORT, " 0 ", 0),
    (Kind.TUNNEL_PORT, "15008", 15008),
    (Kind.PORTS_OR_ALL, "*", ALL),
    (Kind.PORTS_OR_ALL, " * ", ALL),
    (Kind.CIDRS_OR_ALL, "*", ALL),
    (Kind.CIDRS, "10.96.0.1/24", (Network(4, "10.96.0.0", 24),)),
    (Kind.CIDRS, "1.2.3.4/0", (Network(4, "0.0.0.0", 0),)),  # noqa: S104 - a network
    (Kind.CIDRS, "127.9.9.9/8", (Network(4, "127.0.0.0", 8, loopback=True),)),
    (Kind.CIDRS, "127.0.0.1/0", (Network(4, "0.0.0.0", 0, loopback=True),)),  # noqa: S104 - a network
    (Kind.CIDRS, "FD00::1/8", (Network(6, "fd00::", 8),)),
    (Kind.CIDRS, "::1/128", (Network(6, "::1", 128, loopback=True),)),
    (Kind.CIDRS, "::ffff:127.0.0.1/128", (Network(6, "::ffff:127.0.0.1", 128, loopback=True),)),
    (Kind.CIDRS, "::ffff:10.0.0.0/104", (Network(6, "::ffff:10.0.0.0", 104),)),
    (Kind.CIDR, "127.0.0.1/32", Network(4, "127.0.0.1", 32, loopback=True)),
    (Kind.CIDR, "127.0.0.1/8", Network(4, "127.0.0.0", 8, loopback=True)),
    (Kind.UIDS, "0,1337", (IdRange(0, 0), IdRange(1337, 1337))),
    (Kind.UIDS, str(MAX_ID), (IdRange(MAX_ID, MAX_ID),)),
    (Kind.UIDS, "1000-1999,5:9,7-7", (IdRange(1000, 1999), IdRange(5, 9), IdRange(7, 7))),
    (Kind.UIDS, "root,istio-proxy", (IdRange(0, 0), IdRange(1337, 1337))),
    (Kind.GIDS, "wheel", (IdRange(10, 10),)),
    (Kind.GIDS_OR_ALL, "*", ALL),
    (Kind.INTERFACES, "eth0, br+", ("eth0", "br+")),
    (Kind.INTERFACES, "+", ("+",)),
    (Kind.INTERFACES, "abcdefghijklmno", ("abcdefghijklmno",)),
    (Kind.MODE, "TPROXY", Mode.TPROXY),
    (Kind.MODE, "", Mode.REDIRECT),
    (Kind.NUMBER, "1337", 1337),
    (Kind.NUMBER, "0x539", 1337),
    (Kind.NUMBER, "0XFFFFFFFF", 2**32 - 1),
    (Kind.DURATION, "5s", 5.0),
    (Kind.DURATION, "1m30s", 90.0),
    (Kind.DURATION, "500ms", 0.5),
    (Kind.DURATION, "1.5h", 5400.0),
    (Kind.DURATION, "+.5s", 0.5),
    # A socket can't wait for longer than 24 days.
    (Kind.DURATION, "1000h", 2147483),
    (Kind.FLAG, "T", True),
    (Kind.FLAG, "False", False),
    (Kind.BACKEND, "", ""),
    (Kind.BACKEND, "nft", "nft"),
    (Kind.FAMILY, "ipv6", "ipv6"),
    (Kind.IP_FAMILY, "dual", "dual"),
    (Kind.FORMAT, "annotated", "annotated"),
    (Kind.PATH, "/proc/1/ns/net", "/proc/1/ns/net"),
]


@pytest.mark.parametrize(("kind", "text", "expected"), ACCEPTED)
def test_accepted(kind: Kind, text: str, expected: object) -> None:
    """A text that Istio accepts and the kernel takes becomes this value."""
    assert value(kind, text) == expected


REFUSED: list[tuple[Kind, str, str]] = [
    (Kind.PORT, "0", "from 1 to 65535"),
    (Kind.PORT, "-b", "looks like an option"),
    (Kind.PORT, "", "is not a port"),
    (Kind.PORT, "80:90", "is not a port"),
    (Kind.TUNNEL_PORT, "00", "is not a port"),
    (Kind.TUNNEL_PORT, "65536", "from 1 to 65535"),
    (Kind.PORTS, "65536", "from 1 to 65535"),
    (Kind.PORTS, "080", "is not a port"),
    (Kind.PORTS, "\u0668\u0660", "is not a port"),
    (Kind.PORTS, "http", "is not a port"),
    (Kind.PORTS, "80-90", "write a range as 80:90"),
    (Kind.PORTS, "90:80", "90 is larger than 80"),
    (Kind.PORTS, "80:90:100", "both ends are numbers"),
    (Kind.PORTS, "80:65536", "both ends are numbers"),
    (Kind.PORTS, ":", "both ends are numbers"),
    (Kind.PORTS, "1 2", "is not a port"),
    (Kind.PORTS, "-d", "looks like an option"),
    (Kind.PORTS, "*", "is not accepted here"),
    (Kind.PORTS_OR_ALL, "*,80", "can't be one item of a list"),
    (Kind.CIDRS, "*", "is not accepted here"),
    (Kind.CIDRS, "10.0.0.1", "write 10.0.0.1/32"),
    (Kind.CIDRS, "fd00::1", "write fd00::1/128"),
    (Kind.CIDRS, "10.0.0.0/33", "from 0 to 32"),
    (Kind.CIDRS, "fd00::/129", "from 0 to 128"),
    (Kind.CIDRS, "10.0.0.0/08", "from 0 to 32"),
    (Kind.CIDRS, "10.0.0.0/", "from 0 to 32"),
    (Kind.CIDRS, "10.0.0.0/255.0.0.0", "from 0 to 32"),
    (Kind.CIDRS, "10.0/8", "is not a CIDR"),
    (Kind.CIDRS, "010.0.0.0/8", "is not a CIDR"),
    (Kind.CIDRS, "fe80::1%eth0/64", "is not a CIDR"),
    (Kind.CIDRS, "example.com", "is not a CIDR"),
    (Kind.CIDRS, "-b", "looks like an option"),
    (Kind.CIDRS_OR_ALL, "10.0.0.0/8,*", "can't be one item of a list"),
    (Kind.CIDR, "10.0.0.0/8", "has to lie in 127.0.0.0/8"),
    (Kind.CIDR, "127.0.0.0/7", "has to lie in 127.0.0.0/8"),
    (Kind.CIDR, "::1/128", "has to lie in 127.0.0.0/8"),
    (Kind.CIDR, "", "is not a CIDR"),
    (Kind.UIDS, "nosuch", "neither a number nor a user"),
    (Kind.GIDS, "istio-proxy", "neither a number nor a group"),
    (Kind.UIDS, "4294967295", f"from 0 to {MAX_ID}"),
    (Kind.UIDS, "9-5", f"from 0 to {MAX_ID}"),
    (Kind.UIDS, "-5", "looks like an option"),
    (Kind.UIDS, "*", "is not accepted here"),
    (Kind.INTERFACES, "abcdefghijklmnop", "longer than 15 bytes"),
    (Kind.INTERFACES, "ääääääää", "longer than 15 bytes"),
    (Kind.INTERFACES, "!eth0", "start with"),
    (Kind.INTERFACES, "-eth0", "looks like an option"),
    (Kind.INTERFACES, "-", "start with"),
    (Kind.INTERFACES, "..", "start with"),
    (Kind.INTERFACES, "a/b", "holds '/'"),
    (Kind.INTERFACES, "a b", "holds ' '"),
    (Kind.INTERFACES, 'a"b', "holds '\"'"),
    (Kind.INTERFACES, "eth0:1", "holds ':'"),
    (Kind.INTERFACES, "*", "is not accepted here"),
    (Kind.MODE, "tproxy", "did you mean TPROXY?"),
    (Kind.MODE, "BOGUS", "is not one of REDIRECT, TPROXY"),
    (Kind.NUMBER, "0", "from 1 to 4294967295"),
    (Kind.NUMBER, "4294967296", "from 1 to 4294967295"),
    (Kind.NUMBER, "0x", "decimal or 0x"),
    (Kind.NUMBER, "-1", "looks like an option"),
    (Kind.NUMBER, "010", "decimal or 0x"),
    (Kind.DURATION, "5", "is not a duration"),
    (Kind.DURATION, "-5s", "is not a duration"),
    (Kind.DURATION, "0s", "is no time at all"),
    (Kind.FLAG, "yes", "write true or false"),
    (Kind.BACKEND, "NFT", "did you mean nft?"),
    (Kind.FORMAT, "yaml", "is not one of"),
    (Kind.FAMILY, "IPv4", "did you mean ipv4?"),
    (Kind.IP_FAMILY, "ipv6", "is not one of auto, ipv4, dual"),
    (Kind.PATH, "--dry-run", "looks like an option"),
]


@pytest.mark.parametrize(("kind", "text", "fragment"), REFUSED)
def test_refused(kind: Kind, text: str, fragment: str) -> None:
    """A text that can't be used is named with the reason."""
    (reason,) = reasons(kind, text)
    assert fragment in reason
    assert any(repr(item) in reason for item in (text, *text.split(",")))


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.TEXT])
@pytest.mark.parametrize("letter", ["\n", "\r", "\t", "\0", "\x1b", "\x7f", "\x85", "\u2028"])
def test_control_characters_are_refused_in_every_kind(kind: Kind, letter: str) -> None:
    """A newline in a list would be a rule of its own to iptables-restore, so nothing takes one."""
    (reason,) = reasons(kind, f"80{letter}")
    assert "control character" in reason


#: What has one number, and lists of them.
_NUMBERS = (Kind.PORT, Kind.PORTS, Kind.UIDS, Kind.GIDS, Kind.NUMBER, Kind.PORTS_OR_ALL)
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
def test_what_only_python_takes_for_a_number_is_none(kind: Kind, text: str) -> None:
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
@pytest.mark.parametrize("kind", [Kind.CIDR, Kind.CIDRS, Kind.CIDRS_OR_ALL])
def test_what_only_python_takes_for_a_length_is_none(kind: Kind, text: str) -> None:
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
    (reason,) = reasons(Kind.DURATION, text)
    assert fragment in reason


def test_every_bad_item_is_named_with_its_number() -> None:
    """Items are counted from 1 as they are read, without the empty ones; good ones are no fault."""
    assert [each.split()[:2] for each in reasons(Kind.PORTS, "x,80,,y, 70000")] == [
        ["1", "'x'"],
        ["3", "'y'"],
        ["4", "'70000'"],
    ]


class TestItems:
    """What is true of every item that is accepted."""

    @given(lists_of(port_items()))
    def test_ports(self, text: str) -> None:
        """A port's text reads as the same port again."""
        for each in value(Kind.PORTS, text):
            assert 0 <= each.first <= each.last <= 65535
            assert value(Kind.PORTS, str(each)) == (each,)

    @given(lists_of(networks))
    def test_networks(self, text: str) -> None:
        """A network is what Python's ipaddress takes it for, and reads as the same again."""
        given_items = [item.strip() for item in text.split(",") if item.strip()]
        for item, each in zip(given_items, value(Kind.CIDRS, text), strict=True):
            right = ipaddress.ip_network(item, strict=False)
            assert ipaddress.ip_network(str(each)) == right
            assert [str(again) for again in value(Kind.CIDRS, str(each))] == [str(each)]

    @given(lists_of(interfaces))
    def test_interfaces(self, text: str) -> None:
        """A name is kept as it is."""
        given_items = tuple(item.strip() for item in text.split(",") if item.strip())
        assert value(Kind.INTERFACES, text) == given_items

    @given(numbers)
    def test_numbers(self, text: str) -> None:
        """Decimal and hexadecimal are the same number."""
        assert value(Kind.NUMBER, text) == int(text, 0)

    @given(
        st.sampled_from([kind for kind in Kind if kind is not Kind.TEXT]),
        # Bytes that are no UTF-8 are half of what a shell may hand over.
        st.one_of(st.text(), st.binary().map(lambda data: data.decode(errors="surrogateescape"))),
    )
    @example(Kind.CIDRS, "\udcf9/8")
    @example(Kind.UIDS, "\udcf9")
    @example(Kind.INTERFACES, "\udcf9" * 16)
    def test_any_text_has_a_value_or_a_reason(self, kind: Kind, text: str) -> None:
        """Nothing a user types makes the reader of settings stumble."""
        parsed, faults = parse(kind, text, NAMES)
        assert faults or parsed is not None
        assert all(fault.reason and "\n" not in fault.reason for fault in faults)
