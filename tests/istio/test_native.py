"""Istio's rules as native nftables: the rules of both families in one ruleset."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from istio_iptables.istio.native import build_native
from istio_iptables.istio.plan import build
from istio_iptables.netfilter.model import Family
from tests.program import run
from tests.strategies import configs

if TYPE_CHECKING:
    from pathlib import Path

    from istio_iptables.settings.config import Config

NATIVE = ["--native-nftables", "--dry-run"]


def chain(name: str, *arguments: str) -> list[str]:
    """The rules that a dry run prints in the first chain of this name."""
    printed = run([*NATIVE, "-u", "5", *arguments]).out
    _, _, behind = printed.partition(f"\tchain {name} {{\n")
    rules, _, _ = behind.partition("\t}\n")
    return [line.strip() for line in rules.splitlines() if not line.startswith("\t\ttype")]


@given(configs())
def test_it_holds_the_rules_of_each_family(config: Config) -> None:
    """Every rule of a family is there once, by its reason, and none besides them.

    One that names no family may be the other one's alone, such as the jump for its DNS servers.
    """
    state = build(config)
    reasons = {
        ruleset.family: Counter(
            rule.reason
            for table in ruleset.tables
            for chain in table.chains
            for rule in chain.rules
        )
        for ruleset in state.rulesets
    }
    rules = [
        rule
        for table in build_native(config, state).tables
        for chain in table.chains
        for rule in chain.rules
    ]
    for family, other in ((Family.IPV4, "ip6 "), (Family.IPV6, "ip ")):
        if family in reasons:
            of_family = Counter(rule.reason for rule in rules if f" {other}" not in f" {rule.text}")
            assert reasons[family] <= of_family
            others = (reasons[each] for each in reasons if each is not family)
            assert of_family - reasons[family] <= sum(others, Counter())


def test_both_families_in_one_order() -> None:
    """A rule without an address once; the forms of one rule side by side; lists one by one."""
    output = chain(
        "istio-output",
        *("-x", "10.0.0.0/8,fd00::/8,172.16.0.0/12", "-i", "*", "--ip-family", "dual"),
    )
    assert output == [
        'oifname "lo" ip saddr 127.0.0.6 counter return',
        'oifname "lo" ip6 saddr ::6 counter return',
        'oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skuid 5 counter jump istio-in-redirect',
        'oifname "lo" ip6 daddr != ::1 tcp dport != 15008 meta skuid 5 counter jump istio-in-redirect',
        'oifname "lo" meta skuid != 5 counter return',
        "meta skuid 5 counter return",
        'oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skgid 5 counter jump istio-in-redirect',
        'oifname "lo" ip6 daddr != ::1 tcp dport != 15008 meta skgid 5 counter jump istio-in-redirect',
        'oifname "lo" meta skgid != 5 counter return',
        "meta skgid 5 counter return",
        "ip daddr 127.0.0.1 counter return",
        "ip6 daddr ::1 counter return",
        "ip daddr 10.0.0.0/8 counter return",
        "ip daddr 172.16.0.0/12 counter return",
        "ip6 daddr fd00::/8 counter return",
        "counter jump istio-redirect",
    ]


@pytest.mark.parametrize(
    ("name", "arguments", "rule"),
    [
        ("prerouting", ["-c", "br+"], 'iifname "br*" counter return'),
        # A * is no wildcard to iptables.
        ("prerouting", ["-c", "e*"], 'iifname "e\\*" counter return'),
        ("prerouting", ["-c", "+"], "counter return"),
        ("istio-inbound", ["-b", "80:90"], "tcp dport 80-90 counter jump istio-in-redirect"),
        ("istio-inbound", ["-b", "0:65535"], "meta l4proto tcp counter jump istio-in-redirect"),
        # To iptables all addresses are no condition; here they are those of one family.
        ("istio-output", ["-x", "0.0.0.0/0"], "ip daddr 0.0.0.0/0 counter return"),
        ("istio-output", ["-u", "1-9"], "meta skuid 1-9 counter return"),
        ("istio-divert", ["-m", "TPROXY", "-b", "80"], "counter meta mark set 0x00000539"),
    ],
)
def test_an_item_is_spelled_as_nft_spells_it(name: str, arguments: list[str], rule: str) -> None:
    """Wildcards, ranges, "all" and marks."""
    assert rule in chain(name, *arguments, "--ip-family", "ipv4")


def test_one_family_alone() -> None:
    """--only leaves out the rules that name the other family."""
    both = chain("istio-output", "-i", "*", "--ip-family", "dual")
    for only, other in (("ipv4", "ip6 "), ("ipv6", "ip ")):
        alone = chain("istio-output", "-i", "*", "--ip-family", "dual", "--only", only)
        assert alone == [rule for rule in both if f" {other}" not in f" {rule}"]


IPV6_TOO = "IPv6 is off, and is captured all the same"
FAILS_OPEN = "let new inbound connections through to the application"
TCP_ALONE = "drop invalid packets of TCP alone"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-i", "*", "-b", "*", "--ip-family", "ipv4"], [IPV6_TOO]),
        (["-i", "*", "-b", "*", "--ip-family", "dual"], []),
        (["-i", "10.0.0.0/8", "-b", "80", "-m", "TPROXY", "--ip-family", "ipv4"], [FAILS_OPEN]),
        (["-i", "*", "-b", "*", "--drop-invalid", "--ip-family", "dual"], [TCP_ALONE]),
    ],
)
def test_what_is_otherwise_is_told(arguments: list[str], told: list[str]) -> None:
    """Where it applies, by a dry run and by explain, and of native rules alone."""
    words = ["-u", "5", *arguments]
    assert run(["-n", *words]).warnings == []
    for command in (NATIVE, ["explain", "--native-nftables"]):
        native = run([*command, *words])
        assert native.status == 0
        assert len(native.warnings) == len(told)
        for line, fragment in zip(native.warnings, told, strict=True):
            assert fragment in line
        assert run([*command, *words, "--strict"]).status == (2 if told else 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-i", "*", "-b", "*", "--ip-family", "ipv4"],
        ["-i", "*", "-b", "80", "-m", "TPROXY", "--drop-invalid", "--ip-family", "dual"],
    ],
)
def test_nothing_is_otherwise_like_iptables(arguments: list[str]) -> None:
    """There is nothing to tell of with --nft-like-iptables, which is of no use without native rules."""
    assert run([*NATIVE, "-u", "5", *arguments, "--strict"]).status == 2
    assert run([*NATIVE, "-u", "5", *arguments, "--strict", "--nft-like-iptables"]).status == 0
    plain = run(["-n", "-u", "5", *arguments])
    idle = run(["-n", "-u", "5", *arguments, "--nft-like-iptables"])
    assert idle.out == plain.out
    assert idle.warnings == ["--nft-like-iptables: no effect: it needs --native-nftables"]


def test_native_rules_like_those_of_iptables() -> None:
    """No negated owner, no protocol before invalid, a drop behind TPROXY, IPv6 first."""
    words = ("--nft-like-iptables", "-i", "*", "-b", "*", "-m", "TPROXY", "--drop-invalid")
    ipv4 = (*words, "--ip-family", "ipv4")
    for name in ("output", "prerouting"):
        assert chain(name, *ipv4)[0] == "meta nfproto ipv6 counter return"
        assert "meta nfproto" not in str(chain(name, *words, "--ip-family", "dual"))
    assert 'oifname "lo" counter return' in chain("istio-output", *ipv4)
    tproxy = chain("istio-tproxy", *ipv4)
    assert tproxy[-1] == "meta l4proto tcp ip daddr != 127.0.0.1 counter drop"
    printed = run([*NATIVE, "-u", "5", *ipv4]).out
    assert "\t\tct state invalid counter jump istio-drop" in printed


def test_a_name_that_nft_can_not_take_is_refused() -> None:
    """Its parser counts 16 bytes."""
    done = run([*NATIVE, "-c", "abcdefghijklmn*,abcdefghijklm*,abcdefghijklmn+"])
    assert (done.status, done.out) == (2, "")
    (line,) = done.errors
    assert "'abcdefghijklmn*' is too long for nft" in line


def test_packets_are_divided_by_native_rules_too(tmp_path: Path) -> None:
    """Those of a listing, of a plan, and of a plan without settings beside it."""
    path = tmp_path / "listed"
    settings = ["--native-nftables", "-i", "*", "--ip-family", "dual"]
    path.write_text(run(["-n", *settings]).out, encoding="utf-8")
    listed, planned = (run(["matrix", *words]) for words in (["--rules", str(path)], settings))
    assert (listed.status, planned.status) == (0, 0)
    assert listed.out == planned.out
    assert "captured outbound on port 15001" in listed.out
