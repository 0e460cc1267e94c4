"""The command line made from the table of settings: click options, grouped help, Go's spelling.

Istio's flags are Go's (pflag), and ``flags`` reads them; click has the options for its help, and
reads what else is on a line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from istio_iptables.commands.flags import read_flags
from istio_iptables.errors import UsageProblems
from istio_iptables.settings.declarations import GROUPS, SETTINGS, Setting, ValueKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from click.shell_completion import CompletionItem

    from istio_iptables.commands.flags import Flags

__all__ = ["Example", "Section", "SettingsCommand", "Subcommand", "flags_given", "split_extra"]

#: What is no command here, but can only mean an option.
_ASKED = {"help": "--help", "version": "--version", "-V": "--version"}

#: Where ``*`` means something, so that the shell is often left to expand it.
_TAKES_STAR = frozenset({ValueKind.PORTS_OR_ALL, ValueKind.CIDRS_OR_ALL})


class _SettingOption(click.Option):
    """A click option for one setting; it hands the text on as it is."""

    def __init__(self, setting: Setting) -> None:
        names = [setting.flag] if not setting.short else [f"-{setting.short}", setting.flag]
        self.setting = setting
        super().__init__(
            [setting.name, *names],
            is_flag=setting.kind is ValueKind.FLAG,
            default=None,
            type=click.UNPROCESSED,
            metavar=setting.kind.value or None,
            help=_help(setting),
        )

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The values that begin with *incomplete*, as far as there is a list of them."""
        from istio_iptables.commands import completion

        return completion.values(self.setting, incomplete) or super().shell_complete(
            ctx, incomplete
        )


class _File(click.types.StringParamType):
    """The name of a file, which the shell completes; whether it can be read is found by reading."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Leave it to the shell."""
        del ctx, param
        from istio_iptables.commands import completion

        return completion.files(incomplete)


class _Word(click.types.StringParamType):
    """A word, mostly one of those that the metavar lists; whoever reads it refuses others."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The listed words that begin with *incomplete*."""
        del ctx
        from istio_iptables.commands import completion

        return completion.listed(param.metavar or "", incomplete)


def _show_help(ctx: click.Context, option: click.Parameter, asked: bool) -> None:  # noqa: FBT001 - click calls it so
    if asked:
        command = ctx.command
        brief = isinstance(command, SettingsCommand) and "-h" in option.opts
        print(command.get_brief_help(ctx) if brief else ctx.get_help())  # type: ignore[attr-defined]
        ctx.exit()


def _help(setting: Setting) -> str:
    return f"{setting.help}{_facts(setting)}"


def _facts(setting: Setting) -> str:
    default = setting.default_note or setting.default
    facts = []
    if setting.environment and setting.on_command_line:
        facts.append("env " + ", ".join(f"${name}" for name in setting.environment))
    if default and default != "false":
        facts.append(f"default: {default}")
    return f"  [{'; '.join(facts)}]" if facts else ""


class Subcommand(NamedTuple):
    """A subcommand that is imported only when it is asked for: the ``command`` of a module."""

    module: str
    #: What the list of commands says about it.
    about: str


class Example(NamedTuple):
    """A command line that a person may want, for the help."""

    about: str
    line: str


class Section(NamedTuple):
    """A part of the help: what is told of each of its options or commands."""

    title: str
    rows: list[tuple[str, str]]


