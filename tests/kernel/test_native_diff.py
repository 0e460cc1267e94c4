"""diff of native rules in the kernel; and what nft lists after an install is read as planned."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from istio_iptables.istio.native import build_native
from istio_iptables.istio.plan import build
from istio_iptables.netfilter.documents import rulesets
from istio_iptables.netfilter.native import text
from istio_iptables.netfilter.nftlisting import families, planned_tables, read_listing
from tests.kernel.configurations import CONFIGURATIONS, DUAL, TPROXY
from tests.kernel.sandbox import command, forked, joined, needs, run, without_nft
from tests.kernel.test_native import native_configs
from tests.namespaces import Step, inside, sandbox
from tests.netfilter.test_nftrules import FIXTURES, compare_json

if TYPE_CHECKING:
    from pathlib import Path

    from istio_iptables.settings.config import Config

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box"), needs("nft")]

DIFF = ("diff", "--native-nftables")


def native(*arguments: str) -> None:
    """Install native rules."""
    assert run("--native-nftables", *arguments).status == 0


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(batch=st.lists(native_configs(), min_size=1, max_size=8))
def test_what_nft_lists_is_read_as_planned(batch: list[Config]) -> None:
    """Text with counters and without, and JSON; for any settings."""
    plans = [build_native(config, build(config)) for config in batch]
    forms = ((), ("-s",), ("-a",), ("-j",))
    done = inside(
        [
            step
            for plan in plans
            for step in (
                Step(["nft", "-f", "-"], text(plan, "restore")),
                *(Step(["nft", *form, "list", "ruleset"]) for form in forms),
            )
        ]
    )
    assert [each for each in done if each.status] == []
    for number, plan in enumerate(plans):
        wanted = families(planned_tables(plan))
        for listed in done[5 * number + 1 : 5 * number + 5]:
            assert rulesets(listed.out) == wanted


def test_any_statement_is_listed_as_it_is_read() -> None:
    """The text and the JSON that the unit tests read are nft's own."""
    listed = (FIXTURES / "ruleset.nft").read_text(encoding="utf-8")
    command("nft", listed)
    rules = [table.chains for table in read_listing(listed.splitlines())]
    for form in ((), ("-s",), ("-a",)):
        tables = read_listing(command("nft", *form, "list", "ruleset").splitlines())
        assert [table.chains for table in tables] == rules
    compare_json(listed, command("nft", "-j", "list", "ruleset"))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_was_installed_is_as_planned(name: str, tmp_path: Path) -> None:
    """Live and from files, with routes and addresses; without them these are missing."""
    arguments = CONFIGURATIONS[name]
    native(*arguments)
    result = run(*DIFF, *arguments)
    assert (result.status, result.errors) == (0, [])
    assert result.out == "this namespace (native nftables) is as planned (IPv4 and IPv6)\n"
    for form in ((), ("-s",), ("-j",)):
        file = tmp_path / "listed"
        file.write_text(command("nft", *form, "list", "ruleset"), encoding="utf-8")
        assert run(*DIFF, *arguments, "--against", str(file)).status == 0


@pytest.mark.parametrize(
    "options", ["-n", "-nn", "-p", "-S", "-n -p -S", "-y", "-s", "-j -n", "-j -S"]
)
def test_what_nft_lists_with_options_is_the_same(options: str, tmp_path: Path) -> None:
    """Numbers for names, or names for numbers, are the same rules; those of others too."""
    arguments = ("-i", "*", "-b", "*", "-m", "TPROXY", "--redirect-dns", "--ip-family", "ipv4")
    native("--nft-like-iptables", *arguments)
    command(
        "nft",
        "table inet fw { chain x { type filter hook input priority filter; policy accept;"
        ' ct state vmap { invalid : drop, established : accept }; comment "ct state 2";'
        " icmp type { echo-request, 200 } accept; icmpv6 type nd-neighbor-solicit accept;"
        ' ip protocol 6 log prefix "tcp dport http" accept; th dport { 53, 80-443 } drop;'
        " meta l4proto { tcp, udp } th dport 53 accept; tcp dport vmap { 80 : drop }; }; }",
    )
    plain, path = tmp_path / "plain", tmp_path / "listed"
    plain.write_text(command("nft", "list", "ruleset"), encoding="utf-8")
    path.write_text(command("nft", *options.split(), "list", "ruleset"), encoding="utf-8")
    flags = ("--nft-like-iptables", *arguments)
    done = run(*DIFF, *flags, "--against", str(path))
    assert done.out == f"{path} is as planned (IPv4 and IPv6)\n"
    same = run("compare", str(plain), str(path))
    assert same.out == "A and B have the same rules; the same for every packet (IPv4 and IPv6)\n"


def test_a_file_of_one_family_is_told(tmp_path: Path) -> None:
    """The plan that is held against a file has both, and the hint says how to have one."""
    native("-i", "*", "-b", "*", "--ip-family", "ipv4")
    path = tmp_path / "listed"
    path.write_text(command("nft", "list", "ruleset"), encoding="utf-8")
    flags = (*DIFF, "-i", "*", "-b", "*", "--against", str(path))
    done = run(*flags)
    assert done.status == 1
    assert any(each.endswith("give --ip-family ipv4") for each in done.warnings)
    alone = run(*flags, "--ip-family", "ipv4")
    assert (alone.status, alone.out) == (0, f"{path} is as planned (IPv4 and IPv6)\n")


