"""What the settings become: rules in Istio's order, routes, addresses, and reasons."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_iptables.istio.plan import build
from istio_iptables.istio.rules import CHAIN_PREFIX, common_values, rules
from istio_iptables.netfilter import formats, savefile
from istio_iptables.netfilter.model import BUILT_IN_CHAINS, Family, is_built_in
from istio_iptables.settings.config import Config, configure
from istio_iptables.settings.sources import gather
from tests.program import run
from tests.strategies import FixedMachine, configs, given_settings, spellings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_iptables.netfilter.model import Chain, Rule, Ruleset
    from istio_iptables.netfilter.plan import DesiredState

VERDICTS = {"ACCEPT", "DROP", "RETURN", "REDIRECT", "TPROXY", "MARK", "CONNMARK", "CT"}

#: Conditions that iptables-save does not print.
EVERY_PACKET = re.compile(r" (?:-[sd] (?:0\.0\.0\.0|::)/0|-[io] \+|--[sd]port 0:65535)(?= )")


def plan_of(machine: FixedMachine | None = None, **texts: str) -> DesiredState:
    """The plan that the settings of these names make; uid and gid are 1337."""
    ids = {"dry_run": "true", "proxy_uid": "1337"}
    values, _ = gather(ids | texts, {})
    return build(configure(values, machine or FixedMachine())[0])


def chain_of(plan: DesiredState, table: str, chain: str, family: Family = Family.IPV4) -> list[str]:
    """The texts of the rules in a chain."""
    (ruleset,) = (each for each in plan.rulesets if each.family is family)
    found = ruleset.table(table)
    there = found.chain(chain) if found else None
    return [rule.text for rule in there.rules] if there else []


def every_rule(plan: DesiredState) -> Iterator[tuple[Ruleset, Chain, Rule]]:
    """Each rule of the plan, with where it stands."""
    for ruleset in plan.rulesets:
        for table in ruleset.tables:
            for chain in table.chains:
                for rule in chain.rules:
                    yield ruleset, chain, rule


class TestEveryPlan:
    """What is true whatever the settings are."""

    @given(configs())
    def test_its_text_reads_back_as_the_same(self, config: Config) -> None:
        """The text of each ruleset parses to that ruleset, and prints as that text again."""
        for ruleset in build(config).rulesets:
            text = savefile.render(ruleset)
            assert savefile.parse(text, ruleset.family) == ruleset
            assert savefile.render(savefile.parse(text, ruleset.family)) == text

    @given(configs())
    def test_the_text_in_the_source_is_the_text_of_iptables_save(self, config: Config) -> None:
        """Each text with its values is the rule to the letter, but for values every packet has."""
        for ruleset in build(config).rulesets:
            written = []
            for text, _, values in rules(config, ruleset.family):
                filled = text.format_map(common_values(config, ruleset.family) | values)
                filled = EVERY_PACKET.sub("", filled)
                written.append(re.sub(r"^-t (\w+) -[AI] (\w+)(?: \d)?(?= )", r"\1 \2", filled))
            made = [
                f"{table.name} {chain.name} {rule.text}"
                for table in ruleset.tables
                for chain in table.chains
                for rule in chain.rules
            ]
            assert sorted(written) == sorted(made)

    @given(configs())
    def test_no_rule_leads_nowhere(self, config: Config) -> None:
        """Every target is a verdict, or a chain of the same table that has rules itself."""
        for ruleset in build(config).rulesets:
            for table in ruleset.tables:
                for chain in table.chains:
                    for rule in chain.rules:
                        assert rule.target is not None
                        if rule.target.name not in VERDICTS:
                            there = table.chain(rule.target.name)
                            assert there is not None, rule.text
                            assert not is_built_in(table.name, there.name)

    @given(configs())
    def test_chains_stand_in_the_order_of_iptables_save(self, config: Config) -> None:
        """Built-in chains come in hook order, then ours by name; tables are raw, mangle, nat."""
        for ruleset in build(config).rulesets:
            names = [table.name for table in ruleset.tables]
            assert names == [name for name in ("raw", "mangle", "nat") if name in names]
            for table in ruleset.tables:
                chains = [chain.name for chain in table.chains]
                built_in = list(BUILT_IN_CHAINS[table.name])
                assert chains[: len(built_in)] == built_in
                assert chains[len(built_in) :] == sorted(chains[len(built_in) :])
                assert all(name.startswith(CHAIN_PREFIX) for name in chains[len(built_in) :])

    @given(configs())
    def test_every_rule_has_a_reason(self, config: Config) -> None:
        """A reason is one line of prose, for rules, routes and addresses alike."""
        plan = build(config)
        reasons = [rule.reason for _, _, rule in every_rule(plan)]
        reasons += [route.reason for route in plan.routes]
        reasons += [address.reason for address in plan.addresses]
        for reason in reasons:
            assert re.fullmatch(r"[A-Z0-9:].{20,}\.", reason), reason

    @given(configs())
    def test_inserted_rules_are_at_the_head_of_built_in_chains(self, config: Config) -> None:
        """What is put in with -I stands before what is put in with -A, and not in our chains."""
        for ruleset in build(config).rulesets:
            for table in ruleset.tables:
                for chain in table.chains:
                    inserted = [rule.inserted for rule in chain.rules]
                    assert inserted == sorted(inserted, reverse=True)
                    assert is_built_in(table.name, chain.name) or not any(inserted)

    @given(configs())
    def test_nothing_of_one_family_is_in_the_other(self, config: Config) -> None:
        """IPv4 rules name no IPv6 address, and the other way round."""
        for ruleset, _, rule in every_rule(build(config)):
            for term in (rule.source, rule.destination):
                if term is not None:
                    assert (":" in term.value) is (ruleset.family is Family.IPV6)

    @given(configs())
    def test_a_family_alone_is_a_part_of_the_whole(self, config: Config) -> None:
        """`only` splits a plan into parts that make the whole again."""
        plan = build(config)
        parts = [plan.only(family) for family in Family]
        for whole, pieces in zip(plan, zip(*parts, strict=True), strict=True):
            assert whole == tuple(each for piece in pieces for each in piece)


@given(st.data())
def test_however_the_settings_are_given(data: st.DataObject) -> None:
    """Flags long, short, joined, in any order, or the environment: the same plan."""
    texts = data.draw(given_settings())
    arguments, environ = data.draw(spellings(texts))
    values, _ = gather({"dry_run": "true", **texts}, {})
    config, _ = configure(values, FixedMachine(), envoy_user="nobody-has-this-name")
    environ["ENVOY_USER"] = "nobody-has-this-name"
    printing = ["--dry-run", "--format=annotated", "--resolv-conf=/dev/null"]
    result = run([*arguments, *printing], environ)
    assert (result.status, result.out) == (0, formats.annotate(build(config))), result.err


def test_conditions_that_every_packet_meets_are_left_out() -> None:
    """Any interface, any address and any port: the rule has no such condition."""
    plan = plan_of(
        istio_exclude_interfaces="+",
        kube_virt_interfaces="+,k1",
        istio_service_cidr="0.0.0.0/0,::/0",
        istio_outbound_ports=":65535",
        istio_local_outbound_ports_exclude="0:65535",
        ip_family="dual",
    )
    for family in Family:
        assert chain_of(plan, "nat", "PREROUTING", family) == [
            "-i k1 -j ISTIO_REDIRECT",
            "-j ISTIO_REDIRECT",
            "-i k1 -j RETURN",
            "-j RETURN",
            "-j RETURN",
        ]
        output = chain_of(plan, "nat", "ISTIO_OUTPUT", family)
        assert output[:2] == ["-p tcp -m tcp -j RETURN", "-p udp -m udp -j RETURN"]
        assert output[-2:] == ["-p tcp -m tcp -j ISTIO_REDIRECT", "-j ISTIO_REDIRECT"]


# The order of the contract, where it is decided by more than one setting.


def test_virtual_interfaces_come_before_excluded_ones() -> None:
    """-k inserts at the head, over the rules of -c; each network goes over the ones before."""
    plan = plan_of(
        kube_virt_interfaces="k1,k2",
        istio_exclude_interfaces="c1",
        istio_service_cidr="10.0.0.0/8,11.0.0.0/8",
        istio_inbound_ports="*",
    )
    assert chain_of(plan, "nat", "PREROUTING") == [
        "-d 11.0.0.0/8 -i k2 -j ISTIO_REDIRECT",
        "-d 11.0.0.0/8 -i k1 -j ISTIO_REDIRECT",
        "-d 10.0.0.0/8 -i k2 -j ISTIO_REDIRECT",
        "-d 10.0.0.0/8 -i k1 -j ISTIO_REDIRECT",
        "-i k2 -j RETURN",
        "-i k1 -j RETURN",
        "-i c1 -j RETURN",
        "-p tcp -j ISTIO_INBOUND",
    ]


def test_tproxy_takes_inbound_to_mangle() -> None:
    """Under TPROXY nat has no inbound rule but the tunnel's, and mangle is entered for tcp."""
    plan = plan_of(istio_inbound_interception_mode="TPROXY", istio_inbound_ports="80,90")
    assert chain_of(plan, "nat", "PREROUTING") == []
    assert chain_of(plan, "nat", "ISTIO_INBOUND") == ["-p tcp -m tcp --dport 15008 -j RETURN"]
    known = "-m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT"
    assert chain_of(plan, "mangle", "ISTIO_INBOUND")[3:] == [
        f"-p tcp -m tcp --dport 80 {known}",
        "-p tcp -m tcp --dport 80 -j ISTIO_TPROXY",
        f"-p tcp -m tcp --dport 90 {known}",
        "-p tcp -m tcp --dport 90 -j ISTIO_TPROXY",
    ]


