"""What was probably meant by a command line that makes no sense; imported only for such a one."""

from __future__ import annotations

import re
import shlex
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

__all__ = [
    "behind_the_flags",
    "expanded_star",
    "forgotten_option",
    "in_our_words",
    "looks_like_rules",
    "no_command",
    "no_option",
]

_CLEAN = "'istio-iptables clean' removes what was installed"
_INSTALL = "no command is needed to install: give the flags alone"
_PRINT = "--dry-run prints the rules, and --format says how"
_COMPARE = "'istio-iptables diff' compares the rules that are there with the plan"
_FOLLOW = "'istio-iptables explain' follows a packet through the rules"
#: What other programs call what is here a command of another name, or a flag.
_COMMANDS = {
    **dict.fromkeys(
        (
            *("uninstall", "remove", "delete", "cleanup", "clean-up", "flush", "undo", "rollback"),
            *("reset", "purge", "unapply", "teardown"),
        ),
        _CLEAN,
    ),
    **dict.fromkeys(
        ("install", "apply", "add", "create", "run", "start", "init", "setup", "up"), _INSTALL
    ),
    **dict.fromkeys(
        ("print", "show", "plan", "render", "dump", "list", "save", "dry-run", "dryrun"), _PRINT
    ),
    **dict.fromkeys(("verify", "compare", "status", "drift"), _COMPARE),
    **dict.fromkeys(("trace", "why", "packet"), _FOLLOW),
    "validate": "--run-validation sends a real connection through the rules",
    "reconcile": "--reconcile replaces rules of ours that differ",
    "version": "--version shows the version",
    "help": "--help shows all options",
}
_OPTIONS = {
    "--config": "there is no configuration file: settings are flags and environment variables",
    "--config-file": "there is no configuration file: settings are flags and environment variables",
    "--ipv6": "did you mean --ip-family dual?",
    "--ipv4": "did you mean --ip-family ipv4?",
    "--tproxy": "did you mean -m TPROXY?",
    "--backend": "did you mean --force-iptables-binary?",
    "--output": "did you mean --format?",
    "--install": _INSTALL,
    "--uninstall": _CLEAN,
    "--clean": _CLEAN,
}
#: What to do in place of an option that a command has not.
_INSTEAD = {
    **dict.fromkeys(
        (("clean", "--dry-run"), ("clean", "-n")),
        "'istio-iptables describe' shows the rules; clean leaves those that it marks foreign",
    ),
    (
        "report",
        "--format",
    ): "the page is HTML; 'istio-iptables describe --format svg' draws the chains",
}
_MOST = 4
#: How much of a file is read to tell what it is.
_START = 2048
_RULES = ("*", ":", "-A ", "table ", '{"nftables"')
_MANIFEST = ("{", "[", "---", "apiVersion:", "kind:")
_ENDPOINT = re.compile(
    r"(?a)(?:\d+\.){3}\d+(?::\d+)?|\[[0-9A-Fa-f:.]+\](?::\d+)?|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*"
)


def expanded_star(words: Iterable[str], values: Mapping[str, str]) -> str:
    """The line about a ``*`` that the shell replaced by the names of the files here, or "".

    *words* are the arguments that belong to no option; *values* the texts of the options that
    may take ``*``, by option, as far as they can't be used.
    """
    try:
        files = frozenset(path.name for path in Path().iterdir())
    except OSError:
        return ""
    options = [option for option, text in values.items() if text in files]
    found = [word for word in words if word in files]
    if not options and len(found) < 2:  # noqa: PLR2004 - one may be a slip; a star makes more
        return ""
    quote = " ".join(f"{option} '*'" for option in options) or "'*'"
    first = values[options[0]] if options else found[0]
    return f"the shell expanded * to the names of files here ({first!r}, ...): quote it: {quote}"


def behind_the_flags(
    program: str, args: Sequence[str], words: Iterable[str], commands: Collection[str]
) -> str:
    """The line about a command that was given behind other arguments, or ""."""
    command = next((word for word in words if word in commands), None)
    if command is None:
        return ""
    at = len(args) - 1 - list(reversed(args)).index(command)
    others = [
        word
        for number, word in enumerate(args)
        # The commands change nothing that a dry run would spare, and have no such flag.
        if number != at and word.partition("=")[0] not in {"-n", "--dry-run"}
    ]
    return f"{command} comes first: {shlex.join([program, command, *others])}"


