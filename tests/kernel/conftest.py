"""Tests with the real kernel are skipped, and say why, where it is not to be had."""

from __future__ import annotations

import pytest

from tests.kernel.netns import why_not


@pytest.fixture(autouse=True)
def _kernel_at_hand() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)
