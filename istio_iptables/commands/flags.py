"""A command line of settings to their texts, as Go's pflag reads it.

The flags of an init container are read here and nowhere else: importing click takes longer than
making and printing the rules. Where anything else is on the line (a command, an option of a
command, a mistake), click reads that, and leaves the meaning of the settings to this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.errors import UsageProblems
from istio_iptables.settings.declarations import SETTINGS, ValueKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from istio_iptables.settings.declarations import Setting

__all__ = ["Flags", "read_flags"]

#: Log flags of Istio, accepted so that its arguments work, and without effect here.
_LOG_VALUES = frozenset(
    {
        "--log_target",
        "--log_output_level",
        "--log_stacktrace_level",
        "--log_caller",
        "--log_rotate",
        "--log_rotate_max_age",
        "--log_rotate_max_backups",
        "--log_rotate_max_size",
        "--vklog",
    }
)
_LOG_FLAGS = frozenset({"--log_as_json"})


class Flags(NamedTuple):
    """What a command line says about settings."""

    #: The texts that were given, by setting name; the last one counts.
    texts: dict[str, str]
    #: The line as click reads it: each setting with a value by its long option, booleans and log
    #: flags left out.
    arguments: list[str]
    #: Whether there is nothing but settings on the line, each with its value.
    complete: bool


def read_flags(args: Sequence[str], settings: Iterable[Setting] = SETTINGS) -> Flags:
    """The settings that *args* give.

    Long and short options, the value behind them, behind ``=``, or right behind a short one;
    booleans alone or with a value (``--dry-run=false``); short booleans together (``-nv``).
    Raises UsageProblems for a log flag without its value.
    """
    known = {each.flag: each for each in settings if each.on_command_line}
    known |= {f"-{each.short}": each for each in known.values() if each.short}
    texts: dict[str, str] = {}
    arguments: list[str] = []
    complete = True
    rest = iter(args)
    for argument in rest:
        if argument == "--":
            arguments += (argument, *rest)
            complete = complete and arguments[-1] == "--"
            continue
        for name, value in _options(argument, known):
            setting = known.get(name)
            text = value
            if name in _LOG_VALUES and value is None and next(rest, None) is None:
                raise UsageProblems([f"{name}: the value is missing"])
            if name in _LOG_VALUES or name in _LOG_FLAGS:
                continue
            if setting is not None and setting.kind is ValueKind.FLAG:
                texts[setting.name] = "true" if value is None else value
                continue
            if setting is not None and text is None:
                text = next(rest, None)
            if setting is None or text is None:
                # Without a value click says so, in the spelling that was used.
                complete = False
                arguments.append(argument)
                continue
            texts[setting.name] = text
            arguments += (setting.flag, text)
    return Flags(texts, arguments, complete)


def _options(argument: str, known: dict[str, Setting]) -> Iterator[tuple[str, str | None]]:
    """The options that one word gives, and the value that it holds for each; None for none."""
    name, equals, text = argument.partition("=")
    if name in known or argument.startswith("--") or argument[:2] not in known:
        yield name, text if equals else None
        return
    # Short ones in one word: booleans, and at the end one that may have a value.
    letters = iter(enumerate(argument[1:], 1))
    found: list[tuple[str, str | None]] = []
    for at, letter in letters:
        short, behind = f"-{letter}", argument[at + 1 :]
        if short not in known:
            yield argument, None
            return
        if known[short].kind is not ValueKind.FLAG or behind.startswith("="):
            found.append((short, behind.removeprefix("=") or None))
            break
        found.append((short, None))
    yield from found
