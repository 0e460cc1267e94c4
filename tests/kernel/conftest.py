"""Tests with the real kernel are skipped, and say why, where it is not to be had."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.namespaces import sandbox, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _kernel_at_hand() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def box(_kernel_at_hand: None) -> Iterator[None]:
    """The test runs in network and mount namespaces of its own."""
    with sandbox():
        yield
