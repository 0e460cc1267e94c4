"""What is told where python-iptables is not installed."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.sandbox import process

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

ROOT = Path(__file__).parent.parent.parent
MAIN = "from istio_iptables.cli import main; raise SystemExit(main())"


def _packages(folder: Path, names: Iterable[str]) -> str:
    """A folder that holds these packages alone, as a path to import from."""
    for name in names:
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        (folder / name).symlink_to(Path(spec.origin).parent)
    return os.pathsep.join((str(folder), str(ROOT)))


@pytest.mark.parametrize(("backend", "status"), [("legacy", 1), ("nft", 0)])
def test_python_iptables_is_missing(tmp_path: Path, backend: str, status: int) -> None:
    """It is named with what to do, and not Debian's package; the nft backend does without."""
    path = _packages(tmp_path, ("click", "pyroute2"))
    flags = ("-i", "*", "-b", "*", "--ip-family", "ipv4", "--force-iptables-binary", backend)
    # Without -S the packages of this environment would be found.
    done = process(sys.executable, "-S", "-c", MAIN, *flags, environment={"PYTHONPATH": path})
    assert done.status == status, done.err
    errors = [line for line in done.err.splitlines() if "error" in line]
    told = (
        "istio-iptables: error: python-iptables is not installed for this Python: pip install"
        " python-iptables, or use the other backend: --force-iptables-binary nft"
    )
    assert errors == ([told] if status else [])
