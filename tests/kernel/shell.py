"""A shell in a network namespace of its own, for tests that are easiest read as commands."""

from __future__ import annotations

import subprocess
import sys

__all__ = ["inside"]

_PROGRAM = f"{sys.executable} -m istio_iptables"
_START = "ip link set lo up; ip address add 10.0.0.1/32 dev lo; ip address add fd00::1/128 dev lo\n"


def inside(script: str) -> subprocess.CompletedProcess[str]:
    """What the shell does in a namespace with one address of each family."""
    return subprocess.run(
        ["unshare", "--net", "sh", "-c", _START + script.replace("istio-iptables", _PROGRAM)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
