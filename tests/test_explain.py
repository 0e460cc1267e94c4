"""`istio-iptables explain`: questions about packets, and the answers in words and for programs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from istio_iptables.istio.checks import Finding, FindingKind, findings
from istio_iptables.istio.escapes import APPLICATIONS
from istio_iptables.istio.plan import build
from istio_iptables.netfilter.model import Family, Ruleset
from istio_iptables.settings.config import Config, configure
from istio_iptables.settings.sources import gather
from tests.program import Result, run
from tests.strategies import FixedMachine

FIXTURES = Path(__file__).parent / "fixtures"
DOCUMENTED = ["-i", "*", "-b", "*", "-d", "15090,15021,15020", "--ip-family", "ipv4"]
TPROXY = [*DOCUMENTED, "-m", "TPROXY"]
DNS = [*DOCUMENTED, "--redirect-dns", "--capture-all-dns"]
DUAL = [*DOCUMENTED[:-1], "dual"]
NATIVE = [*DUAL, "--native-nftables"]


def explain(*arguments: str) -> Result:
    """What explain says, which is always something here."""
    result = run(["explain", *arguments])
    assert result.status == 0, result.err
    return result


def answer(*arguments: str) -> dict[str, Any]:
    """What explain says to programs."""
    document: dict[str, Any] = json.loads(explain(*arguments, "--json").out)
    return document


OUT = "captured by Envoy's outbound listener on port 15001"
IN = "captured by Envoy's inbound listener on port 15006"
AGENT = "captured by the agent's DNS resolver on port 15053"


@pytest.mark.parametrize(
    ("flags", "packet", "verdict"),
    [
        (DOCUMENTED, "--out --dst 1.2.3.4:443", OUT),
        (DOCUMENTED, "", OUT),
        (DOCUMENTED, "--uid 1337", "goes out by eth0 untouched"),
        (DOCUMENTED, "--uid 0 --gid 1337", "goes out by eth0 untouched"),
        (DOCUMENTED, "--dst 127.0.0.1:8080", "reaches 127.0.0.1:8080 here untouched"),
        (DOCUMENTED, "--dst 10.244.0.2:8080 --uid 1337", IN),
        # What connect() makes of them.
        (DOCUMENTED, "--dst 0.0.0.0:8080", "reaches 127.0.0.1:8080 here untouched"),
        (DUAL, "--dst [::]:8080", "reaches [::1]:8080 here untouched"),
        (DOCUMENTED, "--dst [::ffff:10.0.0.9]:80", OUT),
        (DOCUMENTED, "--dst 10.244.0.2:8080", "reaches 10.244.0.2:8080 here untouched"),
        (DOCUMENTED, "--src 127.0.0.6 --iface lo --uid 1337 --dst 10.244.0.2:80", "reaches 10.244.0.2:80 here untouched"),
        (DOCUMENTED, "--proto udp", "goes out by eth0 untouched"),
        (DOCUMENTED, "--proto icmp", "goes out by eth0 untouched"),
        (DOCUMENTED, "--in", IN),
        (DOCUMENTED, "--in --dst :15021", "reaches 10.244.0.2:15021 here untouched"),
        (DOCUMENTED, "--in --proto udp", "reaches 10.244.0.2:53 here untouched"),
        (DUAL, "--dst [2001:db8::5]:443", OUT),
        (DUAL, "--dst 2001:db8::5", OUT),
        (DUAL, "--in --src fd00::9", IN),
        (DNS, "--proto udp", AGENT),
        (DNS, "--dst :53", AGENT),
        (DNS, "--proto udp --uid 1337", "goes out by eth0 untouched"),
        (DOCUMENTED, "--dst 127.0.0.1:80 --ctstate ESTABLISHED", "reaches 127.0.0.1:80 here untouched; nat asks only a connection's first packet, and this one follows that"),
        (TPROXY, "--in", f"{IN} with both addresses kept (TPROXY)"),
        (NATIVE, "", OUT),
        (NATIVE, "--uid 1337", "goes out by eth0 untouched"),
        (NATIVE, "--dst [2001:db8::5]:443", OUT),
        (NATIVE, "--in", IN),
        (NATIVE, "--in --dst :15021", "reaches 10.244.0.2:15021 here untouched"),
        ([*NATIVE, "-m", "TPROXY"], "--in", f"{IN} with both addresses kept (TPROXY)"),
        ([*NATIVE, "--redirect-dns", "--capture-all-dns"], "--proto udp", AGENT),
        ([*NATIVE, "--nft-sets", "-o", "22,80,443"], "--dst :443", "goes out by eth0 untouched"),
        (TPROXY, "--in --iface lo", "reaches 10.244.0.2:80 here untouched"),
        (TPROXY, "--in --ctstate established", "delivered here by its mark 0x539, to the socket of Envoy that has the connection"),
        ([*DOCUMENTED, "--drop-invalid"], "--in --ctstate INVALID", "dropped by mangle ISTIO_DROP 1"),
        ([*DOCUMENTED, "-p", "15006"], "--in", IN),
        ([*DOCUMENTED, "-p", "15006"], "", "captured by Envoy's outbound listener on port 15006"),
    ],
)  # fmt: skip
def test_packets_end_where_they_should(flags: list[str], packet: str, verdict: str) -> None:
    """The last line says it in words."""
    assert explain(*flags, *packet.split()).out.splitlines()[-1] == verdict


def test_the_text_says_each_rule_and_why() -> None:
    """The packet with what was assumed, each rule with its reason, what changed, the verdict."""
    lines = explain(*DOCUMENTED, "--dst", "1.2.3.4:443").out.splitlines()
    assert lines == [
        (
            "packet: out, tcp, 10.244.0.2:40000 -> 1.2.3.4:443, out of eth0, uid 1000, gid 1000,"
            " mark 0x0, state NEW (assumed: interface, source, uid, gid, source port)"
        ),
        "nat OUTPUT 1 -A OUTPUT -j ISTIO_OUTPUT",
        "    Everything that a process in the pod sends is checked against the outbound rules.",
        "nat ISTIO_OUTPUT 9 -A ISTIO_OUTPUT -j ISTIO_REDIRECT",
        "    All other outbound TCP connections (-i '*') are captured and go to Envoy.",
        "nat ISTIO_REDIRECT 1 -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001",
        "    => to 127.0.0.1:15001",
        (
            "    Captured outbound connections go to Envoy's outbound listener on port 15001, which"
            " asks the kernel for their original destination."
        ),
        "nat POSTROUTING policy -P POSTROUTING ACCEPT",
        OUT,
    ]


def test_near_misses_are_told_when_asked() -> None:
    """The one condition that kept a rule from matching, and what the packet has instead."""
    out = explain(*DOCUMENTED, "-v").out
    assert (
        "  not nat ISTIO_OUTPUT 4 -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n"
        "      because of -m owner --uid-owner 1337: uid 1000, gid 1000\n"
    ) in out
    assert "not nat" not in explain(*DOCUMENTED).out


def test_many_near_misses_of_a_kind_are_counted() -> None:
    """Nobody reads five thousand of them."""
    excluded = ",".join(f"10.0.{number}.0/24" for number in range(100))
    out = explain(*DOCUMENTED, "-x", excluded, "-v").out
    assert "more that one condition kept from matching" in out
    assert out.count("\n") < 60


def test_programs_get_the_same() -> None:
    """The shape that the issue promises, null for a policy's number."""
    document = answer(*DOCUMENTED, "--dst", "1.2.3.4:443")
    assert document["verdict"] == OUT
    assert (document["to_port"], document["captured"]) == (15001, "outbound")
    assert document["packet"]["destination"] == "1.2.3.4"
    first, last = document["path"][0], document["path"][-1]
    assert {key: first[key] for key in ("table", "chain", "rule", "text", "reason", "verdict")} == {
        "table": "nat",
        "chain": "OUTPUT",
        "rule": 1,
        "text": "-A OUTPUT -j ISTIO_OUTPUT",
        "reason": "Everything that a process in the pod sends is checked against the outbound rules.",
        "verdict": "ISTIO_OUTPUT",
    }
    assert (last["rule"], last["verdict"]) == (None, "ACCEPT")
    assert document["outcomes"] == []


