"""Connections while rules are replaced: every one is captured, none refused, none escapes."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.kernel.flow import (
    APPLICATION,
    INBOUND,
    INSIDE,
    OUTBOUND,
    OUTSIDE,
    calling,
    peer,
    serving,
)
from tests.kernel.sandbox import install
from tests.namespaces import ALL_BACKENDS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

_ALL = ("-i", "*", "-b", "*", "--ip-family", "ipv4", "--reconcile")
PLAIN = (*_ALL, "-d", "15090,15021,15020")
OTHER = (*_ALL, "-d", "15090", "-o", "9000", "-x", "10.99.0.0/16", "-c", "eth7", "-k", "net1")
TPROXY = (*PLAIN, "-m", "TPROXY")

#: How many replaces, and how many connections at least are made meanwhile.
TIMES = {"legacy": 200, "nft": 200, "native": 60}
LEAST = 500


def connections(
    backend: str, one: tuple[str, ...], two: tuple[str, ...], folder: Path, times: int
) -> dict[str, dict[str, int]]:
    """Replace one configuration by the other and back; what became of connections in and out."""
    out, into = folder / "out", folder / "in"
    with peer() as outside, serving(OUTBOUND, INBOUND, APPLICATION):
        assert install(backend, *one).status == 0
        with calling(OUTSIDE, out), calling(INSIDE, into, namespace=outside):
            time.sleep(0.1)
            for number in range(times):
                result = install(backend, *((two, one)[number % 2]))
                assert (result.status, result.errors) == (0, [])
            time.sleep(0.1)
    return {"out": json.loads(out.read_text()), "in": json.loads(into.read_text())}


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_every_connection_is_captured_while_rules_are_replaced(
    backend: str, tmp_path: Path
) -> None:
    """Many replaces: what goes out ends at 15001, what comes in at 15006, and nothing elsewhere."""
    seen = connections(backend, PLAIN, OTHER, tmp_path, TIMES[backend])
    assert list(seen["out"]) == [str(OUTBOUND)], seen
    assert list(seen["in"]) == [str(INBOUND)], seen
    assert min(seen["out"][str(OUTBOUND)], seen["in"][str(INBOUND)]) >= LEAST


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_from_redirect_to_tproxy_and_back(backend: str, tmp_path: Path) -> None:
    """Inbound capture changes its table: between the two, connections are captured by one of them."""
    seen = connections(backend, PLAIN, TPROXY, tmp_path, 60)
    assert list(seen["out"]) == [str(OUTBOUND)], seen
    assert list(seen["in"]) == [str(INBOUND)], seen
