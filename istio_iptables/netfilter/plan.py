"""What is to be in a network namespace: rules, and the routes and addresses they lean on."""

from __future__ import annotations

from istio_iptables.netfilter.model import Family, Ruleset
from istio_iptables.typed import NamedTuple

__all__ = ["DesiredState", "InterfaceAddress", "PolicyRoute"]


class PolicyRoute(NamedTuple):
    """Packets with a mark are delivered locally, through a routing table of their own."""

    family: Family
    mark: int
    table: int
    reason: str = ""

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """The two ``ip`` commands that make it: the policy rule and its route."""
        ip = ("ip", "-4" if self.family is Family.IPV4 else "-6")
        table = str(self.table)
        return (
            (*ip, "rule", "add", "fwmark", hex(self.mark), "lookup", table),
            (*ip, "route", "add", "local", "default", "dev", "lo", "table", table),
        )


class InterfaceAddress(NamedTuple):
    """An address that an interface has to have."""

    family: Family
    address: str
    prefix: int
    interface: str
    reason: str = ""

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """The ``ip`` command that adds it."""
        ip = ("ip", "-4" if self.family is Family.IPV4 else "-6")
        return ((*ip, "addr", "add", f"{self.address}/{self.prefix}", "dev", self.interface),)


class DesiredState(NamedTuple):
    """The whole of it: a ruleset for each address family in use, routes and addresses."""

    rulesets: tuple[Ruleset, ...]
    routes: tuple[PolicyRoute, ...] = ()
    addresses: tuple[InterfaceAddress, ...] = ()

    @property
    def network(self) -> tuple[InterfaceAddress | PolicyRoute, ...]:
        """What the rules lean on, in the order in which it is made: addresses, then routes."""
        return (*self.addresses, *self.routes)

    @property
    def rule_count(self) -> int:
        """How many rules there are in both families."""
        return sum(ruleset.rule_count for ruleset in self.rulesets)

    def network_without(self, other: DesiredState) -> DesiredState:
        """The routes and addresses that *other* lacks, whatever the reasons for them."""
        there = {each._replace(reason="") for each in other.network}
        return DesiredState(
            (),
            tuple(each for each in self.routes if each._replace(reason="") not in there),
            tuple(each for each in self.addresses if each._replace(reason="") not in there),
        )

    def table_names(self, family: Family) -> tuple[str, ...]:
        """The tables of one address family that rules are to go into."""
        return tuple(
            table.name
            for ruleset in self.rulesets
            if ruleset.family is family
            for table in ruleset.tables
        )

    def only(self, family: Family) -> DesiredState:
        """The part of the plan that concerns one address family."""
        return DesiredState(
            tuple(ruleset for ruleset in self.rulesets if ruleset.family is family),
            tuple(route for route in self.routes if route.family is family),
            tuple(address for address in self.addresses if address.family is family),
        )
