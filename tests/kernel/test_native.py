"""Native rules against nft itself: it takes them, and lists them as we print them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from istio_iptables.istio.native import build_native
from istio_iptables.istio.plan import build
from istio_iptables.netfilter.native import text
from istio_iptables.settings.config import configure
from istio_iptables.settings.sources import gather
from tests.golden import cases
from tests.namespaces import Step, inside
from tests.strategies import FixedMachine, configs, networks_ipv4, networks_ipv6, port_items

if TYPE_CHECKING:
    from istio_iptables.settings.config import Config

pytestmark = pytest.mark.kernel

# One namespace for a batch of plans, and each replaces the one before it.
FEW = settings(max_examples=12, suppress_health_check=list(HealthCheck))
LIST = Step(["nft", "-s", "list", "ruleset"])


def without_comments(shown: str) -> str:
    """The text without comment lines, as nft lists it."""
    lines = shown.splitlines(keepends=True)
    return "".join(line for line in lines if not line.lstrip().startswith("#"))


def printed(name: str, form: str) -> str:
    """What the golden case of this name prints in another format."""
    (case,) = (each for each in cases() if each.name == name)
    return case._replace(arguments=[*case.arguments, "--format", form]).run().out


def test_every_golden_case_is_listed_as_its_native_text() -> None:
    """The transaction is taken, whatever is there, and nft lists what a dry run prints."""
    steps, expected = [], []
    for case in cases():
        native = [*case.arguments, "--native-nftables", "--format"]
        save, restore = (
            case._replace(arguments=[*native, form]).run().out for form in ("save", "restore")
        )
        steps += [Step(["nft", "-f", "-"], restore), LIST]
        expected.append(without_comments(save))
    done = inside(steps)
    assert [each for each in done if each.status != 0] == []
    assert [each.out for each in done[1::2]] == expected


@st.composite
def native_configs(draw: st.DrawFn) -> Config:
    """Any settings of native rules, with more items of a list than others have."""
    ports, networks = (
        draw(st.lists(items(), max_size=most)) for items, most in ((port_items, 9), (_networks, 9))
    )
    words = {"istio_service_exclude_cidr": ",".join(networks), "nft_sets": "true"}
    names = ("istio_inbound_ports", "istio_local_outbound_ports_exclude", "istio_outbound_ports")
    words |= dict.fromkeys(names, ",".join(ports))
    lists, _ = configure(
        gather(words | {"ip_family": "dual", "native_nftables": "true"}, {})[0], FixedMachine()
    )
    config = draw(configs())._replace(
        native_nftables=True,
        nft_sets=draw(st.booleans()),
        nft_like_iptables=draw(st.booleans()),
    )
    if draw(st.booleans()):
        fields = (
            "inbound_ports",
            "outbound_ports",
            "outbound_ports_exclude",
            "outbound_cidrs_exclude",
        )
        config = config._replace(**{name: getattr(lists, name) for name in fields})
    return config


def _networks() -> st.SearchStrategy[str]:
    return st.one_of(networks_ipv4(), networks_ipv6())


@FEW
@given(batch=st.lists(native_configs(), min_size=1, max_size=8))
def test_every_plan_loads_and_is_listed_as_its_text(batch: list[Config]) -> None:
    """Whatever the settings are; and what a dry run prints loads as well, with reasons or without."""
    plans = [build_native(config, build(config)) for config in batch]
    steps = [
        step
        for plan in plans
        for step in (
            *(Step(["nft", "-c", "-f", "-"], text(plan, form)) for form in ("save", "annotated")),
            Step(["nft", "-f", "-"], text(plan, "restore")),
            LIST,
        )
    ]
    done = inside(steps)
    assert [each for each in done if each.status != 0] == []
    for plan, listed in zip(plans, done[3::4], strict=True):
        assert listed.out == without_comments(text(plan, "save"))


def test_a_shell_runs_the_commands() -> None:
    """The rules, the routes and ::6 are there after it."""
    script, save = (printed("native-everything", form) for form in ("commands", "save"))
    shell, listed, rule, address = inside(
        [
            Step(["sh", "-ec", f"ip link set lo up\n{script}"]),
            LIST,
            Step(["ip", "-6", "rule"]),
            Step(["ip", "-6", "addr", "show", "dev", "lo"]),
        ]
    )
    assert (shell.status, shell.err) == (0, "")
    assert listed.out == without_comments(save)
    assert "fwmark 0x539 lookup 133" in rule.out
    assert "inet6 ::6/128" in address.out


def test_a_transaction_leaves_other_tables_alone() -> None:
    """And replaces a chain of an earlier one that its own rules don't need."""
    other = "table inet other {\n\tchain x {\n\t}\n}\n"
    left = "table inet istio-proxy-mangle {\n\tchain istio-divert {\n\t}\n}\n"
    restore = printed("native-documented", "restore")
    loaded, changed, listed = inside(
        [Step(["nft", "-f", "-"], other + left), Step(["nft", "-f", "-"], restore), LIST]
    )
    assert (loaded.status, changed.status) == (0, 0)
    assert listed.out == other + without_comments(printed("native-documented", "save"))
