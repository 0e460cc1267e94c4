"""Packets through rulesets, in the words of packets: from whom, to where, and where it ends.

tests/kernel/test_trace_kernel.py holds the same code against the kernel; here is what can't be
sent there, and what can't be known.
"""

from __future__ import annotations

import pytest

from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.packet import Packet, Surroundings, is_loopback
from istio_iptables.netfilter.plan import PolicyRoute
from istio_iptables.netfilter.savefile import parse
from istio_iptables.trace.hooks import MAX_OUTCOMES, End, Outcome, Trace, trace

TCP = Packet(
    Family.IPV4, 6, "10.0.0.2", "1.2.3.4", 40000, 80, out_interface="eth0", uid=1000, gid=1000
)
COMING = Packet(Family.IPV4, 6, "1.2.3.4", "10.0.0.2", 40000, 80, in_interface="eth0")
POD = Surroundings({"eth0": ("10.0.0.2", "fd00::2"), "lo": ("127.0.0.1", "::1")})
NOWHERE = Surroundings()

_BUILT_IN = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}


def ways(
    rules: str, packet: Packet = TCP, world: Surroundings = NOWHERE, *, misses: bool = False
) -> Trace:
    """The trace of a packet through rules, given as lines such as ``nat OUTPUT -j A``."""
    tables: dict[str, list[str]] = {}
    own: dict[str, set[str]] = {}
    policies: dict[tuple[str, str], str] = {}
    for line in filter(None, (each.strip() for each in rules.splitlines())):
        table, chain, *rest = line.split(" ", 2)
        text = rest[0] if rest else ""
        tables.setdefault(table, [])
        if text.startswith("policy "):
            policies[table, chain] = text.removeprefix("policy ")
            continue
        if chain not in _BUILT_IN[table]:
            own.setdefault(table, set()).add(chain)
        tables[table].append(f"-A {chain} {text}")
    text = ""
    for table, lines in tables.items():
        text += f"*{table}\n"
        for chain in _BUILT_IN[table]:
            text += f":{chain} {policies.get((table, chain), 'ACCEPT')} [0:0]\n"
        text += "".join(f":{chain} - [0:0]\n" for chain in sorted(own.get(table, ())))
        text += "".join(f"{line}\n" for line in lines) + "COMMIT\n"
    return trace(parse(text, packet.family), packet, world, misses=misses)


def way(rules: str, packet: Packet = TCP, world: Surroundings = NOWHERE) -> Outcome:
    """The only way of a packet."""
    (outcome,) = ways(rules, packet, world).outcomes
    return outcome


def numbers(outcome: Outcome) -> list[str]:
    """The steps in short."""
    return [f"{each.table} {each.chain} {each.number or 'policy'}" for each in outcome.steps]


def matches(condition: str, packet: Packet = TCP, world: Surroundings = NOWHERE) -> bool | None:
    """Whether a packet matches a rule of the hook it meets first; None if that is not known."""
    chain = "PREROUTING" if packet.in_interface else "OUTPUT"
    found = ways(f"mangle {chain} {condition} -j DROP", packet, world).outcomes
    ends = {outcome.end is End.DROPPED for outcome in found}
    return ends.pop() if len(ends) == 1 else None


# Verdicts.


def test_a_packet_without_rules_goes_out() -> None:
    """Nothing stops it."""
    assert way("").end is End.SENT
    assert way("", COMING).end is End.DELIVERED
    assert way("", COMING._replace(destination="9.9.9.9"), POD).end is End.FORWARDED


def test_tables_are_asked_in_the_kernels_order() -> None:
    """raw, mangle, nat, filter; then the hook behind."""
    outcome = way("filter OUTPUT\nnat OUTPUT\nmangle OUTPUT\nraw OUTPUT")
    assert numbers(outcome) == [
        "raw OUTPUT 1",
        "raw OUTPUT policy",
        "mangle OUTPUT 1",
        "mangle OUTPUT policy",
        "nat OUTPUT 1",
        "nat OUTPUT policy",
        "filter OUTPUT 1",
        "filter OUTPUT policy",
        "mangle POSTROUTING policy",
        "nat POSTROUTING policy",
    ]


