"""A coverage-guided fuzzer for what the program is given: files of rules, and arguments.

It is run by hand, for as long as one likes (atheris is no dependency of the tests)::

    pip install atheris
    python tests/fuzz/fuzz.py rules -max_total_time=600 /tmp/corpus tests/fixtures tests/kernel/fixtures
    python tests/fuzz/fuzz.py flags -max_total_time=600 /tmp/corpus

The first word is one of the targets: reader, rules, flags, packet.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

# By name: type checkers need not have it.
atheris = importlib.import_module("atheris")

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["istio_iptables"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
