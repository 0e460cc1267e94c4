"""What really happened: the counters of rules and listeners before and after."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.kernel.programs import run
from istio_iptables.lab.predict import RuleAddress
from istio_iptables.lab.sandbox import on_network
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.nftlisting import read_listing
from istio_iptables.netfilter.savefile import parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_iptables.lab.envoy import Envoy
    from istio_iptables.lab.without import Left
    from istio_iptables.netfilter.model import Table

__all__ = ["NATIVE", "Counts", "Watch"]

#: The name of native nftables rules, where others are in the backend of another name.
NATIVE = "native"


class Counts(NamedTuple):
    """How often each rule matched and how many connections each listener took."""

    rules: Counter[RuleAddress]
    listeners: Counter[tuple[str, str]]

    def since(self, before: Counts) -> Counts:
        """What was added since *before*; what was not is left out."""
        return Counts(self.rules - before.rules, self.listeners - before.listeners)


class Watch:
    """The counters of the nodes that have rules, and of all proxies."""

    def __init__(
        self,
        captured: Mapping[str, int],
        envoys: Mapping[str, Envoy],
        backend: str,
        left: Left,
    ) -> None:
        self._captured, self._envoys, self._backend = captured, envoys, backend
        self._left = left

    def counts(self, family: Family) -> Counts:
        """The counters now, for rules of one family."""
        rules: Counter[RuleAddress] = Counter()
        for node, network in self._captured.items():
            with on_network(network):
                tables = self._tables(family)
            for table in tables:
                for chain in table.chains:
                    # Rules keep the numbers that they have in the whole plan.
                    numbers = (
                        number
                        for number in count(1)
                        if (table.name, chain.name, number) not in self._left
                    )
                    for number, rule in zip(numbers, chain.rules, strict=False):
                        place = RuleAddress(node, family, table.name, chain.name, number)
                        rules[place] = rule.counters.packets if rule.counters else 0
        listeners = Counter(
            {
                (node, listener): taken
                for node, envoy in self._envoys.items()
                for listener, taken in envoy.connections().items()
            }
        )
        return Counts(rules, listeners)

    def _tables(self, family: Family) -> tuple[Table, ...]:
        """The tables of this network namespace that packets of a family meet."""
        if self._backend == NATIVE:
            return read_listing(run(["nft", "list", "ruleset"]).splitlines())
        tool = "iptables" if family is Family.IPV4 else "ip6tables"
        return parse(run([f"{tool}-{self._backend}-save", "-c"]), family).tables