def test_return_leads_back_behind_the_jump() -> None:
    """And out of a built-in chain to its policy."""
    outcome = way(
        """
        mangle OUTPUT -j A
        mangle OUTPUT -j RETURN
        mangle OUTPUT -j DROP
        mangle A -p tcp -j RETURN
        mangle A -j DROP
        """
    )
    assert numbers(outcome)[:4] == [
        "mangle OUTPUT 1",
        "mangle A 1",
        "mangle OUTPUT 2",
        "mangle OUTPUT policy",
    ]


def test_goto_does_not_come_back() -> None:
    """The end of a chain that was gone to leads to where the last jump was."""
    outcome = way(
        """
        mangle OUTPUT -g A
        mangle OUTPUT -j DROP
        mangle A -j B
        mangle A -j MARK --set-mark 5
        mangle B -g C
        mangle B -j DROP
        mangle C -p tcp
        """
    )
    assert outcome.end is End.SENT
    assert numbers(outcome)[:6] == [
        "mangle OUTPUT 1",
        "mangle A 1",
        "mangle B 1",
        "mangle C 1",
        "mangle A 2",
        "mangle OUTPUT policy",
    ]


@pytest.mark.parametrize("target", ["DROP", "REJECT", "REJECT --reject-with tcp-reset"])
def test_what_drops_ends_the_way(target: str) -> None:
    """Nothing is asked behind it."""
    outcome = way(f"filter OUTPUT -j {target}\nnat POSTROUTING -j ACCEPT")
    assert outcome.end is End.DROPPED
    assert numbers(outcome)[-1] == "filter OUTPUT 1"


def test_a_policy_can_drop() -> None:
    """A packet that nothing accepts."""
    outcome = way("filter INPUT policy DROP", COMING)
    assert outcome.end is End.DROPPED
    assert outcome.steps[-1].text == "-P INPUT DROP"


def test_what_only_looks_lets_the_packet_go_on() -> None:
    """LOG and its like are passed."""
    outcome = way("mangle OUTPUT -j LOG\nmangle OUTPUT -j TTL --ttl-set 5\nmangle OUTPUT -j DROP")
    assert numbers(outcome) == ["mangle OUTPUT 1", "mangle OUTPUT 2", "mangle OUTPUT 3"]


def test_an_unknown_target_is_followed_both_ways() -> None:
    """It may keep the packet, or let it go on."""
    found = ways("filter OUTPUT -j NFQUEUE --queue-num 1")
    assert [each.end for each in found.outcomes] == [End.UNKNOWN, End.SENT]
    assert [each.assumptions[0].answer for each in found.outcomes] == [False, True]


def test_a_circle_of_jumps_comes_to_an_end() -> None:
    """The kernel refuses such rules, a file may have them."""
    assert way("filter OUTPUT -j A\nfilter A -j A").end is End.UNKNOWN


