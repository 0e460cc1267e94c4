"""``istio-iptables diff``."""

from __future__ import annotations

from istio_iptables.commandline import SettingsCommand
from istio_iptables.errors import UsageProblems

__all__ = ["command"]


def _run(**_: object) -> None:
    raise UsageProblems(["diff: this command is being built"])


command = SettingsCommand(name="diff", callback=_run, hidden=True)
