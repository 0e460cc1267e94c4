"""Rules of others whose comments and chains hold what no line and no terminal should."""

from __future__ import annotations

import subprocess

import pytest

from istio_iptables.netfilter.edits import Action, Edit, restore_lines
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.savefile import parse, parse_rule, render
from tests.kernel.sandbox import command, install, load, run
from tests.namespaces import BACKENDS

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

FLAGS = ("-i", "*", "-b", "*", "--ip-family", "ipv4")
#: A comment whose lines would be commands if each line were read by itself.
COMMENT = "a\nCOMMIT\n*nat\n-A POSTROUTING -j DROP\n# b\x1b[2J"


def add(backend: str, chain: str | bytes, *rule: str | bytes) -> None:
    """Add a rule to the nat table, with any bytes."""
    subprocess.run([f"iptables-{backend}", "-t", "nat", "-A", chain, *rule], check=True)


def saved(backend: str) -> bytes:
    """The nat table without comments and counters."""
    done = subprocess.run(
        [f"iptables-{backend}-save", "-t", "nat"], capture_output=True, check=True
    )
    return b"\n".join(
        line.partition(b" [")[0] if line.startswith(b":") else line
        for line in done.stdout.split(b"\n")
        if not line.startswith(b"# Generated") and not line.startswith(b"# Completed")
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_rules_of_others_of_any_text_stay_as_they_are(backend: str) -> None:
    """Over an install, a replacement and a clean-up, and they can be compared and explained."""
    # An extension that only iptables itself can show, so that its text is read.
    add(backend, "PREROUTING", "-m", "u32", "--u32", "0=0", "-m", "comment", "--comment", COMMENT)
    add(backend, "OUTPUT", "-p", "udp", "-m", "comment", "--comment", "x\n", "-j", "ACCEPT")
    subprocess.run([f"iptables-{backend}", "-t", "nat", "-N", b"\xe9t\xe9"], check=True)
    add(backend, "OUTPUT", "-p", "icmp", "-j", b"\xe9t\xe9")
    before = saved(backend)
    assert install(backend, *FLAGS).status == 0
    add(backend, "ISTIO_OUTPUT", "-m", "comment", "--comment", COMMENT, "-j", "LOG")
    add(backend, "OUTPUT", "-m", "comment", "--comment", COMMENT, "-j", "ISTIO_OUTPUT")
    compared = run("diff", *FLAGS)
    assert compared.status == 1
    assert "extra: IPv4 nat ISTIO_OUTPUT rule 10" in compared.out
    explained = run("explain", "--live", "--dst", "192.0.2.1:80", "--proto", "udp")
    assert explained.status == 0
    assert all(line.isprintable() for line in (compared.out + explained.out).split("\n"))
    replaced = install(backend, *FLAGS, "--reconcile")
    assert replaced.status == 0, replaced.err
    assert "extra:" not in run("diff", *FLAGS).out
    add(backend, "OUTPUT", "-m", "comment", "--comment", COMMENT, "-j", "ISTIO_OUTPUT")
    assert run("clean", "--force-iptables-binary", backend).status == 0
    assert saved(backend) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_comment_is_never_a_line_of_its_own(backend: str) -> None:
    """What is put back for iptables-restore is one rule, though its comment has lines."""
    rule = parse_rule(f'-m comment --comment "{COMMENT}" -j ACCEPT')
    lines = restore_lines("nat", [Edit(Action.APPEND, "OUTPUT", rule)])
    load(backend, Family.IPV4, "\n".join(lines) + "\n")
    text = command(f"iptables-{backend}-save", "-t", "nat")
    nat = parse(text, Family.IPV4).table("nat")
    assert nat is not None
    assert nat.rule_count == 1
    flat = COMMENT.replace("\n", " ")
    output = nat.chain("OUTPUT")
    assert output is not None
    assert [each.text for each in output.rules] == [f'-m comment --comment "{flat}" -j ACCEPT']


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_kernel_holds_reads_as_it_is(backend: str) -> None:
    """Byte for byte, whatever comments hold."""
    for comment in (
        b"a\nb",
        b"\n",
        b'a"\n"b',
        b"a\\\nb",
        b"a\r\x0c\x0b\x1c\xc2\x85\xe2\x80\xa8",
        b"\xe9\n",
    ):
        add(backend, "OUTPUT", "-m", "comment", "--comment", comment, "-j", "ACCEPT")
    done = subprocess.run([f"iptables-{backend}-save"], capture_output=True, check=True)
    text = done.stdout.decode(errors="surrogateescape")
    ruleset = parse(text, Family.IPV4)
    assert render(ruleset) == text
    assert ruleset.rule_count == 6