def no_command(word: str, commands: Collection[str]) -> str:
    """What was meant by *word* in the place of a command; "" if that can't be told."""
    if word in _COMMANDS:
        return _COMMANDS[word]
    close = get_close_matches(word, [*commands, *_COMMANDS], n=1)
    if close and close[0] in _COMMANDS:
        return _COMMANDS[close[0]]
    return f"did you mean {close[0]}? A command comes first" if close else ""


def forgotten_option(word: str, ctx: click.Context) -> str:
    """The option that *word* is probably the value of, as a question; "" if that can't be told."""
    known = _all_options(ctx.command)
    if "--dst" in known and _ENDPOINT.fullmatch(word):
        return f"did you mean --dst {shlex.quote(word)}?"
    start = _start_of(word)
    if start is None:
        return ""
    rules = looks_like_rules(start)
    if not (rules or _first_line(start).startswith(_MANIFEST)):
        return ""
    option = next((each for each in _OPTIONS_OF_FILES[rules] if each in known), None)
    if option:
        return f"did you mean {option} {shlex.quote(word)}?"
    if rules and ctx.parent is None:
        return f"these are rules: 'istio-iptables describe --rules {shlex.quote(word)}' reads them"
    return ""


#: The options that take a manifest, and those that take rules.
_OPTIONS_OF_FILES = {False: ("--pod", "--filename"), True: ("--rules", "--against")}


def looks_like_rules(text: str) -> bool:
    """Whether *text* begins as iptables-save or nft prints rules."""
    return _first_line(text).startswith(_RULES)


def _first_line(text: str) -> str:
    """The first line that is not a comment."""
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line and not line.startswith("#")), "")


def _start_of(path: str) -> str | None:
    """How the file *path* begins; None if there is none that can be read."""
    try:
        if not Path(path).is_file():
            return None
        with Path(path).open("rb") as file:
            return file.read(_START).decode(errors="replace")
    except (OSError, ValueError):
        return None


def no_option(name: str, ctx: click.Context) -> str:
    """What was meant by the option *name*, which this command has not; "" if that can't be told."""
    if name in _OPTIONS:
        return _OPTIONS[name]
    if name in _all_options(ctx.command):
        return "stands behind --, which ends the options"
    known = _long_options(ctx.command)
    word = name.strip("-")
    close = get_close_matches(name, known, n=2, cutoff=0.75)
    root = ctx.find_root()
    assert isinstance(root.command, click.Group)  # noqa: S101 - for mypy: our root is one
    for command in (None, *root.command.list_commands(root)):
        other = root.command if command is None else root.command.get_command(root, command)
        if other is not None and other is not ctx.command and name in _all_options(other):
            what = f"'{root.info_name} {command}'" if command else f"{root.info_name} itself"
            first = ", which comes first" if command and ctx is root else ""
            instead = _INSTEAD.get((str(ctx.info_name), name))
            if command is None:
                instead = instead or f"'{root.info_name} {ctx.info_name} --help' shows its own"
            rest = f": {instead}" if instead else ""
            return f"this is an option of {what}{first or f', not of {ctx.info_name}{rest}'}"
    if not close and len(word) > 2:  # noqa: PLR2004 - two letters are in everything
        close = [each for each in known if word in each][:_MOST]
    return f"there is no such option: did you mean {' or '.join(close)}?" if close else ""


def _all_options(command: click.Command) -> list[str]:
    return [name for each in command.params for name in each.opts]


def _long_options(command: click.Command) -> list[str]:
    return [name for name in _all_options(command) if name.startswith("--")]


def in_our_words(error: click.UsageError, label: str) -> str:
    """What click says of the option *label*, as the other problems are told."""
    text = error.message.rstrip(".")
    if isinstance(error, click.BadOptionUsage):
        return f"{label}: {'takes no value' if 'not take' in text else 'the value is missing'}"
    if isinstance(error, click.MissingParameter):
        return f"{label}: is missing"
    kind = error.param.type if isinstance(error, click.BadParameter) and error.param else None
    value = text.partition(" is not ")[0]
    if isinstance(kind, click.Choice):
        return f"{label}: {value} is not one of {', '.join(kind.choices)}"
    if isinstance(kind, click.IntRange):
        return f"{label}: {value} is not a number from {kind.min} to {kind.max}"
    return f"{label}: {text}" if label else text