def test_sets_are_compared(tmp_path: Path) -> None:
    """As nft lists them, live and from files; with an element more, and beside single rules."""
    lists = ("-b", "80,443,8000:8010", "-x", "10.1.0.0/16,10.3.0.0/16")
    words = (*lists, "-i", "*", "--nft-sets", "--ip-family", "dual")
    native(*words)
    file = tmp_path / "listed"
    for form in ((), ("-j",)):
        file.write_text(command("nft", *form, "list", "ruleset"), encoding="utf-8")
        assert run(*DIFF, *words, "--against", str(file)).status == 0
    assert run(*DIFF, *words).status == 0
    more = run(*DIFF, *words, "-b", "80,443,8000:8010,9000")
    assert more.status == 1
    (line,) = (each for each in more.out.splitlines() if each.startswith("changed: "))
    assert "tcp dport { 80, 443, 8000-8010 }" in line
    assert run(*DIFF, *words, "--nft-sets=false").status == 1


def test_what_somebody_changed_is_told() -> None:
    """Rules, chains, routes and addresses; tables of others; rules of iptables."""
    native(*TPROXY)
    listed = command(
        "nft", "-s", "-a", "list", "chain", "inet", "istio-proxy-mangle", "istio-divert"
    )
    handle = listed.partition("counter accept # handle ")[2].split()[0]
    command("nft", "delete", "rule", "inet", "istio-proxy-mangle", "istio-divert", "handle", handle)
    command("nft", "chain inet istio-proxy-nat output { policy drop; }")
    command("ip", "rule", "del", "fwmark", "1337", "lookup", "133")
    command("ip", "-6", "addr", "del", "::6/128", "dev", "lo")
    command("iptables-nft", "-t", "raw", "-A", "OUTPUT", "-j", "NOTRACK")
    command("iptables-legacy", "-t", "nat", "-N", "ISTIO_X")
    command("iptables-legacy", "-t", "nat", "-A", "ISTIO_X", "-j", "RETURN")
    command(
        "nft",
        "add table ip fw; add chain ip fw o { type filter hook output priority raw; };"
        " add rule ip fw o tcp dport 25 drop",
    )
    result = run(*DIFF, *TPROXY, "--json")
    assert result.status == 1
    found = json.loads(result.out)["differences"]
    assert [(each["kind"], each["table"], each["chain"]) for each in found] == [
        ("changed", "inet istio-proxy-nat", "output"),
        ("missing", "inet istio-proxy-mangle", "istio-divert"),
        ("stranger", "ip fw", "o"),
        ("stranger", "raw", "OUTPUT"),
        ("missing", None, None),
        ("missing", None, None),
        ("extra", None, None),
    ]
    assert found[-1]["text"] == (
        "rules of ours in the legacy backend, which take effect as well: IPv4 nat"
    )


def test_nothing_installed_is_everything_missing() -> None:
    """Exit status 1 and one line."""
    result = run(*DIFF, *DUAL)
    count = run(*DUAL, "--native-nftables", "--dry-run").out.count("counter")
    where = "this namespace (native nftables)"
    assert result.status == 1
    assert result.out == f"no rules of ours are in {where} ({count} rules are missing)\n"


def test_rules_of_the_other_kind_are_one_line() -> None:
    """Native ones where those of iptables are wanted, and the other way round."""
    native(*TPROXY)
    first, second = run("diff", *TPROXY).out.splitlines()
    assert first.startswith("extra: native nftables rules of ours, which take effect as well: inet")
    assert second.startswith("no rules of ours are in this namespace (legacy) (")
    with sandbox():
        run(*TPROXY, "--force-iptables-binary", "nft")
        first, second = run(*DIFF, *TPROXY).out.splitlines()
    assert first.startswith("extra: rules of ours in the nft backend, which take effect as well:")
    assert second.startswith("no rules of ours are in this namespace (native nftables) (")


def test_without_privilege_nothing_is_told() -> None:
    """Exit status 2, and what is missing."""
    native(*DUAL)

    def ask() -> int:
        os.setgroups([])
        os.setgid(1000)
        os.setuid(1000)
        result = run(*DIFF, *DUAL)
        told = "CAP_NET_ADMIN" in result.err
        return result.status if result.out == "" and told else 99

    assert joined(forked(ask)) == 2


def test_without_nft_nothing_is_told() -> None:
    """The program that lists them is named."""
    native(*DUAL)
    without_nft()
    result = run(*DIFF, *DUAL)
    assert (result.status, result.out) == (2, "")
    assert result.errors[0].startswith("can't run nft")


@pytest.mark.parametrize("words", ["check", "describe"])
def test_without_nft_the_rules_are_not_called_absent(words: str) -> None:
    """The kernel says that they are there; what they are can't be told."""
    native(*DUAL)
    without_nft()
    result = run(words)
    assert (result.status, result.out) == (2, "")
    assert result.errors == [
        "native nftables rules of ours are there, and 'nft list ruleset' fails"
    ]


@pytest.mark.parametrize("words", ["check", "describe"])
def test_a_dormant_table_is_seen(words: str) -> None:
    """The kernel asks none of its chains, and its rules are there all the same."""
    native(*DUAL)
    command("nft", "add table inet istio-proxy-nat { flags dormant; }")
    result = run(words)
    assert result.status == 1
    assert "no rules of ours" not in result.out
    assert "inet istio-proxy-nat: flags: dormant" in result.out
