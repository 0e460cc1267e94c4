"""explain --live beside what the kernel knows and iptables does not show."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from istio_iptables.kernel import netlink
from istio_iptables.kernel.sockets import listens
from istio_iptables.netfilter.model import Family
from tests.kernel.sandbox import command, install, load, run, without_nft
from tests.namespaces import BACKENDS

if TYPE_CHECKING:
    from tests.program import Result

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("pod")]

DOCUMENTED = ("-i", "*", "-b", "*", "-d", "15090,15021,15020", "--ip-family", "dual")
OUT = "captured by Envoy's outbound listener on port 15001"


@pytest.fixture
def pod(box: object) -> object:
    """A namespace with an interface that has two addresses of each family and a link-local one."""
    command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
    for name in ("eth0", "peer0"):
        command("ip", "link", "set", name, "addrgenmode", "none", "up")
    for address in ("10.9.0.2/24", "10.9.0.3/24"):
        command("ip", "addr", "add", address, "dev", "eth0")
    for address in ("fd00:9::2/64", "fd00:9::3/64", "fe80::2/64"):
        command("ip", "addr", "add", address, "dev", "eth0", "nodad")
    # The kernel makes the routes of an address a little later.
    deadline = time.monotonic() + 10
    wanted = {"fd00:9::2", "fd00:9::3", "fe80::2"}
    while time.monotonic() < deadline and not wanted <= {
        each["dst"] for each in shown("-6", "route", "show", "table", "local")
    }:
        time.sleep(0.01)
    command("ip", "addr", "add", "169.254.20.10/32", "dev", "lo")
    command("ip", "route", "add", "default", "dev", "eth0")
    command("ip", "-6", "route", "add", "default", "dev", "eth0")
    return box


def explain(*arguments: str) -> Result:
    """What explain says about the rules that are there."""
    result = run("explain", "--live", *arguments)
    assert result.status == 0, result.err
    return result


def answer(*arguments: str) -> dict[str, Any]:
    """The same for programs."""
    document: dict[str, Any] = json.loads(explain(*arguments, "--json").out)
    return document


def shown(*arguments: str) -> list[dict[str, Any]]:
    """What ip says to programs."""
    done = subprocess.run(["ip", "-json", *arguments], capture_output=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_all_addresses_are_read_by_interface() -> None:
    """In the kernel's order, as ip shows them."""
    expected = {
        link["ifname"]: [each["local"] for each in link["addr_info"]]
        for link in shown("addr", "show")
        if link["addr_info"]
    }
    assert {name: list(found) for name, found in netlink.interface_addresses().items()} == expected


def test_an_address_that_is_still_looked_for_is_nobodys() -> None:
    """The kernel sends nothing to it over lo before that."""
    command("sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=1")
    command("ip", "addr", "add", "fd00:9::9/64", "dev", "eth0")
    assert "fd00:9::9" not in netlink.interface_addresses()["eth0"]


@pytest.mark.parametrize("address", ["fe80::2", "169.254.20.10", "fd00:9::3", "10.9.0.3"])
def test_each_own_address_is_reached_over_loopback(address: str) -> None:
    """As the kernel routes it, link-local or not."""
    install("legacy", *DOCUMENTED)
    (route,) = (
        shown("route", "get", address, "oif", "eth0")
        if ":" in address
        else shown("route", "get", address)
    )
    assert route["type"] == "local"
    packet = answer("--dst", f"[{address}]:81")["packet"]
    assert (packet["out_interface"], packet["source"]) == ("lo", route["prefsrc"])
    steps = answer("--dst", f"[{address}]:81", "--uid", "1337")["path"]
    assert any(each["chain"] == "ISTIO_IN_REDIRECT" for each in steps)


def test_a_link_local_neighbour_is_asked_from_the_own_link_local_address() -> None:
    """That of the interface that leads there."""
    packet = answer("--dst", "[fe80::99]:81")["packet"]
    assert (packet["out_interface"], packet["source"]) == ("eth0", "fe80::2")