# Matches.


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("-s 10.0.0.0/8", True),
        ("! -s 10.0.0.0/8", False),
        ("-d 1.2.3.4", True),
        ("-d 1.2.3.0/255.255.255.0", True),
        ("-d 1.2.4.0/255.255.255.0", False),
        ("-d 1.0.0.4/255.0.0.255", True),
        ("-d nonsense", None),
        ("-d 1.2.3.4/nonsense", None),
        ("-o eth0", True),
        ("-o eth+", True),
        ("! -o lo", True),
        ("-i eth0", False),
        ("-p udp", False),
        ("-p 6", True),
        ("! -p udp", True),
        ("-p whatever", None),
        ("-d 1.2.3.4/99", False),
        ("-d 1.2.3.256", None),
        ("-d 1.2.3.4444", None),
        ("-m multiport --dports 80", True),
        ("-p tcp -m multiport --dports 80:x", None),
        ("-m conntrack ! --ctstate DNAT", True),
        ("-f", False),
        ("! -f", True),
        ("-p tcp -m tcp --dport 80", True),
        ("-p tcp -m tcp ! --dport 70:90", False),
        ("-p tcp -m tcp --sport 40000:", True),
        ("-p tcp -m tcp --dport http", True),
        ("-p tcp -m tcp --dport gopher", None),
        ("-p udp -m udp --dport 80", False),
        ("-m udp --dport 80", False),
        ("-p tcp -m tcp", True),
        ("-p tcp -m tcp --syn", True),
        ("-p tcp -m tcp --tcp-flags SYN,ACK ACK", False),
        ("-p tcp -m tcp --tcp-flags ALL NONE", False),
        ("-p tcp -m tcp --tcp-option 8", None),
        ("-m multiport --dports 22,80", True),
        ("-p tcp -m multiport ! --dports 22,70:90", False),
        ("-p tcp -m multiport --sports 1,2", False),
        ("-p tcp -m multiport --ports 40000", True),
        ("-p tcp -m multiport --ports x", None),
        ("-m owner --uid-owner 1000", True),
        ("-m owner --uid-owner 0-999", False),
        ("-m owner ! --gid-owner 1000", False),
        ("-m owner --uid-owner somebody", None),
        ("-m owner --socket-exists", True),
        ("-m owner --uid-owner 1000 --suppl-groups", True),
        ("-m owner --gid-owner 1000 --suppl-groups", True),
        ("-m owner ! --gid-owner 1000 --suppl-groups", False),
        ("-m owner --gid-owner 5 --suppl-groups", None),
        ("-m owner ! --gid-owner 5 --suppl-groups", None),
        ("-m mark --mark 0", True),
        ("-m mark ! --mark 0x1/0xff", True),
        ("-m mark --mark nonsense", None),
        ("-m connmark --mark 0", True),
        ("-m conntrack --ctstate NEW,RELATED", True),
        ("-m conntrack ! --ctstate NEW", False),
        ("-m state --state ESTABLISHED", False),
        ("-m conntrack --ctstate DNAT", False),
        ("-m conntrack --ctproto 6", True),
        ("-m conntrack --ctproto x", None),
        ("-m conntrack --ctorigdst 1.2.3.4", None),
        ('-m comment --comment "a b"', True),
        ("-m addrtype --dst-type LOCAL", None),
        ("-m addrtype --dst-type BROADCAST", None),
        ("-m addrtype --src-type LOCAL --limit-iface-in", None),
        ("-m set --match-set x src", None),
        ("-m set --match-set x src -p udp", False),
        ("-m statistic --mode random --probability 0.5", None),
        ("-m rpfilter", None),
    ],
)
def test_each_condition_is_decided_or_unknown(condition: str, *, expected: bool | None) -> None:
    """What can be told from the packet is; nothing else is guessed."""
    assert matches(condition) is expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("-m owner --uid-owner 0", False),
        ("-m owner ! --uid-owner 0", True),
        ("-m owner ! --uid-owner 0 --gid-owner 0", False),
    ],
)
def test_a_packet_of_no_socket_matches_what_is_negated(condition: str, *, expected: bool) -> None:
    """As in the kernel: it has no owner, so it isn't that one's."""
    assert matches(condition, TCP._replace(uid=None, gid=None)) is expected


def test_addresses_are_local_or_not_where_they_are_known() -> None:
    """What addrtype asks needs the machine's addresses."""
    local = "-m addrtype --dst-type LOCAL"
    assert matches(local, TCP, POD) is False
    assert matches(local, TCP._replace(destination="10.0.0.2"), POD) is True
    assert matches(local, TCP._replace(destination="127.9.9.9")) is True
    assert matches("-m addrtype ! --src-type LOCAL", TCP, POD) is False


@pytest.mark.parametrize("state", ["INVALID", "UNTRACKED"])
def test_what_has_no_connection_has_no_mark_of_one(state: str) -> None:
    """Neither the match nor its opposite holds."""
    packet = TCP._replace(state=state)
    assert matches("-m connmark --mark 0", packet) is False
    assert matches("-m connmark ! --mark 0", packet) is False
    outcome = way("mangle OUTPUT -j CONNMARK --set-mark 5", packet)
    assert outcome.packet.connmark == 0


def test_later_packets_are_not_taken_for_the_first() -> None:
    """Flags, DNAT and the connection's mark aren't known of them."""
    packet = TCP._replace(state="ESTABLISHED", connmark=None)
    assert matches("-p tcp -m tcp --syn", packet) is None
    assert matches("-m conntrack --ctstate DNAT", packet) is None
    assert matches("-m conntrack --ctstate SNAT", packet) is None
    assert matches("-m connmark --mark 5", packet) is None


