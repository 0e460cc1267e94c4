"""The bytes we make of rules, held against those that iptables makes of the same text."""

from __future__ import annotations

import ctypes
import struct
from socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_RAW,
    SOCK_RAW,
    socket,
)
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from istio_iptables.istio.ownership import OWNERSHIP
from istio_iptables.istio.plan import build
from istio_iptables.kernel.legacy import Legacy
from istio_iptables.kernel.xt_abi import UnknownPartError, encode
from istio_iptables.netfilter import formats
from istio_iptables.netfilter.edits import Action, Edit
from istio_iptables.netfilter.model import Family, Rule, Ruleset, Table, is_built_in
from istio_iptables.netfilter.plan import DesiredState
from istio_iptables.netfilter.savefile import parse_rule, render
from tests.kernel.sandbox import load, save, tables
from tests.namespaces import sandbox
from tests.strategies import configs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_iptables.settings.config import Config

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

#: Behind ``-A CHAIN``, for both families; {a} and {b} are addresses with their masks.
_SHAPES = """
-j RETURN
-j ACCEPT
-j DROP
-j OWN
-g OWN
-s {a} -j RETURN
! -s {a} -j RETURN
-d {a} -j RETURN
! -d {b} -j RETURN
-s {b} -d {a} -j RETURN
-i lo -j RETURN
! -i lo -j RETURN
-o lo -j RETURN
! -o lo -j RETURN
-i br+ -j RETURN
-o a-name-of-15-xx -j RETURN
-i a-name-of-14-x+ -o e+ -j RETURN
-i not-istio-nic -j RETURN
-p tcp -j OWN
! -p tcp -j OWN
-p udp -j OWN
-p tcp -m tcp --dport 15008 -j RETURN
-p tcp -m tcp ! --dport 15008 -j RETURN
-p tcp -m tcp --dport 80:90 -j RETURN
-p tcp -m tcp --dport 0:80 -j RETURN
-p tcp -m tcp --dport 80:65535 -j RETURN
-p tcp -m tcp --sport 53 --dport 1 -j RETURN
-p tcp -m tcp ! --sport 53 ! --dport 1:2 -j RETURN
-p udp -m udp --dport 53 -j RETURN
-p udp -m udp ! --sport 53 -j RETURN
-p udp -m udp ! --dport 53:54 -j RETURN
-p tcp -m multiport --dports 53,15008 -j RETURN
-p tcp -m multiport ! --dports 53,15008 -j RETURN
-p tcp -m multiport --dports 53,80:90,443 -j RETURN
-p udp -m multiport ! --sports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 -j RETURN
-p tcp -m multiport --ports 1 -j RETURN
-m owner --uid-owner 1337 -j RETURN
-m owner ! --uid-owner 1337 -j RETURN
-m owner --uid-owner 0-4294967294 -j RETURN
-m owner --gid-owner 1337 -j RETURN
-m owner ! --gid-owner 1-2 -j RETURN
-m owner ! --gid-owner 1 -m owner ! --gid-owner 2 -j RETURN
-m owner ! --uid-owner 1 --gid-owner 2-3 -j RETURN
-m mark --mark 0x539 -j RETURN
-m mark ! --mark 0x539 -j RETURN
-m mark --mark 0x1/0xff -j RETURN
-p tcp -m connmark --mark 0x539 -j RETURN
-m connmark ! --mark 0x0/0xf -j RETURN
-m conntrack --ctstate INVALID -j DROP
-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-m conntrack ! --ctstate NEW,UNTRACKED -j ACCEPT
-m conntrack --ctstate SNAT,DNAT -j ACCEPT
-m comment --comment plain -j RETURN
-m comment --comment "two words" -j RETURN
-m comment --comment "a \\"quote\\" and \\'one\\' and \\\\" -j RETURN
-p tcp -m comment --comment with-dash_and_line
"""

_TARGETS = {
    "nat": """
-p tcp -j REDIRECT --to-ports 15001
-p udp -j REDIRECT --to-ports 15001-15006
""",
    "mangle": """
-j MARK --set-xmark 0x539/0xffffffff
-p tcp -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff
-p tcp -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xf0
-p tcp -j TPROXY --on-port 15006 --on-ip {any} --tproxy-mark 0x539/0xffffffff
-p tcp -j TPROXY --on-port 1 --on-ip {any} --tproxy-mark 0x1/0xff
""",
    "raw": """
-j CT --zone 1
-p udp -j CT --zone 65535
""",
}

