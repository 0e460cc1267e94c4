"""Labs for tests: run once for each combination that is asked for."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.commands.lab import lab_config
from istio_iptables.istio.native import build_native
from istio_iptables.istio.ownership import OWNERSHIP
from istio_iptables.istio.plan import build
from istio_iptables.lab import runner, scenarios
from istio_iptables.lab.without import left_out, natively
from tests.namespaces import ALL_BACKENDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from istio_iptables.lab.compare import PathResult
    from istio_iptables.lab.runner import Installer, LabOutcome, Up
    from istio_iptables.netfilter.model import Family
    from istio_iptables.netfilter.plan import DesiredState

__all__ = ["ALL_BACKENDS", "MODES", "Inputs", "places", "plan_of", "ran", "result", "run"]

MODES = ("REDIRECT", "TPROXY")


class Inputs(NamedTuple):
    """Which lab to run; the rest is as ``istio-iptables lab`` has it."""

    mode: str = "REDIRECT"
    backend: str = "legacy"
    scenario: str = "sidecar"
    envoy_uid: int | None = None


def run(  # noqa: PLR0913 - what differs between labs
    asked: Inputs,
    flags: Mapping[str, str] | None = None,
    *,
    left: Callable[[DesiredState], Sequence[str]] | None = None,
    only: Sequence[str] = (),
    installer: Installer | None = None,
    keep: Callable[[Up], None] | None = None,
) -> LabOutcome:
    """A run of the lab; *left* names the rules to leave out, of the plan that it is given."""
    own = {"istio_inbound_interception_mode": asked.mode, **(flags or {})}
    own |= {"native_nftables": str(asked.backend == "native").lower()}
    config, warnings = lab_config(own, {})
    # The lab's machine has IPv6, which a plan for IPv4 alone leaves uncaptured.
    assert config.ipv6 or all("captures IPv6" in each for each in warnings)
    assert not (config.ipv6 and warnings)
    plan, native = build(config), None
    if config.native_nftables:
        native = build_native(config, plan)
        plan = natively(plan, native)
    return runner.run(
        scenarios.make(asked.scenario, config, asked.envoy_uid),
        plan,
        OWNERSHIP,
        mode=asked.mode,
        backend=asked.backend,
        native=native,
        left=left_out(plan, left(plan) if left else ()),
        only=only,
        installer=installer,
        keep=keep,
    )


@cache
def ran(asked: Inputs) -> LabOutcome:
    """A run with all paths of a scenario, made once."""
    return run(asked)


def result(outcome: LabOutcome, name: str, family: Family) -> PathResult:
    """What became of one path."""
    (found,) = (
        each for each in outcome.results if (each.path.name, each.path.family) == (name, family)
    )
    return found


def plan_of(mode: str = "REDIRECT") -> DesiredState:
    """The plan of the lab's own settings."""
    config, _ = lab_config({"istio_inbound_interception_mode": mode}, {})
    return build(config)


def places(plan: DesiredState, *endings: str) -> list[str]:
    """The places of the IPv4 rules whose text ends so, such as ``nat ISTIO_OUTPUT 3``."""
    found = [
        f"{table.name} {chain.name} {number}"
        for table in plan.rulesets[0].tables
        for chain in table.chains
        for number, rule in enumerate(chain.rules, 1)
        if f"{chain.name} {rule.text}".endswith(endings)
    ]
    assert found
    return found
