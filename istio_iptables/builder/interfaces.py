"""Interfaces that are left out of the mesh, or whose traffic counts as outbound (steps 1 and 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.builder.chains import Placed, Scope, interface
from istio_iptables.netfilter.model import Rule
from istio_iptables.netfilter.parts import RETURN

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["excluded", "virtual"]


def excluded(scope: Scope) -> Iterator[Placed]:
    """Each excluded interface: nothing that passes through it is captured."""
    for table in ("nat", "mangle") if scope.tproxy else ("nat",):
        for name in scope.config.exclude_interfaces:
            for chain, heading in (("PREROUTING", "comes in"), ("OUTPUT", "goes out")):
                reason = (
                    f"Interface {name} is excluded from the mesh (-c): what {heading} through"
                    " it is left alone, before any other rule can capture it."
                )
                rule = Rule(target=RETURN, reason=reason)
                if chain == "PREROUTING":
                    yield Placed(table, chain, rule._replace(in_interface=interface(name)))
                else:
                    yield Placed(table, chain, rule._replace(out_interface=interface(name)))


def virtual(scope: Scope) -> Iterator[Placed]:
    """Each virtual interface: what comes in by it is not inbound traffic."""
    for name in scope.config.virtual_interfaces:
        reason = (
            f"Interface {name} carries a virtual machine's traffic (-k), which counts as"
            " outbound: it never enters the inbound chain."
        )
        rule = Rule(in_interface=interface(name), target=RETURN, reason=reason, inserted=True)
        yield Placed("nat", "PREROUTING", rule, 0)