@pytest.mark.parametrize(
    ("flags", "packet", "captured", "port"),
    [
        (DOCUMENTED, "--in", "inbound", 15006),
        (DNS, "--proto udp", "dns", 15053),
        (DOCUMENTED, "--uid 1337", None, None),
    ],
)
def test_programs_learn_who_captured(
    flags: list[str], packet: str, captured: str | None, port: int | None
) -> None:
    """One word for each, or null."""
    document = answer(*flags, *packet.split())
    assert (document["captured"], document["to_port"]) == (captured, port)


# Rules from elsewhere.


def test_rules_can_come_from_a_file(tmp_path: Path) -> None:
    """Their reasons are those of the planned rules like them; a foreign have none."""
    saved = run(["-n", *DOCUMENTED]).out.replace(
        "-A OUTPUT -j", "-A OUTPUT -d 9.9.9.9 -j LOG\n-A OUTPUT -j"
    )
    path = tmp_path / "saved"
    path.write_text(saved)
    out = explain("--rules", str(path), *DOCUMENTED, "--dst", "9.9.9.9").out
    assert "nat OUTPUT 1 -A OUTPUT -d 9.9.9.9 -j LOG\nnat OUTPUT 2" in out
    assert "(-i '*') are captured" in out
    assert out.endswith(f"{OUT}\n")


