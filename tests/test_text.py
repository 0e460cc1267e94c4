"""What is written: to terminals without anything they obey, to programs byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from istio_iptables.text import clip, excerpt, printable
from tests.program import Result, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Clears the terminal, sets its title, turns the direction of writing, starts a line of its own.
HOSTILE = "\x1b[3J\x1b]0;x\x07\u202e\r\x9b2J\u2028istio-iptables: error: forged"
SHOWN = r"\x1b[3J\x1b]0;x\x07\u202e\r\x9b2J\u2028istio-iptables: error: forged"


@given(st.text(st.characters()))
@example("a\udce9\n\ud800\U0001f600\x9b")
def test_printable(text: str) -> None:
    """One line without anything that a terminal obeys; a text that has no such thing stays."""
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    shown.encode()
    if text.isprintable():
        assert shown == text


def test_bytes_are_shown_as_bytes() -> None:
    """Names that are no UTF-8 have them."""
    assert printable("\udce9t\udce9\n") == r"\xe9t\xe9\n"


def test_long_texts_are_cut() -> None:
    """A message is not as long as a file."""
    assert clip("x" * 120) == "x" * 120
    assert clip("x" * 121) == "x" * 120 + "..."
    assert excerpt("x" * 10_000) == f"'{'x' * 120}'..."
    assert excerpt("\x1b") == r"'\x1b'"


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str], str]:
    """Writes a file of rules, and gives its name."""

    def write(text: str) -> str:
        path = tmp_path / "saved"
        path.write_bytes(text.encode(errors="surrogateescape"))
        return str(path)

    return write


def lines_are_printable(result: Result) -> bool:
    """Whether both outputs are nothing but printable lines."""
    return all(line.isprintable() for text in (result.out, result.err) for line in text.split("\n"))


RULES = "*nat\n:OUTPUT ACCEPT [0:0]\n:{chain} - [0:0]\n{rules}COMMIT\n"


def test_comments_and_chains_of_others(saved: Callable[[str], str]) -> None:
    """Text in a foreign rule is shown, by diff and explain, and not obeyed."""
    rule = f'-A OUTPUT -m comment --comment "{HOSTILE}\nx" -j LOG\n'
    path = saved(
        RULES.format(
            chain="\x1b[2J", rules=f"{rule}-A OUTPUT -j \x1b[2J\n-A OUTPUT -j ISTIO_OUTPUT\n"
        )
    )
    explained = run(["explain", "--rules", path])
    assert (explained.status, lines_are_printable(explained)) == (0, True)
    assert f'"{SHOWN}\\nx"' in explained.out
    assert r"-j \x1b[2J" in explained.out
    compared = run(["diff", "-i", "*", "--against", path])
    assert (compared.status, lines_are_printable(compared)) == (1, True)
    assert f'"{SHOWN}\\nx"' in compared.out
    assert run(["diff", "-i", "*", "--against", path, "--json"]).out.isascii()
    golden = run(["diff", "-i", "*", "--golden", path])
    assert (golden.status, lines_are_printable(golden)) == (1, True)
    assert SHOWN in golden.out


@pytest.mark.parametrize(
    "text",
    [
        "*\x1b[2Jnat\n",
        "*nat\n-A \x1b[3J -j X\nCOMMIT\n",
        "*nat\n:\x1b[3J - [0:0]\n:\x1b[3J - [0:0]\nCOMMIT\n",
        "*nat\n:A - [0:0]\n-A A -j X -j \x1b[3J\nCOMMIT\n",
        "*nat\n:A - [0:0]\n-A A --\x1b[3J\nCOMMIT\n",
        "\x1b[3J\n",
        "*nat\n:A - [0:0]\n-A A \udce9\nCOMMIT\n",
    ],
)
def test_messages_about_files(saved: Callable[[str], str], text: str) -> None:
    """A line of a file that can't be read is shown in the message."""
    result = run(["explain", "--rules", saved(text)])
    assert (result.status, lines_are_printable(result), len(result.errors)) == (2, True, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", "--rules", HOSTILE],
        ["diff", "--golden", HOSTILE],
        ["-n", "-b", HOSTILE],
        ["-n", HOSTILE],
        ["-n", f"--{HOSTILE}"],
        ["diff", "--family", HOSTILE],
        ["-n", "--resolv-conf", HOSTILE, "--redirect-dns"],
        [HOSTILE],
    ],
)
def test_messages_about_options(arguments: list[str]) -> None:
    """What was typed, or came from a variable of a script, is shown and not obeyed."""
    result = run(arguments)
    assert result.status != 0
    assert lines_are_printable(result), result.err