@pytest.mark.parametrize(
    ("mode", "inbound", "families"),
    [("TPROXY", "*", 2), ("TPROXY", "80", 2), ("TPROXY", "", 0), ("REDIRECT", "*", 0)],
)
def test_routes_are_for_tproxy_with_inbound_ports(mode: str, inbound: str, families: int) -> None:
    """TPROXY with -b needs a route in each family; nothing else does."""
    plan = plan_of(
        istio_inbound_interception_mode=mode,
        istio_inbound_ports=inbound,
        ip_family="dual",
        istio_inbound_tproxy_mark="0x10",
        istio_inbound_tproxy_route_table="200",
    )
    assert [(route.mark, route.table) for route in plan.routes] == [(16, 200)] * families
    if families:
        assert plan.routes[1].commands == (
            ("ip", "-6", "rule", "add", "fwmark", "0x10", "lookup", "200"),
            ("ip", "-6", "route", "add", "local", "default", "dev", "lo", "table", "200"),
        )


@pytest.mark.parametrize(("family", "addresses"), [("ipv4", []), ("dual", ["::6"])])
def test_the_address_goes_with_ipv6(family: str, addresses: list[str]) -> None:
    """::6 is added where IPv6 is on, and only there."""
    assert [each.address for each in plan_of(ip_family=family).addresses] == addresses


