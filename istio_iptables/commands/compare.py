"""``istio-iptables compare``: two settings or rulesets, and which traffic they treat differently."""

from __future__ import annotations

import shlex
import sys
from itertools import starmap
from typing import TYPE_CHECKING, Any

import click

from istio_iptables.api.conditions import in_words
from istio_iptables.api.contrasting import Side, compare
from istio_iptables.api.matrix import OPENING
from istio_iptables.commands.diff import difference_json, print_differences
from istio_iptables.commands.documents import JSON_OPTION, print_json
from istio_iptables.commands.inputs import CAPTURE_SETTINGS, read_text
from istio_iptables.commands.load import warn
from istio_iptables.commands.matrix import condition_json
from istio_iptables.commands.options import Example, SettingsCommand, flags_given
from istio_iptables.commands.sources import SOURCE_OPTIONS, read_asked
from istio_iptables.errors import CannotTell, ExitStatus, UsageProblems
from istio_iptables.text import paint, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from click.shell_completion import CompletionItem

    from istio_iptables.api.contrasting import Comparison, Divergence
    from istio_iptables.api.matrix import TrafficClass
    from istio_iptables.commands.sources import Asked

__all__ = ["command"]

#: How many groups of packets are told.
_MOST = 12


class _Compare(SettingsCommand):
    """A command whose words are the sides, which may begin like options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Options of this command are options; any other word is a side."""
        names = {name for each in self.params for name in each.opts}
        sides = [word for word in args if word not in names and word != "--"]
        rest = super().parse_args(ctx, [word for word in args if word in names])
        ctx.args = sides
        return rest

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Options, or a side's file, which the shell completes."""
        from istio_iptables.commands import completion

        return super().shell_complete(ctx, incomplete) or completion.files(incomplete)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """What follows the name."""
        return ["[OPTIONS] A B"]


#: What a side is: the settings and sources of matrix.
_SIDE = SettingsCommand(
    CAPTURE_SETTINGS, name="compare", callback=None, examples=(), more=SOURCE_OPTIONS
)


@click.pass_context
def _run(ctx: click.Context, /, **options: Any) -> ExitStatus:  # noqa: ANN401 - click's values
    if len(ctx.args) != 2:  # noqa: PLR2004 - A and B
        message = (
            f"compare takes two sides, not {len(ctx.args)}: each is a file of rules, of a manifest or"
            " of arguments, or one quoted word with options: \"-i '*' -b '*'\", \"--live\""
        )
        raise UsageProblems([message])
    words = [_words(name, side) for name, side in zip("AB", ctx.args, strict=True)]
    if [each[-1:] for each in words].count(["-"]) > 1:
        raise UsageProblems(["A, B: stdin holds one file: give - once"])
    contexts = [_context(name, each) for name, each in zip("AB", words, strict=True)]
    # Somebody else's rules: the families of a plan must not depend on this machine.
    elsewhere = any(each.params["rules"] is not None or _is_elsewhere(each) for each in contexts)
    asked = [
        _asked(name, each, either_family=elsewhere)
        for name, each in zip("AB", contexts, strict=True)
    ]
    found = compare(*starmap(_side, zip("AB", asked, strict=True)))
    warn(found.warnings, strict=any(each.strict for each in asked))
    if options["as_json"]:
        print_json(_json(found))
    else:
        _print(found)
    if found:
        return ExitStatus.FAILED
    return ExitStatus.USAGE if found.unknown else ExitStatus.DONE


def _is_elsewhere(ctx: click.Context) -> bool:
    return bool(flags_given(ctx).get("network_namespace"))


def _words(name: str, side: str) -> list[str]:
    """The options that a side means: its own words, or those for what its file holds."""
    if not side.strip():
        raise UsageProblems([f"{name}: is empty"])
    if side == "-":
        return ["--rules", "-"]
    if side.startswith("-"):
        return _split(name, side)
    try:
        text = read_text(side, "file of rules, of a manifest or of arguments")
    except CannotTell as error:
        raise CannotTell(*(f"{name}: {line}" for line in error.lines)) from None
    lines = (line.strip() for line in text.split("\n"))
    first = next((line for line in lines if line and not line.startswith("#")), "*")
    if first.startswith("-") and not first.startswith(("---", "- ")):
        return _split(name, text)
    if first.startswith(("*", "table ")) or (first.startswith("{") and '"nftables"' in text):
        return ["--rules", side]
    return ["--pod", side]