def test_variables() -> None:
    """The listing of settings shows what the environment holds."""
    result = run(
        ["-n", "-v", "--ip-family=ipv4"], {"NETWORK_NAMESPACE": "x\u202e", "DRY_RUN": "\x1b"}
    )
    assert lines_are_printable(result)
    assert r"--network-namespace = 'x\u202e' ($NETWORK_NAMESPACE)" in result.err


def test_the_proxys_user_in_the_listing_is_the_one_in_force() -> None:
    """An empty variable is no user, so that the default counts."""
    result = run(["-n", "-v", "--ip-family=ipv4"], {"PROXY_UID": ""})
    assert "--proxy-uid = '1337' ($PROXY_UID)\n" in result.err
    assert "--uid-owner 1337" in result.out


def test_a_family_without_rules_is_said() -> None:
    """Nothing is printed, and why."""
    result = run(["-n", "--only", "ipv6", "--ip-family", "ipv4", "-i", "*", "-b", "*"])
    assert (result.status, result.out) == (0, "")
    assert result.warnings == ["--only: no effect: IPv6 is off: nothing is printed"]


# Other encodings than UTF-8.


def process(
    environment: Mapping[str, str], *arguments: str | bytes
) -> subprocess.CompletedProcess[bytes]:
    """A run of the program with these variables."""
    return subprocess.run(
        [sys.executable, "-m", "istio_iptables", *arguments],
        env={
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PATH": os.environ["PATH"],
            **environment,
        },
        capture_output=True,
        check=False,
    )


ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "utf-16"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"LC_ALL": "C.UTF-8"},
]


@pytest.mark.parametrize("environment", ENCODINGS, ids=lambda each: "-".join(each.values()))
def test_what_a_terminal_can_not_show_is_escaped(
    environment: Mapping[str, str], saved: Callable[[str], str]
) -> None:
    """A comment of another script, or of no text at all, is no reason to fail."""
    comment = "\u043f\u0440\u0430\u0432\u0438\u043b\u043e \U0001f600 \udce9"
    path = saved(
        RULES.format(chain="MINE", rules=f'-A OUTPUT -m comment --comment "{comment}" -j LOG\n')
    )
    for arguments in (
        ["explain", "--rules", path],
        ["diff", "--against", path],
        ["diff", "--golden", path],
    ):
        done = process(environment, *arguments)
        assert b"Traceback" not in done.stderr
        assert done.returncode in {0, 1}
    refused = process(environment, "explain", "--rules", "\u043f\u0440.rules", b"--\xe9")
    assert (refused.returncode, b"Traceback" in refused.stderr) == (2, False)
    document = json.loads(
        process(environment, "diff", "--against", path, "--json").stdout.decode(
            "utf-16" if "utf-16" in environment.values() else "ascii"
        )
    )
    assert not document["same"]


@pytest.mark.parametrize("environment", ENCODINGS, ids=lambda each: "-".join(each.values()))
@pytest.mark.parametrize("name", ["\u00e4\u043f".encode(), b"\xff\xfe"])
@pytest.mark.parametrize("form", ["save", "restore", "annotated"])
def test_rules_are_written_byte_for_byte(
    environment: Mapping[str, str], name: bytes, form: str
) -> None:
    """An interface's name is what the kernel has, whatever a terminal can show."""
    done = process(
        environment, "-n", "--ip-family=ipv4", "-i", "*", "-b", "*", "-c", name, "--format", form
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b" PREROUTING " in done.stdout
    assert b" -i " + name + b" -j RETURN\n" in done.stdout


def test_a_list_of_dns_servers_that_is_none(tmp_path: Path) -> None:
    """Whatever bytes it has; a device has no end, and a FIFO no beginning."""
    path = tmp_path / "resolv.conf"
    path.write_bytes(b"nameserver \xf9\nnameserver 1.1\0.1.1\nnameserver 10.0.0.1/8\n")
    words = ["-n", "-i", "*", "--ip-family=ipv4", "--redirect-dns", "--resolv-conf"]
    result = run([*words, str(path)])
    assert result.status == 0
    assert f"--redirect-dns: no effect: {path} names no DNS server" in result.warnings
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for each in ("/dev/zero", str(fifo)):
        refused = run([*words, each])
        assert refused.errors == [f"can't read the DNS servers from {each}: not a regular file"]
