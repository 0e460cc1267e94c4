"""``istio-iptables lab``: a throw-away pod with a real Envoy, and what the rules do to traffic."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from istio_iptables.commands.documents import JSON_OPTION, print_json
from istio_iptables.commands.inputs import CAPTURE_SETTINGS
from istio_iptables.commands.load import warn
from istio_iptables.commands.options import Example, SettingsCommand, flags_given, split_extra
from istio_iptables.commands.pictures import format_option, picture_format, print_sequences
from istio_iptables.commands.pod import POD_OPTIONS, read_pod
from istio_iptables.errors import ExitStatus, UsageProblems
from istio_iptables.istio.native import build_native
from istio_iptables.istio.ownership import OWNERSHIP
from istio_iptables.istio.plan import build
from istio_iptables.kernel.host import ThisHost
from istio_iptables.netfilter.model import Family
from istio_iptables.settings.config import StandIn, configure
from istio_iptables.settings.declarations import SETTINGS
from istio_iptables.settings.sources import gather
from istio_iptables.text import write_exactly

if TYPE_CHECKING:
    from collections.abc import Mapping

    from click.shell_completion import CompletionItem

    from istio_iptables.commands.load import Given
    from istio_iptables.lab.runner import LabOutcome, Up
    from istio_iptables.lab.scenarios import Scenario
    from istio_iptables.netfilter.plan import DesiredState
    from istio_iptables.settings.config import Config
    from istio_iptables.settings.sources import Value

__all__ = ["command", "lab_config"]

#: The lab has its own namespaces and its own DNS servers.
_SETTINGS = tuple(
    each for each in CAPTURE_SETTINGS if each.name not in {"network_namespace", "resolv_conf"}
)
_NATIVE = "native"


def lab_config(
    flags: Mapping[str, str],
    environ: Mapping[str, str],
    beneath: Mapping[str, Value] | None = None,
) -> tuple[Config, list[str]]:
    """The Config of the lab's pod, and warnings.

    What is not given is as DEFAULTS has it; where a manifest gives the values *beneath*, as it is for
    any pod.
    """
    from istio_iptables.lab.scenarios import DEFAULTS, NAMESERVERS, POD_ADDRESSES

    own = {each.name for each in _SETTINGS}
    defaults = {} if beneath is not None else dict(DEFAULTS)
    if "ip_family" in flags:
        defaults.pop("dual_stack", None)
    values, warnings = gather(flags, environ, _SETTINGS, beneath=beneath)
    others, _ = gather({}, {}, [each for each in SETTINGS if each.name not in own])
    values = {
        name: value if value.given or name not in defaults else value._replace(text=defaults[name])
        for name, value in {**others, **values}.items()
    }
    config, more = configure(values, StandIn(POD_ADDRESSES, NAMESERVERS, names=ThisHost()))
    return config, [*warnings, *more]


@click.pass_context
def _run(ctx: click.Context, /, **options: Any) -> ExitStatus:  # noqa: ANN401 - click's values
    _require_lab()
    picture = picture_format(options, ("html",))
    from istio_iptables.lab import report, runner, scenarios
    from istio_iptables.lab.without import left_out, natively

    own = {each.name for each in _SETTINGS}
    flags = {name: text for name, text in flags_given(ctx).items() if name in own}
    flags |= _aliases(options)
    problems = split_extra(ctx)
    given = read_pod(options)
    config, warnings = _configure(flags, problems, given)
    plan, native = build(config), None
    if config.native_nftables:
        native = build_native(config, plan)
        plan = natively(plan, native)
    scenario = scenarios.make(options["scenario"], config, options["envoy_uid"])
    if flags.get("ip_family") == Family.IPV4.value:
        paths = tuple(path for path in scenario.paths if path.family is Family.IPV4)
        scenario = scenario._replace(paths=paths)
    _check_paths(scenario, options["path"])
    left = left_out(plan, options["without"])
    warn(warnings, strict=config.strict)

    def show(outcome: LabOutcome) -> None:
        _print(outcome, scenario, plan, picture, options)
        sys.stdout.flush()

    def keep(up: Up) -> None:
        show(up.outcome)
        sys.stderr.write(report.kept(up, scenario.nodes))
        sys.stderr.flush()
        try:
            signal.pause()
        except KeyboardInterrupt:
            return

    outcome = runner.run(
        scenario,
        plan,
        OWNERSHIP,
        mode=config.mode.value,
        backend=config.backend,
        native=native,
        left=left,
        only=options["path"],
        keep=keep if options["keep"] else None,
    )
    if not options["keep"]:
        show(outcome)
    return ExitStatus.DONE if outcome.as_predicted else ExitStatus.FAILED


def _aliases(options: Mapping[str, Any]) -> dict[str, str]:
    """The flags that --mode and --backend stand for."""
    found = {}
    if options["mode"] is not None:
        found["istio_inbound_interception_mode"] = options["mode"]
    if options["backend"] is not None:
        found["native_nftables"] = str(options["backend"] == _NATIVE).lower()
        if options["backend"] != _NATIVE:
            found["force_iptables_binary"] = options["backend"]
    return found


def _print(
    outcome: LabOutcome,
    scenario: Scenario,
    plan: DesiredState,
    picture: str,
    options: Mapping[str, Any],
) -> None:
    from istio_iptables.lab import drawing, report

    if options["as_json"]:
        print_json(report.as_json(outcome, plan))
    elif picture == "html":
        write_exactly(drawing.page(outcome, scenario.nodes, plan))
    elif picture:
        print_sequences(drawing.sequences(outcome, plan), report.summary(outcome), picture)
    else:
        sys.stdout.write(report.text(outcome, scenario.nodes, plan, full=options["full"]))


def _configure(
    flags: Mapping[str, str], problems: list[str], given: Given | None
) -> tuple[Config, list[str]]:
    try:
        if given is None:
            config, warnings = lab_config(flags, os.environ)
        else:
            config, warnings = lab_config(flags, given.environ, given.values)
            warnings = [*given.warnings, *warnings]
    except UsageProblems as error:
        raise UsageProblems([*problems, *error.lines]) from None
    if problems:
        raise UsageProblems(problems)
    return config, warnings


def _require_lab() -> None:
    from importlib.util import find_spec

    if find_spec("istio_iptables.lab") is None:
        message = "lab: it is not part of this installation (the container image leaves it out)"
        raise UsageProblems([message])


def _check_paths(scenario: Scenario, names: tuple[str, ...]) -> None:
    known = dict.fromkeys(path.name for path in scenario.paths)
    wrong = [
        f"--path: there is no path {name!r} in the scenario {scenario.name}: it has {', '.join(known)}"
        for name in names
        if name not in known
    ]
    if wrong:
        raise UsageProblems(wrong)


class _PathOption(click.Option):
    """The option for paths; its help and its completion know their names."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The help with the names of the paths, as far as the lab is installed."""
        option, text = super().get_help_record(ctx) or ("", "")
        names = ", ".join(_path_names("sidecar"))
        return option, f"{text}  [of sidecar: {names}]" if names else text

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The names of the scenario's paths."""
        from click.shell_completion import CompletionItem

        names = _path_names(ctx.params.get("scenario") or "sidecar")
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _path_names(scenario: str) -> list[str]:
    """The paths of a scenario under the lab's own settings; none without the lab."""
    try:
        from istio_iptables.lab.scenarios import make
    except ImportError:
        return []
    return [*dict.fromkeys(path.name for path in make(scenario, lab_config({}, {})[0]).paths)]


