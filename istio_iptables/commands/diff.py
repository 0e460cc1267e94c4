"""``istio-iptables diff``: whether a ruleset is still what the flags ask for."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from istio_iptables.api.comparing import diff
from istio_iptables.api.rendering import render
from istio_iptables.api.rules import Live
from istio_iptables.commands.documents import JSON_OPTION, print_json
from istio_iptables.commands.inputs import (
    CAPTURE_SETTINGS,
    read_inputs,
    read_rules,
    read_text,
    require_namespace,
)
from istio_iptables.commands.load import Purpose, tell
from istio_iptables.commands.options import Example, SettingsCommand, flags_given
from istio_iptables.commands.pod import POD_OPTIONS, read_pod, read_ways
from istio_iptables.commands.sources import require_file, settings_given
from istio_iptables.differences.rulesets import ChangeKind
from istio_iptables.errors import ExitStatus, UsageProblems
from istio_iptables.netfilter.model import Family
from istio_iptables.text import paint, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from istio_iptables.api.capture import Plan
    from istio_iptables.api.comparing import Differences
    from istio_iptables.api.describing import Description
    from istio_iptables.differences.rulesets import Difference

__all__ = ["command", "difference_json", "print_differences"]

#: Names that the JSON document keeps for those who read it, where the text has a better word.
_JSON_KINDS = {ChangeKind.FOREIGN: "stranger"}

#: What changes the fate of packets for certain.
_LOST = frozenset({ChangeKind.MISSING, ChangeKind.EXTRA})


@click.pass_context
def _run(ctx: click.Context, /, **options: Any) -> ExitStatus:  # noqa: ANN401 - click's values
    against, golden = options["against"], options["golden"]
    if against is not None and (golden is not None or flags_given(ctx).get("network_namespace")):
        raise UsageProblems(
            ["--against: compare with one thing: this file, a namespace, or --golden"]
        )
    require_file(options["family"], against, "--against")
    if golden is not None:
        plan = read_inputs(ctx, either_family=False, given=read_pod(options))
        return _with_golden(plan, golden, as_json=options["as_json"])
    named = flags_given(ctx).get("network_namespace") or os.environ.get("NETWORK_NAMESPACE")
    if options["cni"] and options["pod"] and against is None and not named:
        return _with_cni(ctx, options)
    if against is None:
        require_namespace(ctx)
    plan = read_inputs(
        ctx,
        either_family=against is not None,
        given=read_pod(options),
        purpose=Purpose(live=against is None),
    )
    rules = None if against is None else read_rules(against, options["family"])
    name = "stdin" if against == "-" else against or ""
    found = diff(plan) if rules is None else diff(plan, rules, name=name)
    described = None
    if found and not settings_given(ctx, options):
        # Nobody said what is meant to be there: what is there can say what it was meant to be.
        from istio_iptables.api.describing import describe

        source = Live(plan.config.network_namespace, plan.config.backend)
        described = describe(source if rules is None else rules, name=found.what)
        if not described.ours or len(described.unexplained) >= len(found):
            described = None
    _report(found, as_json=options["as_json"], missing_at_once=rules is None, described=described)
    return ExitStatus.FAILED if found else ExitStatus.DONE


def _with_cni(ctx: click.Context, options: Mapping[str, Any]) -> ExitStatus:
    """The rules of a pod by its istio-init, and those by Istio's CNI plugin."""
    by_init, by_cni = (
        read_inputs(ctx, either_family=False, given=each, purpose=Purpose((), follow=False))
        for each in read_ways(options, cni=(False, True))
    )
    found = diff(by_init, by_cni.rulesets, name="what istio-cni makes of the pod")
    _report(found, as_json=options["as_json"], missing_at_once=False)
    return ExitStatus.FAILED if found else ExitStatus.DONE


def _report(
    found: Differences,
    *,
    as_json: bool,
    missing_at_once: bool,
    described: Description | None = None,
) -> None:
    tell("warning", found.warnings)
    if as_json:
        _print_json(found, described)
        return
    _print(found, missing_at_once=missing_at_once)
    if described is not None:
        but = ", but for:" if described.unexplained else ""
        sys.stdout.write(f"{printable(f'these are the rules of {described.settings}{but}')}\n")
        print_differences(described.unexplained)


