"""``istio-iptables matrix``: the classes are a partition, and ``explain`` agrees about every packet."""

from __future__ import annotations

import contextlib
import json
import os
from random import Random
from typing import TYPE_CHECKING

import pytest

from istio_iptables import Capture, explain, plan
from istio_iptables.api.comparing import planned_rulesets
from istio_iptables.api.matrix import matrix
from istio_iptables.commands.options import flags_given
from istio_iptables.commands.root import root
from istio_iptables.netfilter.documents import rulesets
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.sets import Intervals, name
from istio_iptables.trace import cells
from istio_iptables.trace.cells import everything
from istio_iptables.trace.classes import NotAPartition, check_partition, start_boxes
from tests.classes import asked, class_of, packet_of, random_packets
from tests.golden import cases
from tests.program import run
from tests.random_rules import random_rules

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from istio_iptables.api.capture import Plan
    from istio_iptables.api.matrix import Matrix
    from tests.golden import Case

#: How many packets are asked about in each configuration: a few in CI, 10,000 when someone asks.
PACKETS = int(os.environ.get("MATRIX_PACKETS", "10"))
#: Of how many random rulesets.
RULESETS = int(os.environ.get("MATRIX_RULESETS", "12"))
#: What many owners, DNS servers and TPROXY together make takes seconds each; not in CI.
LONG = frozenset(
    {
        *(
            "dns-tproxy",
            "dns-several-owners",
            "dns-odd-resolv-conf",
            "documented-tproxy-dual-stack",
        ),
        *("drop-invalid-tproxy", "environment-every-variable", "exclude-interfaces-tproxy"),
        *("format-annotated-everything", "format-json", "format-commands", "loopback-cidr"),
        *("native-everything", "native-sets-tproxy", "tproxy-several-owners", "native-tproxy"),
        *("native-tproxy-ports", "native-like-iptables-dns", "native-dns", "dns-both-servers"),
    }
)
SETTINGS = {
    "istio_service_cidr": "*",
    "istio_inbound_ports": "*",
    "istio_local_exclude_ports": "15090,15021,15020",
    "ip_family": "ipv4",
}
DOCUMENTED = ("-i", "*", "-b", "*", "-d", "15090,15021,15020", "--ip-family", "ipv4")
TABLES = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{}COMMIT\n"
#: Rules of others, each of a kind that divides packets in its own way.
FOREIGN = {
    "marks": "*mangle\n:OUTPUT ACCEPT [0:0]\n:PREROUTING ACCEPT [0:0]\n"
    "-A OUTPUT -m mark --mark 0x1/0xf0f -j MARK --set-xmark 0x10/0xff\n"
    "-A OUTPUT -m mark --mark 0x10/0xff -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff\n"
    "-A PREROUTING -m connmark --mark 0x7/0x7 -j CONNMARK --restore-mark --nfmask 0x1 --ctmask 0x1\n"
    "-A PREROUTING -m mark --mark 0x1/0x1 -j DROP\nCOMMIT\n",
    "interfaces": TABLES.format(
        "-A PREROUTING -i br+ -j RETURN\n-A PREROUTING ! -i br-lan -p tcp -j REDIRECT --to-ports 9\n"
        "-A OUTPUT -o eth0 -d 10.0.0.0/8 -j RETURN\n-A OUTPUT ! -o e+ -p udp -j ACCEPT\n"
    ),
    "networks": TABLES.format(
        "".join(f"-A OUTPUT -d 10.{each}.0.0/16 -j RETURN\n" for each in range(6))
        + "-A OUTPUT -d 10.3.0.0/16 -p tcp -j DNAT --to-destination 10.0.0.5:80\n"
        "-A OUTPUT ! -d 10.0.0.0/8 -p tcp -j REDIRECT --to-ports 15001\n"
    ),
    "ports": TABLES.format(
        "-A OUTPUT -p tcp -m multiport --dports 80,443,8000:9000 -j REDIRECT --to-ports 15001\n"
        "-A OUTPUT -p udp -m udp ! --dport 53 -m owner --uid-owner 0-999 -j RETURN\n"
        "-A OUTPUT -p udp -j REDIRECT --to-ports 53\n"
        "-A PREROUTING -p tcp -m tcp --sport 1:1023 -j DNAT --to-destination :8080\n"
    ),
    "states": "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
    "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
    "-A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate INVALID -j DROP\n"
    "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n-A OUTPUT -m owner ! --gid-owner 5 -j REJECT\n"
    "COMMIT\n",
    "chains": TABLES.replace("{}", ":A - [0:0]\n:B - [0:0]\n{}").format(
        "-A OUTPUT -p tcp -j A\n-A OUTPUT -g B\n-A OUTPUT -j DROP\n-A A -s 10.0.0.0/8 -g B\n"
        "-A A -j RETURN\n-A B -m owner --uid-owner 7 -j REDIRECT --to-ports 7\n-A B -j RETURN\n"
    ),
    "unknown": TABLES.format(
        "-A OUTPUT -m statistic --mode random --probability 0.5 -p tcp -j RETURN\n"
        "-A OUTPUT -p tcp -j REDIRECT --to-ports 15001\n-A OUTPUT -p udp -j SOMEWHERE\n"
    ),
}