# Marks.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--set-mark 5", 5),
        ("--set-xmark 0x5/0x5", 0xF5),
        ("--set-xmark 0x5/0x0", 0xF5),
        ("--or-mark 0x100", 0x1F0),
        ("--and-mark 0x10", 0x10),
        ("--xor-mark 0xff", 0x0F),
    ],
)
def test_marks_are_set_with_their_masks(options: str, expected: int) -> None:
    """Each way that iptables has of changing a mark."""
    outcome = way(f"mangle OUTPUT -j MARK {options}", TCP._replace(mark=0xF0))
    assert outcome.packet.mark == expected


def test_marks_go_to_the_connection_and_back() -> None:
    """Saved through one mask, restored through another."""
    outcome = way(
        """
        mangle OUTPUT -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xffffffff
        mangle OUTPUT -j MARK --set-mark 0
        mangle OUTPUT -j CONNMARK --restore-mark --nfmask 0xf0 --ctmask 0xf0
        """,
        TCP._replace(mark=0x1234),
    )
    assert (outcome.packet.connmark, outcome.packet.mark) == (0x34, 0x30)
    unknown = way("mangle OUTPUT -j CONNMARK --restore-mark", TCP._replace(connmark=None))
    assert unknown.packet.mark is None


@pytest.mark.parametrize(
    ("target", "field"),
    [
        ("MARK --set-mark x", "mark"),
        ("MARK --set-mark 1 --or-mark 2", "mark"),
        ("MARK", "mark"),
        ("SET --map-set s dst --map-mark", "mark"),
        ("HMARK --hmark-tuple src,dst --hmark-mod 10 --hmark-offset 100", "mark"),
        ("CONNMARK --set-mark x", "connmark"),
        ("CONNMARK --save-mark --mask x", "connmark"),
        ("CONNMARK --save-mark --left-shift-mark 3", "connmark"),
        ("CONNMARK --restore-mark --mask x", "mark"),
        ("CONNMARK --restore-mark --right-shift-mark 3", "mark"),
        ("CT --zone x", "zone"),
        ("CT --zone mark", "zone"),
    ],
)
def test_a_target_that_can_not_be_read_leaves_an_unknown_mark(target: str, field: str) -> None:
    """It lets the packet go on, and is not taken for one that does nothing."""
    table = "raw" if target.startswith("CT") else "mangle"
    outcome = way(f"{table} OUTPUT -j {target}")
    assert outcome.end is End.SENT
    assert getattr(outcome.packet, field) is None


@pytest.mark.parametrize(
    "target",
    ["SET --add-set s src", "SET --map-set s dst --map-prio", "CLASSIFY --set-class 1:1",
     "DSCP --set-dscp 0x08", "TEE --gateway 10.0.0.9", "IDLETIMER --timeout 5 --label x"],
)  # fmt: skip
def test_what_marks_nothing_leaves_the_mark_as_it_is(target: str) -> None:
    """Sets, classes and copies of the packet are no marks."""
    assert way(f"mangle OUTPUT -j {target}").packet.mark == 0


def test_an_unheard_of_target_may_have_marked_what_it_lets_go_on() -> None:
    """A later match on the mark can't be decided then."""
    rules = "mangle OUTPUT -j NFQUEUE --queue-num 1\nmangle OUTPUT -m mark --mark 5 -j DROP"
    assert [each.end for each in ways(rules).outcomes] == [End.UNKNOWN, End.DROPPED, End.SENT]


def test_an_unknown_mark_may_bring_a_packet_home() -> None:
    """Where a policy route goes by marks, both ways are followed."""
    world = Surroundings(POD.addresses, (PolicyRoute(Family.IPV4, 5, 100),))
    found = ways("mangle OUTPUT -j HMARK --hmark-mod 10", TCP, world).outcomes
    assert [(each.end, each.by_mark) for each in found] == [
        (End.DELIVERED, True),
        (End.SENT, False),
    ]
    far = COMING._replace(destination="9.9.9.9")
    found = ways("mangle PREROUTING -j HMARK --hmark-mod 10", far, world).outcomes
    assert [each.end for each in found] == [End.DELIVERED, End.FORWARDED]


