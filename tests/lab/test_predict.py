"""What the lab predicts, from the plan alone: no kernel, no Envoy."""

from __future__ import annotations

import pytest

from istio_iptables.commands.lab import lab_config
from istio_iptables.errors import KernelRefused, UsageProblems
from istio_iptables.istio.plan import build
from istio_iptables.lab import messages as talk
from istio_iptables.lab import report, scenarios
from istio_iptables.lab.bootstrap import bootstrap
from istio_iptables.lab.clients import Seen
from istio_iptables.lab.compare import compare
from istio_iptables.lab.counters import Counts
from istio_iptables.lab.predict import Prediction, predict
from istio_iptables.lab.runner import LabOutcome
from istio_iptables.lab.without import left_out, without
from istio_iptables.netfilter.model import Family
from tests.lab.labs import plan_of


def predicted(name: str, flags: dict[str, str] | None = None) -> Prediction:
    """The prediction for an IPv4 path of the sidecar."""
    config, _ = lab_config(flags or {}, {})
    plan = build(config)
    scenario = scenarios.make("sidecar", config)
    nodes = {node.name: node for node in scenario.nodes}
    (path,) = (each for each in scenario.paths if (each.name, each.family) == (name, Family.IPV4))
    return predict(nodes, plan, path.node, path.identity, path.request)


def test_the_way_of_a_service_that_ends_at_itself() -> None:
    """Application, outbound, inbound, application: three connections, each with its rules."""
    way = predicted("app-service")
    assert [(leg.listener or leg.server, leg.taken_to) for leg in way.legs] == [
        ("outbound", 15001),
        ("inbound", 15006),
        ("app", 0),
    ]
    assert (way.server, way.peer, way.hops) == ("app", "127.0.0.6", ("pod outbound", "pod inbound"))


def test_envoys_own_user_is_followed() -> None:
    """Another proxy's user than the rules' is captured by them, and goes round in a circle."""
    config, _ = lab_config({}, {})
    scenario = scenarios.make("sidecar", config, envoy_uid=4321)
    (path,) = (
        each for each in scenario.paths if (each.name, each.family) == ("app-server", Family.IPV4)
    )
    # The group is the proxy's still, by which the rules know it.
    nodes = {node.name: node for node in scenario.nodes}
    assert not predict(nodes, build(config), path.node, path.identity, path.request).loops
    left = left_out(build(config), ["nat ISTIO_OUTPUT 9"])
    plan = without(build(config), left)
    assert predict(nodes, plan, path.node, path.identity, path.request).loops


def test_nobody_is_predicted_too() -> None:
    """Without capture, a service's address leads nowhere."""
    way = predicted("app-service", {"istio_service_cidr": ""})
    assert way.problem == "no host has the address 10.96.0.10"
    assert not way.listeners


@pytest.mark.parametrize("place", ["nat ISTIO_OUTPUT 0", "nat NOWHERE 1", "nat", "a b c", ""])
def test_a_rule_to_leave_out_has_to_be_there(place: str) -> None:
    """Places without a rule are refused by name."""
    with pytest.raises(UsageProblems, match="the plan has no such rule"):
        left_out(plan_of(), [place])


def test_differences_are_told() -> None:
    """Another answer, other hops, and a server that is silent are each a line."""
    config, _ = lab_config({}, {})
    scenario = scenarios.make("sidecar", config)
    path = scenario.paths[0]
    nodes = {node.name: node for node in scenario.nodes}
    expected = predict(nodes, build(config), path.node, path.identity, path.request)
    right = Counts(expected.rules, expected.listeners)
    good = Seen(expected.server, expected.peer, expected.hops, expected.path)
    assert compare(path, expected, [good], right).differences == ()
    other = compare(path, expected, [good._replace(peer="10.0.0.1", hops=())], right)
    assert other.differences == (
        "peer 10.0.0.1, predicted 127.0.0.6",
        "hops none, predicted pod inbound",
    )
    silent = compare(path, expected, [Seen(problem="no answer"), good], right)
    assert silent.differences == ("no answer, predicted an answer (1 of 2)",)
    outcome = LabOutcome("sidecar", "REDIRECT", "legacy", (other, silent), 1.0)
    assert "  ! peer 10.0.0.1, predicted 127.0.0.6\n" in report.text(
        outcome, scenario.nodes, build(config)
    )
    assert report.as_json(outcome, build(config))["as_predicted"] is False


def test_a_limit_ends_loops() -> None:
    """Every Envoy of every scenario has the limit, and is asked on a socket of files."""
    config, _ = lab_config({}, {})
    for name in scenarios.SCENARIOS:
        for node in scenarios.make(name, config).nodes:
            if node.proxy:
                made = bootstrap(node.proxy, "/run/admin")
                (monitor,) = made["overload_manager"]["resource_monitors"]
                assert monitor["name"].endswith("global_downstream_max_connections")
                assert made["admin"]["address"] == {"pipe": {"path": "/run/admin"}}


class TestTalk:
    """The lab's own HTTP and DNS."""

    @pytest.mark.parametrize("peer", ["10.0.0.1", "fd77::1"])
    def test_dns(self, peer: str) -> None:
        """An answer tells who answered and whom they saw."""
        answer = talk.dns_answer(talk.dns_query(7), "agent", peer)
        assert talk.dns_seen(answer, 7) == ("agent", peer)
        with pytest.raises(KernelRefused):
            talk.dns_seen(answer, 8)
        with pytest.raises(KernelRefused):
            talk.dns_seen(talk.dns_query(7), 7)

    @pytest.mark.parametrize(
        "text",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        ],
    )
    def test_http(self, text: bytes) -> None:
        """A response is whole at its last byte, and not before."""
        assert talk.read_http(text) == talk.Response(200, b"hello")
        assert [talk.is_complete(text[:end]) for end in (20, len(text) - 1, len(text))] == [
            False,
            False,
            True,
        ]

    @pytest.mark.parametrize("text", [b"", b"\x00\x01", b"nonsense\r\n\r\n"])
    def test_no_http(self, text: bytes) -> None:
        """What is no response has status 0."""
        assert talk.read_http(text).status == 0
