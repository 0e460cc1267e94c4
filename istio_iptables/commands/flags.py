"""A command line of settings to their texts, as Go's pflag reads it.

The flags of an init container are read here and nowhere else: importing click takes longer than
making and printing the rules. Where anything else is on the line (a command, an option of a
command, a mistake), click reads that, and leaves the meaning of the settings to this module.
"""

from __future__ import annotations

from istio_iptables.errors import UsageProblems
from istio_iptables.settings.declarations import SETTINGS, ValueKind
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

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
    #: The namespaces that were named, in order; ``texts`` has the last of them.
    namespaces: tuple[str, ...]
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
    reader = _Reader(args, settings)
    complete = reader.read()
    namespaces = tuple(dict.fromkeys(reader.namespaces))
    return Flags(reader.texts, namespaces, reader.arguments, complete)


class _Reader:
    """One command line, read word by word."""

    def __init__(self, args: Sequence[str], settings: Iterable[Setting]) -> None:
        self._known = {each.flag: each for each in settings if each.on_command_line}
        self._known |= {f"-{each.short}": each for each in self._known.values() if each.short}
        self._rest = iter(args)
        self.texts: dict[str, str] = {}
        self.namespaces: list[str] = []
        self.arguments: list[str] = []

    def read(self) -> bool:
        """Whether every word could be read."""
        complete = True
        for word in self._rest:
            if word == "--":
                self.arguments += (word, *self._rest)
                return complete and self.arguments[-1] == "--"
            for name, value in _options(word, self._known):
                if not self._take(name, value):
                    complete = False
                    # Without a value click says so, in the spelling that was used.
                    self.arguments.append(word)
        return complete

    def _take(self, name: str, value: str | None) -> bool:
        """Whether the option is one of ours, and has its value, behind it if need be."""
        setting = self._known.get(name)
        if setting is not None and setting.kind is ValueKind.FLAG:
            self.texts[setting.name] = "true" if value is None else value
            return True
        if name in _LOG_FLAGS:
            return True
        if setting is None and name not in _LOG_VALUES:
            return False
        text = next(self._rest, None) if value is None else value
        if setting is None and text is None:
            raise UsageProblems([f"{name}: the value is missing"])
        if setting is not None and text is not None:
            self.texts[setting.name] = text
            if setting.name == "network_namespace":
                self.namespaces.append(text)
            self.arguments += (setting.flag, text)
        return text is not None


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