def test_what_can_not_be_known_is_followed_both_ways(tmp_path: Path) -> None:
    """Each way with what it rests on; the verdict only if they come to the same."""
    path = tmp_path / "saved"
    path.write_text(
        "*nat\n:OUTPUT ACCEPT\n-A OUTPUT -p tcp -m set --match-set mesh dst -j REDIRECT"
        " --to-ports 15001\nCOMMIT\n"
    )
    out = explain("--rules", str(path)).out
    assert "  if in nat OUTPUT 1 -m set --match-set mesh dst holds\n" in out
    assert "[can't be known: taken to match]" in out
    assert f"then: {OUT}\n" in out
    assert "then it goes out by eth0 untouched\n" in out
    assert out.endswith("\ndepends on what can't be known from here\n")
    document = answer("--rules", str(path))
    assert (document["verdict"], document["captured"]) == (
        "depends on what can't be known from here",
        None,
    )
    assert [each["captured"] for each in document["outcomes"]] == ["outbound", None]
    assert document["outcomes"][1]["if"] == [
        {"rule": "nat OUTPUT 1", "condition": "-m set --match-set mesh dst", "holds": False}
    ]
    assert document["path"] == []


def test_too_many_ways_are_said_to_be_more(tmp_path: Path) -> None:
    """The answer is not taken for complete."""
    marks = "".join(
        f"-A OUTPUT -m set --match-set s{n} src -j MARK --set-mark {n}\n" for n in range(1, 9)
    )
    path = tmp_path / "saved"
    path.write_text(f"*mangle\n:OUTPUT ACCEPT\n{marks}COMMIT\n")
    out = explain("--rules", str(path)).out
    assert "there are more ways, which are not followed" in out
    assert out.endswith("depends on what can't be known from here\n")


@pytest.mark.parametrize(
    ("rules", "verdict"),
    [
        ("-A OUTPUT -p tcp -j REDIRECT --to-ports 99", "is redirected to port 99, which is not a listener of Envoy or the agent"),
        ("-A OUTPUT -p tcp -j DNAT --to-destination 127.0.0.1:9", "reaches 127.0.0.1:9 here instead of 192.0.2.1:80"),
        ("-A OUTPUT -p tcp -j REDIRECT --to-ports 1000-2000", "is redirected to a port that can't be known from here"),
        ("-A OUTPUT -p tcp -j REDIRECT --to-ports 80-90", "is redirected to port 80, which is not a listener of Envoy or the agent"),
        ("-A OUTPUT -p tcp -j REDIRECT --to-ports 80-90 --random", "is redirected to a port that can't be known from here"),
        ("-A OUTPUT -p tcp -j DNAT --to-destination 127.0.0.1:80-90", "reaches 127.0.0.1:80 here instead of 192.0.2.1:80"),
        ("-A OUTPUT -p tcp -j DNAT --to-destination 127.0.0.1:8-9", "reaches 127.0.0.1 here instead of 192.0.2.1:80"),
        ("-A OUTPUT -p tcp -j NETMAP --to 127.0.0.0/8", "reaches 127.0.2.1:80 here instead of 192.0.2.1:80"),
        ("-A POSTROUTING -j SNAT --to-source 9.9.9.9", "goes out by eth0 changed, from 9.9.9.9:40000 to 192.0.2.1:80"),
        ("-A POSTROUTING -j SNAT --to-source 9.9.9.9:7", "goes out by eth0 changed, from 9.9.9.9:7 to 192.0.2.1:80"),
        ("-A POSTROUTING -j NETMAP --to 9.9.0.0/16", "goes out by eth0 changed, from 9.9.0.2:40000 to 192.0.2.1:80"),
        ("-A OUTPUT -j DNAT --to-destination 192.0.2.1:80", "goes out by eth0 untouched"),
    ],
)  # fmt: skip
def test_foreign_rules_have_their_words(tmp_path: Path, rules: str, verdict: str) -> None:
    """What others do to packets is said as well."""
    path = tmp_path / "saved"
    path.write_text(f"*nat\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n{rules}\nCOMMIT\n")
    assert explain("--rules", str(path)).out.splitlines()[-1] == verdict


