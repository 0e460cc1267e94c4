"""The canonical spelling against the one that iptables-save has for the same words."""

from __future__ import annotations

import pytest

from istio_iptables.netfilter.model import Family
from tests.namespaces import BACKENDS, Step, inside, program
from tests.spellings import IPV4_SPELLINGS, IPV6_SPELLINGS, ONLY_OURS

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("backend", BACKENDS)
def test_iptables_spells_rules_as_we_do(backend: str) -> None:
    """What goes in as the loose spelling comes out as the canonical one."""
    for family, all_of_them in ((Family.IPV4, IPV4_SPELLINGS), (Family.IPV6, IPV6_SPELLINGS)):
        pairs = [
            pair
            for pair in all_of_them
            if pair not in ONLY_OURS and "TPROXY" not in pair[0] and "CONNMARK" not in pair[0]
        ]
        marks = [pair for pair in all_of_them if "CONNMARK" in pair[0]]
        text = _text("filter", pairs) + _text("mangle", marks)
        loaded, saved = inside(
            (
                Step([program(family, backend, "restore")], text),
                Step([program(family, backend, "save")]),
            )
        )
        assert not loaded.status, loaded.err
        rules = [line[9:] for line in saved.out.splitlines() if line.startswith("-A INPUT")]
        # The tables are saved in another order than they were written, if in any.
        assert sorted(rules) == sorted(expected for _, expected in (*pairs, *marks))


def _text(table: str, pairs: list[tuple[str, str]]) -> str:
    rules = "".join(f"-A INPUT {loose}\n" for loose, _ in pairs)
    return f"*{table}\n:INPUT ACCEPT [0:0]\n{rules}COMMIT\n"
