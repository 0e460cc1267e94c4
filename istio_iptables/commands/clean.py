"""``istio-iptables clean``: remove our rules, without knowing how they were installed."""

from __future__ import annotations

import os

import click

from istio_iptables.api.installing import clean
from istio_iptables.commands.load import tell
from istio_iptables.commands.options import SettingsCommand, flags_given, split_extra
from istio_iptables.errors import ExitStatus, UsageProblems
from istio_iptables.kernel.host import Host
from istio_iptables.settings.converters import Names
from istio_iptables.settings.declarations import setting
from istio_iptables.settings.sources import convert, gather

__all__ = ["command"]

_SETTINGS = tuple(map(setting, ("network_namespace", "cni_mode", "force_iptables_binary")))


@click.pass_context
def _run(ctx: click.Context, /, **_: object) -> ExitStatus:
    values, warnings = gather(flags_given(ctx), os.environ, _SETTINGS)
    fields, problems = convert(values, Names(Host().uid, Host().gid))
    if wrong := [*split_extra(ctx), *problems]:
        raise UsageProblems(wrong)
    tell("warning", warnings)
    clean(
        namespace=str(fields["network_namespace"]),
        backend=str(fields["force_iptables_binary"]),
        pod_lock=bool(fields["cni_mode"]),
        tell=lambda line: tell("info", (line,)),
    )
    return ExitStatus.DONE


command = SettingsCommand(
    _SETTINGS,
    name="clean",
    callback=_run,
    help="Remove our rules of both backends and families, their routes and their address. What is"
    " ours is told from the rules themselves, so the flags of the installation are not needed;"
    " rules of others stay as they are.",
)
