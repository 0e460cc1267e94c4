"""Every fault of Istio's own installer that issue 3 lists, as a test that ours has not got it."""

from __future__ import annotations

import pytest

from istio_iptables.netfilter.model import Family
from tests.kernel.configurations import CONFIGURATIONS, DUAL, TPROXY
from tests.kernel.sandbox import command, install, ours_in, planned, run, save, state
from tests.namespaces import BACKENDS, sandbox

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

both_backends = pytest.mark.parametrize("backend", BACKENDS)


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


@both_backends
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


@both_backends
def test_never_converges_from_tproxy_to_redirect(backend: str) -> None:
    """Istio's mangle rules of TPROXY stay, so that each run finds a difference and starts anew."""
    install(backend, *TPROXY)
    assert install(backend, *DUAL, "--reconcile").status == 0
    assert "nothing to do" in install(backend, *DUAL, "--reconcile").err
    with sandbox():
        install(backend, *DUAL)
        fresh = state()
    assert state() == fresh


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


@both_backends
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


@both_backends
def test_force_apply_fails_over_existing_rules(backend: str) -> None:
    """Istio's --force-apply tries to make chains that are there already, and gives up."""
    install(backend, *TPROXY)
    assert install(backend, *DUAL, "--force-apply").status == 0
    assert ours_in(save(backend, Family.IPV6)) == planned(*DUAL)[Family.IPV6]


@both_backends
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


@both_backends
@pytest.mark.parametrize("bad", [("-t", "x"), ("-r", "x"), ("-r", "-1"), ("-t", "4294967296")])
def test_reads_the_route_after_the_rules_are_in(bad: tuple[str, str], backend: str) -> None:
    """Istio parses mark and table when its rules are in place: half an install is left."""
    before = state()
    result = install(backend, *TPROXY, *bad)
    assert result.status == 2
    assert bad[1] in " ".join(result.errors)
    assert state() == before
