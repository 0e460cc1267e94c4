"""Cleaning: what was there before is there again, byte for byte."""

from __future__ import annotations

import re
import time
from itertools import product

import pytest

from istio_iptables.netfilter.model import Family
from tests.kernel.configurations import CONFIGURATIONS, DUAL, TPROXY
from tests.kernel.foreign import LAYOUTS, add_around, load_layout
from tests.kernel.sandbox import chosen, command, install, load, run, save, state
from tests.namespaces import ALL_BACKENDS, BACKENDS, sandbox

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

#: Istio's flag, and a word of our own.
WAYS = ("--cleanup-only", "clean")


@pytest.mark.parametrize(
    ("layout", "backend"),
    [*product(["none", *LAYOUTS], BACKENDS), ("docker", "native")],
)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_install_then_clean_leaves_no_trace(name: str, layout: str, backend: str) -> None:
    """Without any flag of the install: rules, policy rules, routes of all tables and addresses."""
    command("ip", "rule", "add", "fwmark", "1337", "lookup", "200")
    command("ip", "route", "add", "local", "10.7.0.0/16", "dev", "lo", "table", "200")
    command("ip", "addr", "add", "::7/128", "dev", "lo", "nodad")
    # The kernel makes the routes of an address a little later.
    deadline = time.monotonic() + 10
    while "local ::7 " not in state().routes[1] and time.monotonic() < deadline:
        time.sleep(0.01)
    if layout != "none":
        load_layout(layout, "nft" if backend == "native" else backend)
    before = state()
    assert install(backend, *CONFIGURATIONS[name]).status == 0
    assert state() != before
    result = run("--cleanup-only")
    assert (result.status, result.out, result.errors) == (0, "", [])
    assert state() == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["dual", "everything", "virtual-and-excluded"])
def test_rules_that_came_around_ours_stay(name: str, backend: str) -> None:
    """Foreign rules that come before and behind ours later on stay as if ours had never been."""
    with sandbox():
        load_layout("docker", backend)
        add_around(backend)
        never = state(backends=(backend,))
    load_layout("docker", backend)
    install(backend, *CONFIGURATIONS[name])
    add_around(backend)
    assert run("--cleanup-only").status == 0
    assert state(backends=(backend,)) == never


@pytest.mark.parametrize("way", WAYS)
def test_both_backends_are_cleaned_at_once(way: str) -> None:
    """Rules in legacy and nft, of different configurations, go in one run."""
    before = state()
    for backend, arguments in (("legacy", TPROXY), ("nft", CONFIGURATIONS["everything"])):
        with sandbox():
            assert install(backend, *arguments).status == 0
            texts = {family: save(backend, family) for family in Family}
        for family, text in texts.items():
            load(backend, family, text)
    assert all(state().legacy) and all(state().nft)  # noqa: PT018 - one thought
    result = run(way)
    assert (result.status, result.errors) == (0, [])
    assert state() == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_cleaning_twice_is_fine(backend: str, way: str) -> None:
    """The second time there is nothing to do, which is said, with status 0."""
    install(backend, *TPROXY)
    assert run(way).status == 0
    result = run(way)
    assert result.status == 0
    assert "nothing to do" in result.err


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chain_of_ours_that_a_foreign_rule_jumps_to(backend: str) -> None:
    """It can be cleaned all the same: the foreign jump goes with the chain, its other rules stay."""
    load(
        backend,
        Family.IPV4,
        "*nat\n:MINE - [0:0]\n-A OUTPUT -j MINE\n-A MINE -d 10.0.0.1/32 -j ACCEPT\nCOMMIT\n",
    )
    before = state()
    install(backend, *DUAL)
    load(backend, Family.IPV4, "*nat\n-A MINE -j ISTIO_REDIRECT\nCOMMIT\n")
    assert run("--cleanup-only").status == 0
    assert state() == before


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_a_half_removed_install_is_cleaned(backend: str) -> None:
    """Some of our chains and jumps were taken away by hand: the rest goes."""
    before = state()
    install(backend, *CONFIGURATIONS["everything"])
    if backend == "native":
        command("nft", "delete chain inet istio-proxy-nat output")
        command("nft", "flush chain inet istio-proxy-mangle prerouting")
        command("nft", "flush chain inet istio-proxy-mangle output")
        command("nft", "flush table inet istio-proxy-raw")
    else:
        program = f"iptables-{backend}"
        command(program, "-t", "nat", "-D", "OUTPUT", "-j", "ISTIO_OUTPUT")
        command(program, "-t", "mangle", "-F", "PREROUTING")
        command(program, "-t", "mangle", "-F", "OUTPUT")
        command(program, "-t", "raw", "-F")
    assert run("--cleanup-only").status == 0
    now = state()
    assert "ISTIO" not in str(now)
    assert now.native == {}
    assert (now.rules, now.routes, now.addresses) == (before.rules, before.routes, before.addresses)


@pytest.mark.parametrize(
    "words",
    [
        "not fwmark 1337 lookup 133",
        "fwmark 1337/0xfff lookup 133",
        "from 10.0.0.0/8 fwmark 1337 lookup 133",
        "iif lo fwmark 1337 lookup 133",
        "fwmark 1337 ipproto udp lookup 133",
        "fwmark 1338 lookup 133",
        "fwmark 1337 lookup 500",
        "fwmark 1337 tos 0x10 lookup 133",
        "fwmark 1337 lookup 133 suppress_prefixlength 0",
    ],
)
def test_foreign_policy_rules_that_are_like_ours(words: str) -> None:
    """A rule that asks for more, or less, than our mark is somebody else's."""
    command("ip", "rule", "add", *words.split())
    before = state()
    assert install("legacy", *TPROXY).status == 0
    assert len(re.findall(r"lookup (133|500)", state().rules[0])) == 2
    assert run("--cleanup-only").status == 0
    assert state() == before


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_a_policy_route_whose_rule_is_lost_goes_as_well(backend: str) -> None:
    """The route in our table is ours while our rules are there."""
    before = state()
    install(backend, *TPROXY)
    command("ip", "rule", "del", "fwmark", "1337", "lookup", "133")
    assert run("--cleanup-only").status == 0
    assert state() == before


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_rules_that_were_loaded_twice_go_all(backend: str) -> None:
    """As iptables-restore --noflush does when it is run again, and nft with what it has listed."""
    before = state(backends=(backend,))
    form = ("--format", "save" if backend == "native" else "restore")
    words = chosen(backend) if backend == "native" else ()
    text = run(*TPROXY, *words, "--dry-run", *form, "--only", "ipv4").out
    for _ in range(2):
        if backend == "native":
            command("nft", "-f", "-", stdin=text)
        else:
            load(backend, Family.IPV4, text)
    assert install(backend, *TPROXY, "--ip-family", "ipv4", "--reconcile").status == 0
    assert install(backend, *TPROXY, "--ip-family", "ipv4").status == 0
    assert run("clean").status == 0
    assert state(backends=(backend,)) == before


def test_a_table_of_routes_that_others_use_is_told() -> None:
    """It stays as it is, and a line says so, with the policy rule that leads there."""
    assert install("legacy", *TPROXY).status == 0
    command("ip", "route", "add", "local", "10.7.0.0/16", "dev", "lo", "table", "133")
    done = run("clean")
    assert done.status == 0
    line = "left table 133 of the IPv4 routes and its policy rule for mark 0x539: there are other routes"
    assert any(line in each for each in done.err.splitlines())
    assert "local default" in command("ip", "route", "show", "table", "133")
    assert "lookup 133" in command("ip", "rule")
