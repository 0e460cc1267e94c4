"""describe on the kernel's own rules: both backends, counters, routes, and a namespace elsewhere."""

from __future__ import annotations

import json
import shlex

import pytest

from tests.kernel.shell import inside
from tests.namespaces import why_not

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

#: Three connections of the application to a port where nobody listens.
TRAFFIC = """
python3 - <<'END'
import socket
for _ in range(3):
    with socket.socket() as one:
        one.connect_ex(("10.0.0.1", 9))
END
"""


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_what_was_installed(backend: str) -> None:
    """The settings with their route, the counters of the traffic since, and nothing left over."""
    done = inside(
        f"istio-iptables -i 10.0.0.0/8,fd00::/8 -b '*' -m TPROXY -t 7 -r 200 -o 22 --dual-stack"
        f" --force-iptables-binary {backend} 2>/dev/null\n{TRAFFIC}"
        "istio-iptables describe --json; echo status $?"
    )
    document, _, status = done.stdout.rpartition("status ")
    found = json.loads(document)
    assert (status, done.stderr) == ("0\n", "")
    assert found["source"] == f"this namespace ({backend})"
    assert found["arguments"] == [
        *("-i", "10.0.0.0/8,fd00::/8", "-o", "22", "-m", "TPROXY", "-b", "*"),
        *("-t", "7", "-r", "200", "--ip-family", "dual"),
    ]
    assert found["unexplained"] == []
    assert all(each["reason"] and not each["foreign"] for each in found["rules"])
    counts = {
        each["text"]: each["packets"]
        for each in found["rules"]
        if (each["family"], each["table"]) == ("ipv4", "nat")
    }
    assert counts["-A OUTPUT -j ISTIO_OUTPUT"] == 3
    assert counts["-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN"] == 3
    assert counts["-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001"] == 0


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_what_was_changed_since(backend: str) -> None:
    """A rule and a route are gone, others' rules have come: the settings stay, the rest is told."""
    done = inside(
        f"istio-iptables -i '*' -b 80 -m TPROXY --ip-family dual --force-iptables-binary {backend}"
        " 2>/dev/null\n"
        f"iptables-{backend} -t nat -D ISTIO_OUTPUT 4\n"
        f"iptables-{backend} -t nat -I OUTPUT -p tcp --dport 22 -j ACCEPT\n"
        f"ip6tables-{backend} -t nat -A POSTROUTING -j MASQUERADE\n"
        "ip -6 rule del fwmark 1337\n"
        "istio-iptables describe; echo status $?; istio-iptables diff"
    )
    told, _, rest = done.stdout.partition("status ")
    assert rest.startswith("1\n")
    lines = told.splitlines()
    assert lines[-1] == "istio-iptables -i '*' -m TPROXY -b 80 --ip-family dual"
    expected = [
        "foreign: IPv4 nat OUTPUT rule 1: -A OUTPUT -p tcp -m tcp --dport 22 -j ACCEPT",
        "missing: IPv4 nat ISTIO_OUTPUT rule 4: -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN",
        "missing: IPv6: ip -6 rule add fwmark 0x539 lookup 133",
        "1 rule is foreign and marked so above",
        f"this namespace ({backend}) has the rules of this command line, but for 4 differences:",
    ]
    at = lines.index(expected[0])
    assert [line for line in lines[at:-1] if not line.startswith("    ")] == expected
    assert "these are the rules of -i '*' -m TPROXY -b 80 --ip-family dual, but for:\n" in rest


def test_a_namespace_without_rules() -> None:
    """Nothing of ours is there; that is told from what is there, and no table is made by asking."""
    done = inside("istio-iptables describe; echo status $?; cat /proc/net/ip_tables_names")
    assert done.stdout == "no rules of ours are in this namespace (legacy)\nstatus 1\n"


def test_explain_live_needs_no_flags() -> None:
    """The reasons and the port are those of the rules in the kernel."""
    done = inside(
        "istio-iptables -i '*' -p 16001 --ip-family ipv4 2>/dev/null\n"
        "istio-iptables explain --live --dst 10.0.0.9:80"
    )
    assert "    All other outbound TCP connections (-i '*') are captured and go to Envoy.\n" in (
        done.stdout
    )
    assert done.stdout.endswith("captured by Envoy's outbound listener on port 16001\n")


def test_without_the_capability_it_can_not_be_told() -> None:
    """What could not be read is unknown, never absent."""
    done = inside(
        "istio-iptables -i '*' --ip-family ipv4 2>/dev/null\n"
        "capsh --drop=cap_net_admin -- -c 'istio-iptables describe'; echo status $?"
    )
    assert done.stdout == "status 2\n"
    assert "error" in done.stderr


def test_native_rules() -> None:
    """They are found without a flag, with their counters; what was changed since is told."""
    done = inside(
        "istio-iptables --native-nftables --nft-sets -i '*' -b 81,80,90 -m TPROXY -t 7 -r 201"
        f" --ip-family dual 2>/dev/null\n{TRAFFIC}"
        "istio-iptables describe --json; echo status $?\n"
        "nft insert rule inet istio-proxy-nat istio-output tcp dport 22 counter accept\n"
        "nft flush chain inet istio-proxy-mangle istio-divert\n"
        "istio-iptables describe\n"
    )
    document, _, rest = done.stdout.partition("status ")
    found = json.loads(document)
    line = "-i '*' -m TPROXY -b 80:81,90 -t 7 -r 201 --ip-family dual --native-nftables --nft-sets"
    assert (rest[:2], done.stderr) == ("0\n", "")
    assert found["arguments"] == shlex.split(line)
    assert found["source"] == "this namespace (native nftables)"
    assert found["unexplained"] == []
    assert all(each["reason"] and not each["foreign"] for each in found["rules"])
    (jump,) = (
        each
        for each in found["rules"]
        if (each["table"], each["chain"]) == ("inet istio-proxy-nat", "output")
    )
    assert (jump["family"], jump["text"], jump["packets"]) == (None, "counter jump istio-output", 3)
    *_, verdict, command = rest.splitlines()
    assert command == f"istio-iptables {line}"
    assert verdict.endswith(
        "(native nftables) has the rules of this command line, but for 3 differences:"
    )
    assert "extra: inet istio-proxy-nat istio-output rule 1: tcp dport 22 counter accept\n" in rest


def test_rules_of_iptables_and_native_ones() -> None:
    """Those of iptables are described, and that the others are there too; or those that are asked for."""
    done = inside(
        "istio-iptables -i '*' --ip-family ipv4 --force-iptables-binary nft 2>/dev/null\n"
        "istio-iptables -n --native-nftables -i '*' -b 80 --ip-family dual 2>/dev/null | nft -f -\n"
        "istio-iptables describe | tail -n 3\n"
        "istio-iptables describe --native-nftables | tail -n 3\n"
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("extra: native nftables rules of ours, which take effect as well: ")
    assert lines[1].startswith("this namespace (nft) has the rules of this command line, but for ")
    assert lines[2] == "istio-iptables -i '*' --ip-family ipv4"
    assert lines[-1] == "istio-iptables -i '*' -b 80 --ip-family dual --native-nftables"
