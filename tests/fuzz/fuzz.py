"""A coverage-guided fuzzer for what the program is given: files of rules, arguments, reviews.

It is run by hand, for as long as one likes (atheris is no dependency of the tests)::

    pip install atheris
    python tests/fuzz/fuzz.py rules -max_total_time=600 /tmp/corpus tests/fixtures tests/kernel/fixtures
    python tests/fuzz/fuzz.py flags -max_total_time=600 /tmp/corpus
    python tests/fuzz/fuzz.py review -max_total_time=600 -max_len=20000 /tmp/reviews

The first word is one of the targets: reader, rules, flags, packet, review, requests. The last two
begin with the pods of the tests if the folder is empty.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from random import Random

# By name: type checkers need not have it.
atheris = importlib.import_module("atheris")

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["istio_iptables"]):
    from tests.fuzz.targets import TARGETS

from tests.fuzz.reviews import SEEDS, mutated, sent  # noqa: E402 - after the instrumented imports


def mutate_body(data: bytes, size: int, seed: int) -> bytes:
    """Another review, or other bytes."""
    random = Random(seed)  # noqa: S311 - no secret
    if random.random() < 0.2:
        other: bytes = atheris.Mutate(data, size)
        return other
    return mutated(data, random)[:size]


def mutate_request(data: bytes, size: int, seed: int) -> bytes:
    """Another review in it, or other bytes."""
    head, gap, body = data.partition(b"\r\n\r\n")
    random = Random(seed)  # noqa: S311 - no secret
    if not gap or random.random() < 0.7:
        other: bytes = atheris.Mutate(data, size)
        return other
    return sent(head, mutate_body(body, size, seed), random)[:size]


MUTATORS = {"review": mutate_body, "requests": mutate_request}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    for folder in sys.argv[1:]:
        if name in MUTATORS and Path(folder).is_dir() and not any(Path(folder).iterdir()):
            for number, seed in enumerate(SEEDS):
                content = seed if name == "review" else sent(b"", seed, Random(number))  # noqa: S311 - no secret
                Path(folder, str(number)).write_bytes(content)
    atheris.Setup(sys.argv, TARGETS[name], custom_mutator=MUTATORS.get(name))
    atheris.Fuzz()
