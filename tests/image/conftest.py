"""The image is built once; its tests are skipped, and say why, where it can't be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from istio_iptables.lab import syscalls as kernelcalls
from tests.image.images import Store, make_base, why_not

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in memory: images are a gigabyte of small files, and removing them takes a disk long.

    It is mounted for this process and its children only, so it is gone after them.
    """
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("images")
    kernelcalls.unshare(kernelcalls.NEW_MOUNTS)
    kernelcalls.make_mounts_private()
    kernelcalls.mount("tmpfs", str(folder))
    return folder


@pytest.fixture(scope="session")
def store(room: Path, pytestconfig: pytest.Config) -> Store:
    """A store that has the base image."""
    assert pytestconfig.cache is not None
    folder = room / "store"
    folder.mkdir()
    made = Store(folder)
    made.load_base(make_base(pytestconfig.cache.mkdir("image"), room))
    return made


@pytest.fixture(scope="session")
def image(store: Store) -> str:
    """The id of the image that our Dockerfile makes."""
    return store.build("istio-iptables:test")


@pytest.fixture(scope="session")
def root(store: Store, image: str) -> Path:
    """The root file system of the image."""
    return store.unpack(image)
