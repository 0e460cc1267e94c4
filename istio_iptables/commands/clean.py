"""``istio-iptables clean``: remove our rules, without knowing how they were installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from istio_iptables.commands.apply import CLEAN_SETTINGS, clean_ready
from istio_iptables.commands.options import Example, SettingsCommand, split_extra

if TYPE_CHECKING:
    from istio_iptables.errors import ExitStatus

__all__ = ["command"]


@click.pass_context
def _run(ctx: click.Context, /, **_: object) -> ExitStatus:
    return clean_ready(ctx.obj, split_extra(ctx))()


command = SettingsCommand(
    CLEAN_SETTINGS,
    name="clean",
    callback=_run,
    help="Remove our rules of both backends and families and native nftables ones, their routes and"
    " their address. What is"
    " ours is told from the rules themselves, so the flags of the installation are not needed;"
    " rules of others stay as they are.",
    examples=(
        Example(
            "in the present network namespace",
            "istio-iptables clean",
        ),
        Example(
            "in a namespace that has a name",
            "istio-iptables clean --network-namespace blue",
        ),
        Example(
            "in the namespace of a process",
            "istio-iptables clean --network-namespace /proc/4711/ns/net",
        ),
    ),
)
