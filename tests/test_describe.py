"""`istio-iptables describe`: the command line of rules, their reasons, and what is left over."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest

from tests.program import Result, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WHY = "Envoy's own traffic (user 1337) is not captured: it would be redirected to Envoy again, in a loop."
FLAGS = ["-i", "*", "-b", "*", "-d", "15090,15021", "--ip-family", "ipv4"]
JUMP = "-A OUTPUT -j ISTIO_OUTPUT\n"
LOOP = "-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n"


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str], str]:
    """Writes a text to a file and returns its name."""

    def write(text: str) -> str:
        path = tmp_path / "rules"
        path.write_text(text)
        return str(path)

    return write


def planned(*more: str, environment: dict[str, str] | None = None) -> str:
    """What a dry run prints."""
    result = run(["-n", *FLAGS, *more], environment)
    assert result.status == 0, result.err
    return result.out


def described(path: str, *more: str) -> Result:
    """What describe says about a file."""
    return run(["describe", "--rules", path, *more])


def test_rules_that_were_made_by_flags(saved: Callable[[str], str]) -> None:
    """The last line is the command line; each rule has its reason below it."""
    path = saved(planned())
    result = described(path)
    lines = result.out.splitlines()
    assert (result.status, result.err) == (0, "")
    assert lines[-1] == "istio-iptables -i '*' -b '*' -d 15090,15021 --ip-family ipv4"
    assert lines[-2] == f"{path} has the rules of this command line:"
    rules = [line for line in lines if line.startswith("nat ")]
    reasons = [line for line in lines if line.startswith("    ")]
    assert len(rules) == len(reasons) == 17
    assert run([*shlex.split(lines[-1])[1:], "--dry-run"]).out == planned()


def test_one_rule_is_gone_and_another_stands_before_ours(saved: Callable[[str], str]) -> None:
    """Both are told with what they mean, and the settings are those of the others."""
    text = planned().replace(LOOP, "").replace(JUMP, f"-A OUTPUT -j ACCEPT\n{JUMP}")
    result = described(saved(text))
    assert result.status == 1
    lines = result.out.splitlines()
    assert "nat OUTPUT 1 -A OUTPUT -j ACCEPT  [foreign rule]" in lines
    assert lines[-6:-2] == [
        "foreign: IPv4 nat OUTPUT rule 1: -A OUTPUT -j ACCEPT",
        "    is evaluated before our rule 2: -A OUTPUT -j ISTIO_OUTPUT",
        "missing: IPv4 nat ISTIO_OUTPUT rule 4: -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN",
        f"    {WHY}",
    ]
    assert lines[-2].endswith("but for 2 differences:")
    assert lines[-1].startswith("istio-iptables -i '*' -b '*' -d 15090,15021")


def test_foreign_rules_behind_ours_are_marked_and_counted(saved: Callable[[str], str]) -> None:
    """They are not explained either, but there is nothing to say about each."""
    text = planned().replace(JUMP, f"{JUMP}-A OUTPUT -p udp -j ACCEPT\n-A OUTPUT -j LOG\n")
    result = described(saved(text))
    assert result.status == 1
    assert result.out.count("[foreign rule]") == 2
    assert "\n2 rules are foreign and marked so above\n" in result.out


def test_a_rule_in_our_chain_that_nothing_explains(saved: Callable[[str], str]) -> None:
    """It is ours by its chain, and marked."""
    extra = "-A ISTIO_OUTPUT -p icmp -j ACCEPT\n"
    result = described(saved(planned().replace(LOOP, extra + LOOP)))
    assert result.status == 1
    assert f"{extra.strip()}  [not explained]" in result.out
    assert f"extra: IPv4 nat ISTIO_OUTPUT rule 4: {extra}" in result.out


def test_counters_are_shown(saved: Callable[[str], str]) -> None:
    """Connections in nat, packets elsewhere; nothing where there are none."""
    text = planned("-m", "TPROXY")
    text = text.replace(JUMP, f"[41:2460] {JUMP}")
    text = text.replace("-A ISTIO_DIVERT -j ACCEPT", "[1:60] -A ISTIO_DIVERT -j ACCEPT")
    result = described(saved(text))
    assert f"nat OUTPUT 1 {JUMP.strip()}  [41 connections]\n" in result.out
    assert "mangle ISTIO_DIVERT 2 -A ISTIO_DIVERT -j ACCEPT  [1 packet]\n" in result.out
    assert result.out.count("]\n") == 2


def test_other_spellings_have_reasons_too(saved: Callable[[str], str]) -> None:
    """Older iptables, and people, write the same rules in other words."""
    text = planned("-m", "TPROXY").replace("--set-xmark 0x539/0xffffffff", "--set-mark 1337")
    text = text.replace("127.0.0.1/32", "127.0.0.1").replace("-p tcp -m tcp", "-p 6 -m tcp")
    result = described(saved(text))
    assert result.status == 0, result.out
    assert "[" not in result.out


def test_rules_of_nobody(saved: Callable[[str], str]) -> None:
    """Without a rule of ours there is no command line; the rules are shown all the same."""
    result = described(saved("*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j ACCEPT\nCOMMIT\n"))
    assert result.status == 1
    first, *_, last = result.out.splitlines()
    assert first == "nat OUTPUT 1 -A OUTPUT -j ACCEPT  [foreign rule]"
    assert last.startswith("no rules of ours are in ")
    document = json.loads(described(saved("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"), "--json").out)
    assert (document["ours"], document["arguments"], document["unexplained"]) == (False, [], [])


def test_what_only_the_environment_can_say(saved: Callable[[str], str]) -> None:
    """It stands before the program's name, and in an object of its own in JSON."""
    groups = {"ISTIO_OUTBOUND_OWNER_GROUPS": "", "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.0.0.0/8"}
    path = saved(planned(environment=groups))
    line = described(path).out.splitlines()[-1]
    assert line.startswith(
        "ISTIO_OUTBOUND_OWNER_GROUPS='' ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=127.0.0.0/8 istio-iptables "
    )
    assert json.loads(described(path, "--json").out)["environment"] == groups


