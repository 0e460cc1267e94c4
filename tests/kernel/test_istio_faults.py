"""Every fault seen in Istio's own installer, as a test that ours has not got it.

Those of its native mode are at the end, and those that both have are asked of native rules too.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from istio_iptables.kernel.namespace import entered
from istio_iptables.netfilter.model import Family
from tests.kernel.configurations import CONFIGURATIONS, DUAL, TPROXY
from tests.kernel.sandbox import (
    State,
    command,
    install,
    ours_in,
    planned,
    run,
    save,
    state,
)
from tests.namespaces import ALL_BACKENDS, BACKENDS, sandbox

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

both_backends = pytest.mark.parametrize("backend", BACKENDS)
all_backends = pytest.mark.parametrize("backend", ALL_BACKENDS)


def fresh(backend: str, *arguments: str) -> State:
    """What there is after an install in an empty namespace."""
    with sandbox():
        assert install(backend, *arguments).status == 0
        return state()


@both_backends
def test_installs_twice_under_default_detection(backend: str) -> None:
    """Istio's second run finds the other backend "in use", and installs everything there too."""
    install(backend, *DUAL)
    command("iptables-legacy-save", "-t", "nat")
    for _ in range(3):
        result = run(*DUAL)
        assert result.status == 0
        assert "nothing to do" in result.err
    now = state()
    found = (now.legacy, now.nft)
    expected = tuple(planned(*DUAL)[family] for family in Family)
    assert found == ((expected, ({}, {})) if backend == "legacy" else (({}, {}), expected))


@all_backends
def test_loses_all_rules_over_a_bad_value(backend: str) -> None:
    """Istio's `-d abc --reconcile` flushes, then fails: the pod is left without any rules."""
    install(backend, *DUAL)
    before = state()
    for bad in (("-d", "abc"), ("-b", "80,70000"), ("-x", "10.0.0.0/33"), ("-c", "no such")):
        result = install(backend, *DUAL, *bad, "--reconcile")
        assert result.status == 2
        assert bad[1].split(",")[-1] in " ".join(result.errors)
        assert state() == before


@both_backends
def test_keeps_stale_interface_rules(backend: str) -> None:
    """Istio's `-c eth0`, then without it, leaves `-i eth0 -j RETURN` for ever; so does -k."""
    for old in ("exclude-interface", "exclude-interfaces-tproxy", "virtual-and-excluded"):
        with sandbox():
            install(backend, *CONFIGURATIONS[old])
            assert install(backend, *DUAL, "--reconcile").status == 0
            assert ours_in(save(backend, Family.IPV4)) == planned(*DUAL)[Family.IPV4]
            assert "eth0" not in save(backend, Family.IPV6)


@all_backends
def test_never_converges_from_tproxy_to_redirect(backend: str) -> None:
    """Istio's mangle rules of TPROXY stay, so that each run finds a difference and starts again."""
    install(backend, *TPROXY)
    assert install(backend, *DUAL, "--reconcile").status == 0
    assert "nothing to do" in install(backend, *DUAL, "--reconcile").err
    assert state() == fresh(backend, *DUAL)


@both_backends
def test_ignores_the_order_of_rules(backend: str) -> None:
    """Istio's check takes a RETURN behind the rule that captures everything for one before it."""
    install(backend, *DUAL)
    program = f"iptables-{backend}"
    rule = ("-p", "tcp", "--dport", "15020", "-j", "RETURN")
    command(program, "-t", "nat", "-D", "ISTIO_INBOUND", *rule)
    command(program, "-t", "nat", "-A", "ISTIO_INBOUND", *rule)
    assert install(backend, *DUAL).status == 1
    assert install(backend, *DUAL, "--reconcile").status == 0
    assert ours_in(save(backend, Family.IPV4)) == planned(*DUAL)[Family.IPV4]


@all_backends
def test_duplicates_the_policy_rule_and_never_removes_it(backend: str) -> None:
    """Istio adds `ip rule ... lookup 133` once a run, and its clean-up leaves all of them."""
    before = state()
    for _ in range(3):
        assert install(backend, *TPROXY, "--reconcile").status == 0
    for rules in state(backends=()).rules:
        assert rules.count("lookup 133") == 1
    # As Istio would have left them.
    command("ip", "rule", "add", "fwmark", "1337", "pref", "30000", "lookup", "133")
    assert run("--cleanup-only").status == 0
    assert state() == before


@all_backends
def test_force_apply_fails_over_existing_rules(backend: str) -> None:
    """Istio's --force-apply tries to make chains that are there already, and gives up."""
    install(backend, *TPROXY)
    assert install(backend, *DUAL, "--force-apply").status == 0
    assert state() == fresh(backend, *DUAL)


@all_backends
@pytest.mark.parametrize("flag", ["-c", "-k", "-d", "-b", "-o", "-q", "-x", "-i", "-u", "-g"])
@pytest.mark.parametrize(
    "ending", ["\nCOMMIT\n*nat\n-A OUTPUT -j DROP", "\n-F", "\r-A OUTPUT -j DROP"]
)
def test_newlines_inject_rules(flag: str, ending: str, backend: str) -> None:
    """What Istio passes on to iptables-restore as it is can bring further lines with it."""
    before = state()
    good = {"-c": "eth0", "-k": "eth0", "-x": "10.0.0.0/8", "-i": "10.0.0.0/8"}.get(flag, "80")
    result = install(backend, *DUAL, flag, f"{good}{ending}")
    assert result.status == 2
    assert result.errors
    assert state() == before


