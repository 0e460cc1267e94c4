"""How much one rule can carry, measured."""

from __future__ import annotations

import pytest

from istio_iptables.netfilter.model import Family
from istio_iptables.settings.config import MAX_OWNER_GROUPS
from tests.namespaces import Step, inside, program
from tests.program import run

pytestmark = pytest.mark.kernel


def loads(count: int, family: Family, backend: str) -> bool:
    """Whether one rule with this many groups, as -g of owner groups makes it, can be loaded."""
    groups = " ".join(f"-m owner ! --gid-owner {2000 + number}" for number in range(count))
    rule = f"-A OUTPUT {groups} -j RETURN"
    text = f"*nat\n{rule}\nCOMMIT\n"
    restore = Step([program(family, backend, "restore"), "--noflush"], text)
    loaded, saved = inside([restore, Step([program(family, backend, "save")])])
    return loaded.status == 0 and rule in saved.out


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_owner_groups_in_one_rule(family: Family, backend: str) -> None:
    """One rule takes MAX_OWNER_GROUPS groups from iptables-restore, and not one more."""
    assert loads(MAX_OWNER_GROUPS, family, backend)
    assert not loads(MAX_OWNER_GROUPS + 1, family, backend)


def test_more_owner_groups_are_refused_early() -> None:
    """One group more than iptables takes is refused before anything is touched, with the number."""
    groups = ",".join(str(2000 + number) for number in range(MAX_OWNER_GROUPS + 1))
    result = run(["-n", "--ip-family", "ipv4"], {"ISTIO_OUTBOUND_OWNER_GROUPS": groups})
    assert (result.status, result.out) == (2, "")
    assert result.errors == [
        "ISTIO_OUTBOUND_OWNER_GROUPS: 50 groups are more than one rule can carry: at most 49"
    ]
