"""A coverage-guided fuzzer for everything that reads iptables-save's text.

It is run by hand, for as long as one likes (atheris is no dependency of the tests)::

    pip install atheris
    python tests/fuzz/savefile.py -max_total_time=600 /tmp/corpus tests/fixtures tests/kernel/fixtures

Whatever the bytes: a ruleset whose text is the one that was read, or a SaveFileError that names
one of its lines; and what was read has a canonical form, no difference from itself, and takes
packets.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_iptables.netfilter.model import Ruleset

# By name: type checkers need not have it.
atheris = importlib.import_module("atheris")

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["istio_iptables"]):
    from istio_iptables.errors import SaveFileError
    from istio_iptables.netfilter import savefile
    from istio_iptables.netfilter.canonical import canonical
    from istio_iptables.netfilter.documents import rulesets
    from istio_iptables.netfilter.drift import differences
    from istio_iptables.netfilter.model import Family
    from istio_iptables.netfilter.packet import Packet, World
    from istio_iptables.netfilter.trace import trace
    from istio_iptables.ours import recognise

PACKETS = (
    Packet(Family.IPV4, 6, "10.0.0.2", "1.2.3.4", 4000, 80, out_interface="eth0", uid=0, gid=0),
    Packet(Family.IPV4, 17, "1.2.3.4", "10.0.0.2", 4000, 53, in_interface="eth0"),
    Packet(Family.IPV6, 6, "fd00::2", "::1", 4000, 80, out_interface="lo", uid=0, gid=0),
)


def read(text: str) -> tuple[Ruleset, ...] | SaveFileError:
    """The rulesets of a text, or what is wrong with it."""
    try:
        return rulesets(text)
    except SaveFileError as error:
        return error


def one(data: bytes) -> None:
    """Read one text, and do with it what the program does."""
    text = data.decode(errors="surrogateescape")
    found = read(text)
    if isinstance(found, SaveFileError):
        assert 1 <= found.line <= text.count("\n") + 1, found
        return
    for ruleset in found:
        again = savefile.parse(savefile.render(ruleset), ruleset.family)
        assert savefile.render(again) == savefile.render(ruleset)
        assert not differences((again,), (ruleset,))
        differences((ruleset,), (), recognise)
        for table in ruleset.tables:
            for chain in table.chains:
                for rule in chain.rules:
                    once = canonical(rule, ruleset.family)
                    assert canonical(once, ruleset.family).text == once.text, rule.text
        for packet in PACKETS:
            if packet.family is ruleset.family:
                trace(ruleset, packet, World(), misses=True)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
