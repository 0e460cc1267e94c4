"""The program: read the settings, call one function, print what it says."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from istio_iptables import __version__
from istio_iptables.builder import build
from istio_iptables.commandline import SettingsCommand, flags_given, split_extra
from istio_iptables.errors import ExitStatus, IstioIptablesError, UsageProblems
from istio_iptables.kernel.host import Host
from istio_iptables.netfilter import formats
from istio_iptables.netfilter.model import Family
from istio_iptables.settings.config import Config, configure
from istio_iptables.settings.sources import Value, gather

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from istio_iptables.netfilter.plan import Plan

__all__ = ["main"]

PROGRAM = "istio-iptables"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with *arguments* (those of the process by default); returns the exit status.

    Results go to stdout; every problem is one line on stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # both are text files
    try:
        status = root.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except IstioIptablesError as error:
        _tell("error", error.lines)
        return error.status
    except click.UsageError as error:
        _tell("error", (error.format_message(),))
        return ExitStatus.USAGE
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.FAILED
    except KeyboardInterrupt:
        _tell("error", ("interrupted",))
        return ExitStatus.FAILED
    return int(status or ExitStatus.DONE)


def _tell(kind: str, lines: Iterable[str]) -> None:
    for line in lines:
        print(f"{PROGRAM}: {kind}: {line}", file=sys.stderr)


@click.pass_context
def _run(ctx: click.Context, /, **_: object) -> ExitStatus | None:
    if ctx.invoked_subcommand is not None:
        return None
    config, values = _configured(flags_given(ctx), split_extra(ctx.args), os.environ)
    plan = build(config)
    if config.dry_run:
        _print(plan, config, values)
        return ExitStatus.DONE
    from istio_iptables.kernel.install import install  # a dry run needs none of it

    _tell("info", install(plan, config))
    return ExitStatus.DONE


def _configured(
    flags: Mapping[str, str], extra: list[str], environ: Mapping[str, str]
) -> tuple[Config, dict[str, Value]]:
    """The settings, all their problems raised together, their warnings told."""
    values, warnings = gather(flags, environ)
    try:
        config, more = configure(
            values, Host(), envoy_user=environ.get("ENVOY_USER") or "istio-proxy"
        )
    except UsageProblems as error:
        raise UsageProblems([*extra, *error.lines]) from None
    if extra:
        raise UsageProblems(extra)
    warnings += more
    if config.strict and warnings:
        raise UsageProblems([f"{warning} (--strict)" for warning in warnings])
    _tell("warning", warnings)
    if config.verbose:
        _tell(
            "setting",
            (
                f"{value.setting.label} = {_effective(value, config)!r} ({value.source})"
                for value in values.values()
            ),
        )
    return config, values


def _effective(value: Value, config: Config) -> str:
    """The text of a setting in force: what was given, or what its default came to."""
    name = value.setting.name
    if value.given or value.text or name not in {"proxy_uid", "proxy_gid"}:
        return value.text
    return ",".join(map(str, config.proxy_uids if name == "proxy_uid" else config.proxy_gids))


def _print(plan: Plan, config: Config, values: Mapping[str, Value]) -> None:
    if config.only:
        plan = plan.only(Family(config.only))
    if config.format == "json":
        import json  # no other format needs it

        document = {
            "version": 1,
            "settings": {
                name: {
                    "value": _effective(value, config),
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
    sys.stdout.write(text)


def _show_version(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:  # noqa: FBT001 - click calls it so
    if asked:
        print(f"{PROGRAM}, version {__version__}")
        ctx.exit()


root = SettingsCommand(
    name=PROGRAM,
    callback=_run,
    help="Bend a pod's traffic through Envoy: make Istio's iptables rules, and install or print them.",
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
