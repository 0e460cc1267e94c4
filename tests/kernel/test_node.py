"""A network namespace that is a node's and no pod's is told before rules go into it."""

from __future__ import annotations

import json

import pytest

from istio_iptables.kernel import netlink, node
from tests.kernel.sandbox import command, install, process, run, state
from tests.namespaces import BACKENDS

pytestmark = pytest.mark.kernel

FLAGS = ("-i", "*", "-b", "*", "--ip-family", "ipv4")


def test_network_cards_are_those_that_ip_knows_no_kind_of() -> None:
    """Of this machine, whatever it has: they are only looked at."""
    links = json.loads(command("ip", "-d", "-j", "link"))
    cards = [
        link["ifname"]
        for link in links
        if link["link_type"] in {"ether", "infiniband"}
        and "info_kind" not in link.get("linkinfo", {})
    ]
    assert list(netlink.physical_interfaces()) == cards
    assert [name for name in cards[:3] if name not in node.signs([])] == []


@pytest.mark.usefixtures("box")
def test_a_pod_is_no_node() -> None:
    """Its veth, bridges and tunnels of its own, and what Docker's DNS puts there, are a pod's."""
    command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    command("ip", "link", "add", "br0", "type", "bridge")
    command("ip", "link", "add", "mac0", "link", "br0", "type", "macvlan")
    for name in ("DOCKER_OUTPUT", "DOCKER_POSTROUTING", "MY-KUBE-CHAIN", "KUBERNETES"):
        command("iptables-legacy", "-t", "nat", "-N", name)
        command("iptables-nft", "-t", "nat", "-N", name)
    result = install("legacy", *FLAGS)
    assert (result.status, result.warnings) == (0, [])


@pytest.mark.usefixtures("box")
@pytest.mark.parametrize(
    ("chain", "owner"),
    [("KUBE-SERVICES", "kube-proxy"), ("DOCKER", "Docker"), ("CNI-FORWARD", "CNI plugins")],
)
@pytest.mark.parametrize("theirs", BACKENDS)
@pytest.mark.parametrize("ours", BACKENDS)
def test_chains_of_nodes_are_told(ours: str, theirs: str, chain: str, owner: str) -> None:
    """In either backend, whichever is used; with --strict nothing is installed."""
    command(f"iptables-{theirs}", "-N", chain)
    command(f"iptables-{theirs}", "-A", "FORWARD", "-j", chain)
    before = state()
    strict = install(ours, *FLAGS, "--strict")
    assert strict.status == 2
    assert state() == before
    result = install(ours, *FLAGS)
    assert result.status == 0
    (warning,) = result.warnings
    assert warning == (
        f"this network namespace looks like a machine's own and no pod's (chain {chain} of {owner}):"
        " with these rules all of the machine's traffic goes to Envoy"
    )
    assert strict.errors == [f"{warning} (--strict)"]
    assert install(ours, *FLAGS).warnings == [warning]
    assert run("clean").warnings == []
    assert run("--dry-run", *FLAGS).warnings == []


@pytest.mark.usefixtures("box")
def test_tables_of_nodes_are_told() -> None:
    """kube-proxy has a table of nftables' own kind too."""
    assert process("nft", "add", "table", "ip", "kube-proxy").status == 0
    assert process("nft", "add", "chain", "ip", "kube-proxy", "services").status == 0
    (warning,) = install("legacy", *FLAGS).warnings
    assert "(table kube-proxy of kube-proxy)" in warning
