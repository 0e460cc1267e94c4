"""The program from the outside: its arguments, what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from istio_iptables import __version__, cli
from istio_iptables.settings.declarations import SETTINGS, ValueKind
from tests.golden import GOLDEN
from tests.program import run

DRY = ["--dry-run", "--ip-family", "ipv4"]
IDS = ["-u", "1337"]
PLAIN = [*DRY, *IDS, "-i", "*", "-b", "*"]

# Refusals: arguments, environment, and a fragment of the one line that tells the problem.
REFUSALS: list[tuple[str, list[str], dict[str, str], str]] = [
    ("port-zero", ["-p", "0"], {}, "--envoy-port (-p): '0' is not a port"),
    ("port-word", ["-z", "http"], {}, "--inbound-capture-port (-z): 'http' is not a port"),
    (
        "port-environment",
        [],
        {"INBOUND_TUNNEL_PORT": "70000"},
        "INBOUND_TUNNEL_PORT: '70000' is not",
    ),
    ("port-in-list", ["-b", "80,65536"], {}, "--istio-inbound-ports (-b), item 2: '65536' is not"),
    (
        "port-dash-range",
        ["-o", "80-90"],
        {},
        "(-o), item 1: '80-90' is not a port: write a range as 80:90",
    ),
    (
        "port-range-reversed",
        ["-d", "9:8", "-b", "*"],
        {},
        "(-d), item 1: '9:8' is not a port range",
    ),
    ("star-in-list", ["-b", "80,*"], {}, "(-b), item 2: '*' stands for all of them"),
    ("star-in-exclude", ["-x", "*", "-i", "*"], {}, "(-x), item 1: '*' is not accepted here"),
    ("star-in-ports", ["-q", "*"], {}, "(-q), item 1: '*' is not accepted here"),
    ("bare-address", ["-i", "10.0.0.1"], {}, "'10.0.0.1' is a bare address: write 10.0.0.1/32"),
    ("bare-address-ipv6", ["-i", "fd00::1"], {}, "'fd00::1' is a bare address: write fd00::1/128"),
    (
        "cidr-length",
        ["-x", "10.0.0.0/33", "-i", "*"],
        {},
        "(-x), item 1: '10.0.0.0/33' is not a CIDR",
    ),
    ("cidr-word", ["-i", "example.com"], {}, "'example.com' is not a CIDR"),
    ("mode-case", ["-m", "tproxy"], {}, "did you mean TPROXY?"),
    (
        "mode-unknown",
        [],
        {"ISTIO_INBOUND_INTERCEPTION_MODE": "BOGUS"},
        "INTERCEPTION_MODE: 'BOGUS' is",
    ),
    ("uid-unknown", ["-u", "no-such-user"], {}, "(-u), item 1: 'no-such-user' is neither a number"),
    ("uid-too-large", ["-u", "4294967295"], {}, "is not a user id"),
    ("uid-nobody", ["-u", ","], {}, "(-u): ',' is empty: name at least one user"),
    ("gid-unknown", ["-g", "5,no-such-group"], {}, "(-g), item 2: 'no-such-group' is neither"),
    ("groups-environment", [], {"ISTIO_OUTBOUND_OWNER_GROUPS": "x"}, "OWNER_GROUPS, item 1: 'x'"),
    ("groups-star", [], {"ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "*"}, "'*' is not accepted here"),
    ("interface-long", ["-c", "abcdefghijklmnop"], {}, "longer than 15 bytes"),
    ("interface-slash", ["-c", "a/b"], {}, "it holds '/'"),
    ("interface-blank", ["-k", "a b"], {}, "it holds ' '"),
    ("interface-bang", ["-k", "!eth0"], {}, "start with '-' or '!'"),
    ("mark", ["-t", "0xzz"], {}, "(-t): '0xzz' is not a number"),
    ("mark-zero", ["-t", "0"], {}, "(-t): '0' is not a number from 1"),
    ("table", ["-r", "main"], {}, "(-r): 'main' is not a number"),
    (
        "loopback",
        [],
        {"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "10.0.0.0/8"},
        "has to lie in 127.0.0.0/8",
    ),
    ("duration", [], {"PROBE_TIMEOUT": "5"}, "PROBE_TIMEOUT: '5' is not a duration"),
    ("backend", ["--force-iptables-binary", "xtables"], {}, "is not one of legacy, nft"),
    ("format", ["--format", "yaml"], {}, "--format: 'yaml' is not one of save, restore"),
    ("only", ["--only", "both"], {}, "--only: 'both' is not one of ipv4, ipv6"),
    ("boolean-flag", ["--drop-invalid=maybe"], {}, "--drop-invalid: 'maybe' is not a boolean"),
    ("extra-word", ["-b", "80", "90"], {}, "unexpected argument '90'"),
    ("boolean-shifted", ["--drop-invalid", "false"], {}, "unexpected argument 'false'"),
    ("blank-list", ["-b", "80,", "90"], {}, "unexpected argument '90'"),
    ("unknown-flag", ["--no-such-flag"], {}, "--no-such-flag: there is no such option"),
    ("unknown-flag-value", ["--no-such-flag=5"], {}, "--no-such-flag: there is no such option"),
    (
        "after-the-end-of-options",
        ["--", "-b"],
        {},
        "-b: stands behind --, which ends the options",
    ),
    ("log-flag-without-value", ["--log_target"], {}, "--log_target: the value is missing"),
    ("no-value", ["-b"], {}, "--istio-inbound-ports (-b): the value is missing"),
    ("typo", ["--dryrun"], {}, "--dryrun: there is no such option: did you mean --dry-run?"),
    (
        "part-of-a-name",
        ["--port", "80"],
        {},
        "--port: there is no such option: did you mean --envoy-",
    ),
    ("no-file", ["--config=x"], {}, "--config: there is no configuration file"),
    ("namespace", ["--namespace", "x"], {}, "did you mean --network-namespace?"),
    (
        "of-explain",
        ["--dst", "1.2.3.4"],
        {},
        "this is an option of 'istio-iptables explain', which",
    ),
    ("escape-sequence", ["--\x1b[2J"], {}, r"'--\x1b[2J': there is no such option"),
    ("late-install", ["install"], {}, "unexpected argument 'install': no command is needed to"),
    ("late-typo", ["difff"], {}, "unexpected argument 'difff': did you mean diff?"),
    ("shifted", ["-x", "-b"], {}, "(-x), item 1: '-b' looks like an option"),
    ("shifted-port", ["-p", "-z"], {}, "(-p): '-z' looks like an option"),
    ("shifted-interface", ["-c", "-k"], {}, "(-c), item 1: '-k' looks like an option"),
    (
        "newline",
        ["-b", "80\n-A OUTPUT -j ACCEPT"],
        {},
        "(-b): '80\\n-A OUTPUT -j ACCEPT' holds the control",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "environment", "fragment"),
    [row[1:] for row in REFUSALS],
    ids=[row[0] for row in REFUSALS],
)
def test_refused(arguments: list[str], environment: dict[str, str], fragment: str) -> None:
    """What can't be used is refused in one line, with exit status 2 and nothing on stdout."""
    result = run([*DRY, *arguments], environment)
    assert (result.status, result.out) == (2, "")
    (problem,) = result.errors
    assert fragment in problem
    assert result.err == f"istio-iptables: error: {problem}\n"


