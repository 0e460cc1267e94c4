"""Which rules are ours, where a foreign rule looks like one of ours."""

from __future__ import annotations

import pytest

from istio_iptables.istio.ownership import find_owned
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.savefile import parse

TABLE = """\
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:ISTIO_INBOUND - [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
{}
COMMIT
"""
CAPTURED = "-A ISTIO_OUTPUT -d 10.0.0.0/8 -j ISTIO_REDIRECT"
JUMP_IN = "-A PREROUTING -p tcp -j ISTIO_INBOUND"
JUMP_OUT = "-A OUTPUT -j ISTIO_OUTPUT"


@pytest.mark.parametrize(
    ("prerouting", "output", "ours"),
    [
        (["-i eth5 -j RETURN"], ["-o eth5 -j RETURN"], 4),
        (["-i eth5 -j RETURN", "-s 3.3.3.3/32 -j ACCEPT"], ["-o eth5 -j RETURN"], 2),
        (["-i eth5 -j RETURN"], ["-o eth5 -j RETURN", "-d 3.3.3.3/32 -j ACCEPT"], 2),
        (["-i eth5 -j RETURN"], ["-o eth6 -j RETURN"], 2),
        (["-i eth5 -j RETURN"], [], 2),
    ],
)
def test_bare_returns_are_ours_only_where_istio_puts_them(
    prerouting: list[str], output: list[str], ours: int
) -> None:
    """Right before our jump in both chains, and for the same interfaces."""
    lines = [f"-A PREROUTING {each}" for each in prerouting] + [JUMP_IN]
    lines += [f"-A OUTPUT {each}" for each in output] + [JUMP_OUT, CAPTURED]
    owned = find_owned(parse(TABLE.format("\n".join(lines)), Family.IPV4).tables[0])
    assert sum(map(len, owned.shared.values())) == ours


@pytest.mark.parametrize(("captured", "ours"), [(CAPTURED, False), ("", True)])
def test_a_return_at_the_head_spares_a_virtual_interface(captured: str, ours: bool) -> None:  # noqa: FBT001 - a case
    """Where destinations are captured, rules that send them to Envoy come before it."""
    lines = ["-A PREROUTING -i net1 -j RETURN", JUMP_IN, JUMP_OUT, captured]
    text = TABLE.format("\n".join(filter(None, lines)))
    owned = find_owned(parse(text, Family.IPV4).tables[0])
    assert (0 in owned.shared["PREROUTING"]) is ours
