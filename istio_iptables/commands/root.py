"""The command line for everything that a person types: click's help, commands and suggestions."""

from __future__ import annotations

import signal

import click

from istio_iptables import __version__
from istio_iptables.commands.apply import ready
from istio_iptables.commands.load import PROGRAM
from istio_iptables.commands.options import Example, SettingsCommand, Subcommand, split_extra
from istio_iptables.commands.pod import POD_OPTIONS, read_pod
from istio_iptables.errors import ExitStatus, UsageProblems
from istio_iptables.interrupts import Interrupted

__all__ = ["root", "run"]


def run(args: list[str]) -> int | None:
    """Do what *args* say; returns the exit status, None for 0.

    What click raises comes as UsageProblems or Interrupted.
    """
    try:
        status: int | None = root.main(args=args, prog_name=PROGRAM, standalone_mode=False)
    except click.UsageError as error:
        raise UsageProblems([error.format_message()]) from error
    except click.Abort as error:
        raise Interrupted(signal.SIGINT) from error
    except SystemExit as error:
        # A shell's question about completion is answered.
        return int(error.code or 0)
    return status


@click.pass_context
def _run(ctx: click.Context, /, **options: object) -> ExitStatus | None:
    if ctx.invoked_subcommand is not None:
        return None
    return ready(ctx.obj, split_extra(ctx), read_pod(options))()


def _show_version(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:  # noqa: FBT001 - click calls it so
    if asked:
        print(f"{PROGRAM}, version {__version__}")
        ctx.exit()


root = SettingsCommand(
    name=PROGRAM,
    callback=_run,
    elsewhere={
        "check": Subcommand(
            "istio_iptables.commands.check",
            "Say what is wrong in a namespace or with rules, and what to do about it.",
        ),
        "clean": Subcommand(
            "istio_iptables.commands.clean", "Remove our rules, routes and address again."
        ),
        "compare": Subcommand(
            "istio_iptables.commands.compare",
            "Compare two settings or rulesets, and say which traffic they treat differently.",
        ),
        "describe": Subcommand(
            "istio_iptables.commands.describe",
            "Say which command line made the rules that are there, and what each is for.",
        ),
        "diff": Subcommand(
            "istio_iptables.commands.diff",
            "Compare the rules of a namespace or a file with those of the flags.",
        ),
        "explain": Subcommand(
            "istio_iptables.commands.explain",
            "Follow one packet through the rules, and say where it ends and why.",
        ),
        "inject": Subcommand(
            "istio_iptables.commands.inject",
            "Print a manifest with what Istio's injector adds to its pods.",
        ),
        "lab": Subcommand(
            "istio_iptables.commands.lab",
            "Try the rules on a throw-away pod with a real Envoy, and show what happens.",
        ),
        "matrix": Subcommand(
            "istio_iptables.commands.matrix",
            "Show what the rules do with all traffic, at a glance.",
        ),
        "report": Subcommand(
            "istio_iptables.commands.report",
            "Write one page about rules: settings, picture, traffic, findings, a packet to follow.",
        ),
        "webhook": Subcommand(
            "istio_iptables.commands.webhook",
            "Inject the pods of a cluster, as its admission webhook.",
        ),
    },
    more=POD_OPTIONS,
    help="Redirect a pod's traffic to Envoy: make Istio's iptables rules, and install or print them.",
    examples=(
        Example(
            "install what Istio's injection installs in a pod",
            "istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -b '*' -d 15090,15021,15020",
        ),
        Example(
            "print the rules, each with its reason; nothing is changed",
            "istio-iptables -i '*' -b '*' --dry-run --format annotated",
        ),
        Example(
            "print the rules that a pod with Istio's annotations gets",
            "istio-iptables --pod web.yaml --dry-run",
        ),
    ),
    epilog="Exit status: 0 done, or already so; 1 failed, or differs; 2 the command line is wrong;"
    " 126 validation failed.",
)
root.params.append(
    click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_version,
        help="Show the version and exit.",
    )
)