def test_an_icmp_error_meets_no_rule_of_nat(tmp_path: Path) -> None:
    """It is translated as its connection is; other packets of the protocol are asked about."""
    path = tmp_path / "saved"
    path.write_text("*nat\n:OUTPUT ACCEPT\n-A OUTPUT -j DNAT --to-destination 10.9.0.77\nCOMMIT\n")
    last = "goes out by eth0 untouched; nat asks no rule about an ICMP error, which follows the connection that it is about"
    out = explain("--rules", str(path), "--proto", "icmp", "--ctstate", "RELATED").out
    assert out.splitlines()[-1] == last
    for options in (("--proto", "icmp"), ("--proto", "udp", "--ctstate", "RELATED")):
        assert "nat OUTPUT 1 " in explain("--rules", str(path), *options).out


def test_what_comes_before_connection_tracking_sees_no_connection(tmp_path: Path) -> None:
    """raw: INVALID is what everything is there, and what has been taken out of tracking is not."""
    path = tmp_path / "saved"
    for condition, drops in (
        ("-m conntrack --ctstate INVALID", True),
        ("-m conntrack ! --ctstate INVALID", False),
        ("-m state --state INVALID", True),
        ("-m conntrack --ctstate NEW", False),
        ("-m connmark --mark 0", False),
        ("-m connmark ! --mark 1", False),
        ("-m conntrack --ctproto 6", False),
    ):
        path.write_text(f"*raw\n:OUTPUT ACCEPT\n-A OUTPUT {condition} -j DROP\nCOMMIT\n")
        verdict = "dropped by raw OUTPUT 1" if drops else "goes out by eth0 untouched"
        assert explain("--rules", str(path)).out.endswith(f"\n{verdict}\n"), condition
    path.write_text(
        "*raw\n:OUTPUT ACCEPT\n-A OUTPUT -j CT --notrack\n"
        "-A OUTPUT -m conntrack --ctstate INVALID -j DROP\n"
        "-A OUTPUT -m conntrack --ctstate UNTRACKED\nCOMMIT\n"
    )
    assert [each["rule"] for each in answer("--rules", str(path))["path"]] == [1, 3, None]
    assert "state INVALID (before connection tracking)" in _misses(path)


def _misses(path: Path) -> str:
    path.write_text("*raw\n:OUTPUT ACCEPT\n-A OUTPUT -m conntrack --ctstate NEW\nCOMMIT\n")
    return explain("--rules", str(path), "-v").out


def test_a_packet_that_matches_thousands_of_rules_is_not_lost_in_a_target(tmp_path: Path) -> None:
    """Accounting rules; and what is too much is said without a name."""
    path = tmp_path / "saved"
    path.write_text("*filter\n:OUTPUT ACCEPT\n" + "-A OUTPUT\n" * 2000 + "COMMIT\n")
    assert explain("--rules", str(path)).out.endswith("goes out by eth0 untouched\n")
    path.write_text("*filter\n:OUTPUT ACCEPT\n" + "-A OUTPUT\n" * 5001 + "COMMIT\n")
    last = explain("--rules", str(path)).out.splitlines()[-1]
    assert last == "matches more than 5000 rules, and is not followed further"


def test_where_an_unknown_target_sends_a_packet_is_not_known(tmp_path: Path) -> None:
    """It is said which one it is."""
    path = tmp_path / "saved"
    path.write_text("*filter\n:OUTPUT ACCEPT\n-A OUTPUT -j LOG\n-A OUTPUT -j NFQUEUE\nCOMMIT\n")
    document = answer("--rules", str(path))
    assert [each["rule"] for each in document["path"]] == [1, 2]
    assert [each["verdict"] for each in document["outcomes"]] == [
        "where NFQUEUE sends it can't be known from here",
        "goes out by eth0 untouched",
    ]


def test_a_connection_with_a_past_has_two_ways() -> None:
    """It was opened by such a packet, or this one is an answer."""
    out = explain(*DOCUMENTED, "--ctstate", "ESTABLISHED").out
    assert "  if such a packet opened the connection, and was sent to 127.0.0.1:15001\n" in out
    assert "  unless such a packet opened the connection\n" in out