def test_dns_servers_are_for_a_file(saved: Callable[[str], str], tmp_path: Path) -> None:
    """The command line names the file, and a line before it what has to be in it."""
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 10.96.0.10\nnameserver 10.96.0.11\n")
    text = planned("--redirect-dns", "--resolv-conf", str(conf))
    result = described(saved(text))
    *_, note, command = result.out.splitlines()
    assert note == "# resolv.conf has to list the DNS servers 10.96.0.10, 10.96.0.11"
    assert run([*shlex.split(command)[1:], "-n"], folder=tmp_path).out == text


def test_flags_are_put_in_their_shortest_form() -> None:
    """Flags describe their own plan; so does a variable beside them."""
    result = run(
        ["describe", "-p", "15001", "-b", " 80,,90 ", "-d", "7", "--ip-family=ipv4", "--json"],
        {"ISTIO_SERVICE_CIDR": "10.0.0.1/8"},
    )
    assert result.status == 0
    arguments = ["-i", "10.0.0.0/8", "-b", "80,90", "--ip-family", "ipv4"]
    assert json.loads(result.out)["arguments"] == arguments


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["--rules", "/dev/null", "-i", "*"],
            "--rules: names rules that are there, and flags or a manifest others: give one",
        ),
        (
            ["--live", "-i", "*"],
            "--live: names rules that are there, and flags or a manifest others: give one",
        ),
        (
            ["--rules", "x", "--live"],
            "--rules: the rules are the file's, or live ones: give one of them",
        ),
        (["--rules", "/does/not/exist"], "can't read /does/not/exist: No such file or directory"),
        (["--rules", "LICENSE"], None),
        (["--rules", "."], "can't read .: Is a directory"),
        (["-b", "http"], None),
        (["--network-namespace", "/does/not/exist"], None),
    ],
)
def test_what_can_not_be_told(arguments: list[str], problem: str | None) -> None:
    """One line and exit status 2."""
    result = run(["describe", *arguments])
    assert (result.status, result.out) == (2, "")
    assert len(result.errors) == 1
    assert problem in {None, *result.errors}


