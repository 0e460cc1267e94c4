"""Every path of a pod with a sidecar: who is seen, which listeners take it, which rules count."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from istio_iptables.lab.scenarios import PARALLEL
from istio_iptables.netfilter.model import Family
from tests.lab.labs import ALL_BACKENDS, MODES, Inputs, ran, result, run

pytestmark = pytest.mark.kernel

POD = ("10.77.0.10", "fd77::10")
POD_SIDE = ("10.78.0.10", "fd78::10")
CLIENT = ("10.77.0.20", "fd77::20")
CLIENT_SIDE = ("10.78.0.20", "fd78::20")
PASSED_ON = ("127.0.0.6", "::6")
LOCALHOST = ("127.0.0.1", "::1")


class Fact(NamedTuple):
    """What has to be so, whatever the plan says."""

    server: str
    #: Whom the server sees, in each family; in TPROXY's mode, if that is somebody else.
    peer: tuple[str, str] = ("", "")
    peer_tproxy: tuple[str, str] | None = None
    #: How many connections Envoy's listeners take.
    outbound: int = 0
    inbound: int = 0
    health: int = 0
    statistics: int = 0


FACTS = {
    "client-app": Fact("app", PASSED_ON, CLIENT, inbound=1),
    "client-health": Fact("ready", health=1),
    "client-statistics": Fact("# TYPE envoy", statistics=1),
    "client-agent": Fact("agent", CLIENT),
    "client-app-side": Fact("app", CLIENT_SIDE),
    "app-server": Fact("server", POD, outbound=1),
    "app-itself": Fact("app", POD),
    "app-localhost": Fact("app", LOCALHOST),
    "app-service": Fact("app", PASSED_ON, POD, outbound=1, inbound=1),
    "app-excluded-port": Fact("server", POD),
    "app-excluded-cidr": Fact("server", POD),
    "app-server-side": Fact("server", POD_SIDE),
    "envoy-server": Fact("server", POD),
    "app-dns-udp": Fact("agent", POD),
    "app-dns-tcp": Fact("agent", POD),
    "agent-dns-udp": Fact("server", POD),
    "agent-dns-tcp": Fact("server", POD),
    "client-app-parallel": Fact("app", PASSED_ON, CLIENT, inbound=PARALLEL),
    "app-server-parallel": Fact("server", POD, outbound=PARALLEL),
}


@pytest.mark.parametrize("family", Family, ids=lambda family: family.value)
@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_path(mode: str, backend: str, name: str, family: Family) -> None:
    """The path goes as the plan predicts, and as it has to in this mode."""
    found = result(ran(Inputs(mode, backend)), name, family)
    assert found.differences == ()
    fact = FACTS[name]
    peers = fact.peer_tproxy if mode == "TPROXY" and fact.peer_tproxy else fact.peer
    peer = peers[family is Family.IPV6]
    for seen in found.seen:
        assert seen.server.startswith(fact.server)
        assert seen.peer == peer
    taken = {name: found.counts.listeners["pod", name] for name in fact._fields[3:]}
    assert taken == {name: getattr(fact, name) for name in taken}


@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_the_whole_lab(mode: str, backend: str) -> None:
    """All paths are taken, in the backend that was asked for."""
    outcome = ran(Inputs(mode, backend))
    assert outcome.as_predicted
    assert {each.path.name for each in outcome.results} == set(FACTS)
    assert len(outcome.results) == 2 * len(FACTS)
    assert outcome.backend == backend


@pytest.mark.parametrize("mode", MODES)
def test_capture_is_counted(mode: str) -> None:
    """A captured connection is counted by the rule that captures it, once for each connection."""
    for family in Family:
        found = result(ran(Inputs(mode)), "client-app-parallel", family)
        (capture,) = (
            place
            for place in found.expected.rules
            if place.chain in {"ISTIO_IN_REDIRECT", "ISTIO_TPROXY"}
        )
        assert found.counts.rules[capture] == PARALLEL


def test_envoy_of_another_user_under_tproxy() -> None:
    """Under TPROXY Envoy is known by its group: any user but the proxy's will do."""
    outcome = run(
        Inputs("TPROXY", envoy_uid=1338), only=["client-app", "app-service", "app-server"]
    )
    assert outcome.as_predicted
    for family, client in zip(Family, CLIENT, strict=True):
        assert result(outcome, "client-app", family).seen[0].peer == client
