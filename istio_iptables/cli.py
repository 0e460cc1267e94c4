"""The program: read the settings, call one function, print what it says."""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from istio_iptables import __version__, interrupts
from istio_iptables.commands.load import PROGRAM, effective_text, load_config, tell, warn
from istio_iptables.commands.options import SettingsCommand, Subcommand, flags_given, split_extra
from istio_iptables.errors import ExitStatus, IstioIptablesError
from istio_iptables.interrupts import TRACEBACK, Interrupted
from istio_iptables.netfilter import formats
from istio_iptables.netfilter.model import Family
from istio_iptables.streams import OutputFailed, standard_streams
from istio_iptables.text import write_exactly

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from istio_iptables.netfilter.model import Ruleset
    from istio_iptables.netfilter.plan import Plan
    from istio_iptables.settings.config import Config
    from istio_iptables.settings.sources import Value

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with *arguments* (those of the process by default); returns the exit status.

    Results go to stdout; every problem is one line on stderr.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == [PROGRAM]:
        # Istio's pods start it as a subcommand of the image's pilot-agent.
        del given[0]
    with standard_streams():
        try:
            with interrupts.raised():
                status = root.main(args=given, prog_name=PROGRAM, standalone_mode=False)
                sys.stdout.flush()
        except BaseException as error:
            if os.environ.get(TRACEBACK):
                raise
            status = _status_of(error)
            # Of these two, 1 is an answer, which nobody has who could not finish.
            unanswered = status == ExitStatus.FAILED and given[:1] in (["diff"], ["explain"])
            return ExitStatus.USAGE if unanswered else status
    return int(status or ExitStatus.DONE)


def _status_of(error: BaseException) -> int:
    """The exit status for what was raised, which is told in clear lines."""
    if isinstance(error, Interrupted | KeyboardInterrupt | click.Abort):
        # What had failed before it came has to be known as well.
        before = error.__context__
        tell("error", before.lines if isinstance(before, IstioIptablesError) else ())
        tell("error", ("interrupted",))
        return (error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)).status
    if isinstance(error, OutputFailed) and error.reader_gone:
        # Whoever read our output has seen enough; keep Python from complaining at exit.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.FAILED
    if isinstance(error, IstioIptablesError):
        tell("error", error.lines)
        return error.status
    if isinstance(error, click.UsageError):
        tell("error", (error.format_message(),))
        return ExitStatus.USAGE
    tell("error", (_unforeseen(error),))
    return ExitStatus.FAILED


def _unforeseen(error: BaseException) -> str:
    """A line about an exception that nobody has turned into one."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "out of memory"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or _place(error)}: {error.strerror}"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, ImportError):
        return f"a package can't be loaded: {text} ({_place(error)})"
    return f"internal error: {text} ({_place(error)}; please report it, with ${TRACEBACK}=1)"


def _place(error: BaseException) -> str:
    """The innermost function of ours that the exception went through."""
    place, trace = "", error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if not place or module.partition(".")[0] == __package__:
            place = f"{module}.{trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return place


@click.pass_context
def _run(ctx: click.Context, /, **_: object) -> ExitStatus | None:
    if ctx.invoked_subcommand is not None:
        return None
    config, values, plan = load_config(flags_given(ctx), split_extra(ctx), os.environ)
    if config.dry_run:
        _print(plan, config, values)
        return ExitStatus.DONE
    _apply(plan, config)
    return ExitStatus.DONE


def _note(line: str) -> None:
    tell("info", (line,))


class _NodeCheck:
    """Warns, once, of a network namespace that is a node's and no pod's."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._looked = False

    def __call__(self, rulesets: Sequence[Ruleset]) -> None:
        from istio_iptables.kernel.node import signs

        if self._looked:
            return
        self._looked = True
        found = signs(rulesets)
        if found:
            where = self._config.network_namespace or "this network namespace"
            line = (
                f"{where} looks like a machine's own and no pod's ({found}): with these rules all"
            )
            warn([f"{line} of the machine's traffic goes to Envoy"], strict=self._config.strict)


def _apply(plan: Plan, config: Config) -> None:
    from istio_iptables.istio.ownership import OWNERSHIP  # a dry run needs none of it
    from istio_iptables.kernel.install import InstallOptions, clean, install

    where = InstallOptions(config.network_namespace, config.backend, config.cni_mode)
    if config.cleanup_only:
        clean(OWNERSHIP, _note, where)
    elif not config.skip_rule_apply:
        install(
            plan,
            OWNERSHIP,
            _note,
            where,
            replace=config.reconcile or config.force_apply,
            look=_NodeCheck(config),
        )
    if config.run_validation:
        from istio_iptables.kernel.probe import Probe, validate

        validate(
            Probe(
                tuple(ruleset.family for ruleset in plan.rulesets),
                (config.envoy_port, config.inbound_capture_port),
                config.probe_port,
                config.proxy_uids,
                config.proxy_gids,
                config.probe_timeout,
                plan.routes,
            ),
            _note,
            namespace=config.network_namespace,
        )


def _print(plan: Plan, config: Config, values: Mapping[str, Value]) -> None:
    if config.only:
        plan = plan.only(Family(config.only))
    if config.format == "json":
        import json  # no other format needs it

        document = {
            "version": 1,
            "settings": {
                name: {
                    "value": effective_text(value, config),
                    "source": value.origin.value,
                    "variable": value.variable or None,
                }
                for name, value in values.items()
            },
            **formats.as_json(plan),
        }
        text = json.dumps(document, indent=2) + "\n"
    else:
        render = {
            "save": formats.save,
            "restore": formats.restore,
            "commands": formats.commands,
            "annotated": formats.annotated,
        }[config.format]
        text = render(plan)
    write_exactly(text)


def _show_version(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:  # noqa: FBT001 - click calls it so
    if asked:
        print(f"{PROGRAM}, version {__version__}")
        ctx.exit()


root = SettingsCommand(
    name=PROGRAM,
    callback=_run,
    elsewhere={
        "clean": Subcommand(
            "istio_iptables.commands.clean", "Remove our rules, routes and address again."
        ),
        "diff": Subcommand(
            "istio_iptables.commands.diff",
            "Compare the rules of a namespace or a file with those of the flags.",
        ),
        "explain": Subcommand(
            "istio_iptables.commands.explain",
            "Follow one packet through the rules, and say where it ends and why.",
        ),
        "lab": Subcommand(
            "istio_iptables.commands.lab",
            "Try the rules on a throw-away pod with a real Envoy, and show what happens.",
        ),
    },
    help="Redirect a pod's traffic to Envoy: make Istio's iptables rules, and install or print them.",
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
