"""Native rules of a file against a plan: the words are those of iptables' rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.program import run

if TYPE_CHECKING:
    from pathlib import Path

PLAN = ["--native-nftables", "-u", "5", "-i", "*", "-b", "80,90", "--ip-family", "dual"]
TPROXY = [*PLAN, "-m", "TPROXY"]
RETURN = "\t\tmeta skuid 5 counter return\n"
OTHER = """table inet fw {{
	chain out {{
		type {kind} hook output priority {priority}; policy {policy};
		{rule}
	}}

	chain y {{
		drop
	}}
}}
"""


def listing(*arguments: str) -> str:
    """What nft will list, and comments."""
    return run(["-n", *(arguments or PLAN)]).out


def differences(tmp_path: Path, text: str, *arguments: str) -> tuple[int, list[str]]:
    """The exit status, and the lines that tell a difference or belong to one."""
    file = tmp_path / "live"
    file.write_text(text, encoding="utf-8")
    done = run(["diff", *(arguments or PLAN), "--against", str(file)])
    assert done.errors == []
    return done.status, done.out.splitlines()[:-1]


def test_what_was_printed_is_as_planned(tmp_path: Path) -> None:
    """Counters and comments are no difference."""
    text = listing(*TPROXY).replace("counter ", "counter packets 7 bytes 420 ")
    assert differences(tmp_path, text, *TPROXY) == (0, [])
    annotated = run(["-n", *TPROXY, "--format", "annotated"]).out
    assert differences(tmp_path, annotated, *TPROXY) == (0, [])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            RETURN,
            "",
            [
                "missing: inet istio-proxy-nat istio-output rule 6: meta skuid 5 counter return",
                (
                    "    Envoy's own traffic (user 5) is not captured: it would be redirected to Envoy again,"
                    " in a loop."
                ),
            ],
        ),
        (
            RETURN,
            f"{RETURN}\t\ttcp dport 25 drop\n",
            ["extra: inet istio-proxy-nat istio-output rule 7: tcp dport 25 drop"],
        ),
        (
            RETURN,
            RETURN.replace("5", "6"),
            [
                "changed: inet istio-proxy-nat istio-output rule 6: meta skuid 6 counter return",
                "    meta skuid 6 instead of meta skuid 5",
                "    should be meta skuid 5 counter return",
                (
                    "    Envoy's own traffic (user 5) is not captured: it would be redirected to Envoy again,"
                    " in a loop."
                ),
            ],
        ),
        (
            "type nat hook prerouting priority dstnat",
            "type nat hook prerouting priority dstnat + 1",
            [
                (
                    "changed: inet istio-proxy-nat prerouting: chain prerouting"
                    " { type nat hook prerouting priority -99; policy accept; }"
                ),
                (
                    "    should be chain prerouting"
                    " { type nat hook prerouting priority -100; policy accept; }"
                ),
            ],
        ),
        (
            "priority -100; policy accept;",
            "priority -100; policy drop;",
            [
                (
                    "changed: inet istio-proxy-nat output: chain output"
                    " { type nat hook output priority -100; policy drop; }"
                ),
                "    should be chain output { type nat hook output priority -100; policy accept; }",
            ],
        ),
        (
            "\tchain istio-redirect {\n\t\tmeta l4proto tcp counter redirect to :15001\n\t}\n",
            "",
            [
                "missing: inet istio-proxy-nat istio-redirect: chain istio-redirect",
                (
                    "missing: inet istio-proxy-nat istio-redirect rule 1: meta l4proto tcp counter"
                    " redirect to :15001"
                ),
            ],
        ),
        (
            "\tchain istio-redirect",
            "\tset s {\n\t\ttype ipv4_addr\n\t}\n\n\tchain mine {\n\t}\n\n\tchain istio-redirect",
            [
                "extra: inet istio-proxy-nat: set s: type ipv4_addr",
                "extra: inet istio-proxy-nat mine: chain mine",
            ],
        ),
        (
            "table inet istio-proxy-nat {\n",
            "table inet istio-proxy-nat {\n\tflags dormant\n\n",
            ["extra: inet istio-proxy-nat: flags: dormant"],
        ),
    ],
)
def test_what_differs_is_told(tmp_path: Path, old: str, new: str, told: list[str]) -> None:
    """Missing, extra and changed rules; chains, their heads, sets and flags."""
    text = listing()
    assert text.count(old) == 1
    status, lines = differences(tmp_path, text.replace(old, new))
    assert status == 1
    assert lines[: len(told)] == told
    assert all(line.startswith("    ") for line in lines[len(told) :])


def test_order_counts(tmp_path: Path) -> None:
    """A rule that was moved is told as such."""
    text = listing()
    moved = text.replace(RETURN, "").replace(
        "\t\tip daddr 127.0.0.1 c", f"{RETURN}\t\tip daddr 127.0.0.1 c"
    )
    status, lines = differences(tmp_path, moved)
    assert status == 1
    assert lines[0] == (
        "moved: inet istio-proxy-nat istio-output rule 10 (should be 6): meta skuid 5 counter return"
    )


@pytest.mark.parametrize(
    ("kind", "priority", "policy", "rule", "told"),
    [
        ("filter", "raw", "accept", "tcp dport 25 drop", "rule 1: tcp dport 25 drop"),
        ("filter", "-101", "accept", "tcp dport 25 jump y", "rule 1: tcp dport 25 jump y"),
        ("filter", "raw", "drop", "accept", ": policy drop"),
        ("filter", "raw", "accept", "notrack", "rule 1: notrack"),
        (
            "filter",
            "raw",
            "accept",
            "tcp dport vmap { 1 : drop }",
            "rule 1: tcp dport vmap { 1 : drop }",
        ),
        ("nat", "-100", "accept", "redirect to :1", "rule 1: redirect to :1"),
        ("nat", "-99", "accept", "redirect to :1", ""),
        ("filter", "-100", "accept", "drop", "rule 1: drop"),
        ("filter", "-99", "accept", "drop", ""),
        ("filter", "raw", "accept", "counter accept", ""),
        ("route", "mangle", "accept", "meta mark set 0x00000001", ""),
    ],
)
def test_what_others_decide_first_is_told(  # noqa: PLR0913, PLR0917 - one for each part
    tmp_path: Path, kind: str, priority: str, policy: str, rule: str, told: str
) -> None:
    """Chains of others that the kernel calls before the one that captures."""
    other = OTHER.format(kind=kind, priority=priority, policy=policy, rule=rule)
    status, lines = differences(tmp_path, listing() + other)
    first = f"foreign: inet fw out{'' if told.startswith(':') else ' '}{told}"
    assert (status, lines[:1]) == ((1, [first]) if told else (0, []))


def test_json_of_differences(tmp_path: Path) -> None:
    """The table has its family in its name; there is no address family."""
    import json

    file = tmp_path / "live"
    file.write_text(listing().replace(RETURN, ""), encoding="utf-8")
    done = run(["diff", *PLAN, "--against", str(file), "--json"])
    (found,) = json.loads(done.out)["differences"]
    assert (found["family"], found["table"], found["chain"]) == (
        None,
        "inet istio-proxy-nat",
        "istio-output",
    )
    assert (found["live_rule"], found["wanted_rule"]) == (None, 6)


def test_rules_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    """What holds none of what was asked about says nothing about it."""
    file = tmp_path / "live"
    file.write_text(listing(), encoding="utf-8")
    done = run(["diff", "-i", "*", "--against", str(file)])
    assert (done.status, done.out) == (2, "")
    assert "holds native nftables rules: give --native-nftables as well" in done.err
    file.write_text(run(["-n", "-i", "*"]).out, encoding="utf-8")
    done = run(["diff", *PLAN, "--against", str(file)])
    assert (done.status, done.out) == (2, "")
    assert "holds no native nftables rules" in done.err


def test_a_file_of_other_tables_alone_lacks_all(tmp_path: Path) -> None:
    """Everything is missing, rule by rule."""
    other = OTHER.format(kind="filter", priority="0", policy="accept", rule="accept")
    status, lines = differences(tmp_path, other)
    assert status == 1
    count = listing().count("counter")
    assert sum(line.startswith("missing: ") and " rule " in line for line in lines) == count