#: Lines that make sense to whoever typed them: the arguments, and a fragment of the one answer.
MISTAKES: list[tuple[list[str], str]] = [
    (
        ["difff", "--against", "x", "-i", "*"],
        "'difff': there is no such command: did you mean diff?",
    ),
    (["uninstall"], "'uninstall': there is no such command: 'istio-iptables clean' removes"),
    (["uninstal", "--force"], "'istio-iptables clean' removes what was installed"),
    (["install", "-i", "*"], "no command is needed to install"),
    (["apply", "-p", "x"], "no command is needed to install"),
    (
        ["frobnicate"],
        "there is no such command: the commands are check, clean, ",
    ),
    (
        ["-i", "*", "explain", "--dst", "X"],
        "explain comes first: istio-iptables explain -i '*' --dst X",
    ),
    (
        ["--dry-run", "-i", "*", "-p", "x", "diff"],
        "diff comes first: istio-iptables diff -i '*' -p x",
    ),
    (["-n", "clean"], "clean comes first: istio-iptables clean"),
    (["diff", "--golden"], "--golden: the value is missing"),
    (["diff", "--json=x"], "--json: takes no value"),
    (
        ["diff", "--dry-run"],
        "--dry-run: this is an option of istio-iptables itself, not of",
    ),
    (
        ["clean", "--dry-run"],
        "not of clean: 'istio-iptables describe' shows the rules; clean leaves",
    ),
    (["matrix", "--dry-run"], "not of matrix: 'istio-iptables matrix --help' shows its own"),
    (
        ["report", "--format", "pdf", "-o", "x"],
        "the page is HTML; 'istio-iptables describe --format",
    ),
    (["explain", "10.1.2.3:443"], "unexpected argument '10.1.2.3:443': did you mean --dst 10.1.2"),
    (["explain", "[fd00::1]:443"], "did you mean --dst '[fd00::1]:443'?"),
    (["diff", "--goldn", "x"], "--goldn: there is no such option: did you mean --golden?"),
    (["diff", "--family", "ipv6"], "--family: tells of the file of --against, and none is given"),
    (["check", "--family", "ipv6"], "--family: tells of the file of --rules, and none is given"),
    *(
        (
            [command, "--network-namespace", "a", "--network-namespace", "b"],
            "--network-namespace: is there several times, and this is about one namespace",
        )
        for command in ("diff", "check", "describe", "matrix", "explain")
    ),
    (["diff", "--family", "ipv5"], "--family: 'ipv5' is not one of ipv4, ipv6"),
    (
        ["lab", "--scenario", "x"],
        "--scenario: 'x' is not one of sidecar, ingress, egress, plain-client",
    ),
    (["lab", "--envoy-uid", "x"], "--envoy-uid: 'x' is not a number from 0 to 4294967294"),
    (["lab", "--envoy-uid", "-1"], "--envoy-uid: -1 is not a number from 0 to 4294967294"),
    (["explain", "--uid"], "--uid: the value is missing"),
]


