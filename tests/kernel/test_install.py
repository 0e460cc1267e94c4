"""Installing: what the kernel holds afterwards, and when nothing is done."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from istio_iptables.netfilter.model import Family
from tests.kernel.configurations import CONFIGURATIONS, DUAL, TPROXY
from tests.kernel.sandbox import (
    CLI,
    command,
    forked,
    install,
    joined,
    load,
    planned,
    process,
    run,
    save,
    state,
    tables,
)
from tests.namespaces import BACKENDS, mount, new_network

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

both_backends = pytest.mark.parametrize("backend", BACKENDS)


@both_backends
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_kernel_holds_what_the_dry_run_prints(name: str, backend: str) -> None:
    """After an install, iptables-save prints the dry run's text, and no other table is there."""
    expected = planned(*CONFIGURATIONS[name])
    result = install(backend, *CONFIGURATIONS[name])
    assert (result.status, result.out, result.errors) == (0, "", [])
    for family in Family:
        assert tables(save(backend, family)) == expected[family]


@both_backends
def test_routes_and_address_come_with_the_rules(backend: str) -> None:
    """TPROXY's policy rule and route are there once in each family, and ::6 is on lo."""
    assert install(backend, *TPROXY).status == 0
    now = state(backends=())
    for family in (0, 1):
        assert now.rules[family].count("fwmark 0x539 lookup 133") == 1
        assert now.routes[family].count("local default dev lo table 133") == 1
    assert "inet6 ::6/128" in now.addresses


@both_backends
@pytest.mark.parametrize("name", ["dual", "everything"])
def test_a_second_install_does_nothing(name: str, backend: str) -> None:
    """It says so, and leaves the packet counts, handles and routes as they are."""
    install(backend, *CONFIGURATIONS[name])
    _some_traffic()
    before = _everything()
    assert "[1:28] -A OUTPUT -j ISTIO_OUTPUT" in before
    result = install(backend, *CONFIGURATIONS[name])
    assert result.status == 0
    assert result.err.endswith("the rules are in place already: nothing to do\n")
    assert _everything() == before


def _some_traffic() -> None:
    """One packet out, which the rules count."""
    command("ip", "route", "add", "10.0.0.0/8", "dev", "lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"", ("10.1.2.3", 80))


def _everything() -> str:
    words = ["iptables-legacy-save -c", "ip6tables-legacy-save -c", "nft -a list ruleset"]
    words += ["iptables-nft-save -c", "ip rule", "ip -6 rule", "ip route show table all"]
    text = "".join(command("sh", "-c", each) for each in words)
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))


@both_backends
@pytest.mark.parametrize("names", [("dual", "tproxy"), ("everything", "dns")])
def test_a_different_configuration_is_refused(names: tuple[str, str], backend: str) -> None:
    """Without --reconcile it is exit 1 with a line on stderr, and nothing changes."""
    old, new = (CONFIGURATIONS[name] for name in names)
    install(backend, *old)
    before = _everything()
    result = install(backend, *new)
    assert result.status == 1
    assert result.errors
    assert any("--reconcile" in line for line in result.errors)
    assert _everything() == before


@both_backends
@pytest.mark.parametrize("flag", ["--reconcile", "--force-apply"])
def test_a_different_configuration_is_replaced_on_demand(flag: str, backend: str) -> None:
    """With --reconcile, or --force-apply, the new rules are there and nothing of the old."""
    install(backend, *TPROXY)
    assert install(backend, *DUAL, flag).status == 0
    for family in Family:
        found = {
            name: text for name, text in tables(save(backend, family)).items() if name == "nat"
        }
        assert found == planned(*DUAL)[family]
    assert "fwmark" not in "".join(state(backends=()).rules)


@both_backends
def test_order_alone_makes_a_difference(backend: str) -> None:
    """The same rules in another order are not the rules that were asked for."""
    install(backend, "-i", "*", "-b", "*", "-d", "1,2", "--ip-family", "ipv4")
    swapped = ("-i", "*", "-b", "*", "-d", "2,1", "--ip-family", "ipv4")
    assert install(backend, *swapped).status == 1
    assert install(backend, *swapped, "--reconcile").status == 0
    assert tables(save(backend, Family.IPV4)) == planned(*swapped)[Family.IPV4]


def test_skip_rule_apply_touches_nothing() -> None:
    """--skip-rule-apply makes no table, rule or route."""
    before = state(everything=True)
    assert run(*TPROXY, "--skip-rule-apply").status == 0
    assert state(everything=True) == before


@both_backends
@pytest.mark.parametrize("missing", ["raw", "mangle", "nat"])
@pytest.mark.parametrize("family", Family)
def test_an_interrupted_install_is_completed(family: Family, missing: str, backend: str) -> None:
    """When one table of a plan is still missing, the same command adds it without --reconcile."""
    arguments = CONFIGURATIONS["everything"]
    expected = planned(*arguments)
    for each in Family:
        for name, text in expected[each].items():
            if (each, name) != (family, missing):
                load(backend, each, f"{text}\n")
    result = install(backend, *arguments)
    assert (result.status, result.errors) == (0, [])
    assert tables(save(backend, family)) == expected[family]
    assert "fwmark 0x539 lookup 133" in state(backends=()).rules[0]


