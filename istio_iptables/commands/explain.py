"""``istio-iptables explain``."""

from __future__ import annotations

from istio_iptables.commandline import SettingsCommand
from istio_iptables.errors import UsageProblems

__all__ = ["command"]


def _run(**_: object) -> None:
    raise UsageProblems(["explain: this command is being built"])


command = SettingsCommand(name="explain", callback=_run, hidden=True)
