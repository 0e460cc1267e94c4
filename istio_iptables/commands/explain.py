"""``istio-iptables explain``: one packet through the rules, and which of them decides."""

from __future__ import annotations

import sys
from typing import Any

import click

from istio_iptables.api.explaining import explain
from istio_iptables.api.packets import PACKET_FIELDS
from istio_iptables.commands.documents import JSON_OPTION, print_json
from istio_iptables.commands.inputs import CAPTURE_SETTINGS
from istio_iptables.commands.load import warn
from istio_iptables.commands.options import Example, SettingsCommand
from istio_iptables.commands.pictures import format_option, picture_format, print_flows
from istio_iptables.commands.sources import SOURCE_OPTIONS, read_asked
from istio_iptables.errors import ExitStatus, UsageProblems
from istio_iptables.text import paint

__all__ = ["command"]


@click.pass_context
def _run(ctx: click.Context, /, **options: Any) -> ExitStatus:  # noqa: ANN401 - click's values
    if options["incoming"] and options["outgoing"]:
        raise UsageProblems(["--in, --out: a packet goes one way: give one of them"])
    picture = picture_format(options)
    way = "inbound" if options["incoming"] else "outbound"
    asked = read_asked(ctx, options, ways=(way,), live_alone=False)
    found = explain(
        asked.plan,
        asked.rules,
        incoming=options["incoming"],
        family=asked.family,
        near=options["near"],
        name=asked.name,
        **{name: options[name] for name in PACKET_FIELDS},
    )
    warn(found.warnings, strict=asked.strict)
    as_json = options["as_json"]
    if asked.strict or not as_json:
        warn([finding.line for finding in found.findings], strict=asked.strict)
    if as_json:
        print_json(found.as_json())
    elif picture:
        from istio_iptables.api.drawing import draw_way  # only a picture needs it

        print_flows(draw_way(found), f"{found.question}: {found.verdict}", picture)
    else:
        *steps, verdict = found.text(near=options["near"]).splitlines()
        sys.stdout.writelines(f"{line}\n" for line in (*steps, paint(verdict, "bold", sys.stdout)))
    return ExitStatus.DONE


def _option(name: str, about: str, metavar: str) -> click.Option:
    return click.Option([f"--{name}"], metavar=metavar, help=about)


command = SettingsCommand(
    CAPTURE_SETTINGS,
    name="explain",
    callback=_run,
    help="Follow one packet through the rules and say which of them decide: the rules of the capture"
    " flags, those of a namespace (--live), or those of a file (--rules).",
    examples=(
        Example(
            "what becomes of a connection of the application?",
            "istio-iptables explain -i '*' -b '*' --dst 93.184.216.34:443",
        ),
        Example(
            "what becomes of one that arrives, by the rules in the kernel?",
            "istio-iptables explain --live --in --dst 10.0.0.1:8080",
        ),
        Example(
            "what becomes of a DNS query, by saved rules, and why not otherwise?",
            "istio-iptables explain --rules saved.rules --proto udp --dst 10.96.0.10:53 -v",
        ),
    ),
    epilog="Exit status: 0 answered; 2 it can't be told, or the command line is wrong.",
    more=(
        *SOURCE_OPTIONS,
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
            "ctstate",
            "The state of its connection.  [default: NEW]",
            "NEW|ESTABLISHED|RELATED|INVALID|UNTRACKED",
        ),
        click.Option(
            ["-v", "--verbose", "near"],
            is_flag=True,
            help="Also why the rules that nearly matched did not.",
        ),
        format_option(),
        JSON_OPTION,
    ),
)