@pytest.mark.parametrize(("arguments", "fragment"), MISTAKES)
def test_a_mistake_is_one_line(arguments: list[str], fragment: str) -> None:
    """What was probably meant is told in one line, and nothing of what follows from it."""
    result = run(arguments)
    assert (result.status, result.out) == (2, "")
    (problem,) = result.errors
    assert fragment in problem
    assert result.err == f"istio-iptables: error: {problem}\n"


@pytest.mark.parametrize("files", [["LICENSE"], ["LICENSE", "Makefile", "explain"]])
@pytest.mark.parametrize("command", [[], ["explain"], ["diff"]])
def test_a_star_that_the_shell_expanded(
    tmp_path: Path, files: list[str], command: list[str]
) -> None:
    """One line that tells to quote it, and names the options."""
    for name in files:
        (tmp_path / name).touch()
    result = run([*command, "-i", *files, "-d", "15020", "-b", *files], folder=tmp_path)
    assert (result.status, result.out) == (2, "")
    assert result.errors == [
        "the shell expanded * to the names of files here ('LICENSE', ...): quote it: -i '*' -b '*'"
    ]


def test_a_file_that_is_called_like_a_port(tmp_path: Path) -> None:
    """What can be used is used, whatever files there are."""
    (tmp_path / "80").touch()
    assert run([*PLAIN, "-b", "80"], folder=tmp_path).status == 0


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["describe", "saved"], "unexpected argument 'saved': did you mean --rules saved?"),
        (["matrix", "-i", "*", "native"], "did you mean --rules native?"),
        (["diff", "saved"], "did you mean --against saved?"),
        (["explain", "web"], "did you mean --pod web?"),
        (["web"], "'web': there is no such command: did you mean --pod web?"),
        (["-b", "80", "web"], "unexpected argument 'web': did you mean --pod web?"),
        (["saved"], "these are rules: 'istio-iptables describe --rules saved' reads them"),
        (["report", "-o", "x", "other"], "unexpected argument 'other': arguments are options and"),
        (["describe", "--pod", "saved"], "--pod: saved: these are rules, not a manifest"),
    ],
)
def test_a_file_without_its_option(tmp_path: Path, words: list[str], hint: str) -> None:
    """What is in the file tells which option was forgotten."""
    (tmp_path / "saved").write_text("# IPv4\n*nat\nCOMMIT\n")
    (tmp_path / "native").write_text("table inet x {\n}\n")
    (tmp_path / "web").write_text("apiVersion: v1\nkind: Pod\n")
    (tmp_path / "other").write_text("hello\n")
    result = run(words, folder=tmp_path)
    assert (result.status, result.out) == (2, "")
    (problem,) = result.errors
    assert hint in problem


def test_a_page_without_a_file_tells_all(tmp_path: Path) -> None:
    """A forgotten --pod is told beside the forgotten --output."""
    (tmp_path / "web.yaml").write_text("apiVersion: v1\nkind: Pod\n")
    assert run(["report", "web.yaml"], folder=tmp_path).errors == [
        "unexpected argument 'web.yaml': did you mean --pod web.yaml?",
        "--output (-o): is missing: the file for the page, or - for stdout",
    ]


@pytest.mark.parametrize("words", [["version"], ["-V"], ["--version"]])
def test_version(words: list[str]) -> None:
    """However it is asked for, the version is told."""
    result = run(words)
    assert (result.status, result.out) == (0, f"istio-iptables, version {__version__}\n")