def test_what_an_unknown_address_or_interface_decides_is_unknown() -> None:
    """Of a packet that was changed in ways that can't be followed."""
    lost = TCP._replace(source=None, out_interface=None)
    assert matches("-s 10.0.0.0/8", lost) is None
    assert matches("-o eth0", lost) is None
    assert matches("-m mark --mark 5", TCP._replace(mark=None)) is None
    assert matches("-p tcp -m multiport --dports 80", TCP._replace(protocol=1)) is False
    assert matches("-m conntrack --ctproto 6", TCP._replace(state="INVALID")) is False
    assert matches("-m conntrack ! --ctproto 6", TCP._replace(state="INVALID")) is False
    both = "-m conntrack --ctstate INVALID --ctproto 17"
    assert matches(both, TCP._replace(state="INVALID")) is True


def test_dnat_is_a_state_of_what_was_translated() -> None:
    """A redirected packet has it behind nat."""
    rules = "nat OUTPUT -p tcp -j REDIRECT --to-ports 1\nmangle INPUT -m conntrack --ctstate DNAT -j DROP"
    assert way(rules).end is End.DROPPED


def test_a_mapping_that_changes_nothing_is_no_dnat() -> None:
    """The kernel compares the addresses; and what became of them may be unknown."""
    rules = "nat OUTPUT -p tcp -j {} \nmangle INPUT -m conntrack --ctstate DNAT -j DROP"
    home = TCP._replace(source="127.0.0.1", destination="127.0.0.1", out_interface="lo")
    assert way(rules.format("REDIRECT"), home).end is End.DELIVERED
    assert way(rules.format("REDIRECT --to-ports 81"), home).end is End.DROPPED
    unknown = ways(rules.format("REDIRECT --to-ports 81-82"), home).outcomes
    assert {each.end for each in unknown} == {End.DROPPED, End.DELIVERED}


def test_a_connections_mark_is_changed_through_a_mask() -> None:
    """What the mask does not cover stays."""
    outcome = way("mangle OUTPUT -j CONNMARK --set-xmark 0x4/0xf", TCP._replace(connmark=0xF3))
    assert outcome.packet.connmark == 0xF4


def test_an_unknown_mark_that_is_changed_again_is_routed_anew() -> None:
    """Unknown before mangle and unknown behind it, it may have become that of a policy route."""
    world = Surroundings(POD.addresses, (PolicyRoute(Family.IPV4, 5, 100),))
    rules = "raw OUTPUT -j HMARK --hmark-mod 10"
    (sent,) = ways(rules, TCP, world).outcomes
    assert sent.end is End.SENT
    found = ways(f"{rules}\nmangle OUTPUT -j HMARK --hmark-mod 7", TCP, world).outcomes
    assert {each.by_mark for each in found} == {True, False}


def test_a_packet_that_loses_its_mark_is_routed_anew() -> None:
    """It was on its way home because of the mark."""
    world = Surroundings(POD.addresses, (PolicyRoute(Family.IPV4, 5, 100),))
    packet = TCP._replace(mark=5, out_interface="lo")
    outcome = way("mangle OUTPUT -j MARK --set-mark 6", packet, world)
    assert (outcome.end, outcome.packet.out_interface) == (End.SENT, None)
    home = way("mangle OUTPUT -j MARK --set-mark 6", packet._replace(destination="10.0.0.2"), world)
    assert home.end is End.DELIVERED


def test_a_mark_can_bring_a_packet_home() -> None:
    """The policy route decides anew once mangle has changed the mark."""
    world = Surroundings(POD.addresses, (PolicyRoute(Family.IPV4, 5, 100),))
    rules = "mangle OUTPUT -j MARK --set-mark 5\nmangle POSTROUTING -o lo\nmangle INPUT -i lo"
    outcome = way(rules, TCP, world)
    assert (outcome.end, outcome.by_mark) == (End.DELIVERED, True)
    assert "mangle POSTROUTING 1" in numbers(outcome)
    assert way(rules, TCP, POD).end is End.SENT