@pytest.mark.parametrize(
    "cidr", ["127.0.0.1/32", "127.5.0.0/16", "::1/128", "::ffff:127.0.0.1/128"]
)
def test_capturing_loopback_drops_the_rule_that_spares_it(cidr: str) -> None:
    """A captured loopback network, of either family, leaves out rule 9b in both."""
    spared = "-o lo -m owner ! --uid-owner 1337 -j RETURN"
    for family in Family:
        without = plan_of(istio_service_cidr="10.0.0.0/8", ip_family="dual")
        assert spared in chain_of(without, "nat", "ISTIO_OUTPUT", family)
        captured = plan_of(istio_service_cidr=f"10.0.0.0/8,{cidr}", ip_family="dual")
        assert spared not in chain_of(captured, "nat", "ISTIO_OUTPUT", family)


def test_dns_servers_of_one_family_leave_the_other_without_capture() -> None:
    """A family without servers has the zones of the proxy, and no jump to DNS rules in nat."""
    plan = plan_of(
        FixedMachine(("10.0.0.5", "fd00::5"), ("fd00::a",)), redirect_dns="true", ip_family="dual"
    )
    jump = "-j ISTIO_OUTPUT_DNS"
    assert jump not in chain_of(plan, "nat", "ISTIO_OUTPUT")
    assert jump in chain_of(plan, "nat", "ISTIO_OUTPUT", Family.IPV6)
    assert chain_of(plan, "raw", "OUTPUT") == [jump]
    assert chain_of(plan, "raw", "PREROUTING") == []
    assert chain_of(plan, "raw", "PREROUTING", Family.IPV6) == ["-j ISTIO_INBOUND"]


@pytest.mark.parametrize(
    ("port", "known"),
    [("15020", True), ("15021", True), ("15090", True), ("8080", False), ("15020:15021", False)],
)
def test_reasons_name_the_ports_everybody_asks_about(port: str, known: bool) -> None:  # noqa: FBT001
    """The reason for an excluded port says whose it is, when it is a well-known one."""
    plan = plan_of(istio_inbound_ports="*", istio_local_exclude_ports=port)
    (reason,) = (rule.reason for _, _, rule in every_rule(plan) if f"--dport {port} " in rule.text)
    assert ("(the agent" in reason or "(Envoy's" in reason) is known