def _agrees(found: Matrix, own: Plan | None, text: str | None, seed: int) -> None:
    """Each of many random packets is in one class, and gets from ``explain`` what that says.

    Most are asked of what ``explain`` asks, since it also looks for loops in the rules each time.
    """
    random = Random(seed)  # noqa: S311 - packets, not secrets
    classes = found.classes
    where = class_of(classes)
    # Read once: how a text is read is another test's.
    rules = text if text is None else rulesets(text, classes[0].family)
    for family in dict.fromkeys(each.family for each in classes):
        packets = random_packets(classes, family, random, PACKETS)
        for number, (direction, fields) in enumerate(packets):
            (mine,) = where(family, direction, fields)
            said = mine.fate, mine.rule, mine.captured
            question = asked(family, direction, fields)
            if number % (1 + PACKETS // 200) == 0:
                answer = explain(own, rules, family=family, **question)  # type: ignore[arg-type]
                assert (answer.fate, answer.rule, answer.captured) == said, question
                assert mine.to_port in {None, answer.to_port}
            alone = found.answer(family, packet_of(family, fields))
            assert (alone.fate, alone.rule, alone.captured) == said, question


def _plan_of(case: Case, native: str) -> Plan:
    context = root.make_context(root.name, list(case.arguments))
    flags = {**flags_given(context), "native_nftables": native}
    with contextlib.chdir(case.folder):
        return plan(Capture.from_texts(flags, case.environment))


def _configurations() -> Iterator[object]:
    """The golden cases, but for those whose rules are another one's; native ones in both ways."""
    seen: list[object] = []
    for case in cases():
        if case.name in LONG and "MATRIX_PACKETS" not in os.environ:
            continue
        for native in ("false", "true") if "--native-nftables" in case.arguments else ("false",):
            own = _plan_of(case, native)
            rules = planned_rulesets(own), own.routes
            if rules not in seen:
                seen.append(rules)
                yield pytest.param(own, id=f"{case.name}-{native}")


@pytest.mark.parametrize("own", [*_configurations()])
def test_explain_says_of_each_packet_what_its_class_says(own: Plan) -> None:
    """For the settings of every golden case."""
    found = matrix(own)
    assert found.classes
    _agrees(found, own, None, seed=1)


@pytest.mark.parametrize("name", FOREIGN)
def test_rules_of_others_are_divided_as_well(name: str) -> None:
    """Marks, interfaces, networks, ports, states, chains, and what can't be known."""
    found = matrix(None, FOREIGN[name], family=Family.IPV4)
    _agrees(found, None, FOREIGN[name], seed=2)


@pytest.mark.parametrize("seed", range(RULESETS))
def test_any_rules_are_divided(seed: int) -> None:
    """Random tables of all kinds of matches and targets, however senseless."""
    family = (Family.IPV4, Family.IPV4, Family.IPV6)[seed % 3]
    text = random_rules(Random(seed), family)  # noqa: S311 - rules, not secrets
    _agrees(matrix(None, text, family=family), None, text, seed)


@pytest.mark.parametrize("name", FOREIGN)
def test_the_example_of_a_class_is_of_it(name: str, tmp_path: Path) -> None:
    """Its words, given to ``explain``, get the verdict, the rule and the fate of the class."""
    path = tmp_path / "rules"
    path.write_text(FOREIGN[name], encoding="utf-8")
    done = run(("matrix", "--rules", str(path), "--family", "ipv4", "--json"))
    assert done.status == 0, done.err
    classes = json.loads(done.out)["classes"]
    assert classes
    for each in classes[:: 1 + len(classes) // 25]:
        words = ("explain", "--rules", str(path), "--family", "ipv4", *each["packet"], "--json")
        answer = json.loads(run(words).out)
        for key in ("verdict", "fate", "rule", "captured"):
            assert answer[key] == each[key], each["packet"]
        assert each["to_port"] in {None, answer["to_port"]}


def test_a_packet_in_two_classes_or_in_none_is_noticed() -> None:
    """The check that every matrix goes through fails for a share, a hole, and what is beyond."""
    whole = everything(Family.IPV4, incoming=False)
    boxes = [box for box in start_boxes(Family.IPV4) if "out_interface" in box]
    check_partition([whole], boxes)
    port = {**boxes[0], "destination_port": Intervals((80, 81))}
    rest = {**boxes[0], "destination_port": Intervals((0, 80, 81, 65536))}
    check_partition([whole], [port, rest, *boxes[1:]])
    beyond = {**boxes[0], "protocol": Intervals((256, 257))}
    named = {**boxes[0], "out_interface": name("eth0")}
    for wrong in (
        boxes[1:],
        [*boxes, named],
        [port, *boxes[1:]],
        [port, rest, port, *boxes[1:]],
        [*boxes, beyond],
        [],
    ):
        with pytest.raises(NotAPartition):
            check_partition([whole], wrong)


def test_the_documented_rules_at_one_look() -> None:
    """Some 15 lines: who is captured, who is not, and by which rule."""
    done = run(("matrix", *DOCUMENTED))
    assert done.status == 0
    assert done.err == ""
    lines = done.out.splitlines()
    for expected in (
        ("captured inbound on port 15006", "nat ISTIO_OUTPUT 2"),
        ("uid 1337", "untouched", "nat ISTIO_OUTPUT 4"),
        ("captured outbound on port 15001", "nat ISTIO_OUTPUT 9"),
        ("15020-15021", "untouched", "nat ISTIO_INBOUND 1-4"),
        ("captured inbound on port 15006", "nat ISTIO_INBOUND 5"),
    ):
        assert any(all(part in line for part in expected) for line in lines), expected
    assert len(matrix(plan(Capture(**SETTINGS))).rows) <= 20


def test_markdown() -> None:
    """A table for each direction, without what Markdown would take for its own."""
    lines = run(("matrix", *DOCUMENTED, "--format", "markdown")).out.splitlines()
    assert lines[0].startswith("### ")
    assert lines[2:4] == ["| traffic | what becomes of it | rule |", "|---|---|---|"]
    assert all(line.count("|") == 4 for line in lines if line.startswith("|"))
    assert any("nat ISTIO\\_OUTPUT 9" in line for line in lines)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that divide without end cost no memory without end; forgetting changes no answer."""
    wanted = matrix(plan(Capture(**SETTINGS))).rows
    monkeypatch.setattr(cells, "_MOST_SPLITS", 3)
    memory = cells.Memory()
    ports = Intervals((0, 1 << 16))
    kept = [Intervals((port, port + 1)) for port in range(10)]
    for each in kept:
        memory.split(ports, each)
    assert len(memory._splits) <= 3
    assert matrix(plan(Capture(**SETTINGS))).rows == wanted