def test_a_mark_of_raw_counts_once_the_packet_is_routed_anew() -> None:
    """For another reason: nothing routes it for that mark alone."""
    world = Surroundings(POD.addresses, (PolicyRoute(Family.IPV4, 5, 100),))
    marked = "raw OUTPUT -j MARK --set-mark 5\nmangle OUTPUT "
    assert way(f"{marked} -j ACCEPT", TCP, world).end is End.SENT
    found = ways(f"{marked} -j DSCP --set-dscp 8", TCP, world).outcomes
    assert [each.end for each in found] == [End.DELIVERED, End.SENT]
    assert way(f"{marked} -j MARK --set-mark 6", TCP, world).packet.out_interface == "eth0"
    # What was on its way here for the mark of its socket is led away.
    home = TCP._replace(mark=5, out_interface="lo")
    rules = "raw OUTPUT -j MARK --set-mark 6\nmangle OUTPUT -j MARK --set-mark 7"
    assert way(rules, home, world).end is End.SENT


# nat.


def test_a_redirected_packet_comes_back_over_loopback() -> None:
    """To 127.0.0.1, through PREROUTING and INPUT, and not through nat again."""
    outcome = way(
        """
        nat OUTPUT -p tcp -j REDIRECT --to-ports 15001
        nat PREROUTING -j DNAT --to-destination 9.9.9.9
        mangle PREROUTING -i lo -d 127.0.0.1 -p tcp -m tcp --dport 15001
        """
    )
    assert (outcome.end, outcome.taken_by, outcome.to_port) == (End.DELIVERED, "REDIRECT", 15001)
    assert outcome.packet.endpoints == ("10.0.0.2:40000", "127.0.0.1:15001")
    assert "mangle PREROUTING 1" in numbers(outcome)
    assert "nat PREROUTING 1" not in numbers(outcome)
    assert {step.journey for step in outcome.steps} == {1, 2}


def test_what_is_redirected_from_a_link_local_destination_is_lost() -> None:
    """Its socket is bound to the link's interface, and loopback is another one, as tried."""
    rule = "nat OUTPUT -j REDIRECT --to-ports 15001"
    packet = TCP._replace(family=Family.IPV6, source="fe80::2", destination="fe80::9")
    outcome = way(rule.replace("-j", "-p tcp -j"), packet, POD)
    assert (outcome.end, outcome.taken_by) == (End.SENT, "REDIRECT")
    assert (outcome.packet.destination, outcome.packet.out_interface) == ("::1", "eth0")
    own = Surroundings({"eth0": ("fe80::2",)})
    outcome = way(
        rule.replace("-j", "-p tcp -j"),
        packet._replace(destination="fe80::2", out_interface="lo"),
        own,
    )
    assert outcome.packet.out_interface == "eth0"
    # Another address of that interface can be reached.
    both = Surroundings({"eth0": ("fe80::2", "fd00::2")})
    rules = "nat OUTPUT -p tcp -j DNAT --to-destination fd00::2"
    assert way(rules, packet, both).end is End.DELIVERED
    # A UDP socket need not be bound.
    found = ways(rule.replace("-j", "-p udp -j"), packet._replace(protocol=17), POD).outcomes
    assert [each.end for each in found] == [End.SENT, End.DELIVERED]


def test_an_arriving_packet_is_redirected_to_its_interface() -> None:
    """The address is the interface's, of the right family."""
    rules = "nat PREROUTING -p tcp -j REDIRECT --to-ports 15006"
    other = COMING._replace(destination="9.9.9.9")
    assert way(rules, other, POD).packet.endpoints[1] == "10.0.0.2:15006"
    # Which one is the first of an interface that isn't known can't be told.
    assert way(rules, COMING).packet.endpoints[1] == "?:15006"
    several = Surroundings({"eth0": ("10.0.0.1", "10.0.0.2")})
    assert way(rules, COMING, several).packet.endpoints[1] == "10.0.0.1:15006"
    lost = way(rules, other._replace(in_interface="eth9"), Surroundings({"eth9": ()}))
    assert lost.end is End.DROPPED
    six = COMING._replace(family=Family.IPV6, source="fd00::9", destination="fd00::2")
    assert way(rules, six, POD).packet.endpoints[1] == "[fd00::2]:15006"


@pytest.mark.parametrize("state", ["INVALID", "UNTRACKED"])
def test_what_has_no_connection_is_not_translated(state: str) -> None:
    """It passes nat by."""
    assert way("nat OUTPUT -j REDIRECT --to-ports 1", TCP._replace(state=state)).steps == ()