command = SettingsCommand(
    _SETTINGS,
    name="lab",
    callback=_run,
    help="Build a throw-away pod, client and server on this machine, with the rules of the capture"
    " flags and a real Envoy; send traffic, and show hop by hop what happens to it beside what the"
    " rules predict. Needs root and the extra istio-iptables[lab]; nothing outside is touched and"
    " nothing is left. Flags that are not given are those of the documented pod, with DNS capture,"
    " IPv6, and one excluded port, network and interface; with --pod, those of any pod.",
    examples=(
        Example(
            "all paths of the documented pod",
            "istio-iptables lab",
        ),
        Example(
            "one path, under TPROXY",
            "istio-iptables lab --mode TPROXY --path client-app",
        ),
        Example(
            "what is a rule there for?",
            "istio-iptables lab --without 'nat ISTIO_OUTPUT 3'",
        ),
    ),
    epilog="Exit status: 0 every path went as predicted; 1 one did not, or the lab can't be built;"
    " 2 the command line is wrong.",
    more=(
        *POD_OPTIONS,
        click.Option(
            ["--scenario"],
            type=click.Choice(["sidecar", "ingress", "egress", "plain-client"]),
            default="sidecar",
            show_default=True,
            help="Who is there and what is sent.",
        ),
        click.Option(["--mode"], metavar="REDIRECT|TPROXY", help="The same as -m."),
        click.Option(
            ["--backend"],
            metavar="legacy|nft|native",
            help="The same as --force-iptables-binary; native is --native-nftables.",
        ),
        click.Option(
            ["--envoy-uid"],
            type=click.IntRange(0, 2**32 - 2),
            help="Who Envoy runs as.  [default: the proxy's uid; under TPROXY 0]",
        ),
        _PathOption(
            ["--path"],
            multiple=True,
            metavar="NAME",
            help="Take this path only; may be given several times.",
        ),
        click.Option(
            ["--without"],
            multiple=True,
            metavar="PLACE",
            help="Leave a rule out, such as 'nat ISTIO_OUTPUT 3', to see what it is there for.",
        ),
        click.Option(
            ["--keep"], is_flag=True, help="Leave it up until Ctrl-C, and say how to enter it."
        ),
        click.Option(
            ["-v", "--verbose", "full"],
            is_flag=True,
            help="Each rule on a line of its own, with its text and its reason.",
        ),
        format_option("html"),
        JSON_OPTION,
    ),
)
