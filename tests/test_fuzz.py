"""Whatever the program is given, it answers or refuses: no traceback, and a status it promises.

A bounded run of the targets that tests/fuzz/fuzz.py goes on with for as long as one likes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from istio_iptables.netfilter.savefile import render
from istio_iptables.settings.declarations import SETTINGS
from tests.fuzz import targets
from tests.fuzz.reviews import SEEDS, sent
from tests.fuzz.reviews import mutated as mutated_review
from tests.strategies import rulesets

if TYPE_CHECKING:
    from collections.abc import Sequence

TESTS = Path(__file__).parent
FILES = [
    path.read_bytes() for path in (*TESTS.glob("fixtures/*"), *TESTS.glob("kernel/fixtures/*"))
]

#: Texts that some reader takes for more than it is.
ODD = (
    "9" * 5000,
    "0x" + "f" * 5000,
    "\u00b2",
    "\u0661",
    "1_0",
    "+1",
    "-1",
    "4294967296",
    "18446744073709551616",
    "1e309s",
    "nan",
    "\udce9",
    "\x1b[2J",
    "\u2028",
    "\x85",
    "\x1c",
    "\r",
    "\t",
    "",
    " ",
    ",",
    ":",
    "/",
    "-",
    "!",
    '"',
    "'",
    "\\",
    "\n",
    "0/0",
    "10.0.0.0/33",
    "::/0",
    "::ffff:1.2.3.4/96",
    "0:0",
    "65535:0",
    "-j",
    "-m",
    "--",
    "# IPv6",
    "COMMIT",
    "*nat",
    ":OUTPUT ACCEPT [0:0]",
    "-A OUTPUT",
    "[1:1]",
    "ISTIO_OUTPUT",
)
PARTS = (
    *ODD,
    "-s 10.0.0.0/8",
    "! -d 127.0.0.1/32",
    "-i br+",
    "-o lo",
    "-p tcp",
    "-p 58",
    "-f",
    "-m tcp --dport 80",
    "-m tcp --tcp-flags SYN",
    "-m multiport --dports 1,2:3",
    "-m owner --uid-owner 0-4294967294",
    "-m mark --mark 0x1/0xff",
    "-m conntrack --ctstate NEW",
    "-m statistic --mode nth",
    "-m comment --comment x",
    "-j REDIRECT --to-ports 1-2",
    "-j TPROXY --on-port 1 --tproxy-mark 0x1",
    "-j DNAT --to-destination 1.2.3.4:5-6",
    "-j CT --zone 1",
    "-j MARK --set-mark 1",
    "-j CONNMARK --restore-mark",
    "-g ISTIO_REDIRECT",
)

_FLAGS = [each.flag for each in SETTINGS if each.on_command_line]
_SHORT = [f"-{each.short}" for each in SETTINGS if each.short]
_VALUES = st.one_of(
    st.sampled_from(ODD),
    st.sampled_from(("*", "80", "TPROXY")),
    st.text(max_size=8),
    st.binary(max_size=4).map(lambda data: data.decode(errors="surrogateescape")),
)
_OF_A_PACKET = ["proto", "src", "dst", "iface", "uid", "gid", "mark", "connmark", "ctstate"]

bounded = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A file of rules with some of its bytes replaced, lost, or in another place."""
    content = draw(st.one_of(st.sampled_from(FILES), rulesets().map(render).map(_bytes)))
    # A few lines are enough, and quicker.
    lines = content.split(b"\n")
    first = draw(st.integers(0, len(lines) - 1))
    lines = [*lines[:4], *lines[first : first + 12], b"COMMIT", b""]
    content = b"\n".join(lines)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        end = draw(st.integers(at, min(at + 8, len(content))))
        put = draw(st.one_of(st.sampled_from(ODD).map(_bytes), st.binary(max_size=3)))
        content = content[:at] + put + content[end:]
    return content


@st.composite
def composed(draw: st.DrawFn) -> bytes:
    """Rules of parts that are right, odd or in no order, in a table that reads well."""
    words = st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map(" ".join)
    texts: Sequence[str] = draw(st.lists(words, min_size=1, max_size=4))
    chains = draw(st.lists(st.sampled_from(["OUTPUT", "ISTIO_OUTPUT"]), min_size=4, max_size=4))
    rules = [f"-A {chain} {text}" for chain, text in zip(chains, texts, strict=False)]
    table = draw(st.sampled_from(["raw", "mangle", "nat", "filter"]))
    lines = [f"*{table}", ":OUTPUT ACCEPT [0:0]", ":ISTIO_OUTPUT - [0:0]", *rules, "COMMIT", ""]
    return _bytes("\n".join(lines))


@given(st.one_of(mutated(), composed(), st.binary(max_size=60)))
@bounded
def test_the_reader(data: bytes) -> None:
    """What is read is kept, and what is wrong is named with its line."""
    targets.reader(data)


@given(st.one_of(mutated(), composed(), st.binary(max_size=60)))
@bounded
def test_files_of_rules(data: bytes) -> None:
    """``explain --rules``, ``diff --against`` and ``diff --golden``."""
    targets.rules(data)


@st.composite
def arguments(draw: st.DrawFn, names: Sequence[str]) -> bytes:
    """Options with values that are right or odd, glued together or apart."""
    words: list[str] = []
    for _ in range(draw(st.integers(1, 4))):
        name, value = draw(st.sampled_from(names)), draw(_VALUES)
        words += draw(
            st.sampled_from(([name, value], [f"{name}={value}"], [f"{name}{value}"], [name]))
        )
    return _bytes("\0".join(words))


@given(st.one_of(arguments([*_FLAGS, *_SHORT]), st.binary(max_size=30)))
@bounded
def test_flags(data: bytes) -> None:
    """A dry run."""
    targets.flags(data)


@given(arguments([*(f"--{name}" for name in _OF_A_PACKET), *_FLAGS]))
@bounded
def test_packets(data: bytes) -> None:
    """``explain`` of the plan."""
    targets.packet(data)


@st.composite
def reviews(draw: st.DrawFn) -> bytes:
    """A review with some of it otherwise."""
    random = draw(st.randoms(use_true_random=False))
    return mutated_review(draw(st.sampled_from(SEEDS)), random)


@given(st.one_of(reviews(), st.binary(max_size=60)))
@bounded
def test_reviews(data: bytes) -> None:
    """The webhook, by the body of a request."""
    targets.review(data)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Requests after each other on one connection, some not whole."""
    random = draw(st.randoms(use_true_random=False))
    found = [sent(b"", draw(reviews()), random) for _ in range(draw(st.integers(1, 3)))]
    parts = [each.partition(b"\r\n\r\n") for each in found]
    again = [sent(head, body, random) for head, _, body in parts]
    return b"".join(again)[: draw(st.integers(0, 20_000))]


@given(st.one_of(requests(), st.binary(max_size=60)))
@bounded
def test_requests(data: bytes) -> None:
    """The webhook, by what comes on a connection."""
    targets.requests(data)