@pytest.mark.parametrize("command", [[], ["diff"]])
def test_help_as_a_command(command: list[str]) -> None:
    """As other programs have it."""
    assert run(["help", *command]) == run([*command, "--help"])


def test_all_refusals_at_once() -> None:
    """Everything that is wrong, in flags, environment and extra words, is told in one go."""
    result = run(
        [*DRY, "-p", "0", "-b", "x,80,y", "-i", "10.0.0.1", "spare", "--nonsense"],
        {"PROXY_UID": "no-such-user", "ISTIO_INBOUND_TPROXY_MARK": "?"},
    )
    assert (result.status, result.out) == (2, "")
    starts = [
        "unexpected argument 'spare'",
        "--nonsense: ",
        "--envoy-port (-p): '0'",
        "PROXY_UID, item 1: 'no-such-user'",
        "--istio-inbound-ports (-b), item 1: 'x'",
        "--istio-inbound-ports (-b), item 3: 'y'",
        "ISTIO_INBOUND_TPROXY_MARK: '?'",
        "--istio-service-cidr (-i), item 1: '10.0.0.1'",
    ]
    assert len(result.errors) == len(starts)
    for problem, start in zip(result.errors, starts, strict=True):
        assert problem.startswith(start)


@pytest.mark.parametrize("letter", ["\n", "\r", "\x1b", "\x7f", "\u2028"])
@pytest.mark.parametrize(
    "name",
    [each.name for each in SETTINGS if each.kind is not ValueKind.FLAG],
)
def test_control_characters_get_nowhere(name: str, letter: str) -> None:
    """No setting carries a newline or another control character into a rule, or onto a terminal."""
    (each,) = (each for each in SETTINGS if each.name == name)
    text = f"1{letter}-A OUTPUT -j ACCEPT"
    if each.on_command_line:
        result = run([*DRY, f"{each.flag}={text}"])
    else:
        result = run(DRY, {each.environment[0]: text})
    assert (result.status, result.out) == (2, "")
    assert "control character" in result.errors[0]
    assert len(result.err.splitlines()) == len(result.errors)
    assert letter not in result.err.removesuffix("\n")