def test_tproxy_without_its_route_is_seen(tmp_path: Path) -> None:
    """TPROXY chose a listener, and nothing brings the packet there."""
    path = tmp_path / "saved"
    path.write_text(
        "*mangle\n:PREROUTING ACCEPT\n:INPUT DROP\n-A PREROUTING -p tcp -j TPROXY --on-port 15006"
        " --on-ip 0.0.0.0 --tproxy-mark 0x1/0x1\nCOMMIT\n"
    )
    out = explain("--rules", str(path), "--in").out
    assert out.endswith("dropped by mangle INPUT policy\n")


@pytest.mark.parametrize("name", ["ufw", "calico"])
@pytest.mark.parametrize("packet", ["--in", "--out", "--in --proto udp", "--iface lo"])
def test_any_ruleset_can_be_asked(name: str, packet: str) -> None:
    """A foreign rules are followed as far as they can be, and never end in an error."""
    assert explain("--rules", str(FIXTURES / f"{name}.save"), *packet.split()).out


def test_rules_of_another_family_are_missed() -> None:
    """An IPv6 packet meets no rules where IPv6 is off, and that is said."""
    result = explain(*DOCUMENTED, "--dst", "2001:db8::1")
    assert "there are no IPv6 rules in the plan" in result.warnings
    assert result.out.endswith("goes out by eth0 untouched\n")


# Why a packet is not captured.


@pytest.mark.parametrize(
    ("flags", "packet", "expected"),
    [
        (DOCUMENTED, "--proto udp --dst 9.9.9.9:123", [
            "nat ISTIO_OUTPUT 9 -A ISTIO_OUTPUT -j ISTIO_REDIRECT",
            "    => came back without effect: the rules of ISTIO_REDIRECT are for tcp",
        ]),
        (DOCUMENTED, "--proto udp", ["note: DNS capture is off: no rule captures port 53 over udp"]),
        ([*DOCUMENTED[:1], "10.0.0.0/8", *DOCUMENTED[2:]], "--dst 9.9.9.9:53",
         ["note: DNS capture is off: no rule captures port 53 over tcp"]),
        (DOCUMENTED[2:], "", ["    => came back without effect: no rule of ISTIO_OUTPUT matched"]),
        (DOCUMENTED, "--dst 2001:db8::1",
         ["note: no rules of ours here (IPv6); there are some for IPv4"]),
        (["-i", "*", "--ip-family", "ipv4"], "--in",
         ["note: no rule jumps to ISTIO_INBOUND: what arrives is not captured (IPv4)"]),
    ],
)  # fmt: skip
def test_what_is_not_captured_is_explained(
    flags: list[str], packet: str, expected: list[str]
) -> None:
    """By the last rule that it met, or in a note before the verdict."""
    lines = explain(*flags, *packet.split()).out.splitlines()
    for line in expected:
        assert line in lines
    assert lines[-1] in {"goes out by eth0 untouched", "reaches 10.244.0.2:80 here untouched"}


@pytest.mark.parametrize("packet", ["", "--uid 1337 --proto udp", "--dst 127.0.0.1:53 --proto udp"])
def test_what_is_explained_already_has_no_note(packet: str) -> None:
    """A captured packet, and those that a rule of ours lets go on purpose."""
    assert "note:" not in explain(*DOCUMENTED, *packet.split()).out


def test_dns_servers_that_are_not_captured_are_told(tmp_path: Path) -> None:
    """Those of resolv.conf alone are."""
    saved = run(["-n", *DNS]).out
    path = tmp_path / "saved"
    path.write_text(
        re.sub("(-A ISTIO_OUTPUT_DNS) (-p ... -m ... --dport)", r"\1 -d 10.96.0.10/32 \2", saved)
    )
    note = (
        "DNS capture is on for the servers of resolv.conf alone (10.96.0.10), and 8.8.8.8 is not"
        " one of them"
    )
    document = answer("--rules", str(path), "--proto", "udp", "--dst", "8.8.8.8:53")
    assert document["notes"] == [note]
    assert answer("--rules", str(path), "--proto", "udp", "--dst", "10.96.0.10:53")["notes"] == []


def test_rules_without_ours_are_said_to_be_so_once(tmp_path: Path) -> None:
    """However many ways the packet has."""
    path = tmp_path / "saved"
    path.write_text(
        "*filter\n:OUTPUT ACCEPT\n-A OUTPUT -m set --match-set s dst -j MARK --set-mark 1\nCOMMIT\n".replace(
            "filter", "mangle"
        )
    )
    assert explain("--rules", str(path)).out.count("note: no rules of ours here (IPv4)\n") == 1


