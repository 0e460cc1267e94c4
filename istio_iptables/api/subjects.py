"""What is asked about: rules of a plan, a text or a namespace, their settings, and what is around them."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.api.capture import Capture, plan
from istio_iptables.api.rules import Live, is_native, rules_of
from istio_iptables.api.unseen import chains_at_devices, unseen_chains, with_other_backend
from istio_iptables.errors import CannotTell, KernelRefused
from istio_iptables.netfilter.packet import Surroundings
from istio_iptables.netfilter.plan import DesiredState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.api.capture import Plan
    from istio_iptables.api.recovering import Recovered
    from istio_iptables.api.rules import Source
    from istio_iptables.api.unseen import Unseen
    from istio_iptables.kernel.live import LiveState
    from istio_iptables.kernel.routing import KernelRouting
    from istio_iptables.netfilter.model import Family, Ruleset, Table
    from istio_iptables.netfilter.plan import PolicyRoute

__all__ = ["Subject", "subject_of"]


class Subject(NamedTuple):
    """The rules that are asked about, and what is around them."""

    rulesets: tuple[Ruleset, ...]
    #: What they are held against: the plan that was given, or the one that they were made by.
    plan: Plan
    routes: tuple[PolicyRoute, ...]
    #: Where the rules are from, for people.
    source: str
    #: The addresses of each interface; None if they aren't known.
    addresses: dict[str, tuple[str, ...]] | None = None
    #: Chains that the kernel asks as well, and whose rules aren't known.
    unseen_chains: tuple[Unseen, ...] = ()
    #: The addresses that tell which families are in use; none where they aren't known.
    own: tuple[str, ...] = ()
    #: The kernel's routing, to be asked while it is entered (``asking``); None where the rules are
    #: not live.
    routing: KernelRouting | None = None
    namespace: str = ""
    warnings: tuple[str, ...] = ()
    #: What was read of a namespace; None where the rules are not live.
    state: LiveState | None = None
    #: The settings that the rules were made by, where no plan was given.
    recovered: Recovered | None = None
    #: The native rules of ours, where those are asked about.
    native: tuple[Ruleset, ...] = ()

    @property
    def followed(self) -> tuple[Ruleset, ...]:
        """All rules that packets meet, of both backends and native ones, as far as they are known."""
        state = self.state
        if state is None:
            return self.native or self.rulesets
        found = _with_native(state.rulesets, state.native) if state.native else state.rulesets
        other = "nft" if state.backend == "legacy" else "legacy"
        return with_other_backend(found, state.other_rulesets, other)

    @property
    def world(self) -> Surroundings:
        """What is known of the machine."""
        listens = self.listens if self.state is not None else None
        return Surroundings(self.addresses, self.routes, routing=self.routing, listens=listens)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """In the block the kernel is asked for routes; raises CannotTell where it does not answer."""
        try:
            with self.routing or nullcontext():
                yield
        except KernelRefused as error:
            raise CannotTell(*error.lines) from error

    def listens(self, protocol: int, port: int, family: Family) -> bool | None:
        """Whether anything takes what is sent to a port of the namespace; None if unknown."""
        from istio_iptables.kernel.namespace import entered
        from istio_iptables.kernel.sockets import listens

        with entered(self.namespace):
            return listens(protocol, port, family)

    @property
    def planned(self) -> DesiredState:
        """The plan, with its native rules where the rules are or may be native."""
        own = self.plan.state
        if not is_native(self.rulesets):
            return own
        from istio_iptables.api.comparing import planned_natively
        from istio_iptables.netfilter.nftlisting import families

        return own._replace(rulesets=(*own.rulesets, *families(planned_natively(self.plan))))


def subject_of(
    wanted: Plan | None,
    rules: Source | None = None,
    *,
    family: Family | None = None,
    name: str = "the text",
    follow: bool = True,
) -> Subject:
    """The rules of *wanted*, or other *rules*: a text's, rulesets, or those in the kernel (``LIVE``).

    Without *wanted* the settings are those that the rules were made by, as far as they tell.
    *family* and *name* are as in ``rules_of``. With *follow* packets are to be followed through the
    rules, and native ones are among these. Raises CannotTell for rules that can't be read.
    """
    if rules is None:
        own = wanted or plan(Capture())
        found: tuple[Ruleset, ...] | Live = own.rulesets
        if own.config.native_nftables:
            from istio_iptables.api.comparing import planned_rulesets

            found = planned_rulesets(own)
        name = "the plan"
    else:
        own, found = None, rules_of(rules, family, name)
    if isinstance(found, Live):
        return _live(wanted, found, follow=follow)
    native = is_native(found)
    own, recovered = (own, None) if own else _settings(wanted, found)
    return Subject(
        found if follow or not native else (),
        own,
        own.routes,
        name,
        unseen_chains=chains_at_devices(found),
        recovered=recovered,
        native=found if native else (),
    )


def _with_native(rulesets: tuple[Ruleset, ...], native: Iterable[Table]) -> tuple[Ruleset, ...]:
    """The rules of iptables, and beside them the native ones."""
    from istio_iptables.netfilter.nftlisting import families

    there = {each.family: each for each in rulesets}
    return tuple(
        each._replace(tables=(*there[each.family].tables, *each.tables))
        if each.family in there
        else each
        for each in families(native)
    )


def _settings(
    wanted: Plan | None, rulesets: tuple[Ruleset, ...], routes: tuple[PolicyRoute, ...] = ()
) -> tuple[Plan, Recovered | None]:
    """The plan that was given, or the one that the rules were made by."""
    if wanted is not None:
        return wanted, None
    # With settings at hand nothing has to be recovered: 2 ms of imports.
    from istio_iptables.api.recovering import recover

    recovered = recover(rulesets, routes)
    return recovered.plan, recovered


def _live(wanted: Plan | None, live: Live, *, follow: bool) -> Subject:
    from istio_iptables.api.comparing import holds_ours, native_elsewhere, native_of_ours
    from istio_iptables.istio.ownership import OWNERSHIP
    from istio_iptables.kernel import live as kernel
    from istio_iptables.kernel import netlink, routes
    from istio_iptables.kernel.namespace import entered
    from istio_iptables.kernel.routing import KernelRouting
    from istio_iptables.netfilter.nftlisting import families

    namespace, backend = live.namespace or "", live.backend or ""
    if wanted is not None:
        namespace, backend = live.of(wanted)
    # Whether a packet is captured is told by nat, whoever's settings they are: without it, nothing.
    usual = plan(Capture(ip_family="dual"))
    asked = DesiredState(usual.rulesets) if wanted is None else wanted.state
    only = follow and wanted is not None and wanted.config.native_nftables
    if only:
        asked = asked._replace(rulesets=())
    try:
        state = kernel.read(
            asked, OWNERSHIP, namespace=namespace, backend=backend, native=live.native or only
        )
        with entered(namespace):
            addresses = netlink.interface_addresses()
            own = netlink.addresses()
            there = routes.delivering_routes()
    except KernelRefused as error:
        raise CannotTell(*error.lines) from error
    native: tuple[Ruleset, ...] = ()
    if (
        live.native or not holds_ours((*state.rulesets, *state.other_rulesets))
        if wanted is None
        else wanted.config.native_nftables
    ):
        native = families(native_of_ours(state.native or ()))
        if wanted is None and not live.native and not holds_ours(native):
            native = ()
            # What becomes of a packet is then told with a condition; that no rules are there is not.
            if state.native is None and not follow and any(native_elsewhere(state.native_chains)):
                message = "native nftables rules of ours are there, and 'nft list ruleset' fails"
                raise CannotTell(message)
    own_plan, recovered = _settings(wanted, native or state.rulesets, there)
    warnings = list(state.warnings)
    if state.other_rulesets:
        warnings.append("there are rules in the other backend too, which are not followed")
    if state.unreadable:
        tables = ", ".join(state.unreadable)
        warnings.append(f"tables that can't be read are not followed: {tables}")
    return Subject(
        _with_native(state.rulesets, state.native) if follow and state.native else state.rulesets,
        own_plan,
        there,
        f"the live rules ({'native nftables' if native else state.backend})",
        addresses,
        unseen_chains(state, native=follow),
        own,
        KernelRouting(namespace),
        namespace,
        tuple(warnings),
        state,
        recovered,
        native,
    )
