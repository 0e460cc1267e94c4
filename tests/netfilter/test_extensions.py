"""The registry of extensions: what each module says, and that one file is all that a new one takes."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from istio_iptables.istio.plan import build
from istio_iptables.kernel import xt_abi
from istio_iptables.netfilter import extensions
from istio_iptables.netfilter.canonical import canonical
from istio_iptables.netfilter.extensions import (
    MatchExtension,
    Situation,
    TargetExtension,
    match_extension,
    target_extension,
)
from istio_iptables.netfilter.model import Family, Match, Option, Target
from istio_iptables.netfilter.packet import Packet, Surroundings
from istio_iptables.netfilter.savefile import parse_rule
from istio_iptables.trace.matches import conditions, matches
from istio_iptables.trace.targets import effect
from tests.strategies import configs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from istio_iptables.settings.config import Config

MODULES = sorted(each.name for each in pkgutil.iter_modules(extensions.__path__))
#: Of neither kind are a chain's name, and these.
VERDICTS = frozenset({"ACCEPT", "DROP", "RETURN"})
SENT = Situation(
    Packet(Family.IPV4, 6, "10.0.0.1", "10.0.0.2", 40000, 80, out_interface="eth0"),
    "OUTPUT",
    Surroundings(),
)

FAKE = """
from istio_iptables.netfilter.extensions import Effect, MatchExtension, Next, TargetExtension
from istio_iptables.netfilter.model import Match, Option, Target
from istio_iptables.netfilter.parts import part

MATCHES = {
    "madeup": MatchExtension(
        spell=lambda match: Match("madeup", (Option("--port", (match.options[0].value,)),)),
        holds=lambda option, situation, _: option.value == str(situation.packet.source_port),
        has=lambda packet: f"port {packet.source_port}",
        encode=lambda match: part("madeup", 0, match.options[0].value.encode()),
    )
}
TARGETS = {
    "MADEUP": TargetExtension(
        spell=lambda target, family: Target("MADEUP", (Option("--bits", (str(family.bits),)),)),
        effect=lambda _, situation: Effect(Next.DROP, situation.packet, "made up"),
        encode=lambda target, _: part("MADEUP", 0, target.options[0].value.encode()),
    )
}
"""


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_something_that_the_registry_finds(name: str) -> None:
    """Each extension of a module has a part that is known, and is found by its name."""
    module = import_module(f"{extensions.__name__}.{name}")
    matches_there: dict[str, MatchExtension] = getattr(module, "MATCHES", {})
    targets_there: dict[str, TargetExtension] = getattr(module, "TARGETS", {})
    assert matches_there or targets_there
    assert {*module.__all__} >= {*vars(module)} & {"MATCHES", "TARGETS"}
    for each, known in matches_there.items():
        assert match_extension(each) is known
        assert known.spell or known.holds or known.encode
        assert not known.has or known.holds
    for each, does in targets_there.items():
        assert target_extension(each) is does
        assert does.spell or does.effect or does.encode


@given(configs())
def test_all_parts_are_known_of_what_we_install(config: Config) -> None:
    """A rule of ours can be spelled, traced and put into a legacy table, and loaded before that."""
    for ruleset in build(config).rulesets:
        for table in ruleset.tables:
            chains = {chain.name for chain in table.chains}
            for rule in (rule for chain in table.chains for rule in chain.rules):
                for match in rule.matches:
                    assert None not in match_extension(match.name)._replace(protocol=0), match.name
                    assert match.name in {*xt_abi._MATCHES, "udp"}
                target = rule.target
                if target and target.name not in chains | VERDICTS:
                    assert None not in target_extension(target.name), target.name
                    assert target.name in xt_abi._TARGETS


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nobody",
        "NOBODY",
        "Tcp",
        "TCP",
        "ports",
        "nat",
        "__init__",
        "..ports",
        "os.path",
        "é",
        "\udcff",
    ],
)
def test_a_name_without_a_module_is_unknown(name: str) -> None:
    """Whatever a rule has for a name, nothing else is imported."""
    before = set(sys.modules)
    assert match_extension(name) == MatchExtension()
    assert target_extension(name) == TargetExtension()
    assert {each for each in sys.modules if each not in before} <= {
        f"{extensions.__name__}.{each}" for each in MODULES
    }


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file more in the package."""
    (tmp_path / "madeup.py").write_text(FAKE)
    monkeypatch.setattr(extensions, "__path__", [*extensions.__path__, str(tmp_path)])
    yield
    sys.modules.pop(f"{extensions.__name__}.madeup", None)
    vars(extensions).pop("madeup", None)
    match_extension.cache_clear()
    target_extension.cache_clear()


