"""Help, examples, completion and colour: what the command line does for a person."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from istio_iptables.commands.options import SettingsCommand
from istio_iptables.commands.root import root
from tests.namespaces import why_not
from tests.program import run

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTEXT = click.Context(root)
NAMES = root.list_commands(CONTEXT)
#: Words of a list that are in capitals, as metavars without a list are.
_UPPER = {"REDIRECT", "NEW"}
PROGRAM = str(Path(sys.executable).parent / "istio-iptables")


def _command(name: str) -> SettingsCommand:
    found = root.get_command(CONTEXT, name) if name else root
    assert isinstance(found, SettingsCommand)
    return found


@pytest.mark.parametrize("name", ["", *NAMES])
def test_short_help_is_short(name: str) -> None:
    """-h names the commands and what is used most, one line or two each, and points to --help."""
    short, long = (run([*name.split(), flag]).out for flag in ("-h", "--help"))
    assert len(short.splitlines()) < len(long.splitlines())
    assert "Examples" not in short
    assert short.rstrip().splitlines()[-1] == (
        f"'{' '.join(('istio-iptables', *name.split()))} --help' shows all options, with examples."
    )
    assert all(len(line) <= 80 for line in short.splitlines())


def test_commands_come_first() -> None:
    """In both helps, before any option; the examples come before them."""
    for flag, headings in (("-h", ["Commands:"]), ("--help", ["Examples:", "Commands:"])):
        lines = run([flag]).out.splitlines()
        found = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
        assert found[: len(headings)] == headings
        assert all(any(f"  {name}  " in line for line in lines) for name in NAMES)


@pytest.mark.parametrize("name", ["", *NAMES])
def test_three_examples(name: str) -> None:
    """Each command's help has three, and they are lines of this command that fit on a screen."""
    command = _command(name)
    text = run([*name.split(), "--help"]).out
    assert len(command.examples) == 3
    for example in command.examples:
        assert f"  # {example.about}\n  {example.line}\n" in text
        assert shlex.split(example.line)[: 1 + bool(name)] == ["istio-iptables", *name.split()]
        assert len(example.line) <= 98


def _completed(words: list[str]) -> list[str]:
    """What bash offers for the last of *words*, by the function that our program gives it."""
    script = (
        '. <(_ISTIO_IPTABLES_COMPLETE=bash_source istio-iptables); COMP_WORDS=("$@");'
        " COMP_CWORD=$(($# - 1)); _istio_iptables_completion istio-iptables 2>/dev/null;"
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{Path(PROGRAM).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        # If the program took the question for a start of its own, it would install rules.
        (*(("unshare", "--net") if not why_not() else ()), "bash", "-c", script, "-", *words),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={"PATH": path},
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("istio-iptables ", NAMES),
        ("istio-iptables expl", ["explain"]),
        ("istio-iptables --dry", ["--dry-run"]),
        ("istio-iptables -m ", ["REDIRECT", "TPROXY"]),
        ("istio-iptables -i 10.0.0.0/8 --format re", ["restore"]),
        ("istio-iptables --only ", ["ipv4", "ipv6"]),
        ("istio-iptables --force-iptables-binary l", ["legacy"]),
        ("istio-iptables diff --agai", ["--against"]),
        ("istio-iptables lab --scenario pl", ["plain-client"]),
        ("istio-iptables -p ", []),
        ("istio-iptables matrix --format m", ["markdown"]),
        ("istio-iptables lab --mode T", ["TPROXY"]),
        ("istio-iptables explain --ctstate E", ["ESTABLISHED"]),
    ],
)
def test_completion(line: str, offered: list[str]) -> None:
    """Commands, options and values that are one of a list."""
    assert _completed(line.split(" ")) == offered


@pytest.mark.parametrize("name", ["", *NAMES])
def test_values_of_a_list_complete(name: str) -> None:
    """Those of every option whose help lists them, and file names."""
    command = root.get_command(CONTEXT, name) if name else root
    assert command is not None
    context = click.Context(command, resilient_parsing=True)
    for option in command.params:
        words = option.make_metavar(context).strip("[]").split("|")
        offered = [(each.type, each.value) for each in option.shell_complete(context, "")]
        if isinstance(option.type, click.Choice) or words[0].islower() or words[0] in _UPPER:
            assert offered == [("plain", word) for word in words], option.name
        elif words in (["FILE"], ["PATH"]) and option.name != "network_namespace":
            assert offered == [("file", "")], option.name


@pytest.mark.parametrize("option", ["--resolv-conf", "--pod", "--values", "compare"])
def test_files_are_the_shells(option: str) -> None:
    """The shell is told to complete the name of a file."""
    environment = {"_ISTIO_IPTABLES_COMPLETE": "zsh_complete", "COMP_CWORD": "2"}
    done = subprocess.run(
        (PROGRAM,),
        capture_output=True,
        text=True,
        env={**environment, "COMP_WORDS": f"istio-iptables {option} "},
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == ["file", "_"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_set_up(shell: str) -> None:
    """The program prints the shell's script, and does nothing else."""
    environment = {"_ISTIO_IPTABLES_COMPLETE": f"{shell}_source", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        (PROGRAM,), capture_output=True, text=True, env=environment, check=True, timeout=60
    )
    assert "_istio_iptables_completion" in done.stdout
    assert done.stderr == ""


def _on_terminal(arguments: list[str], environment: dict[str, str]) -> str:
    """What a terminal gets from the program, stdout and stderr together."""

    def chunks() -> Iterator[bytes]:
        try:
            while chunk := os.read(terminal, 4096):
                yield chunk
        except OSError:  # the last process has closed it
            return

    terminal, program = pty.openpty()
    with subprocess.Popen(
        (PROGRAM, *arguments), stdout=program, stderr=program, env=environment
    ) as process:
        os.close(program)
        text = b"".join(chunks()).decode()
        process.wait(60)
    os.close(terminal)
    return text


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_colour_on_a_terminal(environment: dict[str, str], *, coloured: bool) -> None:
    """Problems are red and a verdict is bold, unless the user asked for none of that."""
    environment = {"TERM": "xterm", **environment}
    text = _on_terminal(["--bogus", "-n"], environment)
    assert ("\x1b[31merror\x1b[0m" in text) is coloured
    text = _on_terminal(["explain", "--dst", "10.0.0.9:443"], environment)
    assert ("\x1b[1m" in text) is coloured
    assert ("\x1b" in text) is coloured


def test_no_colour_elsewhere() -> None:
    """Not in a pipe, whatever the environment asks for."""
    result = run(["explain", "--dst", "10.0.0.9:443"], {"TERM": "xterm", "CLICOLOR_FORCE": "1"})
    assert "\x1b" not in result.out + result.err