def test_envoys_own_address_is_not_taken_for_the_pods() -> None:
    """Neither as a source nor as a destination, though it is the first that the kernel shows."""
    install("legacy", *DOCUMENTED)
    # The kernel has a new address as tentative for a moment, on lo too.
    deadline = time.monotonic() + 10
    while "::6" not in netlink.interface_addresses()["lo"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "::6" in netlink.interface_addresses()["lo"]
    assert answer("--family", "ipv6", "--in")["packet"]["destination"] == "fd00:9::3"
    assert answer("--dst", "2001:db8::1")["packet"]["source"] == "fd00:9::3"


def test_redirect_answers_with_the_first_address_of_the_interface() -> None:
    """Whichever of them was asked for; and a link-local one for a link-local one."""
    install("legacy", *DOCUMENTED)
    for asked, first in (
        ("10.9.0.3:80", "10.9.0.2:15006"),
        ("[fd00:9::2]:80", "[fd00:9::3]:15006"),
        ("[fe80::2]:80", "[fe80::2]:15006"),
    ):
        changes = [each["change"] for each in answer("--in", "--dst", asked)["path"]]
        assert f"to {first}" in changes


def test_policy_routes_are_the_kernels() -> None:
    """Whatever the flags say, and whoever made them."""
    command("ip", "rule", "add", "fwmark", "0x77", "lookup", "177")
    command("ip", "route", "add", "local", "default", "dev", "lo", "table", "177")
    document = answer("--mark", "0x77", "--dst", "192.0.2.1:80")
    assert document["packet"]["out_interface"] == "lo"
    assert document["verdict"] == "reaches 192.0.2.1:80 here untouched"
    command("ip", "route", "flush", "table", "177")
    assert answer("--mark", "0x77")["packet"]["out_interface"] == "eth0"


@pytest.mark.parametrize(
    ("family", "chain", "packet", "counts"),
    [
        ("inet", "type nat hook output priority -150", "--out", True),
        ("ip", "type nat hook output priority -150", "--out", True),
        ("ip6", "type nat hook output priority -150", "--out", False),
        ("ip6", "type nat hook output priority -150", "--dst 2001:db8::1", True),
        # nat has sent it to Envoy before.
        ("inet", "type nat hook output priority -50", "--out", False),
        ("inet", "type nat hook output priority -50", "--out --uid 1337", True),
        ("inet", "type filter hook input priority 0", "--in", True),
        # It comes back over lo.
        ("inet", "type filter hook input priority 0", "--out", True),
        ("inet", "type filter hook input priority 0", "--out --uid 1337", False),
        ("inet", "type filter hook forward priority 0", "--in", False),
        ("netdev", "type filter hook ingress device eth0 priority 0", "--in", True),
        ("netdev", "type filter hook ingress device eth0 priority 0", "--out --uid 1337", False),
    ],
)
def test_chains_that_are_not_followed_make_the_verdict_conditional(
    family: str, chain: str, packet: str, *, counts: bool
) -> None:
    """Those that the packet passes; they are named, and no program is told that it is captured.

    Without nft none can be listed, and those of an interface come before anything that is followed.
    """
    install("legacy", *DOCUMENTED)
    command("nft", f"table {family} fw {{ chain x {{ {chain}; tcp dport 9 drop; }}; }}")
    if family != "netdev":
        without_nft()
    result = explain(*packet.split())
    document = answer(*packet.split())
    verdict = result.out.splitlines()[-1]
    hook = chain.split(" hook ", 1)[1].split(maxsplit=1)[0].upper()
    if not counts:
        assert "unless" not in verdict
        assert not any("chain" in each for each in result.warnings)
        assert document["unless"] == []
        return
    assert verdict.endswith(f", unless nftables chain {family} fw x decides otherwise")
    (warning,) = (each for each in result.warnings if "chain" in each)
    assert f"nftables chain {family} fw x (" in warning
    assert f"hook {hook}, priority {chain.rsplit(maxsplit=1)[-1]})" in warning
    assert document["verdict"] == verdict
    assert (document["captured"], document["to_port"]) == (None, None)
    assert [(each["hook"], each["priority"]) for each in document["unless"]] == [
        (hook, int(chain.rsplit(maxsplit=1)[-1]))
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rules_in_the_other_backend_make_the_verdict_conditional(backend: str) -> None:
    """The kernel asks both."""
    other = "nft" if backend == "legacy" else "legacy"
    install(backend, *DOCUMENTED)
    load(other, Family.IPV4, "*nat\n-I OUTPUT 1 -d 192.0.2.9/32 -j ACCEPT\nCOMMIT\n")
    out = explain("--force-iptables-binary", backend).out
    assert out.endswith(f"{OUT}, unless {other} chain nat OUTPUT decides otherwise\n")


def test_a_table_that_can_not_be_read_makes_the_verdict_conditional() -> None:
    """A native one under iptables' own name: what it does is unknown, and not nothing."""
    install("legacy", *DOCUMENTED)
    chain = "chain INPUT { type filter hook input priority 0; ct state vmap { invalid : drop }; }"
    command("nft", f"table ip filter {{ {chain}; }}")
    result = explain("--in")
    assert result.out.endswith("unless the unreadable table IPv4 filter (nft) decides otherwise\n")
    assert any("IPv4 filter (nft)" in each for each in result.warnings)
    assert "unless" not in explain("--in", "--dst", "fd00:9::2").out


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_application_as_the_proxys_user_is_warned_of_without_flags(backend: str) -> None:
    """The rules say who the proxy's users are."""
    install(backend, *DOCUMENTED, "-u", "4242", "-g", "4343")
    for options in (("--uid", "4242"), ("--uid", "1000", "--gid", "4343")):
        result = explain(*options, "--dst", "192.0.2.1:80")
        told = [line for line in result.warnings if "escapes; decided by nat ISTIO_OUTPUT" in line]
        # One a family at most: the rules of both let it escape.
        assert 1 <= len(told) <= 2
        assert all("an application that runs as the proxy's" in line for line in told)
        assert told == result.warnings
    assert not explain("--dst", "192.0.2.1:80").warnings


def test_a_namespace_without_rules_of_ours_is_said_to_be_one() -> None:
    """Once, and for one family where the other one has some."""
    assert explain().out.count("note: no rules of ours here (IPv4)\n") == 1
    install("legacy", *DOCUMENTED[:-1], "ipv4")
    assert "no rules of ours here" not in explain().out
    out = explain("--dst", "2001:db8::1").out
    assert "note: no rules of ours here (IPv6); there are some for IPv4" in out


def test_envoy_that_does_not_listen_is_said() -> None:
    """The rules capture, and nobody is there."""
    install("legacy", *DOCUMENTED)
    note = "note: nothing listens on tcp port 15001 here\n"
    assert note in explain().out
    with socket.socket() as envoy:
        envoy.bind(("127.0.0.1", 15001))
        assert listens(6, 15001, Family.IPV4) is False
        envoy.listen()
        assert note not in explain().out
        assert listens(6, 15001, Family.IPV6) is False


def test_tproxy_without_its_policy_route_is_said() -> None:
    """The first packet arrives, and the answers do not."""
    install("legacy", *DOCUMENTED, "-m", "TPROXY")
    assert "no policy route" not in explain("--in").out
    command("ip", "rule", "del", "fwmark", "1337", "lookup", "133")
    assert "note: no policy route delivers packets with the mark 0x539" in explain("--in").out


def test_a_set_that_marks_packets_leaves_the_mark_unknown() -> None:
    """The kernel drops the packet for a mark that only the set knows: one of the ways said."""
    from pyroute2 import IPSet

    with IPSet() as ipset:
        ipset.create("marks", "hash:ip", skbinfo=True)
        ipset.add("marks", "192.0.2.1", etype="ip", skbmark=(0x64, 0xFFFFFFFF))
        rules = (
            "*mangle\n-A OUTPUT -j SET --map-set marks dst --map-mark\n"
            "-A OUTPUT -m mark --mark 0x64 -j DROP\nCOMMIT\n"
        )
        load("legacy", Family.IPV4, rules)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, pytest.raises(PermissionError):
        sender.sendto(b"x", ("192.0.2.1", 9))
    verdicts = [each["verdict"] for each in answer("--dst", "192.0.2.1:9")["outcomes"]]
    assert verdicts == ["dropped by mangle OUTPUT 2", "goes out by eth0 untouched"]


def notes(*arguments: str) -> list[str]:
    """The notes of an answer."""
    found: list[str] = answer(*arguments)["notes"]
    return found


def test_a_network_of_the_machine_s_own_is_delivered_here() -> None:
    """``ip route add local``: every address of it is local, to the kernel and to explain."""
    command("ip", "route", "add", "local", "10.77.0.0/16", "dev", "lo")
    install("legacy", *DOCUMENTED)
    packet = answer("--dst", "10.77.3.4:81")["packet"]
    assert (packet["out_interface"], packet["source"]) == ("lo", "10.77.3.4")
    assert answer("--in", "--dst", "10.77.3.4:81")["captured"] == "inbound"


def test_a_broadcast_is_delivered_here_as_well() -> None:
    """What arrives for all on the link is for this machine too."""
    assert shown("route", "show", "table", "local", "10.9.0.255")[0]["type"] == "broadcast"
    verdict = answer("--in", "--proto", "udp", "--dst", "10.9.0.255:67")["verdict"]
    assert verdict == "reaches 10.9.0.255:67 here untouched"


@pytest.mark.parametrize(
    ("rule", "mark", "delivered"),
    [
        (("fwmark", "0x200/0xf00"), "0x1205", {True}),
        (("fwmark", "0x200/0xf00"), "0x1305", {False}),
        (("fwmark", "0x200", "iif", "eth0"), "0x200", {True}),
        (("fwmark", "0x200", "iif", "peer0"), "0x200", {False}),
        (("fwmark", "0x200", "iif", "eth0"), "0x201", {False}),
    ],
)
def test_policy_rules_with_a_mask_or_other_conditions(
    rule: tuple[str, ...], mark: str, delivered: set[bool]
) -> None:
    """The kernel is asked what becomes of the mark."""
    command("ip", "rule", "add", *rule, "lookup", "155")
    command("ip", "route", "add", "local", "default", "dev", "lo", "table", "155")
    load("legacy", Family.IPV4, f"*mangle\n-A PREROUTING -j MARK --set-mark {mark}\nCOMMIT\n")
    found = answer("--in", "--dst", "192.0.2.9:80")
    verdicts = [each["verdict"] for each in found["outcomes"]] or [found["verdict"]]
    assert {verdict.startswith("reaches") for verdict in verdicts} == delivered


@pytest.mark.parametrize(
    ("rule", "captured"),
    [
        ("to 198.51.100.0/24", None),
        ("fwmark 0 uidrange 1000-1000", None),
        ("uidrange 2000-2000", "outbound"),
        ("to 198.51.0.0/16 ipproto udp", "outbound"),
    ],
)
def test_policy_rules_of_any_kind(rule: str, captured: str | None) -> None:
    """The kernel is asked, so that a rule by address, user or protocol is as good as one by mark."""
    command("ip", "route", "add", "local", "default", "dev", "lo", "table", "155")
    command("ip", "rule", "add", *rule.split(), "lookup", "155")
    install("legacy", *DOCUMENTED)
    assert answer("--dst", "198.51.100.9:80")["captured"] == captured


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        ("prohibit 198.51.100.0/24", "a route prohibits 198.51.100.9"),
        ("unreachable 198.51.100.0/24", "no route leads to 198.51.100.9, or forwarding is off"),
    ],
)
def test_what_no_route_leads_to_is_not_sent(route: str, reason: str) -> None:
    """Then no rule is asked."""
    command("ip", "route", "add", *route.split())
    install("legacy", *DOCUMENTED)
    found = answer("--dst", "198.51.100.9:80")
    assert (found["verdict"], found["captured"]) == (f"is not sent: {reason}", None)
    assert found["path"] == []