def _titles(families: tuple[Family, ...]) -> str:
    return " and ".join(family.title for family in families)


def _print(found: Differences, *, missing_at_once: bool) -> None:
    all_missing = found.missing if missing_at_once else 0
    # All of the plan, rule by rule, would say no more than that nothing is there.
    print_differences(
        each for each in found if not (all_missing and each.kind is ChangeKind.MISSING)
    )
    if all_missing:
        rules = "rule is" if all_missing == 1 else "rules are"
        line = f"no rules of ours are in {found.what} ({all_missing} {rules} missing)"
    elif found:
        counted = "1 difference" if len(found) == 1 else f"{len(found)} differences"
        line = f"{found.what} differs from the plan: {counted}"
    else:
        planned = _titles(tuple(each for each in found.families if each not in found.empty))
        without = f"; no {_titles(found.empty)} rules, as planned" if found.empty else ""
        line = f"{found.what} is as planned ({planned}{without})"
    line = paint(printable(line), "bold", sys.stdout)
    sys.stdout.write(f"{line}\n")


def print_differences(differences: Iterable[Difference]) -> None:
    """Each of them on its line, with what it has below it."""
    for difference in differences:
        kind = difference.kind.value
        style = "red" if difference.kind in _LOST else "yellow"
        first, *others = (f"{printable(line)}\n" for line in difference.lines)
        first = first.replace(kind, paint(kind, style, sys.stdout), 1)
        sys.stdout.writelines((first, *others))


def difference_json(difference: Difference) -> dict[str, object]:
    """A difference as an object of a JSON document."""
    return {
        "kind": _JSON_KINDS.get(difference.kind, difference.kind.value),
        "family": difference.family.value if difference.family else None,
        "table": difference.table or None,
        "chain": difference.chain or None,
        "text": difference.text,
        "live_rule": difference.live_number,
        "wanted_rule": difference.wanted_number,
        "details": list(difference.details),
        "reason": difference.reason,
    }


def _print_json(found: Differences, described: Description | None) -> None:
    document: dict[str, object] = {
        "same": not found,
        "families": [family.value for family in found.families],
        "differences": [difference_json(each) for each in found],
    }
    if described is not None:
        document["rules_of"] = {
            "arguments": list(described.arguments),
            "environment": described.environment,
            "nameservers": list(described.nameservers),
            "unexplained": [each.line for each in described.unexplained],
        }
    print_json(document)


def _with_golden(plan: Plan, path: str, *, as_json: bool) -> ExitStatus:
    """The dry run's text and a golden file's, as a unified diff."""
    from difflib import unified_diff

    expected, printed = read_text(path), render(plan)
    compared = unified_diff(_lines(expected), _lines(printed), path, "the plan")
    lines = [
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in (compared if expected != printed else ())
    ]
    if as_json:
        print_json({"same": not lines, "diff": "".join(lines)})
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
    " --network-namespace), of iptables-save's or nft's text (--against), or with a golden file.",
    examples=(
        Example(
            "is this namespace as it was installed?",
            "istio-iptables diff -i '*' -b '*' -d 15090,15021,15020",
        ),
        Example(
            "is what somebody saved?",
            "istio-iptables diff -i '*' -b '*' --against saved.rules",
        ),
        Example(
            "does a change of the arguments change the rules?",
            "istio-iptables diff -i '*' -b 80 --ip-family ipv4 --golden rules.golden",
        ),
    ),
    epilog="Exit status: 0 the same; 1 there are differences; 2 it can't be told, or the command"
    " line is wrong.",
    more=(
        *POD_OPTIONS,
        click.Option(
            ["--against"],
            metavar="FILE",
            help="Compare with this file of iptables-save's text, or of what nft list ruleset prints"
            " (--native-nftables); - is stdin.",
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
        JSON_OPTION,
    ),
)
