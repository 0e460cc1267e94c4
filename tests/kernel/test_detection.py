"""Which backend is chosen, why, and that looking leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from istio_iptables.netfilter.model import Family
from tests.kernel.configurations import DUAL, TPROXY
from tests.kernel.foreign import LAYOUTS, load_layout
from tests.kernel.sandbox import command, install, load, run, state
from tests.namespaces import BACKENDS

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]


def traces() -> tuple[str, str, str]:
    """The legacy tables that are loaded, and everything in nf_tables."""
    names = (Path(f"/proc/net/{name}_tables_names").read_text() for name in ("ip", "ip6"))
    return (*names, command("nft", "list", "ruleset"))  # type: ignore[return-value]  # three of them


NOTHING = ("", "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cleanup-only",),
        ("clean",),
        ("diff", *DUAL),
        (*DUAL, "--dry-run"),
        (*DUAL, "--skip-rule-apply"),
        (*DUAL, "--network-namespace", "gone"),
        ("-b", "nonsense"),
    ],
    ids=" ".join,
)
def test_looking_makes_no_table(arguments: tuple[str, ...]) -> None:
    """In an empty namespace: what installs nothing loads no legacy table and makes no nft one."""
    assert traces() == NOTHING
    run(*arguments)
    assert traces() == NOTHING


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", [(), ("--reconcile",)])
def test_only_the_chosen_backend_is_touched(way: tuple[str, ...], backend: str) -> None:
    """An install, twice, leaves the other backend without a table, and only what it needs in its own."""
    for _ in range(2):
        assert install(backend, *DUAL, *way).status == 0
        ipv4, ipv6, nft = traces()
        if backend == "legacy":
            assert (ipv4, ipv6, nft) == ("nat\n", "nat\n", "")
        else:
            assert (ipv4, ipv6) == ("", "")
            assert [line for line in nft.splitlines() if line.startswith("table")] == [
                "table ip nat {",
                "table ip6 nat {",
            ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_refused_install_makes_no_table(backend: str) -> None:
    """What differs is refused without another table's coming to be."""
    install(backend, *DUAL)
    before = traces()
    assert run(*TPROXY).status == 1
    assert traces() == before


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_follows_those_who_were_there(backend: str, layout: str) -> None:
    """The backend whose tables hold rules is chosen, the first time and each time after."""
    load_layout(layout, backend)
    for _ in range(3):
        result = run(*DUAL)
        assert result.status == 0
        assert f"backend {backend}: its tables hold rules in this namespace" in result.err
    assert run("--cleanup-only").status == 0
    other = BACKENDS[1 - BACKENDS.index(backend)]
    assert getattr(state(), other) == ({}, {})


def test_an_empty_namespace_gets_legacy() -> None:
    """Without rules anywhere it is legacy, and stays so."""
    for reason in ("no table holds rules yet, and the kernel has it", "its tables hold rules"):
        assert f"backend legacy: {reason}" in run(*DUAL).err


def test_empty_tables_are_nobodys() -> None:
    """Tables that somebody only looked at do not count."""
    command("iptables-legacy-save", "-t", "nat")
    command("iptables-legacy", "-t", "filter", "-S")
    load("nft", Family.IPV4, "*nat\n-A OUTPUT -d 10.0.0.1/32 -j RETURN\nCOMMIT\n")
    assert "backend nft: its tables hold rules" in run(*DUAL).err


def test_a_forced_backend_is_used_whatever_is_there() -> None:
    """--force-iptables-binary or its variable decides, and the reason says which."""
    load_layout("docker", "nft")
    result = install("legacy", *DUAL)
    assert result.status == 0
    assert "backend legacy: asked for by --force-iptables-binary\n" in result.err
    again = run(*DUAL, environment={"FORCE_IPTABLES_BINARY": "legacy"})
    assert "backend legacy: asked for by $FORCE_IPTABLES_BINARY\n" in again.err