@pytest.mark.parametrize("kind", ["prohibit", "blackhole", "unreachable"])
def test_a_mark_that_no_route_is_for_ends_the_packet(kind: str) -> None:
    """It is routed anew behind mangle, before nat is asked."""
    install("legacy", *DOCUMENTED)
    load(
        "legacy", Family.IPV4, "*mangle\n-A OUTPUT -p tcp --dport 80 -j MARK --set-mark 9\nCOMMIT\n"
    )
    command("ip", "rule", "add", "fwmark", "9", "pref", "100", kind)
    verdict = answer("--dst", "198.51.100.9:80")["verdict"]
    assert verdict.startswith("dropped behind mangle OUTPUT policy: ")
    assert answer("--dst", "198.51.100.9:81")["verdict"] == OUT


_ASKED = "-A OUTPUT -p tcp --dport 80 -j CT --zone 7"
_ANSWERED = "-A OUTPUT -p tcp --sport 15001 -j CT --zone 7"


@pytest.mark.parametrize(
    ("rules", "note"),
    [
        ((_ASKED,), "no connection comes about"),
        (("-A OUTPUT -p tcp --dport 80 -j CT --zone-orig 7",), ""),
        ((_ASKED, _ANSWERED), ""),
    ],
)
def test_answers_in_another_zone_are_lost(rules: tuple[str, ...], note: str) -> None:
    """They are not translated back: a client waits in vain, and explain says so."""
    install("legacy", *DOCUMENTED)
    load("legacy", Family.IPV4, "\n".join(("*raw", *rules, "COMMIT", "")))
    found = answer("--dst", "10.9.0.9:80")
    assert found["verdict"] == OUT
    said = [each for each in found["notes"] if "zone" in each]
    assert [each.endswith(note) for each in said] == ([True] if note else [])
    with socket.create_server(("", 15001)), socket.socket() as client:
        client.settimeout(1 if note else 60)
        try:
            client.connect(("10.9.0.9", 80))
        except TimeoutError:
            assert note
        else:
            assert not note


