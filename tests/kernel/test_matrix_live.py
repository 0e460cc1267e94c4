"""matrix and compare on the kernel's own rules."""

from __future__ import annotations

import json

import pytest

from tests.kernel.shell import inside
from tests.namespaces import why_not

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_installed_rules_are_divided_like_those_of_the_flags(backend: str) -> None:
    """The same classes and rules, in both families; and compare finds nothing."""
    flags = "-i '*' -b '*' -o 22 --dual-stack"
    done = inside(
        f"istio-iptables {flags} --force-iptables-binary {backend} 2>/dev/null\n"
        f"istio-iptables matrix {flags} >/dev/shm/$$; istio-iptables matrix | diff /dev/shm/$$ -\n"
        f'echo $?; rm /dev/shm/$$; istio-iptables compare "{flags}" --live; echo $?'
    )
    assert done.stdout == (
        "0\nA and B have the same rules; the same for every packet (IPv4 and IPv6)\n0\n"
    )


def test_the_families_of_a_plan_are_those_of_this_namespace() -> None:
    """A pod without IPv6 has no rules of it missing."""
    done = inside(
        "ip address add 10.0.0.1/32 dev lo; istio-iptables -i '*' -b '*' 2>/dev/null\n"
        "istio-iptables compare \"-i '*' -b '*'\" --live"
    )
    assert done.stdout == "A and B have the same rules; the same for every packet (IPv4 and IPv6)\n"


def test_the_route_of_tproxy_is_seen() -> None:
    """Where it is missing, packets are treated differently, though the rules are the same."""
    flags = "-i '' -b 80 -m TPROXY --ip-family ipv4"
    done = inside(
        f"istio-iptables {flags} 2>/dev/null\n"
        f'istio-iptables compare "{flags}" --live; ip rule del fwmark 1337 lookup 133\n'
        f'istio-iptables compare "{flags}" --live'
    )
    before, missing, *_ = done.stdout.splitlines()
    assert before == "A and B have the same rules; the same for every packet (IPv4 and IPv6)"
    assert missing == "missing: IPv4: ip -4 rule add fwmark 0x539 lookup 133"
    assert "traffic treated differently" in done.stdout


def test_a_rule_that_was_deleted_and_what_it_did() -> None:
    """The packets of Envoy that go to Envoy again, between a plan, a file and two namespaces."""
    done = inside(
        "istio-iptables -i '*' -b '*' --force-iptables-binary nft --ip-family ipv4 2>/dev/null\n"
        "iptables-nft-save >/dev/shm/$$; iptables-nft -t nat -D ISTIO_OUTPUT 7\n"
        'unshare --net sh -c "iptables-nft-restore /dev/shm/$$; istio-iptables compare --json'
        " --live '--network-namespace /proc/$$/ns/net'\"\n"
        "istio-iptables compare /dev/shm/$$ --live --json; rm /dev/shm/$$\n"
        "istio-iptables compare \"-i '*' -b '*' --ip-family ipv4\" --live --json"
    )
    assert done.returncode == 1
    documents = []
    decoder = json.JSONDecoder()
    text = done.stdout.lstrip()
    while text:
        document, end = decoder.raw_decode(text)
        documents.append(document)
        text = text[end:].lstrip()
    assert len(documents) == 3
    for document in documents:
        (difference,) = document["differences"]
        assert difference["kind"] == "missing"
        assert difference["text"] == "-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN"
        first = document["classes"][0]
        assert (first["a"]["captured"], first["b"]["captured"]) == (None, "outbound")
        assert first["packet"][-2:] == ["--gid", "1337"]


def test_foreign_native_chains_count() -> None:
    """Packets are followed through those of nftables too."""
    done = inside(
        "nft add table inet x; nft 'add chain inet x o { type filter hook output priority -150; }'\n"
        "nft add rule inet x o tcp dport 9 drop\n"
        "istio-iptables matrix --live"
    )
    assert any(
        line.split() == ["tcp,", "port", "9", "dropped", "inet", "x", "o", "1"]
        for line in done.stdout.splitlines()
    )


def test_what_is_not_followed_can_not_be_told() -> None:
    """Rules of the other backend, or an order that is not known: compare says neither the same."""
    flags = "-i '*' -b '*' --ip-family ipv4"
    redirect = "-t nat -A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 9999"
    done = inside(
        f"istio-iptables {flags} 2>/dev/null\n"
        f'iptables-nft {redirect}; istio-iptables compare "{flags}" --live; echo $?\n'
        "istio-iptables compare --live --live; echo $?; iptables-nft -t nat -F\n"
        f"istio-iptables clean; istio-iptables {flags} --native-nftables; iptables-legacy {redirect}\n"
        'unshare --net sh -c "'
        f"iptables-legacy {redirect}; istio-iptables {flags} --native-nftables\n"
        'istio-iptables compare --live \\"--network-namespace /proc/\\$PPID/ns/net\\""; echo $?'
    )
    untold = "A and B have the same rules; whether every packet is treated the same can't be told"
    same = "A and B have the same rules; the same for every packet (IPv4 and IPv6)"
    assert done.stdout.splitlines() == [
        f"{untold} (IPv4 and IPv6)",
        "2",
        same,
        "0",
        f"{untold} (IPv4 and IPv6)",
        "2",
    ]
    assert "what nft chain nat OUTPUT of B makes of packets is not followed" in done.stderr
    assert "have the same priority at hook OUTPUT" in done.stderr
