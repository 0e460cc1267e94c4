"""One packet through the rules of a plan, a text or a namespace, and what comes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.api.explanation import Answer, Explanation
from istio_iptables.api.packets import complete_packet, own_addresses
from istio_iptables.api.subjects import subject_of
from istio_iptables.api.unseen import chains_on_way, not_followed, tied
from istio_iptables.errors import UsageProblems
from istio_iptables.istio.capture import describe
from istio_iptables.istio.checks import escape, findings, left_out_live, with_proxies_of
from istio_iptables.istio.escapes import APPLICATIONS
from istio_iptables.netfilter.model import Family, Ruleset
from istio_iptables.netfilter.packet import Packet
from istio_iptables.trace.hooks import End, trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_iptables.api.capture import Plan
    from istio_iptables.api.packets import PacketQuery
    from istio_iptables.api.rules import Source
    from istio_iptables.api.subjects import Subject
    from istio_iptables.istio.checks import Finding
    from istio_iptables.netfilter.packet import Surroundings
    from istio_iptables.trace.hooks import Trace

__all__ = ["explain"]


def explain(  # noqa: PLR0913 - a packet has so many fields
    plan: Plan | None,
    rules: Source | None = None,
    *,
    dst: str | None = None,
    src: str | None = None,
    incoming: bool = False,
    proto: str | int | None = None,
    iface: str | None = None,
    uid: str | int | None = None,
    gid: str | int | None = None,
    mark: str | int | None = None,
    connmark: str | int | None = None,
    ctstate: str | None = None,
    family: Family | str | None = None,
    near: bool = False,
    name: str = "the text",
) -> Explanation:
    """What becomes of one packet: ``.captured``, ``.to_port``, ``.verdict``, ``.path``.

    It goes through the rules of *plan*, or through other *rules*: the text of iptables-save,
    rulesets, or those in the kernel (``LIVE``); a *plan* of None stands for the settings that these
    were made by. By default it is TCP, leaves the pod, and is sent by
    user 1000; *incoming* is one that arrives. *src* and *dst* are addresses with or without a
    port (``10.0.0.1:80``, ``[fd00::1]:80``); what is not said is assumed, and listed. With *near*
    the rules that nearly matched are kept. *name* is what messages call a text.

    Raises UsageProblems for a packet that can't be, CannotTell for rules that can't be read.
    """
    wanted = Family(family) if family else None
    subject = subject_of(plan, rules, family=wanted, name=name)
    fields = {
        "proto": proto,
        "src": src,
        "dst": dst,
        "iface": iface,
        "uid": uid,
        "gid": gid,
        "mark": mark,
        "connmark": connmark,
        "ctstate": ctstate,
    }
    texts = {key: None if value is None else str(value) for key, value in fields.items()}
    with subject.asking():
        return _follow(subject, texts, wanted, incoming=incoming, near=near)


def _follow(
    subject: Subject,
    texts: dict[str, str | None],
    family: Family | None,
    *,
    incoming: bool,
    near: bool,
) -> Explanation:
    only = subject.rulesets[0].family if len(subject.rulesets) == 1 else None
    world = subject.world
    about = complete_packet(texts, incoming=incoming, world=world, family=family or only)
    packet = about.packet
    if family not in {None, packet.family}:
        raise UsageProblems([f"--family: the addresses are those of {packet.family.title}"])
    notes = tuple(_contradictions(about, subject))
    if subject.routing is None or _lacks_interface_or_route(packet, subject):
        world = world._replace(here=own_addresses(packet), routing=None)
    warnings = list(subject.warnings)
    ruleset = next((each for each in subject.rulesets if each.family is packet.family), None)
    if ruleset is None:
        warnings.append(f"there are no {packet.family.title} rules in {subject.source}")
        ruleset = Ruleset(packet.family)
    found = trace(ruleset, packet, world, misses=near)
    if subject.addresses is not None:
        warnings += left_out_live(subject.rulesets, subject.own)
    warnings += _native_chains(found, subject)
    warnings += tied(found.outcomes)
    warnings += _in_one_place(found)
    faults = _faults(subject, packet)
    own = escape(ruleset, packet, world, subject.plan.config)
    if own is not None and own[:3] not in {each[:3] for each in faults}:
        faults += (own,)
    return Explanation(
        Answer(
            about,
            found,
            subject.plan.config,
            subject.planned,
            ruleset,
            tuple(each for each in subject.rulesets if each.family is not packet.family),
            faults,
            subject.unseen_chains,
            (*notes, *_remarks(found, subject), *_lost_answers(found, ruleset, world, subject)),
            tuple(warnings),
        )
    )


def _faults(subject: Subject, packet: Packet) -> tuple[Finding, ...]:
    """What the rules do to Envoy's traffic and to applications."""
    applications = list(APPLICATIONS)
    if packet.uid is not None and packet.gid is not None:
        applications.append((packet.uid, packet.gid))
    proxy = subject.plan.config
    if not any(subject.plan.values[name].given for name in ("proxy_uid", "proxy_gid")):
        proxy = with_proxies_of(proxy, subject.rulesets)
    return findings(subject.rulesets, subject.routes, proxy, applications)


