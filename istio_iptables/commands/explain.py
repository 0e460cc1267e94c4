"""``istio-iptables explain``: one packet through the rules, and which of them decides."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from istio_iptables.api.explaining import explain
from istio_iptables.api.rules import LIVE
from istio_iptables.commands.inputs import (
    CAPTURE_SETTINGS,
    read_inputs,
    read_rules,
    require_namespace,
)
from istio_iptables.commands.load import Purpose, warn
from istio_iptables.commands.options import SettingsCommand, flags_given
from istio_iptables.commands.pod import POD_OPTIONS, read_pod
from istio_iptables.errors import ExitStatus, UsageProblems
from istio_iptables.netfilter.model import Family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_iptables.api.capture import Plan
    from istio_iptables.api.explanation import Explanation

__all__ = ["command"]

_PACKET_OPTIONS = ("proto", "src", "dst", "iface", "uid", "gid", "mark", "connmark", "ctstate")


@click.pass_context
def _run(ctx: click.Context, /, **options: Any) -> ExitStatus:  # noqa: ANN401 - click's values
    path = options["rules"]
    namespace = flags_given(ctx).get("network_namespace")
    live = options["live"] or bool(namespace or os.environ.get("NETWORK_NAMESPACE"))
    _check(options, namespace)
    if path is None:
        require_namespace(ctx)
    way = "inbound" if options["incoming"] else "outbound"
    # Somebody else's rules: the family of the plan must not depend on this machine.
    plan = read_inputs(
        ctx,
        either_family=path is not None,
        given=read_pod(options),
        purpose=Purpose((way,) if path is None and not live else (), follow=False),
    )
    rules = LIVE if live else None
    found = explain(
        plan,
        rules if path is None else read_rules(path, options["family"]),
        incoming=options["incoming"],
        family=Family(options["family"]) if options["family"] else None,
        near=options["near"],
        name="stdin" if path == "-" else path or "",
        **{name: options[name] for name in _PACKET_OPTIONS},
    )
    _print(found, plan, as_json=options["as_json"], near=options["near"])
    return ExitStatus.DONE


def _check(options: Mapping[str, Any], namespace: str | None) -> None:
    """Refuse options that say two things at once."""
    if options["incoming"] and options["outgoing"]:
        raise UsageProblems(["--in, --out: a packet goes one way: give one of them"])
    if options["rules"] is not None and (options["live"] or namespace):
        raise UsageProblems(["--rules: the rules are the file's, or live ones: give one of them"])


def _print(found: Explanation, plan: Plan, *, as_json: bool, near: bool) -> None:
    strict = plan.config.strict
    warn(found.warnings, strict=strict)
    if strict or not as_json:
        warn([finding.line for finding in found.findings], strict=strict)
    if as_json:
        import json  # no other format needs it

        sys.stdout.write(json.dumps(found.as_json(), indent=2) + "\n")
    else:
        sys.stdout.write(found.text(near=near))


def _option(name: str, about: str, metavar: str) -> click.Option:
    return click.Option([f"--{name}"], metavar=metavar, help=about)


command = SettingsCommand(
    CAPTURE_SETTINGS,
    name="explain",
    callback=_run,
    help="Follow one packet through the rules and say which of them decide: the rules of the capture"
    " flags, those of a namespace (--live), or those of a file (--rules).",
    epilog="Exit status: 0 answered; 2 it can't be told, or the command line is wrong.",
    more=(
        *POD_OPTIONS,
        click.Option(["--in", "incoming"], is_flag=True, help="A packet that arrives at the pod."),
        click.Option(
            ["--out", "outgoing"], is_flag=True, help="A packet that a process sends (the default)."
        ),
        _option("proto", "Its protocol: a name or a number.  [default: tcp]", "PROTOCOL"),
        _option(
            "src",
            "Where it comes from: 10.0.0.1:4000, [fd00::1]:4000, an address alone.",
            "ADDR[:PORT]",
        ),
        _option("dst", "Where it is to go.", "ADDR[:PORT]"),
        _option("iface", "The interface: out of lo for an address of the pod, else eth0.", "NAME"),
        _option("uid", "The user of the process that sends it.  [default: 1000]", "UID"),
        _option("gid", "The group of that process.  [default: the uid]", "GID"),
        _option("mark", "The packet's mark.  [default: 0]", "NUMBER"),
        _option(
            "connmark", "The connection's mark.  [default: 0 for a new one, else unknown]", "NUMBER"
        ),
        _option(
            "ctstate", "NEW, ESTABLISHED, RELATED, INVALID or UNTRACKED.  [default: NEW]", "STATE"
        ),
        click.Option(
            ["--live"], is_flag=True, help="The rules in the kernel, not those of the flags."
        ),
        _option("rules", "The rules of this file of iptables-save's text; - is stdin.", "FILE"),
        click.Option(
            ["--family"],
            type=click.Choice([each.value for each in Family]),
            help="The family of that file, if its comments and addresses don't tell.",
        ),
        click.Option(
            ["-v", "--verbose", "near"],
            is_flag=True,
            help="Also why the rules that nearly matched did not.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ),
)
