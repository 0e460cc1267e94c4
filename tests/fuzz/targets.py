"""What is true of the program whatever it is given: of its reader, its commands and its flags.

Each function takes bytes, and fails when the program does anything but answer or refuse. They
are called with bytes that hypothesis makes (tests/test_fuzz.py) and that atheris makes (fuzz.py).
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from istio_iptables.commands import apply
from istio_iptables.differences.rulesets import diff_rulesets
from istio_iptables.errors import SaveFileError
from istio_iptables.istio.ownership import find_owned
from istio_iptables.netfilter import savefile
from istio_iptables.netfilter.canonical import canonical
from istio_iptables.netfilter.documents import decode_lines, read
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.packet import Packet, Surroundings
from istio_iptables.trace.hooks import trace
from tests.program import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_iptables.netfilter.model import Ruleset
    from tests.program import Result

__all__ = ["TARGETS", "flags", "packet", "reader", "rules"]

_PACKETS = (
    Packet(Family.IPV4, 6, "10.0.0.2", "1.2.3.4", 4000, 80, out_interface="eth0", uid=0, gid=0),
    Packet(Family.IPV4, 17, "1.2.3.4", "10.0.0.2", 4000, 53, in_interface="eth0"),
    Packet(Family.IPV6, 6, "fd00::2", "::1", 4000, 80, out_interface="lo", uid=0, gid=0),
)


def reader(data: bytes) -> None:
    """A ruleset whose text is the one that was read, or the line that is wrong.

    What was read has a canonical form, no difference from itself, and takes packets.
    """
    try:
        found = read(decode_lines(io.BytesIO(data).readline))
    except SaveFileError as error:
        line = error.line
        found = ()
    else:
        line = 1
    assert 1 <= line <= data.count(b"\n") + 1
    for ruleset in found:
        _ruleset(ruleset)


def _ruleset(ruleset: Ruleset) -> None:
    text = savefile.render(ruleset)
    again = savefile.parse(text, ruleset.family)
    assert savefile.render(again) == text
    assert not diff_rulesets((again,), (ruleset,))
    diff_rulesets((ruleset,), (), find_owned)
    for table in ruleset.tables:
        for chain in table.chains:
            for rule in chain.rules:
                once = canonical(rule, ruleset.family)
                assert canonical(once, ruleset.family).text == once.text, rule.text
    for each in _PACKETS:
        if each.family is ruleset.family:
            trace(ruleset, each, Surroundings(), misses=True)


def rules(data: bytes) -> None:
    """A file of these bytes is explained and compared, in words and as JSON, or refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rules")
        path.write_bytes(data)
        _answered(["explain", "-i", "*", "-b", "*", "--rules", str(path), "-v"])
        _answered(["explain", "-m", "TPROXY", "-b", "*", "--rules", str(path), "--in", "--json"])
        _answered(["diff", "-i", "*", "-b", "*", "--against", str(path)])
        _answered(["diff", "-i", "*", "--against", str(path), "--json"])
        _answered(["diff", "--golden", str(path)])


def flags(data: bytes) -> None:
    """A dry run with these arguments (NUL between them) prints rules, or says what is wrong."""
    _answered(["-n", *_words(data)])


def packet(data: bytes) -> None:
    """A packet with these options is followed, or what is wrong with them is said."""
    _answered(["explain", "-i", "*", "--ip-family", "dual", *_words(data)])


#: Log flags take the next word, whatever it is, and a namespace is looked up on the machine.
_NOT_HERE = ("--log", "--live", "--network", "--dry", "-n=", "--rules", "--run-validation")


def _words(data: bytes) -> list[str]:
    """The arguments in *data*, without those that lead out of this process."""
    words = data.decode(errors="surrogateescape").split("\0")
    return [word for word in words if not word.startswith(_NOT_HERE)]


def _answered(arguments: Sequence[str]) -> Result:
    """What the program says; nothing but lines, and a status that it promises."""
    with mock.patch.object(apply, "_apply", side_effect=AssertionError("not a dry run")):
        result = run(arguments, {"DRY_RUN": "true"})
    assert result.status in {0, 1, 2}, result
    told = result.err.split("\n")
    assert told.pop() == "", result
    for line in told:
        assert line.startswith("istio-iptables: "), result
        assert line.isprintable(), result
    if result.status == 2:
        assert result.errors, result
        assert not result.out, result
    elif arguments[0] in {"explain", "diff"}:
        if "--json" in arguments:
            json.loads(result.out)
        elif not {"-h", "--help"} & {*arguments}:
            assert all(line.isprintable() for line in result.out.split("\n")), result
    return result


TARGETS = {each.__name__: each for each in (reader, rules, flags, packet)}