def test_chains_of_ours_that_nothing_leads_to_are_told(tmp_path: Path) -> None:
    """Somebody deleted the jump."""
    path = tmp_path / "saved"
    path.write_text(run(["-n", *DOCUMENTED]).out.replace("-A OUTPUT -j ISTIO_OUTPUT\n", ""))
    out = explain("--rules", str(path)).out
    assert "note: no rule jumps to ISTIO_OUTPUT: what the pod sends is not captured (IPv4)\n" in out


def test_a_foreign_rule_that_decides_is_marked(tmp_path: Path) -> None:
    """One that only counts is not, and none of ours is."""
    path = tmp_path / "saved"
    path.write_text(
        run(["-n", *TPROXY]).out.replace(
            "-A OUTPUT -j ISTIO_OUTPUT",
            "-A OUTPUT -p tcp\n-A OUTPUT -d 9.9.9.9 -j ACCEPT\n-A OUTPUT -j ISTIO_OUTPUT",
        )
    )
    lines = explain("--rules", str(path), "--dst", "9.9.9.9").out.splitlines()
    assert "nat OUTPUT 1 -A OUTPUT -p tcp" in lines
    assert "nat OUTPUT 2 -A OUTPUT -d 9.9.9.9 -j ACCEPT  [foreign rule]" in lines
    for packet in (
        "",
        "--in",
        "--in --ctstate ESTABLISHED",
        "--uid 1337",
        "--iface lo --mark 1337",
    ):
        steps = answer("--rules", str(path), *packet.split())["path"]
        assert [each["text"] for each in steps if each["foreign"]] in ([], ["-A OUTPUT -p tcp"])


# Rules that no kernel has.


@pytest.mark.parametrize(
    "rule",
    [
        "-p tcp -m tcp --tcp-flags SYN",
        "-p tcp -m tcp --tcp-flags",
        "-p tcp -m tcp --tcp-flags SYN ACK FIN",
        "-p tcp -m tcp --dport",
        "-p tcp -m tcp --dport 1 2",
        f"-p tcp -m tcp --dport {'9' * 5000}",
        f"-p tcp -m tcp --dport 0x{'9' * 5000}",
        "-p tcp -m multiport --dports",
        "-p tcp -m multiport --dports ,",
        "-d 1.2.3.4/\u00b2",
        "-d 1.2.3.4/\u0663",
        f"-d 1.2.3.4/{'9' * 5000}",
        f"-d 2001:db8::1/{'9' * 5000}",
        f"-p {'9' * 5000}",
        "-m owner --uid-owner",
        f"-m owner --uid-owner {'9' * 5000}",
        "-m mark --mark",
        "-m mark --mark /",
        f"-m mark --mark 0x{'f' * 5000}",
        "-m conntrack --ctstate",
        "-m conntrack --ctproto",
        "-m addrtype --dst-type",
        "-j MARK --set-mark",
        f"-j MARK --set-xmark {'9' * 5000}",
        "-j CONNMARK --save-mark --nfmask",
        "-j REDIRECT --to-ports",
        "-j REDIRECT --to-ports 9-1",
        f"-j REDIRECT --to-ports {'9' * 5000}",
        f"-j REDIRECT --to-ports 0x{'9' * 5000}",
        "-j DNAT --to-destination",
        "-j DNAT --to-destination [",
        f"-j DNAT --to-destination 1.2.3.4:{'9' * 5000}",
        "-j SNAT --to-source :",
        "-j NETMAP --to /",
        f"-j NETMAP --to 1.2.3.4/{'9' * 5000}",
        "-j TPROXY --on-port",
        f"-j TPROXY --on-port 0x{'9' * 5000}",
        "-j CT --zone",
        f"-j CT --zone 0x{'9' * 5000}",
    ],
)  # fmt: skip
def test_malformed_rules_are_unknown_and_no_error(tmp_path: Path, rule: str) -> None:
    """Whatever stands in a file, in each table, for people and for programs."""
    path = tmp_path / "saved"
    for table in ("raw", "mangle", "nat"):
        path.write_text(
            f"*{table}\n:OUTPUT ACCEPT\n:PREROUTING ACCEPT\n"
            f"-A OUTPUT {rule}\n-A PREROUTING {rule}\nCOMMIT\n"
        )
        family = "ipv6" if "::" in rule else "ipv4"
        for direction in ("--in", "--out"):
            explain("--rules", str(path), "-v", "--family", family, direction)
            answer("--rules", str(path), "--family", family, direction)