# Warnings: arguments, environment, and a fragment of the one line that tells it.
WARNINGS: list[tuple[str, list[str], dict[str, str], str]] = [
    (
        "q-with-all",
        ["-q", "80"],
        {},
        "(-q): no effect: all outbound traffic is captured",
    ),
    (
        "d-without-all",
        ["-b", "90", "-d", "80"],
        {},
        "(-d): no effect: it excludes ports from -b '*' only",
    ),
    ("all-dns-alone", ["--capture-all-dns"], {}, "--capture-all-dns: no effect: it needs"),
    ("ipv6-off", ["-i", "fd00::/8"], {}, "(-i): no effect: IPv6 is off, which leaves fd00::/8"),
    ("mark-redirect", ["-t", "5"], {}, "(-t): no effect: only TPROXY"),
    (
        "no-server",
        ["--redirect-dns", "--resolv-conf", "/dev/null"],
        {},
        "/dev/null names no DNS server",
    ),
    (
        "dual-stack",
        [],
        {"ISTIO_DUAL_STACK": "true"},
        "ISTIO_DUAL_STACK: no effect: --ip-family is ipv4",
    ),
    (
        "bad-boolean",
        [],
        {"DROP_INVALID": "yes"},
        "DROP_INVALID: 'yes' is not a boolean and is ignored",
    ),
    ("bad-boolean-case", [], {"INVALID_DROP": "tRUE"}, "INVALID_DROP: 'tRUE' is not a boolean"),
    ("envoy-port", [], {"ENVOY_PORT": "9"}, "ENVOY_PORT: not read"),
    ("nothing-outbound", ["-i", ""], {}, "nothing outbound is captured: --istio-service-cidr (-i)"),
    (
        "nothing-inbound",
        ["-b", ", "],
        {},
        "nothing inbound is captured: --istio-inbound-ports (-b)",
    ),
    (
        "nothing-at-all",
        ["-i=", "-b="],
        {},
        "nothing is captured, outbound or inbound: --istio-service-cidr (-i) is empty;",
    ),
    (
        "nothing-but-dns",
        ["-i", "", "--redirect-dns", "--capture-all-dns"],
        {},
        "nothing but DNS outbound is captured",
    ),
    (
        "no-owner-group",
        ["--redirect-dns", "--capture-all-dns"],
        {"ISTIO_OUTBOUND_OWNER_GROUPS": ""},
        "nothing outbound is captured: ISTIO_OUTBOUND_OWNER_GROUPS is empty",
    ),
    (
        "every-destination-excluded",
        ["-x", "1.2.3.4/0"],
        {},
        "nothing outbound is captured: --istio-service-exclude-cidr (-x) excludes every destination",
    ),
    (
        "every-outbound-port-excluded",
        ["-o", "3000:65535,1:2999"],
        {},
        "nothing outbound is captured: --istio-local-outbound-ports-exclude (-o) excludes every",
    ),
    (
        "every-inbound-port-excluded",
        ["-d", "1:65535"],
        {},
        "nothing inbound is captured: --istio-local-exclude-ports (-d) excludes every port",
    ),
    (
        "every-interface-excluded",
        ["-c", "eth0,+"],
        {},
        "nothing is captured, outbound or inbound: --istio-exclude-interfaces (-c) excludes every",
    ),
    ("port-zero", ["-d", "80,0"], {}, "--istio-local-exclude-ports (-d): port 0 matches next to"),
    ("every-port", ["-b", ":65535"], {}, "--istio-inbound-ports (-b): 0:65535 is every port"),
    ("no-tunnel-port", [], {"INBOUND_TUNNEL_PORT": "0"}, "INBOUND_TUNNEL_PORT: port 0 matches"),
    (
        "same-ports",
        ["-p", "15006"],
        {},
        "--inbound-capture-port (-z): 15006 is also the port of --envoy-port (-p)",
    ),
    (
        "swapped-ports",
        ["-p", "15006", "-z", "15001"],
        {},
        "--envoy-port (-p), --inbound-capture-port (-z): these look swapped: -p is the outbound",
    ),
    (
        "port-of-the-tunnel",
        ["-e", "15001"],
        {},
        "--inbound-tunnel-port (-e): 15001 is also the port of --envoy-port (-p)",
    ),
    (
        "port-of-the-agent",
        ["-z", "15053", "--redirect-dns", "--capture-all-dns"],
        {},
        "15053 is also the port of --inbound-capture-port (-z)",
    ),
    (
        "port-of-the-probe",
        ["--run-validation", "--iptables-probe-port", "15006"],
        {},
        "--iptables-probe-port: 15006 is also the port of --inbound-capture-port (-z)",
    ),
    (
        "application-user",
        ["-u", "1000"],
        {},
        "runs as the proxy's uid 1000 escapes; decided by nat",
    ),
    ("application-group", ["-g", "5,1000-1001"], {}, "runs as the proxy's gid 1000 escapes"),
    (
        "loopback-of-envoy",
        [],
        {"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.0.0.2/32"},
        "what Envoy asks the agent would be sent back",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "environment", "fragment"),
    [row[1:] for row in WARNINGS],
    ids=[row[0] for row in WARNINGS],
)
def test_warned(arguments: list[str], environment: dict[str, str], fragment: str) -> None:
    """What has no effect, or escapes, is told in one line; --strict makes it an error."""
    result = run([*PLAIN, *arguments], environment)
    assert result.status == 0
    assert result.out.startswith("# IPv4\n*")
    (warning,) = result.warnings
    assert fragment in warning
    strict = run([*PLAIN, "--strict", *arguments], environment)
    assert (strict.status, strict.out) == (2, "")
    assert strict.errors == [f"{warning} (--strict)"]


def test_strict_without_warnings() -> None:
    """--strict changes nothing where there is nothing to warn of."""
    result = run([*PLAIN, "--strict"])
    assert result == run(PLAIN)
    assert (result.status, result.err) == (0, "")


# The ways to say the same in Go's flags.
SPELLINGS: list[tuple[list[str], list[str]]] = [
    (["-p", "16001"], ["-p=16001"]),
    (["-p", "16001"], ["-p16001"]),
    (["-p", "16001"], ["--envoy-port=16001"]),
    (["-p", "16001"], ["--envoy-port", "16001"]),
    (["-p", "16001"], ["-p", "1", "--envoy-port", "16001"]),
    (["-b", "*"], ["-nb", "*"]),
    (["-b", "*"], ["-nb*"]),
    (["-b", ""], ["-b="]),
    (["-b", ""], ["--istio-inbound-ports="]),
    (["-x", ""], ["-x", "", "-x="]),
    ([], ["--dry-run=true"]),
    ([], ["-n=1"]),
    (["--drop-invalid"], ["--drop-invalid=t"]),
    (["--drop-invalid"], ["--drop-invalid=false", "--drop-invalid"]),
    (["--drop-invalid"], ["--drop-invalid=0", "--drop-invalid=TRUE"]),
    ([], ["--drop-invalid", "--drop-invalid=false"]),
    ([], ["--redirect-dns=f", "--dual-stack=False"]),
    ([], ["--log_output_level=default:info"]),
    ([], ["--log_output_level", "default:info"]),
    ([], ["--log_as_json"]),
    ([], ["--log_of_a_later_istio=1"]),
    ([], ["--log_as_json=true"]),
    ([], ["--log_target", "stderr", "--log_caller=all", "--log_stacktrace_level=none"]),
    ([], ["--log_rotate=/tmp/x", "--log_rotate_max_size=1", "--log_rotate_max_age=1", "--vklog=9"]),
]


