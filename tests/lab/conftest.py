"""The lab's tests are skipped, and say why, where it can't be built."""

from __future__ import annotations

import pytest

from istio_iptables.errors import KernelRefused
from istio_iptables.lab import envoy
from tests.namespaces import why_not


@pytest.fixture(autouse=True)
def _lab_at_hand(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("kernel") is None:
        return
    reason = why_not()
    try:
        envoy.find()
    except KernelRefused as error:
        reason = reason or error.lines[0]
    if reason:
        pytest.skip(reason)