class SettingsCommand(click.Group):
    """A command whose options are settings, grouped in its help; subcommands come first.

    ``--help`` shows all of them and *examples*, ``-h`` those that are used most.

    ``ctx.obj`` holds the settings that were given (see ``flags``); click itself reads what else is on
    the line.
    """

    def __init__(
        self,
        settings: Iterable[Setting] = SETTINGS,
        *,
        elsewhere: Mapping[str, Subcommand] | None = None,
        more: Iterable[click.Option] = (),
        examples: Iterable[Example],
        **attributes: Any,  # noqa: ANN401 - click's, handed on as they are
    ) -> None:
        self.settings = tuple(settings)
        self._elsewhere = dict(elsewhere or {})
        self.examples = tuple(examples)
        self._own = tuple(more)
        for option in self._own:
            if option.metavar == "FILE":
                option.type = _File()
            elif "|" in (option.metavar or ""):
                option.type = _Word()
        options: list[click.Parameter] = [
            _SettingOption(setting) for setting in self.settings if setting.on_command_line
        ]
        options += self._own
        # click's own help option looks for a translation of its text, which takes 2 ms.
        options += [
            click.Option(
                [name],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_help,
                help=about,
            )
            for name, about in (
                ("-h", "Show the options that are used most, and exit."),
                ("--help", "Show all options and examples, and exit."),
            )
        ]
        super().__init__(
            params=options,
            invoke_without_command=True,
            add_help_option=False,
            context_settings={
                "help_option_names": ["-h", "--help"],
                "ignore_unknown_options": True,
                "max_content_width": 100,
            },
            **attributes,
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the subcommands."""
        return sorted({*super().list_commands(ctx), *self._elsewhere})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand, imported now if it has a module of its own: its ``command``."""
        found = self._elsewhere.get(cmd_name)
        if found is None:
            return super().get_command(ctx, cmd_name)
        from importlib import import_module

        command: click.Command = import_module(found.module).command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read *args*; a subcommand is one only in the first place, as in Go's programs.

        Raises UsageProblems where the whole line is a known mistake.
        """
        if self._elsewhere and args and args[0] in _ASKED:
            # Other programs have commands for these, so that it is clear what is meant.
            args = [*args[1:2], _ASKED[args[0]]] if args[0] == "help" else [_ASKED[args[0]]]
        if args and args[0] in self.list_commands(ctx):
            return super().parse_args(ctx, args)
        ctx.allow_interspersed_args = True
        flags = read_flags(args, self.settings)
        ctx.obj = flags
        try:
            rest = click.Command.parse_args(self, ctx, flags.arguments)
        except click.UsageError as error:
            from istio_iptables.commands.mistakes import in_our_words

            raise UsageProblems([in_our_words(error, self._label(error))]) from None
        if not ctx.resilient_parsing:
            self._refuse_mistakes(ctx, args)
        return rest

    def _label(self, error: click.UsageError) -> str:
        """The option that *error* is about, as other problems name it."""
        param = getattr(error, "param", None)
        name = getattr(error, "option_name", "")
        for each in self.params:
            if each is param or name in each.opts:
                return _label(each)
        return name

    def _refuse_mistakes(self, ctx: click.Context, args: list[str]) -> None:
        """Tell of a mistake that makes nonsense of most of the arguments in one line, not in many."""
        words = [each for each in ctx.args if not each.startswith("-")]
        given = flags_given(ctx)
        stars = {
            _shortest(each): given[each.setting.name]
            for each in reversed(self.params)
            if isinstance(each, _SettingOption)
            and each.setting.kind in _TAKES_STAR
            and given.get(each.setting.name)
            and not _usable(each.setting.kind, given[each.setting.name])
        }
        if not words and not stars:
            return
        from istio_iptables.commands import mistakes

        line = mistakes.expanded_star(words, stars)
        if self._elsewhere and not line:
            commands = self.list_commands(ctx)
            line = mistakes.behind_the_flags(str(ctx.info_name), args, words, commands)
            if not line and words[:1] == args[:1]:
                hint = mistakes.forgotten_option(words[0], ctx)
                hint = hint or mistakes.no_command(words[0], commands)
                hint = hint or f"the commands are {', '.join(commands)}"
                line = f"{words[0]!r}: there is no such command: {hint}"
        if line:
            raise UsageProblems([line])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """What may follow the name: a subcommand is one only in the first place."""
        return ["[COMMAND] [OPTIONS]" if self._elsewhere else "[OPTIONS]"]

    def sections(self, ctx: click.Context) -> list[Section]:
        """Commands, the command's own options, the settings by group, and the rest."""
        records = {
            option.setting.name: record
            for option in self.params
            if isinstance(option, _SettingOption)
            and (record := option.get_help_record(ctx)) is not None
        }
        others = [
            option
            for option in self.get_params(ctx)
            if not isinstance(option, _SettingOption) and option not in self._own
        ]
        found = [
            Section("Commands", self._commands()),
            Section(f"Options of {self.name}", _records(self._own, ctx)),
            *(
                Section(
                    group.title,
                    [
                        records[setting.name]
                        if setting.on_command_line
                        else (f"${setting.environment[0]}", f"{_help(setting)}  [environment only]")
                        for setting in self.settings
                        if setting.group is group
                    ],
                )
                for group in GROUPS
            ),
            Section("Other", _records(others, ctx)),
        ]
        return [each for each in found if each.rows]

    def _commands(self) -> list[tuple[str, str]]:
        # click would import all of them for the same lines.
        return [(name, self._elsewhere[name].about) for name in sorted(self._elsewhere)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, then the sections."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"  # {example.about}\n  {example.line}\n")
        _write(self.sections(ctx), formatter)

    def get_brief_help(self, ctx: click.Context) -> str:
        """The help of ``-h``: commands, the command's own options, and settings with a letter."""
        formatter = ctx.make_formatter()
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        letters = [
            (f"-{each.short} {each.kind.value}".rstrip(), _brief(each.help))
            for each in self.settings
            if each.short
        ]
        own = _records(self._own, ctx)
        sections = (
            Section("Commands", self._commands()),
            Section(f"Options of {self.name}", [] if self._elsewhere else own),
            Section("Flags that are used most", letters),
        )
        _write([each for each in sections if each.rows], formatter)
        formatter.write_paragraph()
        formatter.write_text(f"'{ctx.command_path} --help' shows all options, with examples.")
        return formatter.getvalue().rstrip("\n")


def _brief(about: str) -> str:
    """The first clause of a help text."""
    return about.partition(":")[0].partition(";")[0].rstrip(".")


def _write(sections: Iterable[Section], formatter: click.HelpFormatter) -> None:
    for section in sections:
        with formatter.section(section.title):
            formatter.write_dl(section.rows)


def _label(param: click.Parameter) -> str:
    """An option as problems name it: ``--istio-inbound-ports (-b)``."""
    long = next((name for name in param.opts if name.startswith("--")), param.opts[0])
    short = next((name for name in param.opts if not name.startswith("--")), "")
    return f"{long} ({short})" if short and short != long else long


def _shortest(param: click.Parameter) -> str:
    return min(param.opts, key=len)


def _usable(kind: ValueKind, text: str) -> bool:
    from istio_iptables.settings.converters import Names, parse

    # Only CIDRs and ports are asked for, and those have no names.
    return not parse(kind, text, Names(lambda _: None, lambda _: None))[1]


def _records(options: Iterable[click.Parameter], ctx: click.Context) -> list[tuple[str, str]]:
    """What ``--help`` says about *options*."""
    return [record for option in options if (record := option.get_help_record(ctx)) is not None]


def flags_given(ctx: click.Context) -> Mapping[str, str]:
    """The texts given on the command line, by setting name."""
    flags: Flags | None = ctx.obj
    return flags.texts if flags else {}


def split_extra(ctx: click.Context) -> list[str]:
    """One problem for each argument that belongs to no option.

    What stands behind an option that there is not is taken for its value, which is no problem.
    """
    problems = []
    unknown = False
    for argument in ctx.args:
        after_unknown, unknown = unknown, False
        if argument.startswith("--log_"):
            continue
        from istio_iptables.commands import mistakes

        if argument.startswith("-") and argument != "-":
            name = argument.partition("=")[0]
            hint = mistakes.no_option(name, ctx)
            unknown = name == argument
            shown = name if name.isprintable() else ascii(name)
            problems.append(f"{shown}: {hint}" if hint else f"{shown}: there is no such option")
        elif not after_unknown:
            hint = mistakes.forgotten_option(argument, ctx)
            if ctx.parent is None and not hint:
                commands = ctx.command.list_commands(ctx)  # type: ignore[attr-defined]  # a group
                hint = mistakes.no_command(argument, commands)
            problems.append(
                f"unexpected argument {argument!r}: "
                + (
                    hint
                    or "arguments are options and their values; a list is one word, with commas and"
                    " no blanks"
                )
            )
    return problems
