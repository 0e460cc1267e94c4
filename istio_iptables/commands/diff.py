"""``istio-iptables diff``: whether a ruleset is still what the flags ask for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from istio_iptables.commands.inputs import (
    CAPTURE_SETTINGS,
    read_inputs,
    read_rules,
    read_text,
    require_namespace,
)
from istio_iptables.commands.load import Purpose, tell
from istio_iptables.commands.options import SettingsCommand
from istio_iptables.differences.preceding import preceding
from istio_iptables.differences.rulesets import ChangeKind, diff_network, diff_rulesets
from istio_iptables.errors import CannotTell, ExitStatus, KernelRefused, UsageProblems
from istio_iptables.istio.ownership import OWNERSHIP, find_owned
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.plan import Plan
from istio_iptables.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_iptables.commands.inputs import Inputs
    from istio_iptables.differences.rulesets import Difference
    from istio_iptables.netfilter.model import Ruleset

__all__ = ["command"]

#: Names that the JSON document keeps for those who read it, where the text has a better word.
_JSON_KINDS = {ChangeKind.FOREIGN: "stranger"}


class _Comparison(NamedTuple):
    """What was compared with the plan, and what came of it."""

    #: Where the rules are from, for people.
    what: str
    found: tuple[Difference, ...]
    families: tuple[Family, ...]
    #: The line about rules of ours in the other backend; "" without any.
    elsewhere: str = ""
    #: How many rules are missing where nothing of ours is there at all; else 0.
    all_missing: int = 0

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
        return _with_golden(
            read_inputs(ctx, either_family=False), golden, as_json=options["as_json"]
        )
    if against is None:
        require_namespace(ctx)
    given = read_inputs(
        ctx, either_family=against is not None, purpose=Purpose(live=against is None)
    )
    if against is None:
        comparison = _with_live(given)
    else:
        comparison = _with_file(given, against, options["family"])
    if options["as_json"]:
        _print_json(comparison)
    else:
        _print(comparison)
    return ExitStatus.FAILED if comparison.total else ExitStatus.DONE


def _with_file(given: Inputs, path: str, family: str | None) -> _Comparison:
    """The rules of a file, compared in the families that the file has."""
    live = read_rules(path, family)
    families = tuple(each.family for each in live)
    wanted = tuple(each for each in given.plan.rulesets if each.family in families)
    found = diff_rulesets(live, wanted, find_owned) + preceding(live, wanted, find_owned)
    missing = 0 if _holds_ours(live) else sum(ruleset.rule_count for ruleset in wanted)
    return _Comparison("stdin" if path == "-" else path, found, families, all_missing=missing)


def _with_live(given: Inputs) -> _Comparison:
    """The rules of the namespace, with the routes and addresses beside them."""
    from istio_iptables.kernel import live as kernel

    config, plan = given.config, given.plan
    try:
        state = kernel.read(
            plan, OWNERSHIP, namespace=config.network_namespace, backend=config.backend
        )
    except KernelRefused as error:
        raise CannotTell(*error.lines) from error
    found = diff_rulesets(state.rulesets, plan.rulesets, find_owned)
    # In both backends: the kernel asks the tables of the other one at the same hooks.
    for rulesets in (state.rulesets, state.other_rulesets):
        found += preceding(rulesets, plan.rulesets, find_owned)
    found += diff_network(Plan((), state.routes, state.addresses), plan)
    # Rules of ours in the backend that was not chosen take effect too: none is wanted there.
    tell("warning", state.warnings)
    # Only in these tables can a foreign rule decide before ours.
    unread = [each for each in state.unreadable if each.split()[1] in {"raw", "mangle", "nat"}]
    if unread:
        tables = ", ".join(unread)
        tell("warning", (f"foreign rules in tables that can't be read are not seen: {tables}",))
    where = config.network_namespace or "this namespace"
    elsewhere = _elsewhere(state.other_rulesets, "nft" if state.backend == "legacy" else "legacy")
    nothing = not (elsewhere or _holds_ours(state.rulesets) or state.routes or state.addresses)
    missing = sum(ruleset.rule_count for ruleset in plan.rulesets) if nothing else 0
    return _Comparison(f"{where} ({state.backend})", found, tuple(Family), elsewhere, missing)


def _holds_ours(rulesets: Iterable[Ruleset]) -> bool:
    return any(find_owned(table) for ruleset in rulesets for table in ruleset.tables)


def _elsewhere(rulesets: tuple[Ruleset, ...], backend: str) -> str:
    """The line about rules of ours in the backend that was not chosen; "" without any."""
    from istio_iptables.kernel.backend import in_other_backend

    tables = [
        f"{ruleset.family.title} {table.name}"
        for ruleset in rulesets
        for table in ruleset.tables
        if find_owned(table)
    ]
    return in_other_backend(backend, tables) if tables else ""


def _titles(families: tuple[Family, ...]) -> str:
    return " and ".join(family.title for family in families)


def _print(comparison: _Comparison) -> None:
    for difference in comparison.found:
        # All of the plan, rule by rule, would say no more than that nothing is there.
        if not (comparison.all_missing and difference.kind is ChangeKind.MISSING):
            sys.stdout.writelines(f"{printable(line)}\n" for line in difference.lines)
    if comparison.elsewhere:
        sys.stdout.write(f"{printable(comparison.elsewhere)}\n")
    count = comparison.total
    if comparison.all_missing:
        rules = "rule is" if comparison.all_missing == 1 else "rules are"
        line = f"nothing of ours is in {comparison.what} ({comparison.all_missing} {rules} missing)"
    elif count:
        counted = "1 difference" if count == 1 else f"{count} differences"
        line = f"{comparison.what} differs from the plan: {counted}"
    else:
        line = f"{comparison.what} is as planned ({_titles(comparison.families)})"
    sys.stdout.write(f"{printable(line)}\n")


def _print_json(comparison: _Comparison) -> None:
    import json  # no other format needs it

    document: dict[str, Any] = {
        "version": 1,
        "same": not comparison.total,
        "families": [family.value for family in comparison.families],
        "differences": [
            {
                "kind": _JSON_KINDS.get(each.kind, each.kind.value),
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


def _with_golden(given: Inputs, path: str, *, as_json: bool) -> ExitStatus:
    """The dry run's text and a golden file's, as a unified diff."""
    from difflib import unified_diff

    from istio_iptables.netfilter import formats

    plan = given.plan
    expected, printed = read_text(path), formats.save(plan)
    compared = unified_diff(_lines(expected), _lines(printed), path, "the plan")
    lines = [
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in (compared if expected != printed else ())
    ]
    if as_json:
        import json  # no other format needs it

        document = {"version": 1, "same": not lines, "diff": "".join(lines)}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    elif lines:
        shown = "".join(lines).removesuffix("\n").split("\n")
        sys.stdout.writelines(f"{printable(line)}\n" for line in shown)
    else:
        titles = _titles(tuple(each.family for each in plan.rulesets))
        sys.stdout.write(f"{printable(path)} is as planned ({titles})\n")
    if lines:
        tell("info", (f"{path} differs from the plan (+ is the plan's)",))
    return ExitStatus.FAILED if lines else ExitStatus.DONE


def _lines(text: str) -> list[str]:
    """The lines of a text with their ends; Python's splitlines also parts at other letters."""
    *lines, last = text.split("\n")
    return [*(f"{line}\n" for line in lines), *([last] if last else [])]


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
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ),
)
