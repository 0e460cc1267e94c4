"""``istio-iptables describe``: by which settings rules were made, and what each is for."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from istio_iptables.api.describing import describe
from istio_iptables.api.drawing import draw_description
from istio_iptables.commands.documents import JSON_OPTION, print_json
from istio_iptables.commands.inputs import CAPTURE_SETTINGS
from istio_iptables.commands.load import warn
from istio_iptables.commands.options import Example, SettingsCommand, flags_given
from istio_iptables.commands.pictures import format_option, picture_format, print_flows
from istio_iptables.commands.sources import SOURCE_OPTIONS, read_asked, settings_given
from istio_iptables.errors import ExitStatus, UsageProblems

__all__ = ["command"]


@click.pass_context
def _run(ctx: click.Context, /, **options: Any) -> ExitStatus:  # noqa: ANN401 - click's values
    there = {
        "--rules": options["rules"] is not None,
        "--live": options["live"],
        "--network-namespace": flags_given(ctx).get("network_namespace"),
        "NETWORK_NAMESPACE": os.environ.get("NETWORK_NAMESPACE"),
    }
    if any(there.values()) and settings_given(ctx, options, environ=False):
        name = next(name for name, given in there.items() if given)
        raise UsageProblems(
            [f"{name}: names rules that are there, and flags or a manifest others: give one"]
        )
    picture = picture_format(options)
    asked = read_asked(ctx, options)
    # A plan has routes as well, which its rules alone don't tell.
    rules = asked.plan if asked.rules is None and asked.plan is not None else asked.there
    found = describe(rules, family=asked.family, name=asked.name)
    warn(found.warnings, strict=asked.strict)
    if options["as_json"]:
        print_json(found.as_json())
    elif picture:
        print_flows(draw_description(found), found.verdict, picture)
    else:
        sys.stdout.write(found.text())
    return ExitStatus.DONE if found.complete else ExitStatus.FAILED


command = SettingsCommand(
    CAPTURE_SETTINGS,
    name="describe",
    callback=_run,
    help="Say which command line makes the rules that are there, what each of them is for, and what"
    " that command line does not explain: the rules of this namespace, of another one"
    " (--network-namespace), of a file (--rules), of a manifest (--pod) or of the flags.",
    examples=(
        Example("describe the rules of this namespace", "istio-iptables describe"),
        Example(
            "describe what a process's pod has",
            "istio-iptables describe --network-namespace /proc/4711/ns/net",
        ),
        Example(
            "describe rules that were saved elsewhere, with their counters",
            "istio-iptables describe --rules pod.save",
        ),
    ),
    epilog="Exit status: 0 the command line explains every rule; 1 there are no rules of ours, or"
    " rules that it does not explain; 2 it can't be told, or the command line is wrong.",
    more=(*SOURCE_OPTIONS, format_option(), JSON_OPTION),
)