_WORDS = {
    Family.IPV4: {"a": "127.0.0.1/32", "b": "10.96.0.0/12", "any": "0.0.0.0"},  # noqa: S104 - nobody listens on it
    Family.IPV6: {"a": "::1/128", "b": "fd00:1::/52", "any": "::"},
}
_MORE = {
    Family.IPV4: (
        "-p icmp -j RETURN",
        "-f -j RETURN",
        "! -f -j RETURN",
        "-s 10.0.0.1/255.0.0.255 -j RETURN",
        "-p esp -j RETURN",
    ),
    Family.IPV6: (
        "-p ipv6-icmp -j RETURN",
        "-s ::1/ffff::ffff -j RETURN",
        "-d ::ffff:10.0.0.1/128 -j RETURN",
    ),
}

SHAPES = [
    pytest.param(family, table, text.format(**_WORDS[family]), id=f"{family.value}-{table}-{text}")
    for family in Family
    for table, more in _TARGETS.items()
    for text in [*(_SHAPES if table == "mangle" else "").strip().splitlines(), *more.split("\n")]
    if text
] + [
    pytest.param(family, "mangle", text, id=f"{family.value}-{text}")
    for family in Family
    for text in _MORE[family]
]


_SO_GET_INFO, _SO_GET_ENTRIES = 64, 65
_libc = ctypes.CDLL(None, use_errno=True)


def kernel_bytes(family: Family, table: str) -> bytes:
    """A table as the kernel gives it, asked without any library in between.

    It fills in only what counts of each extension; the rest of this buffer stays zero.
    """
    number, protocol = (AF_INET, IPPROTO_IP) if family is Family.IPV4 else (AF_INET6, IPPROTO_IPV6)
    with socket(number, SOCK_RAW, IPPROTO_RAW) as raw:
        # struct ipt_getinfo: name, valid hooks, 5 + 5 hook offsets, number of entries, size.
        info = _ask(raw, protocol, _SO_GET_INFO, struct.pack("=32s52x", table.encode()))
        (size,) = struct.unpack_from("=I", info, 80)
        asked = struct.pack("=32sI4x", table.encode(), size) + bytes(size)
        return _ask(raw, protocol, _SO_GET_ENTRIES, asked)[40:]