def test_newlines_in_the_environment() -> None:
    """The settings that only the environment has are looked at just as closely."""
    before = state()
    for name in ("ISTIO_OUTBOUND_OWNER_GROUPS", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"):
        assert run(*DUAL, environment={name: "1\n-A OUTPUT -j DROP"}).status == 2
    assert state() == before


@all_backends
@pytest.mark.parametrize("bad", [("-t", "x"), ("-r", "x"), ("-r", "-1"), ("-t", "4294967296")])
def test_reads_the_route_after_the_rules_are_in(bad: tuple[str, str], backend: str) -> None:
    """Istio parses mark and table when its rules are in place: half an install is left."""
    before = state()
    result = install(backend, *TPROXY, *bad)
    assert result.status == 2
    assert bad[1] in " ".join(result.errors)
    assert state() == before


def test_fails_over_dns_servers_of_ipv6_alone(tmp_path: Path) -> None:
    """Istio's native rules jump to istio-output-dns, which it does not make: the pod does not start."""
    servers = tmp_path / "resolv.conf"
    servers.write_text("nameserver fd00::a\n")
    words = ("--redirect-dns", "--resolv-conf", str(servers), "--ip-family", "ipv4", "-i", "*")
    assert install("native", *words).status == 0
    listed = command("nft", "list", "table", "inet", "istio-proxy-nat")
    assert "istio-output-dns" not in listed


def test_fails_over_wildcards_and_ranges() -> None:
    """Istio hands nft `br+` and `80:90` as they are: nft refuses the one and the other."""
    assert install("native", *DUAL, "-c", "br+", "-o", "80:90").status == 0
    listed = command("nft", "list", "table", "inet", "istio-proxy-nat")
    assert 'iifname "br*"' in listed
    assert "tcp dport 80-90" in listed


def test_a_native_dry_run_applies() -> None:
    """Istio's --dry-run --native-nftables installs."""
    before = state()
    for form in ("save", "restore", "commands", "annotated", "json"):
        assert install("native", *TPROXY, "--dry-run", "--format", form).status == 0
    assert state() == before


def test_a_second_native_install_resets_counters_and_handles() -> None:
    """Istio's replaces what is as planned already, and --reconcile makes no difference to it."""
    install("native", *TPROXY)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"", ("127.0.0.1", 80))
    before = command("nft", "-a", "list", "ruleset")
    assert "counter packets 1 " in before
    for flag in ((), ("--reconcile",), ("--force-apply",)):
        assert "nothing to do" in install("native", *TPROXY, *flag).err
        assert command("nft", "-a", "list", "ruleset") == before


def test_stale_native_tables_stay_active() -> None:
    """Istio flushes only the tables that the new rules are in: those of TPROXY, DNS and -D stay."""
    install("native", *CONFIGURATIONS["everything"])
    assert install("native", *DUAL, "--reconcile").status == 0
    assert list(state().native) == ["istio-proxy-nat"]
    assert state() == fresh("native", *DUAL)


@pytest.mark.parametrize("more", [(), ("-x", "*")])
def test_native_clean_up_keeps_the_policy_rule_and_adds_one(more: tuple[str, ...]) -> None:
    """Istio's leaves the rule, adds another even on a clean namespace, and fails over `-x '*'`."""
    before = state()
    words = ("-m", "TPROXY", "-b", "*", "--cleanup-only")
    assert install("native", *words).status == 0
    assert state() == before
    install("native", *TPROXY)
    done = install("native", *words, *more)
    if more:
        # It is an error here too, but of the command line: nothing was done.
        assert (done.status, "-x" in done.err) == (2, True)
        assert install("native", *words).status == 0
    assert state() == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_rules_of_iptables_stay_active_beside_native_ones(backend: str) -> None:
    """Istio does not look for them, nor for native ones when it installs those of iptables."""
    install(backend, *DUAL)
    before = state()
    assert install("native", *DUAL).status == 1
    assert state() == before
    assert install("native", *DUAL, "--reconcile").status == 0
    assert state() == fresh("native", *DUAL)
    assert install(backend, *DUAL).status == 1
    assert install(backend, *DUAL, "--reconcile").status == 0
    assert state() == fresh(backend, *DUAL)


def test_fails_over_a_chain_without_its_hook() -> None:
    """Istio can't put its hook on a chain named prerouting that is there, in a table of its name."""
    command("nft", "add table inet istio-proxy-nat; add chain inet istio-proxy-nat prerouting")
    assert install("native", *DUAL).status == 1
    assert install("native", *DUAL, "--reconcile").status == 0
    assert state() == fresh("native", *DUAL)


def test_newlines_inject_nft_commands() -> None:
    """Istio passes them on to nft: `-d` adds a table of the attacker's."""
    before = state()
    for separator in "\n;":
        done = install("native", *DUAL, "-d", f"80{separator}add table inet evil")
        assert done.status == 2
        assert state() == before


@all_backends
def test_never_enters_the_network_namespace(backend: str) -> None:
    """Istio's installs where it was started, whatever --network-namespace names."""
    before = state()
    command("ip", "netns", "add", "pod")
    words = ("--network-namespace", "pod", *DUAL)
    assert install(backend, *words).status == 0
    assert state() == before
    wanted = fresh(backend, *DUAL).tables(backend)
    with entered("/run/netns/pod"):
        assert state().tables(backend) == wanted
