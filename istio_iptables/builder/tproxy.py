"""The marks by which TPROXY knows its packets again (step 14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.builder.chains import INBOUND, LO, OUTBOUND_MARK, TCP, Placed, Scope
from istio_iptables.netfilter import parts
from istio_iptables.netfilter.model import Rule, Term
from istio_iptables.netfilter.parts import RETURN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_iptables.settings.values import IdRange

__all__ = ["marks"]


def marks(scope: Scope) -> Iterator[Placed]:
    """Marks on what Envoy sends, on its connections, and on their answers."""
    config = scope.config
    if not scope.tproxy:
        return
    mark = config.tproxy_mark
    marked = parts.mark_is(mark)
    yield Placed(
        "mangle",
        "PREROUTING",
        Rule(
            protocol=TCP,
            matches=(marked,),
            target=parts.save_mark(),
            reason=f"Envoy marks with {mark} what it sends to the application under the client's"
            " address: the connection remembers the mark for the answers.",
        ),
    )
    yield Placed(
        "mangle",
        "OUTPUT",
        Rule(
            out_interface=LO,
            protocol=TCP,
            matches=(marked,),
            target=RETURN,
            reason="What Envoy marked on its way to the application keeps that mark.",
        ),
    )
    for ids, what in ((config.proxy_uids, "user"), (config.proxy_gids, "group")):
        for owner in ids:
            yield from _mark_own_calls(scope, f"{what} {owner}", owner, user=what == "user")
    yield Placed(
        "mangle",
        "OUTPUT",
        Rule(
            protocol=TCP,
            matches=(parts.mark_is(mark, of="connmark"),),
            target=parts.restore_mark(),
            reason="The application's answers get the connection's mark again, so that the policy"
            " route brings them to Envoy and not to the client.",
        ),
    )
    address = scope.passthrough.partition("/")[0]
    first = (
        Rule(
            protocol=TCP,
            matches=(marked,),
            target=RETURN,
            reason="A packet that already has the mark is on its way between Envoy and the"
            " application: captured again, it would run in a loop.",
        ),
        Rule(
            source=Term(scope.passthrough),
            in_interface=LO,
            protocol=TCP,
            target=RETURN,
            reason=f"{address} is the address from which Envoy's inbound side connects to the"
            " application: this traffic has been through Envoy.",
        ),
        Rule(
            in_interface=LO,
            protocol=TCP,
            matches=(parts.mark_is(OUTBOUND_MARK, negated=True),),
            target=RETURN,
            reason=f"Over loopback only what Envoy marked with {OUTBOUND_MARK} is inbound traffic;"
            " the application talking to itself is left alone.",
        ),
    )
    for position, rule in enumerate(first):
        yield Placed("mangle", INBOUND, rule, position)


def _mark_own_calls(scope: Scope, who: str, owner: IdRange, *, user: bool) -> Iterator[Placed]:
    yield Placed(
        "mangle",
        "OUTPUT",
        Rule(
            destination=Term(scope.loopback, negated=True),
            out_interface=LO,
            protocol=TCP,
            matches=(parts.owner(uid=str(owner)) if user else parts.owner(gid=str(owner)),),
            target=parts.set_mark(OUTBOUND_MARK),
            reason=f"Envoy ({who}) calls its own pod for the application: the mark {OUTBOUND_MARK}"
            " lets the inbound rules tell it from the application talking to itself.",
        ),
    )