@pytest.mark.parametrize(("plain", "spelled"), SPELLINGS)
def test_spelled_as_in_go(plain: list[str], spelled: list[str]) -> None:
    """Istio's flags are Go's; each of their spellings means what it means there."""
    expected = run([*PLAIN, *plain])
    assert expected.status == 0
    assert run([*PLAIN, *spelled]) == expected


def test_a_flag_false_takes_a_dry_run_back() -> None:
    """--dry-run=false beats DRY_RUN=true: then --format, which only prints, is refused."""
    result = run(["--dry-run=false", "--format=json", "--ip-family=ipv4"], {"DRY_RUN": "true"})
    assert result.errors == [
        "--format: says how to print, and only a dry run prints: add --dry-run"
    ]


def test_help_shows_everything() -> None:
    """The help names every flag, short form, variable and default, in groups."""
    result = run(["--help"])
    assert (result.status, result.err) == (0, "")
    text = " ".join(result.out.split()).replace("- ", "-")
    for each in SETTINGS:
        if each.on_command_line:
            assert each.flag in text
        if each.short:
            assert f"-{each.short}, {each.flag}" in text
        for variable in each.environment:
            assert f"${variable}" in text
        if each.default not in {"", "false"}:
            assert f"default: {each.default}" in text
    for heading in ("Inbound", "Outbound", "DNS", "Exit status"):
        assert heading in text


@pytest.mark.parametrize(
    ("command", "own"),
    [("diff", "--against"), ("explain", "--ctstate"), ("clean", ""), ("lab", "--scenario")],
)
def test_help_of_a_subcommand(command: str, own: str) -> None:
    """A subcommand's help begins with what is its own, and offers no further subcommands."""
    text = run([command, "--help"]).out
    assert text.startswith(f"Usage: istio-iptables {command} [OPTIONS]\n")
    if own:
        headings = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
        assert headings[:2] == ["Examples:", f"Options of {command}:"]
        place = text.index(f"  {own}", text.index(headings[1]))
        assert place < text.index(headings[2])


def test_verbose_tells_where_each_value_came_from() -> None:
    """-v shows each setting in force and its source on stderr, and stdout stays the same."""
    arguments = [*DRY, "-i", "*", "-b", "*"]
    environment = {"PROXY_UID": "5", "ISTIO_META_DNS_CAPTURE": "false", "REDIRECT_DNS": "true"}
    quiet, told = (run([*arguments, *more], environment) for more in ([], ["-v"]))
    assert told.out == quiet.out
    lines = {line.removeprefix("istio-iptables: setting: ") for line in told.err.splitlines()}
    assert {
        "--istio-service-cidr = '*' (--istio-service-cidr)",
        "--proxy-uid = '5' ($PROXY_UID)",
        "--proxy-gid = '5' (default)",
        "--redirect-dns = 'false' ($ISTIO_META_DNS_CAPTURE)",
        "--envoy-port = '15001' (default)",
    } <= lines
    assert len(lines) == len(SETTINGS)


def test_json() -> None:
    """JSON holds settings with sources, tables with rules in parts, routes and addresses."""
    arguments = ["-n", *IDS, "-m", "TPROXY", "-b", "80", "-k", "eth1", "-i", "10.0.0.0/8"]
    result = run(
        [*arguments, "--ip-family", "dual", "--format", "json"], {"ISTIO_OUTBOUND_PORTS": "443"}
    )
    document = json.loads(result.out)
    assert document["version"] == 1
    assert document["settings"]["istio_outbound_ports"] == {
        "value": "443",
        "source": "environment",
        "variable": "ISTIO_OUTBOUND_PORTS",
        "place": None,
    }
    assert document["settings"]["envoy_port"] == {
        "value": "15001",
        "source": "default",
        "variable": None,
        "place": None,
    }
    assert [each["family"] for each in document["families"]] == ["ipv4", "ipv6"]
    tables = {each["table"]: each["chains"] for each in document["families"][0]["tables"]}
    assert list(tables) == ["mangle", "nat"]
    chains = {each["chain"]: each for each in tables["nat"]}
    assert (chains["OUTPUT"]["policy"], chains["ISTIO_OUTPUT"]["policy"]) == ("ACCEPT", None)
    first = chains["PREROUTING"]["rules"][0]
    assert first == {
        "number": 1,
        "text": "-A PREROUTING -d 10.0.0.0/8 -i eth1 -j ISTIO_REDIRECT",
        "reason": first["reason"],
        "inserted": True,
        "source": None,
        "destination": {"value": "10.0.0.0/8", "negated": False},
        "in_interface": {"value": "eth1", "negated": False},
        "out_interface": None,
        "protocol": None,
        "matches": [],
        "target": {"name": "ISTIO_REDIRECT", "options": []},
    }
    own = chains["ISTIO_OUTPUT"]["rules"][1]
    assert own["destination"] == {"value": "127.0.0.1/32", "negated": True}
    assert own["matches"][0] == {
        "name": "tcp",
        "options": [{"name": "--dport", "values": ["15008"], "negated": True}],
    }
    assert [(each["family"], each["mark"], each["table"]) for each in document["routes"]] == [
        ("ipv4", 1337, 133),
        ("ipv6", 1337, 133),
    ]
    (address,) = document["addresses"]
    assert (address["address"], address["interface"]) == ("::6/128", "lo")
    assert address["commands"] == [["ip", "-6", "addr", "add", "::6/128", "dev", "lo"]]