def _ask(raw: socket, protocol: int, option: int, question: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(question, len(question))
    length = ctypes.c_uint32(len(question))
    if _libc.getsockopt(raw.fileno(), protocol, option, buffer, ctypes.byref(length)):
        raise OSError(ctypes.get_errno(), "getsockopt")
    return buffer.raw


def rules_in(family: Family, table: str, chain: str) -> list[str]:
    """The text of the rules of a chain, as we read it."""
    found = Legacy(OWNERSHIP).table(family, table)
    there = found.chain(chain) if found else None
    return [rule.text for rule in there.rules] if there else []


def _chain_for(text: str) -> str:
    """A chain in which iptables takes the rule: not every condition makes sense at every hook."""
    if "owner" in text:
        return "OUTPUT"
    if "-i " in text and "-o " in text:
        return "FORWARD"
    return "PREROUTING" if "-i " in text or "TPROXY" in text else "OUTPUT"


@pytest.mark.parametrize(("family", "table", "text"), SHAPES)
def test_our_bytes_are_those_of_iptables(family: Family, table: str, text: str) -> None:
    """Loaded by iptables or by us, a rule is the same bytes in the kernel, and the same text."""
    chain = _chain_for(text)
    load("legacy", family, f"*{table}\n:OWN - [0:0]\n-A {chain} {text}\nCOMMIT\n")
    assert f"-A {chain} {text}\n" in save("legacy", family)
    theirs = kernel_bytes(family, table)
    assert rules_in(family, table, chain) == [text]
    with sandbox():
        _put_in(family, table, {"OWN": [], chain: [parse_rule(text)]})
        assert f"-A {chain} {text}\n" in save("legacy", family)
        assert kernel_bytes(family, table) == theirs


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize(
    "text",
    [
        "-m statistic --mode random --probability 0.50000000000 -j RETURN",
        "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN",
        "-m owner --socket-exists -j RETURN",
        "-m conntrack --ctproto 6 -j RETURN",
        "-j CONNMARK --set-xmark 0x1/0xffffffff",
        '-j LOG --log-prefix "a b "',
    ],
)
def test_a_rule_that_only_iptables_knows_is_read_by_iptables(text: str, family: Family) -> None:
    """A foreign extension has no bytes here: encoding refuses, and reading asks the program."""
    load("legacy", family, f"*mangle\n-A OUTPUT {text}\n-A OUTPUT -j RETURN\nCOMMIT\n")
    with pytest.raises(UnknownPartError):
        encode(parse_rule(text), family)
    assert rules_in(family, "mangle", "OUTPUT") == [text, "-j RETURN"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configs())
def test_every_plan_in_bytes_reads_as_its_text(config: Config) -> None:
    """Whatever settings ask for: put in by us, iptables and we read the text of the plan."""
    plan = build(config)
    with sandbox():
        for ruleset in plan.rulesets:
            _put_in_all(ruleset)
            assert tables(save("legacy", ruleset.family)) == tables(render(ruleset))
            for table in ruleset.tables:
                read = Legacy(OWNERSHIP).table(ruleset.family, table.name)
                assert read is not None
                assert _chains(read) == _chains(table)


def _chains(table: Table | None) -> list[tuple[str, list[str]]]:
    return (
        [(each.name, [rule.text for rule in each.rules]) for each in table.chains] if table else []
    )


def _put_in(family: Family, table: str, chains: dict[str, Sequence[Rule]]) -> None:
    """Load rules as an install does, one transaction a table."""
    steps = [Edit(Action.RESET, name) for name in chains if not is_built_in(table, name)]
    steps += [Edit(Action.APPEND, name, rule) for name, rules in chains.items() for rule in rules]
    transaction = Legacy(OWNERSHIP).prepare(family, table, steps)
    transaction.commit()


def _put_in_all(ruleset: Ruleset) -> None:
    for table in ruleset.tables:
        _put_in(ruleset.family, table.name, {each.name: each.rules for each in table.chains})


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configs())
def test_every_plan_by_iptables_is_the_same_bytes(config: Config) -> None:
    """Whatever settings ask for: iptables-legacy-restore's bytes of it are ours."""
    for ruleset in build(config).rulesets:
        names = [table.name for table in ruleset.tables]
        with sandbox():
            load("legacy", ruleset.family, formats.restore(DesiredState((ruleset,))))
            theirs = [kernel_bytes(ruleset.family, name) for name in names]
        with sandbox():
            _put_in_all(ruleset)
            assert [kernel_bytes(ruleset.family, name) for name in names] == theirs


class _Xt(ctypes.Structure):
    """struct _xt_align, which the kernel takes its XT_ALIGN from."""

    _fields_ = (
        ("u8", ctypes.c_uint8),
        ("u16", ctypes.c_uint16),
        ("u32", ctypes.c_uint32),
        ("u64", ctypes.c_uint64),
    )


class _Entry6(ctypes.Structure):
    """The end of struct ip6t_entry, behind its 136 bytes of addresses and interfaces."""

    _fields_ = (
        ("ipv6", ctypes.c_uint32 * 34),
        ("nfcache", ctypes.c_uint),
        ("target_offset", ctypes.c_uint16),
        ("next_offset", ctypes.c_uint16),
        ("comefrom", ctypes.c_uint),
        ("counters", ctypes.c_uint64 * 2),
    )


class _Entry4(ctypes.Structure):
    """The same of struct ipt_entry, behind 84 bytes."""

    _fields_ = (("ip", ctypes.c_uint32 * 21), *_Entry6._fields_[1:])


def test_sizes_are_this_machine_s() -> None:
    """Parts are filled up to the alignment that C gives a number of 64 bits, entries as C does."""
    width = ctypes.alignment(_Xt)
    for text in ("-p tcp -m tcp --dport 80", "-p udp -m udp --dport 80", "-m mark --mark 0x1"):
        for family, entry in ((Family.IPV4, _Entry4), (Family.IPV6, _Entry6)):
            bare = encode(parse_rule("-j RETURN"), family)
            whole = encode(parse_rule(f"{text} -j RETURN"), family)
            head = ctypes.sizeof(entry)
            assert len(bare) == head + (32 + 4 + width - 1) // width * width
            (size,) = struct.unpack_from("=H", whole, head)
            assert size % width == 0
            assert len(whole) == len(bare) + size
