"""The image is built once; its tests are skipped, and say why, where it can't be."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.image.images import Store, make_base, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Store]:
    """A store that has the base image."""
    if reason := why_not():
        pytest.skip(reason)
    assert pytestconfig.cache is not None
    folder = tmp_path_factory.mktemp("images")
    made = Store(folder)
    made.load_base(make_base(pytestconfig.cache.mkdir("image")))
    yield made
    made.buildah("umount", "--all")
    # Layers hold files that only root may remove, and pytest keeps folders of three runs.
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture(scope="session")
def image(store: Store) -> str:
    """The id of the image that our Dockerfile makes."""
    return store.build("istio-iptables:test")


@pytest.fixture(scope="session")
def root(store: Store, image: str) -> Path:
    """The root file system of the image."""
    return store.unpack(image)