# What is wrong with a question.


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("--in --out", "--in, --out: a packet goes one way: give one of them"),
        ("--live --rules x", "--rules: the rules are the file's, or live ones: give one of them"),
        ("--dst nowhere", "--dst: 'nowhere': write an address"),
        ("--dst [::1]x", "--dst: '[::1]x': write an address"),
        ("--dst [", "--dst: '[': write an address"),
        ("--dst []:80", "--dst: '[]:80': write an address"),
        ("--dst :", "--dst: ':': write an address"),
        ("--dst 1.2.3.4:99999", "--dst: '1.2.3.4:99999': a port is a number from 0 to 65535"),
        ("--dst 1.2.3.4 --src ::1", "--src, --dst: the addresses are of different families"),
        ("--uid me", "--uid: 'me': is neither a number nor a user that exists here"),
        ("--gid us", "--gid: 'us': is neither a number nor a group that exists here"),
        ("--uid 4294967296", "--uid: '4294967296': is not a number from 0 to 4294967294"),
        ("--proto nonsense", "--proto: 'nonsense': is not a protocol"),
        ("--ctstate OLD", "--ctstate: 'OLD': is not one of NEW"),
        ("--in --uid 5", "--uid, --gid: a packet that comes in has no owner"),
        ("--rules /does/not/exist", "can't read /does/not/exist: No such file or directory"),
        ("--rules /dev/null", "/dev/null: holds no table of iptables-save"),
        ("-b 80-90", "--istio-inbound-ports (-b), item 1: '80-90'"),
        ("--nonsense", "--nonsense: there is no such option"),
        ("-n", "-n: this is an option of istio-iptables itself, not of explain"),
    ],
)
def test_bad_questions_are_refused(arguments: str, problem: str) -> None:
    """Exit status 2, and a line that says what is wrong."""
    result = run(["explain", *arguments.split()])
    assert result.status == 2
    assert any(error.startswith(problem) for error in result.errors), result.err


def test_owners_by_name() -> None:
    """Users and groups may be named, as for -u and -g."""
    named, numbered = (explain(*DOCUMENTED, "--uid", name, "--gid", name) for name in ("root", "0"))
    assert named == numbered


def test_every_problem_of_a_packet_is_told_at_once() -> None:
    """Not one after the other."""
    assert len(run(["explain", "--uid", "x", "--gid", "y", "--dst", "z"]).errors) == 3


def test_a_bad_line_of_a_file_is_named(tmp_path: Path) -> None:
    """With its number in the file, also in the second document."""
    path = tmp_path / "saved"
    path.write_text("# IPv4\n*nat\nCOMMIT\n# IPv6\n*nat\n-A NOWHERE -j ACCEPT\nCOMMIT\n")
    result = run(["explain", "--rules", str(path)])
    assert result.errors == [f"{path}: line 6: chain NOWHERE was not declared"]


def test_capture_flags_come_from_the_environment_too() -> None:
    """As for the installer."""
    result = run(["explain", "--ip-family", "ipv4"], {"ISTIO_SERVICE_CIDR": "*"})
    assert result.out.splitlines()[-1] == OUT


# Loops and escapes.


def config(**texts: str) -> Config:
    """A Config from the texts of settings."""
    given = {
        "dry_run": "true",
        "ip_family": "dual",
        "istio_inbound_ports": "*",
        "istio_service_cidr": "*",
    }
    values, _ = gather(given | texts, {})
    return configure(values, FixedMachine(servers=("10.96.0.10", "fd00::a")))[0]


def found_in(asked: Config, *without: str) -> list[Finding]:
    """What is found in the plan, once the rules that hold one of these texts are taken out."""
    plan = build(asked)
    rulesets = []
    for ruleset in plan.rulesets:
        tables = []
        for table in ruleset.tables:
            chains = tuple(
                chain._replace(
                    rules=tuple(
                        rule
                        for rule in chain.rules
                        if not any(text in rule.text for text in without)
                    )
                )
                for chain in table.chains
            )
            tables.append(table._replace(chains=chains))
        rulesets.append(Ruleset(ruleset.family, tuple(tables)))
    return list(findings(rulesets, plan.routes, asked, APPLICATIONS))


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"istio_inbound_interception_mode": "TPROXY"},
        {"redirect_dns": "true"},
        {"redirect_dns": "true", "capture_all_dns": "true"},
        {"istio_service_cidr": "10.0.0.0/8,fd00::/8", "istio_outbound_ports": "9000"},
        {"istio_service_cidr": "127.0.0.0/8,10.0.0.0/8"},
        {"istio_outbound_owner_groups": "1000"},
        {"istio_outbound_owner_groups": ""},
        {"istio_service_cidr": "", "istio_inbound_ports": ""},
        {"proxy_uid": "1337,1338", "proxy_gid": "5,6"},
    ],
)
def test_plans_have_no_loops_and_no_escapes(texts: dict[str, str]) -> None:
    """The documented rules and their variants are sound."""
    assert found_in(config(**texts)) == []