def _split(name: str, text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise UsageProblems([f"{name}: {error}: {text.strip()!r}"]) from None


def _context(name: str, words: list[str]) -> click.Context:
    try:
        return _SIDE.make_context(name, words)
    except UsageProblems as error:
        raise UsageProblems([f"{name}: {line}" for line in error.lines]) from None


def _asked(name: str, ctx: click.Context, *, either_family: bool) -> Asked:
    try:
        with ctx:
            return read_asked(
                ctx, ctx.params, ways=(), live_alone=False, either_family=either_family
            )
    except (UsageProblems, CannotTell) as error:
        raise type(error)(*_named(name, error)) from None


def _side(name: str, asked: Asked) -> Side:
    name = f"{name} ({asked.name})" if asked.name else name
    return Side(asked.plan, asked.rules, asked.family, name)


def _named(name: str, error: UsageProblems | CannotTell) -> Sequence[Any]:
    lines = [f"{name}: {line}" for line in error.lines]
    return [lines] if isinstance(error, UsageProblems) else lines


def _print(found: Comparison) -> None:
    print_differences(found.differences)
    titles = " and ".join(each.title for each in found.families)
    count = len(found.differences)
    if not found.differences:
        rules = "A and B have the same rules"
    else:
        counted = "1 difference" if count == 1 else f"{count} differences"
        rules = f"B differs from A: {counted} of rules"
    if not found.divergences and found.unknown:
        line = f"{rules}; whether every packet is treated the same can't be told ({titles})"
    elif not found.divergences:
        line = f"{rules}; the same for every packet ({titles})"
    else:
        line = f"{rules}; traffic treated differently ({titles}):"
    sys.stdout.write(f"{paint(printable(line), 'bold', sys.stdout)}\n")
    opening = [each for each in found.divergences if each.opening]
    shown = opening or list(found.divergences)
    for each in shown[:_MOST]:
        sys.stdout.writelines(f"{printable(line)}\n" for line in _lines(each))
    if len(shown) > _MOST:
        sys.stdout.write(f"and {len(shown) - _MOST} more: --json has them all\n")
    rest = len(found.divergences) - len(shown)
    if rest:
        classes = "1 class" if rest == 1 else f"{rest} classes"
        sys.stdout.write(
            f"and {classes} of packets of open connections or with marks: --json has them\n"
        )


def _lines(each: Divergence) -> Iterator[str]:
    # What opens a connection has no mark, and everyone knows its state.
    said = in_words(
        condition
        for condition in each.conditions
        if not (each.opening and condition.field in OPENING)
    )
    way = "from" if each.direction == "out" else "to"
    what = "new connections" if each.opening else "packets"
    yield f"{what} {way} the pod ({each.family.title}): {said}"
    for name, answer in (("A", each.one), ("B", each.other)):
        rule = f" ({answer.rule})" if answer.rule else ""
        yield f"    {name}: {answer.verdict}{rule}"
    yield f"    first: {shlex.join(each.one.words)}"


def _json(found: Comparison) -> dict[str, object]:
    return {
        "same": False if found else None if found.unknown else True,
        "same_for_every_packet": (False if found.divergences else None if found.unknown else True),
        "unknown": list(found.unknown),
        "families": [each.value for each in found.families],
        "differences": [difference_json(each) for each in found.differences],
        "classes": [
            {
                "family": each.family.value,
                "direction": each.direction,
                "conditions": [condition_json(condition) for condition in each.conditions],
                "opening": each.opening,
                "packet": list(each.one.words),
                "a": _answer_json(each.one),
                "b": _answer_json(each.other),
            }
            for each in found.divergences
        ],
    }


def _answer_json(answer: TrafficClass) -> dict[str, object]:
    return {
        "verdict": answer.verdict,
        "fate": answer.fate,
        "to_port": answer.to_port,
        "captured": answer.captured,
        "rule": answer.rule,
        "text": answer.text,
    }


command = _Compare(
    (),
    name="compare",
    callback=_run,
    help="Say what B has otherwise than A, rule by rule, and which traffic B treats differently,"
    " with the first packet that shows it. A and B are each a file, which holds rules (of"
    " iptables-save or nft list ruleset), a pod's manifest or arguments; or options in one quoted"
    " word, those of matrix: capture flags, --pod, --rules, --live, --network-namespace.",
    examples=(
        Example(
            "what does a change of the arguments change?",
            "istio-iptables compare \"-i '*' -b '*'\" \"-i '*' -b '*' -x 10.0.0.0/8\"",
        ),
        Example(
            "what is otherwise than in the rules that were saved?",
            "istio-iptables compare saved.rules --live",
        ),
        Example(
            "does a pod get what its manifest says?",
            'istio-iptables compare web.yaml "--network-namespace /proc/4711/ns/net"',
        ),
    ),
    epilog="Exit status: 0 the same; 1 there are differences; 2 it can't be told, or the command"
    " line is wrong.",
    more=(JSON_OPTION,),
)