def test_json_is_the_save_text_in_parts() -> None:
    """The texts in the JSON are the lines of the save text, in their order."""
    arguments = [*PLAIN, "-c", "eth9", "--drop-invalid"]
    saved = [line for line in run(arguments).out.splitlines() if line.startswith("-A")]
    document = json.loads(run([*arguments, "--format=json"]).out)
    assert [
        rule["text"]
        for family in document["families"]
        for table in family["tables"]
        for chain in table["chains"]
        for rule in chain["rules"]
    ] == saved


def test_annotated_is_the_save_text_with_reasons() -> None:
    """Above each rule stands its reason; without the comments the text is that of save."""
    save, annotate = (run([*PLAIN, "--format", form]).out for form in ("save", "annotated"))
    lines = annotate.splitlines()
    assert [line for line in lines if not line.startswith("#")] == save.splitlines()[1:]
    for number, line in enumerate(lines):
        assert not line.startswith("-A") or lines[number - 1].startswith("# ")


def test_only_is_a_part_of_the_whole() -> None:
    """The documents of the two families, one after the other, are the whole text."""
    arguments = ["-n", *IDS, "--ip-family", "dual", "-i", "*", "-m", "TPROXY", "-b", "80"]
    for form in ("save", "restore", "commands", "annotated"):
        whole, *parts = (
            run([*arguments, "--format", form, *only]).out
            for only in ([], ["--only", "ipv4"], ["--only", "ipv6"])
        )
        assert whole == "".join(parts)
        assert all(parts)