def test_envoys_calls_that_come_back_are_found() -> None:
    """Without the rules about the proxy's user and group."""
    found = found_in(config(), "--uid-owner 1337 -j RETURN", "--gid-owner 1337 -j RETURN")
    loops = [each for each in found if each.fault is FindingKind.LOOP]
    assert {each.family for each in loops} == set(Family)
    assert loops[0].line == (
        "what Envoy sends on for the application would be sent back: captured by Envoy's outbound"
        " listener on port 15001; decided by nat ISTIO_OUTPUT 5 (-A ISTIO_OUTPUT -j"
        " ISTIO_REDIRECT), for example tcp 10.244.0.2:40000 to 192.0.2.1:80, uid 1337, gid 1337"
    )


def test_envoys_way_to_the_application_is_looked_at() -> None:
    """Without the rule about 127.0.0.6 it is captured a second time."""
    (first, *_) = found_in(config(), "127.0.0.6")
    assert first.line.startswith("what Envoy hands to the application would be sent back: captured")
    assert first.place == "nat ISTIO_OUTPUT 1"


def test_the_agents_questions_are_looked_at() -> None:
    """An agent that asks itself."""
    asked = config(redirect_dns="true", capture_all_dns="true")
    found = found_in(asked, "--uid-owner 1337 -j RETURN", "--gid-owner 1337 -j RETURN")
    assert any("what the agent asks the real DNS server" in each.line for each in found)


def test_tproxy_as_a_captured_root_is_a_loop() -> None:
    """Under TPROXY, Envoy runs as root, which then must not be one of the proxy's users."""
    found = found_in(config(istio_inbound_interception_mode="TPROXY", proxy_uid="0"))
    assert any("under the client's address" in each.line for each in found)


def test_applications_that_run_as_the_proxy_escape() -> None:
    """Root is what a container runs as when nobody says otherwise."""
    found = found_in(config(proxy_uid="0"))
    escape = next(each for each in found if each.fault is FindingKind.ESCAPE)
    assert escape.line == (
        "an application that runs as the proxy's uid 0 and gid 0 escapes; decided by nat"
        " ISTIO_OUTPUT 4 (-A ISTIO_OUTPUT -m owner --uid-owner 0 -j RETURN), for example tcp"
        " 10.244.0.2:40000 to 192.0.2.1:80, uid 0, gid 0"
    )
    assert not findings(build(config()).rulesets, (), config(), APPLICATIONS)


def test_explain_warns_of_them() -> None:
    """On stderr, and for programs among the findings."""
    result = explain(*DOCUMENTED, "--uid", "1337")
    (warning,) = (each for each in result.warnings if "escapes" in each)
    assert "decided by nat ISTIO_OUTPUT 4" in warning
    document = answer(*DOCUMENTED, "--uid", "1337")
    assert [(each["fault"], each["rule"]) for each in document["findings"]] == [
        ("escape", "nat ISTIO_OUTPUT 4")
    ]


def test_why_native_rules_did_not_capture() -> None:
    """What the chain is for, and why rules that nearly matched did not."""
    flags = ["-i", "10.0.0.0/8", "--native-nftables", "--ip-family", "dual"]
    out = explain(*flags, "--dst", "8.8.8.8:443", "-v").out
    assert "note: istio-output captures only connections of this list: to 10.0.0.0/8\n" in out
    assert "ip daddr 10.0.0.0/8 counter jump istio-redirect\n" in out
    assert "because of ip daddr 10.0.0.0/8: destination 8.8.8.8:443\n" in out
    dns = explain(*flags, "--proto", "udp").out
    assert "note: DNS capture is off: no rule captures port 53 over udp\n" in dns


def test_an_application_as_the_proxys_user_by_native_rules(tmp_path: Path) -> None:
    """Whom the rules of a file spare is told by them."""
    path = tmp_path / "listed"
    path.write_text(run(["-n", *NATIVE, "-u", "4242", "-g", "4343"]).out, encoding="utf-8")
    result = explain("--rules", str(path), "--uid", "4242")
    (first, _) = result.warnings
    assert "runs as the proxy's uid 4242 escapes; decided by inet istio-proxy-nat" in first