@pytest.mark.usefixtures("made_up")
def test_a_new_extension_is_one_file() -> None:
    """The canonical form, the way of a packet and the bytes all know it."""
    rule = parse_rule("-m madeup --old-name 40000 -j MADEUP")
    assert canonical(rule, Family.IPV6).text == "-m madeup --port 40000 -j MADEUP --bits 128"
    rule = canonical(rule, Family.IPV4)
    assert matches(rule, SENT) is True
    assert [tuple(each) for each in conditions(rule, SENT)] == [
        ("-m madeup --port 40000", True, "port 40000")
    ]
    done = effect(rule, SENT, ())
    assert (done.next.value, done.verdict, done.change) == ("drop", "MADEUP", "made up")
    encoded = xt_abi.encode(rule, Family.IPV4)
    assert b"madeup" in encoded
    assert encoded.endswith(b"MADEUP".ljust(30, b"\0") + b"32".ljust(8, b"\0"))


def test_a_dry_run_needs_no_extension() -> None:
    """Nor the registry: a plan is spelled as it is to be printed."""
    program = (
        "import sys; from istio_iptables.cli import main; status = main(sys.argv[1:]);"
        f"sys.exit(status or any(each.startswith({extensions.__name__!r}) for each in sys.modules))"
    )
    command = (sys.executable, "-c", program, "-i", "*", "-b", "*", "--dry-run")
    assert not subprocess.run(command, capture_output=True, check=False).returncode


def test_bytes_of_ours_are_loaded_together() -> None:
    """What may have to be put back behind a commit is imported before it."""
    program = (
        "import sys; from istio_iptables.kernel import xt_abi; xt_abi.load();"
        f"print(*(each.rpartition('.')[2] for each in sys.modules if '{extensions.__name__}.' in each))"
    )
    done = subprocess.run(
        (sys.executable, "-c", program), capture_output=True, check=True, text=True
    )
    encoded = {
        name
        for name in MODULES
        for module in [import_module(f"{extensions.__name__}.{name}")]
        for known in ("MATCHES", "TARGETS")
        if any(each.encode for each in getattr(module, known, {}).values())
    }
    assert set(done.stdout.split()) == encoded


def test_values_that_cannot_be_read_have_no_bytes() -> None:
    """A foreign rule's text is never taken for another."""
    for match in (
        Match("tcp", (Option("--dport", ("http",)),)),
        Match("tcp", (Option("--dport", ("65536",)),)),
        Match("owner", (Option("--uid-owner", ("somebody",)),)),
        Match("multiport", (Option("--dports", (",".join(map(str, range(16))),)),)),
        Match("mark", (Option("--mark", ("x",)),)),
        Match("conntrack", (Option("--ctstate", ("SLEEPY",)),)),
        Match("sctp", (Option("--dport", ("80",)),)),
    ):
        with pytest.raises(xt_abi.UnknownPartError, match=f"-m {match.name}"):
            xt_abi.encode(parse_rule("-j RETURN")._replace(matches=(match,)), Family.IPV4)
    for target in (
        Target("REDIRECT", (Option("--to-ports", ("90-80",)),)),
        Target("CONNMARK", (Option("--save-mark"), Option("--mask", ("x",)))),
        Target("MARK", (Option("--set-mark", ("x",)),)),
        Target("CT", (Option("--notrack"),)),
        Target("DNAT", (Option("--to-destination", ("10.0.0.1",)),)),
        Target("X" * 29),
    ):
        with pytest.raises(xt_abi.UnknownPartError, match=f"-j {target.name}"):
            xt_abi.encode(parse_rule("")._replace(target=target), Family.IPV4)
