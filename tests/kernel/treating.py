"""What becomes of packets under rules of iptables and under native ones, by the kernel's word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from istio_iptables.istio.native import build_native
from istio_iptables.istio.plan import build
from istio_iptables.netfilter.formats import restore
from istio_iptables.netfilter.model import Family, Ruleset
from istio_iptables.netfilter.native import NativePlan, text
from tests.kernel.podprocess import PodProcess
from tests.namespaces import program

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from istio_iptables.netfilter.packet import Packet
    from istio_iptables.netfilter.plan import DesiredState
    from istio_iptables.settings.config import Config

__all__ = ["FIRST_UNOWNED", "Pod", "Rules", "native_rules", "rules_of_iptables"]

#: Listening ports from here on are those of connections that no process has taken.
FIRST_UNOWNED = 60000

#: What was seen of a packet, for each place; nothing beside the first word was dropped.
Seen = list[Any]


class Rules(NamedTuple):
    """Commands that load rules, with their stdin, and the routes that go with these."""

    load: list[tuple[list[str], str]]
    routes: list[str]


def _routes(state: DesiredState) -> list[str]:
    return [" ".join(command[1:]) for route in state.routes for command in route.commands]


def rules_of_iptables(config: Config, backend: str) -> Rules:
    """The rules of iptables that *config* asks for, in place of all others of the backend."""
    state = build(config)
    load = []
    for family in Family:
        ruleset = state.only(family).rulesets or (Ruleset(family),)
        full = "".join(f"*{name}\nCOMMIT\n" for name in ("raw", "mangle", "nat"))
        load.append(([program(family, backend, "restore")], full))
        content = restore(state._replace(rulesets=ruleset, routes=(), addresses=()))
        load.append(([program(family, backend, "restore"), "--noflush"], content))
    return Rules(load, _routes(state))


def native_rules(config: Config) -> Rules:
    """The native rules of *config* in place of all others of ours."""
    state = build(config)
    plan: NativePlan = build_native(config, state)
    return Rules([(["nft", "-f", "-"], text(plan, "restore"))], _routes(state))


class Pod(PodProcess):
    """A pod's network namespace for as long as the block lasts."""

    def __init__(self) -> None:
        super().__init__("treated.py")

    def ask(self, rules: Rules, packets: Iterable[Packet], listening: Sequence[int]) -> None:
        """Load the rules and send the packets, while somebody listens on these ports."""
        request = {
            "load": rules.load,
            "routes": rules.routes,
            "listening": listening,
            "packets": [{**each._asdict(), "family": each.family.value} for each in packets],
        }
        self._request(request)

    def seen(self) -> list[Seen]:
        """What became of each packet that was asked for last."""
        return list(self._answer()["seen"])