def test_a_dry_run_without_addresses(tmp_path: Path) -> None:
    """A dry run in an empty namespace prints IPv4 rules and says what it assumed."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make an empty namespace")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "istio_iptables", "-n", *PLAIN[3:]],
        env={"PYTHONPATH": str(GOLDEN.parent), "PATH": os.environ["PATH"]},
        cwd=tmp_path,
        capture_output=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0
    assert done.stdout == run(PLAIN).out
    assert done.stderr == (
        "istio-iptables: warning: no address to tell the address families by: IPv4 is assumed\n"
    )


def test_a_reader_that_has_seen_enough() -> None:
    """A pipe that is closed early ends the program without a traceback."""
    done = subprocess.run(
        [
            "sh",
            "-c",
            f"{sys.executable} -m istio_iptables {shlex.join(PLAIN)} | head -c 5 >/dev/null",
        ],
        env={"PYTHONPATH": str(GOLDEN.parent), "PATH": os.environ["PATH"]},
        capture_output=True,
        check=False,
        encoding="utf-8",
    )
    assert done.stderr == ""


def test_bytes_that_are_no_text() -> None:
    """An interface name of any bytes is printed as those bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "istio_iptables", *PLAIN, "-c", b"\xff\xfe"],
        env={"PYTHONPATH": str(GOLDEN.parent), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"-A PREROUTING -i \xff\xfe -j RETURN\n" in done.stdout


def _full(descriptor: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program with a stream that takes nothing."""
    with Path("/dev/full").open("w") as full:
        return subprocess.run(
            [sys.executable, "-m", "istio_iptables", *arguments],
            env={"PYTHONPATH": str(GOLDEN.parent), "PATH": os.environ["PATH"]},
            stdout=full if descriptor == 1 else subprocess.PIPE,
            stderr=full if descriptor == 2 else subprocess.PIPE,
            check=False,
            encoding="utf-8",
        )


def test_messages_that_can_not_be_written() -> None:
    """What stderr does not take changes neither the output nor the exit status."""
    # A warning, and one line a setting.
    arguments = (*DRY, *IDS, "--ip-family=ipv4", "-v", "-i", "*", "-x", "10.0.0.0/8")
    assert _full(2, *arguments).stdout == run(arguments).out
    assert _full(2, *arguments).returncode == 0
    assert _full(2, "--no-such-option").returncode == 2
    assert _full(2, "-p", "no-port").returncode == 2


@pytest.mark.parametrize(
    "arguments", [(*DRY, *IDS, "--ip-family=ipv4", "-i", "*", "-b", "*"), ("--help",)]
)
def test_an_output_that_can_not_be_written(arguments: tuple[str, ...]) -> None:
    """The one failure that is told as the output's."""
    done = _full(1, *arguments)
    assert done.returncode == 1
    assert done.stderr == "istio-iptables: error: can't write the output: No space left on device\n"


def test_a_stdout_that_is_closed() -> None:
    """Told as other programs tell it."""
    words = ("-m", "istio_iptables", *DRY, *IDS, "-i", "*", "-b", "*")
    done = subprocess.run(
        ("sh", "-c", 'exec "$0" "$@" >&-', sys.executable, *words),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "istio-iptables: error: can't write the output: Bad file descriptor\n"


@pytest.mark.parametrize("command", ["compare", "describe", "diff", "explain", "matrix"])
def test_a_question_that_could_not_be_answered(command: str) -> None:
    """Status 1 would be an answer: nothing of the kind when the output fails, or memory."""
    arguments = [*IDS, "--ip-family=ipv4", "-i", "*", "-b", "*"]
    if command == "diff":
        arguments += ["--against", str(GOLDEN / "documented" / "expected")]
    if command == "compare":
        arguments = ["-i '*'", "-b '*'"]
    assert _full(1, command, *arguments).returncode == 2
    short = subprocess.run(
        (
            "sh",
            "-c",
            'ulimit -v 20000; exec "$0" -m istio_iptables "$@"',
            sys.executable,
            command,
            *arguments,
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (short.returncode, short.stdout) == (2, "")
    assert short.stderr == "istio-iptables: error: out of memory\n"


UNFORESEEN = {
    "internal error: ZeroDivisionError: by nothing (istio_iptables.cli._run; please report it,"
    " with $ISTIO_IPTABLES_TRACEBACK=1)": ZeroDivisionError("by\nnothing"),
    "out of memory": MemoryError(),
    "/a/file: Too many open files": OSError(24, "Too many open files", "/a/file"),
    "istio_iptables.cli._run: Too many open files": OSError(24, "Too many open files"),
    "a package can't be loaded: ImportError: no such thing (istio_iptables.cli._run)": ImportError(
        "no such thing"
    ),
}


@pytest.mark.parametrize("line", UNFORESEEN)
def test_what_nobody_has_foreseen(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with what is known of it, and no word of the output; a traceback when asked for."""

    def failing(*_: object) -> None:
        raise UNFORESEEN[line]

    monkeypatch.setattr(cli, "ready", failing)
    result = run([*DRY, *IDS, "--ip-family=ipv4"])
    assert (result.status, result.out) == (1, "")
    assert result.err == f"istio-iptables: error: {line}\n"
    with pytest.raises(type(UNFORESEEN[line])):
        run([*DRY, *IDS, "--ip-family=ipv4"], {"ISTIO_IPTABLES_TRACEBACK": "1"})


def test_an_interrupt_in_a_finalizer() -> None:
    """Python drops what is raised there: it comes again, and ends the program all the same."""
    script = """
import os, signal, time
from istio_iptables.interrupts import Interrupted, raised
class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
try:
    with raised():
        freed = Freed()
        del freed
        time.sleep(20)
except Interrupted as interrupted:
    print(interrupted.status)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(GOLDEN.parent)},
        capture_output=True,
        check=False,
        encoding="utf-8",
    )
    assert (done.stdout, done.stderr) == ("143\n", "")


def test_a_package_that_is_missing(tmp_path: Path) -> None:
    """A program that can't even be loaded says so in a line."""
    (tmp_path / "click.py").write_text("raise ImportError('no click here')")
    done = subprocess.run(
        [sys.executable, "-m", "istio_iptables", "--version"],
        env={"PYTHONPATH": f"{tmp_path}:{GOLDEN.parent}"},
        capture_output=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 1
    place = "(istio_iptables.commands.root.<module>)"
    line = f"a package can't be loaded: ImportError: no click here {place}"
    assert done.stderr == f"istio-iptables: error: {line}\n"