def test_diff_without_flags_says_whose_rules_there_are(saved: Callable[[str], str]) -> None:
    """The comparison stays that with the plan of no flags; its exit status, too."""
    path = saved(planned().replace(LOOP, ""))
    result = run(["diff", "--against", path])
    assert result.status == 1
    lines = result.out.splitlines()
    at = lines.index(f"{path} differs from the plan: 6 differences")
    assert lines[at + 1 :] == [
        "these are the rules of -i '*' -b '*' -d 15090,15021 --ip-family ipv4, but for:",
        f"missing: IPv4 nat ISTIO_OUTPUT rule 4: {LOOP.strip()}",
        f"    {WHY}",
    ]


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["-i", "10.0.0.0/8"], {}),
        ([], {"ISTIO_SERVICE_CIDR": "10.0.0.0/8"}),
    ],
)
def test_diff_with_settings_says_no_more_than_before(
    saved: Callable[[str], str], arguments: list[str], environment: dict[str, str]
) -> None:
    """Whoever says what is meant to be there is told what differs from it."""
    path = saved(planned())
    result = run(["diff", "--against", path, *arguments], environment)
    assert result.status == 1
    assert "these are the rules" not in result.out


def test_diff_without_flags_of_rules_of_no_flags(saved: Callable[[str], str]) -> None:
    """Where they are the rules of no flags, or nearly, there is nothing to add."""
    text = run(["-n", "--ip-family", "ipv4"]).out
    assert run(["diff", "--against", saved(text)]).status == 0
    result = run(["diff", "--against", saved(text.replace(LOOP, ""))])
    assert result.status == 1
    assert "these are the rules" not in result.out


def test_explain_of_a_file_needs_no_flags(saved: Callable[[str], str]) -> None:
    """The rules have reasons, and the packet is taken by the ports that they name."""
    path = saved(run(["-n", "-i", "*", "-p", "16001", "--ip-family", "ipv4"]).out)
    result = run(["explain", "--rules", path, "--dst", "10.0.0.9:80"])
    assert result.out.endswith("captured by Envoy's outbound listener on port 16001\n")
    assert "    All other outbound TCP connections (-i '*') are captured and go to Envoy.\n" in (
        result.out
    )


HOSTILE = """table inet istio-proxy-nat {
	set blocked-set {
		type ipv4_addr
		elements = { 1.2.3.4 }
	}
	chain output {
		type nat hook output priority -100; policy accept;
		counter jump istio-output
	}
	chain istio-output {
		ip daddr @blocked-set counter return
		ip daddr 10.0.0.5-fd00::1 counter return
		ip daddr 10.0.0.5-10.0.0.1 counter return
		ip daddr { 10.0.0.1, 10.0.0.2 } tcp dport { 1, 2 } counter return
		meta mark 0x1-0x5 counter return
		meta mark & 0xff == 0x1 counter return
		tcp dport { ssh, 80 } counter return
		tcp dport @x counter return
		ct state vmap { new : accept }
		counter jump istio-redirect
	}
	chain istio-redirect {
		meta l4proto tcp counter redirect to :99999
		meta l4proto tcp counter tproxy to :99999
	}
}
"""


@pytest.mark.parametrize(
    "text",
    [
        HOSTILE,
        HOSTILE.replace("istio-proxy", "other"),
        "*nat\n:ISTIO_OUTPUT - [0:0]\n-A ISTIO_OUTPUT -m owner --uid-owner 7 -j RETURN\nCOMMIT\n",
        "*nat\n:ISTIO_OUTPUT - [0:0]\n-A ISTIO_OUTPUT -d tcp -j ISTIO_REDIRECT\nCOMMIT\n",
        "*mangle\n:ISTIO_DIVERT - [0:0]\n-A ISTIO_DIVERT -j MARK --set-xmark x/0xffffffff\nCOMMIT\n",
        "*nat\n:ISTIO_X - [0:0]\n-A ISTIO_X -j ACCEPT\nCOMMIT\n",
    ],
)
def test_values_that_no_setting_has(saved: Callable[[str], str], text: str) -> None:
    """Rules of anybody may stand in our chains: they are told, and nothing breaks."""
    for command in ("describe", "check"):
        result = run([command, "--rules", saved(text)])
        assert (result.status, result.errors) == (1, [])


def test_rules_that_are_hardly_those_of_any_settings(saved: Callable[[str], str]) -> None:
    """More is unexplained than explained: that is said; so are the chains of ambient mode."""
    text = "*nat\n:OUTPUT ACCEPT [0:0]\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_PRERT - [0:0]\n"
    result = described(
        saved(f"{text}-A OUTPUT -j ISTIO_OUTPUT\n-A ISTIO_PRERT -j RETURN\nCOMMIT\n")
    )
    *_, note, verdict, _ = result.out.splitlines()
    assert note.startswith("note: ISTIO_PRERT is a chain of Istio's ambient mode")
    assert " is nearest to this command line, with " in verdict