def _native_chains(found: Trace, subject: Subject) -> list[str]:
    return not_followed(
        each for outcome in found.outcomes for each in chains_on_way(outcome, subject.unseen_chains)
    )


def _in_one_place(found: Trace) -> list[str]:
    """Tables whose rules match at one place in an order that is not known, and decides nothing."""
    tied = {each.tie.hook for one in found.outcomes for each in one.assumptions if each.tie}
    tables: dict[tuple[str, int], dict[str, None]] = {}
    for step in (step for outcome in found.outcomes for step in outcome.steps):
        if step.number is not None and step.hook not in tied:
            tables.setdefault((step.hook, step.priority), {})[step.table] = None
    return [
        f"{' and '.join(names)} have chains of the priority {priority} at hook {hook}: which of them"
        " the kernel asks first is not known from here, and makes no difference to this packet"
        for (hook, priority), names in tables.items()
        if len(names) > 1
    ]


def _contradictions(about: PacketQuery, subject: Subject) -> Iterator[str]:
    """What about the packet can't be so in this namespace; live rules only."""
    if subject.routing is None:
        return
    packet, world = about.packet, subject.world
    name = packet.in_interface or packet.out_interface
    if name and name not in subject.routing.interfaces:
        yield f"there is no interface {name} here"
    if packet.in_interface:
        return
    route = world.route(packet)
    if route is not None and route.missing:
        yield f"{route.refused} here, so that nothing is sent; the rules are followed as if one did"
    elif route is not None and route.interface not in {"", name}:
        yield f"the kernel sends it by {route.interface}, not by {name} (--iface)"
    if world.is_local(packet.source, packet.family) is False:
        assumed = (
            " (assumed: there is no address to send from)" if "source" in about.assumed else ""
        )
        yield f"{packet.source}{assumed} is no address of this namespace, which can't send from it"


def _lacks_interface_or_route(packet: Packet, subject: Subject) -> bool:
    """Whether the namespace lacks the interface or the route for the packet; only a note says so."""
    if packet.in_interface:
        return subject.routing is None or packet.in_interface not in subject.routing.interfaces
    route = subject.world.route(packet)
    return route is None or route.missing


def _remarks(found: Trace, subject: Subject) -> tuple[str, ...]:
    """What keeps a captured packet, or the answers to it, from arriving; live rules only."""
    if subject.addresses is None:
        return ()
    said = []
    for outcome in found.outcomes:
        if outcome.end is not End.DELIVERED or outcome.to_port is None:
            continue
        packet = outcome.packet
        if subject.listens(packet.protocol, outcome.to_port, packet.family) is False:
            said.append(f"nothing listens on {packet.protocol_name} port {outcome.to_port} here")
        # What the application answers carries the mark as well.
        answer = Packet(packet.family, packet.protocol, None, packet.source, mark=packet.mark)
        unrouted = packet.mark is not None and not subject.world.is_routed_home(answer)
        if outcome.taken_by == "TPROXY" and unrouted:
            said.append(
                f"no policy route delivers packets with the mark {packet.mark:#x} here: what the"
                " application answers to Envoy does not arrive"
            )
    return tuple(dict.fromkeys(said))


def _lost_answers(
    found: Trace, ruleset: Ruleset, world: Surroundings, subject: Subject
) -> tuple[str, ...]:
    """What Envoy or the agent answers to a captured packet, if it is tracked in another zone."""
    config = subject.plan.config
    said = []
    for outcome in found.outcomes:
        packet, port = outcome.packet, outcome.to_port
        if not outcome.translated or describe(outcome, config).captured is None:
            continue
        back = Packet(
            packet.family,
            packet.protocol,
            packet.destination,
            packet.source,
            port,
            packet.source_port,
            out_interface=packet.in_interface,
            uid=config.proxy_uids[0].first if config.proxy_uids else None,
            gid=config.proxy_gids[0].first if config.proxy_gids else None,
        )
        zones = {each.packet.zone for each in trace(ruleset, back, world).outcomes}
        if None in {packet.zone, *zones} or packet.zone in zones:
            continue
        others = " or ".join(map(str, sorted(each for each in zones if each is not None)))
        # A packet of no connection is looked up again when it comes back over lo, in zone 0.
        lost = (
            "it is not translated back, and no connection comes about"
            if packet.zone
            else "it may not be translated back"
        )
        said.append(
            f"the connection is tracked in zone {packet.zone}, and what is answered from port {port}"
            f" in zone {others}: {lost}"
        )
    return tuple(dict.fromkeys(said))
