"""A browser that looks at what is made: Debian's Chromium, driven by selenium."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome

#: Where .ci/setup puts the scripts that only tests use.
SCRIPTS = Path(sys.prefix)
_QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Chrome]:
    """Chromium without a window; what its pages' scripts complain of is in its log."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = chromium
    for each in _QUIET:
        options.add_argument(each)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options=options, service=ChromeService(driver)) as started:
        yield started


def script(name: str) -> str:
    """The text of a script that .ci/setup has brought; the test is skipped without it."""
    path = SCRIPTS / name
    if not path.exists():
        pytest.skip(f"{path} is not there: .ci/setup brings it")
    return path.read_text(encoding="utf-8")