def test_answers_alone_in_a_zone_may_be_lost() -> None:
    """Over loopback they are looked up a second time, with another answer."""
    install("legacy", *DOCUMENTED)
    load("legacy", Family.IPV4, f"*raw\n{_ANSWERED}\nCOMMIT\n")
    *_, note = answer("--dst", "10.9.0.9:80")["notes"]
    assert note.endswith("from port 15001 in zone 7: it may not be translated back")


def test_a_packet_that_can_not_be_here_is_called_so() -> None:
    """An address that is none of the namespace, at either end, and an interface that is not there."""
    install("legacy", *DOCUMENTED)
    command("sysctl", "-qw", "net.ipv4.ip_forward=0")
    verdict = answer("--in", "--dst", "192.0.2.9:15021")["verdict"]
    assert verdict.endswith("no route leads to 192.0.2.9, or forwarding is off")
    command("sysctl", "-qw", "net.ipv4.ip_forward=1")
    assert "is forwarded" in answer("--in", "--dst", "192.0.2.9:15021")["verdict"]
    assert "the kernel refuses" in answer("--in", "--dst", "127.0.0.1:15021")["verdict"]
    assert (
        "the kernel refuses" in answer("--in", "--src", "10.9.0.2", "--dst", "10.9.0.3")["verdict"]
    )
    (source, *_) = notes("--src", "192.0.2.9", "--dst", "10.9.0.9:80")
    assert source == "192.0.2.9 is no address of this namespace, which can't send from it"
    assert "there is no interface eth7 here" in notes("--iface", "eth7", "--dst", "10.9.0.9:80")
    bound = notes("--iface", "eth0", "--dst", "10.9.0.2:80")
    assert "the kernel sends it by lo, not by eth0 (--iface)" in bound
