"""What an installation and a clean-up load: nothing that they do not need."""

from __future__ import annotations

import pytest

from tests.loading import AGAIN, LEGACY, NFT, command, read
from tests.namespaces import BACKENDS, Done, Step, inside

pytestmark = pytest.mark.kernel

INSTALL = ("-p", "15001", "-i", "*", "-b", "*", "-d", "15020", "--ip-family", "ipv4")
HEAVY = {"click", "pyroute2", "subprocess", "json", "inspect", "threading", "pathlib", "typing"}
#: What python-iptables is made of and imports.
OF_IPTC = {"iptc", "ctypes", "socket"}


def told_by(*each: tuple[str, ...]) -> list[Done]:
    """What became of the program with each of these arguments, in one namespace."""
    done = inside([Step(command(*arguments)) for arguments in each])
    assert not any(one.status for one in done), done
    return done


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_loaded(backend: str) -> None:
    """python-iptables where a legacy table changes, and what compares rules nowhere."""
    install = (*INSTALL, "--force-iptables-binary", backend)
    installed, again, cleaned = (read(one.err) for one in told_by(install, install, ("clean",)))
    changing = LEGACY if backend == "legacy" else NFT
    for ours, others in (installed, cleaned):
        assert ours <= changing
        assert not others & HEAVY
        assert (others >= OF_IPTC) is (backend == "legacy")
    assert again[0] <= AGAIN[backend]
    assert not again[1] & (HEAVY | OF_IPTC)
