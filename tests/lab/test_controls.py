"""Negative controls: without a rule the lab fails, and shows what the rule is there for."""

from __future__ import annotations

import pytest

from istio_iptables.lab.bootstrap import MAX_CONNECTIONS
from istio_iptables.netfilter.model import Family
from tests.lab.labs import MODES, Inputs, places, result, run
from tests.namespaces import BACKENDS

pytestmark = pytest.mark.kernel

OWN_UID = "ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN"
OWN_GID = "ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN"


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_the_proxys_own_rules_there_is_a_loop(backend: str) -> None:
    """Envoy's own connections are sent back to Envoy, time and again, until something gives."""
    outcome = run(
        Inputs(backend=backend),
        left=lambda plan: places(plan, OWN_UID, OWN_GID),
        only=["app-server", "app-excluded-port"],
    )
    for family in Family:
        looped = result(outcome, "app-server", family)
        assert looped.differences
        assert looped.seen[0].problem
        assert 10 < looped.counts.listeners["pod", "outbound"] <= MAX_CONNECTIONS
        # What Envoy has nothing to do with goes on working.
        assert result(outcome, "app-excluded-port", family).differences == ()


def test_a_loop_ends_at_envoys_limit() -> None:
    """Where nothing is added to what is passed on, the limit on connections ends the loop."""
    outcome = run(
        Inputs(),
        {"redirect_dns": "false"},
        left=lambda plan: places(plan, OWN_UID, OWN_GID),
        only=["app-dns-tcp"],
    )
    looped = result(outcome, "app-dns-tcp", Family.IPV4)
    assert looped.differences
    assert looped.counts.listeners["pod", "outbound"] >= MAX_CONNECTIONS


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_the_pass_through_address_inbound_is_captured_again(backend: str) -> None:
    """Envoy's connection to the application is taken for one to be captured, more than once."""
    outcome = run(
        Inputs(backend=backend),
        left=lambda plan: places(plan, "ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN"),
        only=["client-app"],
    )
    for family in Family:
        again = result(outcome, "client-app", family)
        assert again.differences
        assert again.counts.listeners["pod", "inbound"] >= 2


def test_without_a_native_rule() -> None:
    """The same with native rules, where the table has two words."""
    outcome = run(
        Inputs(backend="native"),
        left=lambda plan: [
            place
            for ending in ("ip saddr 127.0.0.6 counter return", "ip6 saddr ::6 counter return")
            for place in places(plan, ending)
        ],
        only=["client-app"],
    )
    for family in Family:
        again = result(outcome, "client-app", family)
        number = 3 + (family is Family.IPV6)
        missed = f"pod: inet istio-proxy-nat istio-output {number} counted 0, predicted 1"
        assert missed in again.differences
        assert again.counts.listeners["pod", "inbound"] >= 2


def test_native_rules_break_ipv6_that_is_off() -> None:
    """Envoy takes it and answers from an address that is not there; --nft-like-iptables lets it be."""
    flags = {"dual_stack": "false", "redirect_dns": "false"}
    for like, server in (("false", ""), ("true", "app")):
        outcome = run(
            Inputs(backend="native"), {**flags, "nft_like_iptables": like}, only=["client-app"]
        )
        assert outcome.as_predicted
        assert result(outcome, "client-app", Family.IPV4).seen[0].server == "app"
        (seen,) = result(outcome, "client-app", Family.IPV6).seen
        assert (seen.server, bool(seen.problem)) == (server, not server)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_health_port_that_is_not_excluded_is_captured(backend: str) -> None:
    """It answers as ever, and only the counters tell that Envoy's inbound side was in between."""
    outcome = run(
        Inputs(backend=backend),
        left=lambda plan: places(plan, "ISTIO_INBOUND -p tcp -m tcp --dport 15021 -j RETURN"),
        only=["client-health"],
    )
    for family in Family:
        captured = result(outcome, "client-health", family)
        assert captured.seen[0].server == "ready"
        assert captured.counts.listeners["pod", "inbound"] == 1
        assert "pod: Envoy inbound took 1 connection, predicted 0" in captured.differences
        assert "pod: nat ISTIO_INBOUND 3 counted 0, predicted 1" in captured.differences


def test_envoy_as_the_proxys_user_under_tproxy_captures_itself() -> None:
    """As uid 1337 under TPROXY, Envoy's connection to the application goes back to Envoy.

    That is why Istio's proxy runs as uid 0 then. The connection is not even established: its
    source is the client's address, and its new destination the loopback one.
    """
    outcome = run(Inputs("TPROXY", envoy_uid=1337), only=["client-app"])
    for family in Family:
        looped = result(outcome, "client-app", family)
        assert looped.expected.loops
        assert looped.differences
        assert looped.seen[0].problem
        assert any(place.chain == "ISTIO_IN_REDIRECT" for place in looped.counts.rules)


@pytest.mark.parametrize("flags", [{"istio_inbound_ports": ""}, {"istio_service_cidr": ""}])
def test_what_is_not_captured_is_predicted_too(flags: dict[str, str]) -> None:
    """Where the flags capture nothing, nothing is captured, and that is as predicted."""
    flags = {**flags, "redirect_dns": "false"}
    outcome = run(Inputs(), flags, only=["client-app", "app-server"])
    assert outcome.as_predicted
    listeners = [each.counts.listeners for each in outcome.results]
    assert any(not taken for taken in listeners)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "flags",
    [
        {"istio_inbound_ports": "8080,15021"},
        {"istio_service_cidr": "10.77.0.0/24,fd77::/64"},
        {"istio_service_cidr": "", "istio_outbound_ports": "9000,9100"},
        {"capture_all_dns": "true", "drop_invalid": "true"},
        {"proxy_uid": "1337,1338", "proxy_gid": "1337,2000"},
        {"istio_service_exclude_cidr": "10.0.0.0/8,fd00::/8", "istio_exclude_interfaces": "eth+"},
        {"inbound_tunnel_port": "8080"},
    ],
    ids="-".join,
)
def test_other_flags(mode: str, flags: dict[str, str]) -> None:
    """Whatever is captured, and whatever is not, goes as the rules of the flags predict."""
    outcome = run(Inputs(mode), flags)
    assert [each.differences for each in outcome.results if each.differences] == []


def test_capturing_loopback_under_tproxy_is_a_loop() -> None:
    """A captured loopback network drops the rule that spares Envoy as uid 0: it captures itself."""
    flags = {"istio_service_cidr": "127.0.0.0/8,10.0.0.0/8"}
    outcome = run(Inputs("TPROXY"), flags, only=["client-app"])
    looped = result(outcome, "client-app", Family.IPV4)
    assert looped.expected.loops
    assert looped.differences
    assert looped.seen[0].problem