def test_a_later_packet_goes_where_the_first_one_went() -> None:
    """No rule of nat is asked again; and it may be an answer, which was not sent there."""
    rules = "nat OUTPUT -p tcp -j REDIRECT --to-ports 15001\nmangle INPUT -p tcp"
    found = ways(rules, TCP._replace(state="ESTABLISHED")).outcomes
    assert [each.end for each in found] == [End.DELIVERED, End.SENT]
    assert [each.to_port for each in found] == [15001, None]
    assert numbers(found[0])[-2:] == ["mangle INPUT 1", "mangle INPUT policy"]
    assert not any("nat" in each for each in numbers(found[0]))
    assert [each.assumptions[0].answer for each in found] == [True, False]
    assert way("nat OUTPUT -j ACCEPT", TCP._replace(state="ESTABLISHED")).end is End.SENT


def test_untracked_packets_are_not_redirected() -> None:
    """What raw takes out of connection tracking has no nat."""
    for target in ("CT --notrack", "NOTRACK"):
        outcome = way(f"raw OUTPUT -j {target}\nnat OUTPUT -p tcp -j REDIRECT --to-ports 1")
        assert (outcome.end, outcome.packet.state) == (End.SENT, "UNTRACKED")


def test_zones_are_remembered() -> None:
    """The first CT target is the one that counts, as the kernel showed."""
    assert way("raw OUTPUT -j CT --zone 2\nraw OUTPUT -j CT --notrack").packet[12:14] == ("NEW", 2)
    assert way("raw OUTPUT -j CT\nraw OUTPUT -j CT --zone 2").packet.zone == 0


def test_redirect_of_what_has_no_ports_is_unknown() -> None:
    """The kernel refuses such a rule."""
    icmp = TCP._replace(protocol=1, source_port=None, destination_port=None)
    assert len(ways("nat OUTPUT -j REDIRECT --to-ports 5", icmp).outcomes) == 2


@pytest.mark.parametrize(
    ("to", "destination", "port"),
    [
        ("10.9.9.9", "10.9.9.9", 80),
        ("10.9.9.9:81", "10.9.9.9", 81),
        (":81", "1.2.3.4", 81),
        ("10.9.9.1-10.9.9.9", None, 80),
    ],
)
def test_destination_nat_gives_another_destination(
    to: str, destination: str | None, port: int
) -> None:
    """Which one of a range can't be known."""
    outcome = ways(f"nat OUTPUT -p tcp -j DNAT --to-destination {to}").outcomes[-1]
    assert (outcome.packet.destination, outcome.packet.destination_port) == (destination, port)


def test_destination_nat_in_ipv6_has_brackets() -> None:
    """They part the address from the port."""
    packet = TCP._replace(family=Family.IPV6, source="fd00::2", destination="fd00::9")
    rule = "nat OUTPUT -p tcp -j DNAT --to-destination [fd00::1]:81"
    outcome = ways(rule, packet).outcomes[-1]
    assert outcome.packet.endpoints[1] == "[fd00::1]:81"


def test_where_a_new_destination_is_may_be_unknown() -> None:
    """Without the machine's addresses both are followed, with them one."""
    rule = "nat OUTPUT -p tcp -j DNAT --to-destination 10.9.9.9"
    found = ways(rule).outcomes
    assert [each.end for each in found] == [End.DELIVERED, End.SENT]
    assert found[0].assumptions[0].text == "10.9.9.9 is an address of this machine"
    assert ways("nat PREROUTING -j DNAT --to-destination 10.9.9.9", COMING).outcomes[1].end is (
        End.FORWARDED
    )
    home = way("nat PREROUTING -j DNAT --to-destination 10.0.0.2", COMING, POD)
    assert home.end is End.DELIVERED


def test_what_comes_from_loopback_leaves_by_a_setting_alone() -> None:
    """The kernel drops what nat sends from 127.0.0.1 to another machine, as tried."""
    packet = TCP._replace(source="127.0.0.1", destination="127.0.0.1", out_interface="lo")
    found = ways("nat OUTPUT -p tcp -j DNAT --to-destination 10.9.9.9", packet, POD).outcomes
    assert [each.end for each in found] == [End.DROPPED, End.SENT]
    assert found[0].assumptions[0].text == "a route leads from 127.0.0.1 to 10.9.9.9"
    home = way("nat OUTPUT -p tcp -j DNAT --to-destination 10.0.0.2", packet, POD)
    assert home.end is End.DELIVERED


