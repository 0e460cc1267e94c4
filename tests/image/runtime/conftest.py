"""The images of pods, in the store of containerd; tests are skipped, and say why, without one."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from istio_iptables.errors import KernelRefused
from istio_iptables.lab import envoy
from tests.image.runtime.node import load_images, why_not
from tests.image.runtime.standins import ALSO, write_images

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.image.images import Store


@pytest.fixture(scope="session")
def node_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
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
    folder = tmp_path_factory.mktemp("node")
    load_images(folder / "containerd", write_images(store, ours, folder), ALSO)
    yield folder / "containerd"
    # Layers hold files that only root may remove, and pytest keeps folders of three runs.
    subprocess.run(["rm", "-rf", str(folder)], check=True)