@both_backends
@pytest.mark.parametrize(
    "cut",
    [
        "ip -4 rule del fwmark 1337 lookup 133",
        "ip -6 route flush table 133",
        "ip addr del ::6/128 dev lo",
    ],
)
def test_a_lost_route_or_address_is_added_again(cut: str, backend: str) -> None:
    """What somebody took away beside the rules comes back, without --reconcile."""
    install(backend, *TPROXY)
    before = state()
    command(*cut.split())
    assert state() != before
    assert install(backend, *TPROXY).status == 0
    assert sorted(state().addresses.splitlines()) == sorted(before.addresses.splitlines())
    assert state()._replace(addresses="") == before._replace(addresses="")


def _other_namespace(at: Path) -> None:
    """Make a network namespace and bind it to the file *at*."""

    def work() -> int:
        new_network()
        mount(f"/proc/{os.getpid()}/ns/net", str(at), bind=True)
        return 0

    at.parent.mkdir(parents=True, exist_ok=True)
    at.touch()
    assert joined(forked(work)) == 0


@both_backends
@pytest.mark.parametrize("given", ["pod", "/run/elsewhere/pod"])
def test_another_network_namespace(given: str, backend: str) -> None:
    """--network-namespace takes a name under /run/netns or a path, and leaves ours alone."""
    path = Path("/run/netns", given)
    _other_namespace(path)
    before = state(everything=True)
    result = install(backend, *TPROXY, "--network-namespace", given)
    assert (result.status, result.errors) == (0, [])
    assert state(everything=True) == before
    enter = ("nsenter", f"--net={path}")
    there = command(*enter, f"iptables-{backend}-save")
    assert tables(there) == planned(*TPROXY)[Family.IPV4]
    assert "fwmark 0x539 lookup 133" in command(*enter, "ip", "-6", "rule")
    assert run("--cleanup-only", "--network-namespace", given).status == 0
    assert "ISTIO" not in command(*enter, f"iptables-{backend}-save")


def test_the_program_as_a_process() -> None:
    """The installed command itself, once with each of its ways to end."""
    assert process(CLI, *DUAL).status == 0
    assert process(CLI, *TPROXY).status == 1
    assert process(CLI, *TPROXY, "--reconcile").status == 0
    assert process(CLI, "-b", "x").status == 2
    assert process(CLI, "--cleanup-only").status == 0
    assert state().legacy == ({}, {})


@pytest.mark.parametrize("theirs", [[], ["100"], ["100", "32000"]], ids=" ".join)
def test_the_policy_rule_stands_where_ip_puts_it(theirs: list[str]) -> None:
    """At the priority that `ip rule add` takes, before the rules that are there already."""
    for number in theirs:
        command("ip", "rule", "add", "from", "10.0.0.0/8", "pref", number, "lookup", "main")
    with_ours = []
    for way in (("ip", "rule", "add", "fwmark", "1337", "lookup", "133"), (CLI, *TPROXY)):
        command(*way)
        with_ours.append(state(backends=()).rules[0])
        command("ip", "rule", "del", "fwmark", "1337", "lookup", "133")
    assert with_ours[0] == with_ours[1]


DOCUMENTED = CONFIGURATIONS["documented"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_foreign_rules_before_ours_are_told(backend: str) -> None:
    """Before anything is changed, so that --strict refuses; diff says the same afterwards."""
    load(backend, Family.IPV4, "*nat\n-A OUTPUT -o eth0 -j RETURN\nCOMMIT\n")
    load(backend, Family.IPV4, "*raw\n-A PREROUTING -j NOTRACK\nCOMMIT\n")
    before = state(backends=(backend,))
    refused = install(backend, *DOCUMENTED, "--strict")
    assert refused.status == 2
    assert state(backends=(backend,)) == before
    told = install(backend, *DOCUMENTED).warnings
    assert [line.partition(": -A ")[0] for line in told] == [
        "a foreign rule is evaluated before ours: IPv4 nat OUTPUT rule 1",
        "a foreign rule is evaluated before ours: IPv4 raw PREROUTING rule 1",
    ]
    assert run("diff", *DOCUMENTED).out.count("foreign: ") == len(told)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_foreign_rule_that_goes_with_a_chain_of_ours_is_told(backend: str) -> None:
    """A chain that is led to can't be deleted, so the rule that leads to it goes as well."""
    tproxy = (*DOCUMENTED, "-m", "TPROXY")
    install(backend, *tproxy)
    rules = "*mangle\n:OTHER - [0:0]\n-A OTHER -s 9.9.9.9 -p tcp -j ISTIO_DIVERT\nCOMMIT\n"
    load(backend, Family.IPV4, rules)
    done = install(backend, *DOCUMENTED, "--reconcile")
    line = "removed a foreign rule, since the chain that it leads to is gone: IPv4 mangle -A OTHER"
    assert line in done.err
    assert "ISTIO_DIVERT" not in save(backend, Family.IPV4)
