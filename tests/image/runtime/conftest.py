"""The images of pods, in the store of containerd; tests are skipped, and say why, without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from istio_iptables.errors import KernelRefused
from istio_iptables.lab import envoy
from tests.image.runtime.node import load_images, why_not
from tests.image.runtime.standins import ALSO, write_images

if TYPE_CHECKING:
    from pathlib import Path

    from tests.image.images import Store


@pytest.fixture(scope="session")
def node_store(request: pytest.FixtureRequest) -> Path:
    """Where nodes find their images."""
    reason = why_not()
    try:
        envoy.find()
    except KernelRefused as error:
        reason = reason or error.lines[0]
    if reason:
        pytest.skip(reason)
    store: Store = request.getfixturevalue("store")
    ours: str = request.getfixturevalue("image")
    room: Path = request.getfixturevalue("room")
    folder = room / "node"
    folder.mkdir()
    load_images(folder / "containerd", write_images(store, ours, folder), ALSO)
    return folder / "containerd"
