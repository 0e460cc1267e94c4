"""``istio-iptables diff``: whether a ruleset is still what the flags ask for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from istio_iptables.commandline import SettingsCommand
from istio_iptables.commands.material import (
    CAPTURE_SETTINGS,
    answerable,
    asked,
    read_rules,
    read_text,
    require_namespace,
)
from istio_iptables.configured import tell
from istio_iptables.errors import ExitStatus, UsageProblems
from istio_iptables.netfilter.drift import beside, differences
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.plan import Plan
from istio_iptables.ours import recognise

if TYPE_CHECKING:
    from istio_iptables.commands.material import Asked
    from istio_iptables.netfilter.drift import Difference
    from istio_iptables.netfilter.model import Ruleset

__all__ = ["command"]


class _Comparison(NamedTuple):
    """What was compared with the plan, and what came of it."""

    #: Where the rules are from, for people.
    what: str
    found: tuple[Difference, ...]
    families: tuple[Family, ...]
    #: The line about rules of ours in the other backend; "" without any.
    elsewhere: str = ""

    @property
    def total(self) -> int:
        """How many differences there are."""
        return len(self.found) + bool(self.elsewhere)


@click.pass_context
def _run(ctx: click.Context, /, **options: Any) -> ExitStatus:  # noqa: ANN401 - click's values
    against, golden = options["against"], options["golden"]
    if against is not None and (golden is not None or options["network_namespace"]):
        raise UsageProblems(
            ["--against: the other side is one: this file, a namespace, or --golden"]
        )
    if golden is not None:
        with answerable():
            given = asked(ctx, either_family=False)
        return _with_golden(given, golden, as_json=options["as_json"])
    with answerable():
        if against is None:
            require_namespace(ctx)
        given = asked(ctx, either_family=against is not None)
        if against is None:
            comparison = _with_live(given)
        else:
            comparison = _with_file(given, against, options["family"])
    if options["as_json"]:
        _print_json(comparison)
    else:
        _print(comparison)
    return ExitStatus.FAILED if comparison.total else ExitStatus.DONE


def _with_file(given: Asked, path: str, family: str | None) -> _Comparison:
    """The rules of a file, compared in the families that the file has."""
    live = read_rules(path, family)
    families = tuple(each.family for each in live)
    wanted = tuple(each for each in given.plan.rulesets if each.family in families)
    return _Comparison(
        "stdin" if path == "-" else path, differences(live, wanted, recognise), families
    )


def _with_live(given: Asked) -> _Comparison:
    """The rules of the namespace, with the routes and addresses beside them."""
    from istio_iptables.kernel import live as kernel

    config, plan = given.config, given.plan
    state = kernel.read(plan, namespace=config.network_namespace, backend=config.backend)
    found = differences(state.rulesets, plan.rulesets, recognise)
    found += beside(Plan((), state.routes, state.addresses), plan)
    # Rules of ours in the store that was not chosen take effect too: none is wanted there.
    tell("warning", state.warnings)
    where = config.network_namespace or "this namespace"
    elsewhere = _elsewhere(state.other_rulesets, "nft" if state.backend == "legacy" else "legacy")
    return _Comparison(f"{where} ({state.backend})", found, tuple(Family), elsewhere)


def _elsewhere(rulesets: tuple[Ruleset, ...], backend: str) -> str:
    """The line about rules of ours in the backend that was not chosen; "" without any."""
    from istio_iptables.kernel.backend import in_other_backend

    tables = [
        f"{ruleset.family.title} {table.name}"
        for ruleset in rulesets
        for table in ruleset.tables
        if recognise(table)
    ]
    return in_other_backend(backend, tables) if tables else ""


def _titles(families: tuple[Family, ...]) -> str:
    return " and ".join(family.title for family in families)


def _print(comparison: _Comparison) -> None:
    lines = [line for difference in comparison.found for line in difference.lines]
    if comparison.elsewhere:
        lines.append(comparison.elsewhere)
    count = comparison.total
    if count:
        counted = "1 difference" if count == 1 else f"{count} differences"
        lines.append(f"{comparison.what} differs from the plan: {counted}")
    else:
        lines.append(f"{comparison.what} is as planned ({_titles(comparison.families)})")
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _print_json(comparison: _Comparison) -> None:
    import json  # no other format needs it

    document: dict[str, Any] = {
        "same": not comparison.total,
        "families": [family.value for family in comparison.families],
        "differences": [
            {
                "kind": each.kind.value,
                "family": each.family.value,
                "table": each.table or None,
                "chain": each.chain or None,
                "text": each.text,
                "live_rule": each.live_number,
                "wanted_rule": each.wanted_number,
                "details": list(each.details),
                "reason": each.reason,
            }
            for each in comparison.found
        ],
    }
    if comparison.elsewhere:
        kind, _, text = comparison.elsewhere.partition(": ")
        nowhere = dict.fromkeys(("family", "table", "chain"))
        nothing: dict[str, Any] = {
            "live_rule": None,
            "wanted_rule": None,
            "details": [],
            "reason": "",
        }
        document["differences"].append({"kind": kind, **nowhere, "text": text, **nothing})
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def _with_golden(given: Asked, path: str, *, as_json: bool) -> ExitStatus:
    """The dry run's text and a golden file's, as a unified diff."""
    from difflib import unified_diff

    from istio_iptables.netfilter import formats

    plan = given.plan
    expected, printed = read_text(path), formats.save(plan)
    compared = unified_diff(
        expected.splitlines(keepends=True), printed.splitlines(keepends=True), path, "the plan"
    )
    lines = [
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in (compared if expected != printed else ())
    ]
    if as_json:
        import json  # no other format needs it

        sys.stdout.write(json.dumps({"same": not lines, "diff": "".join(lines)}, indent=2) + "\n")
    else:
        sys.stdout.write("".join(lines))
    if lines:
        tell("info", (f"{path} differs from the plan (+ is the plan's)",))
    return ExitStatus.FAILED if lines else ExitStatus.DONE


command = SettingsCommand(
    CAPTURE_SETTINGS,
    name="diff",
    callback=_run,
    help="Compare the rules that the capture flags ask for with those of a namespace (this one, or"
    " --network-namespace), of iptables-save's text (--against), or with a golden file.",
    epilog="Exit status: 0 the same; 1 there are differences; 2 it can't be told, or the command"
    " line is wrong.",
    more=(
        click.Option(
            ["--against"],
            metavar="FILE",
            help="Compare with this file of iptables-save's text; - is stdin.",
        ),
        click.Option(
            ["--family"],
            type=click.Choice([each.value for each in Family]),
            help="The family of that file, if its comments and addresses don't tell.",
        ),
        click.Option(
            ["--golden"],
            metavar="FILE",
            help="Compare the text of a dry run with this file, and show a unified diff.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="The same for programs."),
    ),
)
