"""The gateways of the mesh, and a caller with and without a sidecar."""

from __future__ import annotations

import pytest

from istio_iptables.netfilter.model import Family
from tests.lab.labs import ALL_BACKENDS, MODES, Inputs, ran, result

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", Family, ids=lambda family: family.value)
class TestGateways:
    """Each request names the proxies that handled it, in order."""

    def test_ingress(self, mode: str, backend: str, family: Family) -> None:
        """Outside, ingress gateway, sidecar, application."""
        found = result(ran(Inputs(mode, backend, "ingress")), "outside-app", family)
        assert found.differences == ()
        assert found.seen[0].hops == ("ingress gateway", "pod inbound")
        if mode == "TPROXY":
            assert found.seen[0].peer in {"10.77.0.50", "fd77::50"}

    def test_egress(self, mode: str, backend: str, family: Family) -> None:
        """Application, sidecar, egress gateway, a server outside that sees the gateway."""
        found = result(ran(Inputs(mode, backend, "egress")), "app-outside", family)
        assert found.differences == ()
        assert found.seen[0].hops == ("pod outbound", "egress gateway")
        assert found.seen[0].peer in {"10.77.0.60", "fd77::60"}

    def test_the_callers_sidecar_decides(self, mode: str, backend: str, family: Family) -> None:
        """The mesh's rule on paths is carried out by the caller's sidecar, or by nobody."""
        outcome = ran(Inputs(mode, backend, "plain-client"))
        with_sidecar = result(outcome, "caller-app", family)
        without = result(outcome, "plain-app", family)
        assert with_sidecar.differences == without.differences == ()
        assert with_sidecar.seen[0].hops == ("caller outbound", "pod inbound")
        assert with_sidecar.seen[0].path == "/v2/reviews"
        assert without.seen[0].hops == ("pod inbound",)
        assert without.seen[0].path == "/v1/reviews"
