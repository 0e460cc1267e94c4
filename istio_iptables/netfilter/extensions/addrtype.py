"""addrtype: whether an address is this machine's own, or of another kind."""

from __future__ import annotations

from istio_iptables.netfilter.extensions import MatchExtension, Situation
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_iptables.netfilter.model import Match, Option

__all__ = ["MATCHES"]


def _holds(option: Option, situation: Situation, match: Match) -> bool | None:
    """Whether an address is LOCAL is decided where that is known; the rest needs the routes."""
    packet = situation.packet
    address = packet.source if option.name == "--src-type" else packet.destination
    if option.name not in {"--src-type", "--dst-type"}:
        return None
    asked = set(",".join(option.values).split(","))
    local = situation.world.is_local(address, packet.family)
    if not local and (local is None or asked != {"LOCAL"}):
        return None
    # An address that is local is nothing else.
    holds = (local and "LOCAL" in asked) is not option.negated
    # An address of no interface is none of this one; any other may be another's.
    limits = match.option("--limit-iface-in", "--limit-iface-out") is not None
    return None if limits and holds is not option.negated else holds


MATCHES = {"addrtype": MatchExtension(holds=_holds)}