def test_source_nat_is_told() -> None:
    """MASQUERADE takes an address that isn't known here."""
    assert way("nat POSTROUTING -j SNAT --to-source 9.9.9.9").packet.source == "9.9.9.9"
    assert way("nat POSTROUTING -j MASQUERADE").packet.source is None


# TPROXY.


def test_tproxy_hands_a_packet_to_a_listener_and_keeps_its_addresses() -> None:
    """The mark makes the policy route deliver it, whatever its destination."""
    rule = "mangle PREROUTING -p tcp -j TPROXY --on-port 15006 --tproxy-mark 0x539/0xffffffff"
    far = COMING._replace(destination="9.9.9.9")
    world = Surroundings(POD.addresses, (PolicyRoute(Family.IPV4, 0x539, 133),))
    outcome = way(rule, far, world)
    assert (outcome.end, outcome.taken_by, outcome.to_port) == (End.DELIVERED, "TPROXY", 15006)
    assert outcome.packet.destination == "9.9.9.9"
    # Nor does the kernel forward what has a socket here.
    lost = way(rule, far, POD)
    assert (lost.end, lost.refused, lost.hooks) == (
        End.DROPPED,
        "no route delivers it",
        ("PREROUTING",),
    )


def test_the_listener_that_tproxy_found_stays_when_nat_redirects() -> None:
    """A packet with a socket goes to it: a REDIRECT behind TPROXY only changes its address."""
    outcome = way(
        """
        mangle PREROUTING -p tcp -j TPROXY --on-port 15006 --tproxy-mark 0x539/0xffffffff
        nat PREROUTING -p tcp -j REDIRECT --to-ports 15001
        """,
        COMING,
        POD,
    )
    assert (outcome.taken_by, outcome.to_port) == ("TPROXY", 15006)


def test_unreadable_tproxy_is_unknown() -> None:
    """Its mark decides where the packet goes."""
    rule = "mangle PREROUTING -p tcp -j TPROXY --on-port 15006 --tproxy-mark x"
    assert len(ways(rule, COMING).outcomes) == 2


# What can't be known.


def test_an_unknown_match_is_followed_both_ways() -> None:
    """Each way says which answer it rests on."""
    found = ways("nat OUTPUT -m set --match-set x dst -p tcp -j REDIRECT --to-ports 15001")
    assert [each.end for each in found.outcomes] == [End.DELIVERED, End.SENT]
    assert [(each.place, each.text, each.answer) for each in found.outcomes[0].assumptions] == [
        ("nat OUTPUT 1", "-m set --match-set x dst", True)
    ]
    assert not found.outcomes[1].assumptions[0].answer


def test_what_makes_no_difference_is_not_followed_twice() -> None:
    """A packet that may have been logged goes on as one that was not."""
    outcome = way("mangle OUTPUT -m limit --limit 5/min -j LOG\nmangle OUTPUT -j DROP")
    assert [step.certain for step in outcome.steps] == [False, True]


def test_too_many_unknowns_are_cut_off() -> None:
    """And it is said that there are more ways."""
    rules = "\n".join(
        f"mangle OUTPUT -m statistic --mode random -j MARK --set-mark {number}"
        for number in range(1, 10)
    )
    found = ways(rules)
    assert len(found.outcomes) == MAX_OUTCOMES
    assert not found.complete


def test_misses_are_kept_when_wanted() -> None:
    """With each condition and whether it held."""
    (outcome,) = ways(
        "mangle OUTPUT -d 1.2.3.4 -o lo -j DROP\nmangle OUTPUT -m set --match-set x src -p udp\n"
        "mangle OUTPUT -j ACCEPT",
        misses=True,
    ).outcomes
    first, second = outcome.steps[0].misses
    assert [(each.text, each.holds) for each in first.conditions] == [
        ("-d 1.2.3.4", True),
        ("-o lo", False),
    ]
    assert second.conditions[-1].has == "it can't be known from here"


def test_loopback_is_known_in_both_families() -> None:
    """All of 127.0.0.0/8, and ::1 alone."""
    assert is_loopback("127.200.0.1", Family.IPV4)
    assert is_loopback("::1", Family.IPV6)
    assert not is_loopback("::6", Family.IPV6)
    assert not is_loopback("10.0.0.1", Family.IPV4)
