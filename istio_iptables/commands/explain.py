"""``istio-iptables explain``: one packet through the rules, and which of them decides."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from istio_iptables.commands.inputs import (
    CAPTURE_SETTINGS,
    read_inputs,
    read_rules,
    require_namespace,
)
from istio_iptables.commands.load import Purpose, tell, warn
from istio_iptables.commands.options import SettingsCommand
from istio_iptables.commands.packet_options import complete_packet
from istio_iptables.commands.unseen import passed, unseen
from istio_iptables.errors import CannotTell, ExitStatus, KernelRefused, UsageProblems
from istio_iptables.istio.checks import escape, findings, left_out_live, with_proxies_of
from istio_iptables.istio.escapes import APPLICATIONS
from istio_iptables.netfilter.model import Family, Ruleset
from istio_iptables.netfilter.packet import Surroundings
from istio_iptables.trace.hooks import End, trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_iptables.commands.inputs import Inputs
    from istio_iptables.commands.unseen import Unseen
    from istio_iptables.istio.checks import Finding
    from istio_iptables.netfilter.packet import Packet
    from istio_iptables.netfilter.plan import PolicyRoute
    from istio_iptables.settings.config import Config
    from istio_iptables.trace.hooks import Trace

__all__ = ["command"]

_PACKET_OPTIONS = ("proto", "src", "dst", "iface", "uid", "gid", "mark", "connmark", "ctstate")


class _Subject(NamedTuple):
    """The rules that are explained, and what is around them."""

    rulesets: tuple[Ruleset, ...]
    routes: tuple[PolicyRoute, ...]
    #: The addresses of each interface; None if they aren't known.
    addresses: dict[str, tuple[str, ...]] | None
    #: Where the rules are from, for people.
    source: str
    #: Chains that the kernel asks as well, and whose rules aren't known.
    unseen: tuple[Unseen, ...] = ()
    #: The addresses that tell which families are in use; none where they aren't known.
    own: tuple[str, ...] = ()


@click.pass_context
def _run(ctx: click.Context, /, **options: Any) -> ExitStatus:  # noqa: ANN401 - click's values
    given, subject = _read(ctx, options)
    family = Family(options["family"]) if options["family"] else None
    if family is None and len(subject.rulesets) == 1:
        family = subject.rulesets[0].family
    world = Surroundings(subject.addresses, subject.routes)
    asked_packet = {name: options[name] for name in _PACKET_OPTIONS}
    about = complete_packet(asked_packet, incoming=options["incoming"], world=world, family=family)
    packet = about.packet
    world = world._replace(here=_own_addresses(packet))
    ruleset = next((each for each in subject.rulesets if each.family is packet.family), None)
    if ruleset is None:
        tell("warning", (f"there are no {packet.family.title} rules in {subject.source}",))
        ruleset = Ruleset(packet.family)
    found = trace(ruleset, packet, world, misses=options["near"])
    faults = _faults(given, subject, packet)
    own = escape(ruleset, packet, world, given.config)
    if own is not None and own[:3] not in {each[:3] for each in faults}:
        faults += (own,)
    if given.config.strict:
        warn([finding.line for finding in faults], strict=True)
    _warn_of_native_chains(found, subject)
    from istio_iptables.commands import explain_report as explanation

    telling = explanation.Explanation(
        explanation.Answer(
            about,
            found,
            given.config,
            given.plan,
            ruleset,
            tuple(each for each in subject.rulesets if each.family is not packet.family),
            faults,
            subject.unseen,
            _remarks(found, subject, given.config),
        )
    )
    if options["as_json"]:
        import json  # no other format needs it

        text = json.dumps(telling.as_json(), indent=2) + "\n"
    else:
        tell("warning", (finding.line for finding in faults))
        text = telling.text(near=options["near"])
    sys.stdout.write(text)
    return ExitStatus.DONE


def _read(ctx: click.Context, options: Mapping[str, Any]) -> tuple[Inputs, _Subject]:
    """The settings, and the rules that the options name."""
    rules, live = options["rules"], options["live"]
    if options["incoming"] and options["outgoing"]:
        raise UsageProblems(["--in, --out: a packet goes one way: give one of them"])
    if rules is not None and (live or options["network_namespace"]):
        raise UsageProblems(["--rules: the rules are the file's, or live ones: give one of them"])
    if rules is None:
        require_namespace(ctx)
    live = live or bool(options["network_namespace"] or os.environ.get("NETWORK_NAMESPACE"))
    way = "inbound" if options["incoming"] else "outbound"
    # Somebody else's rules: the family of the plan must not depend on this machine.
    given = read_inputs(
        ctx,
        either_family=rules is not None,
        purpose=Purpose(() if live or rules is not None else (way,), follow=False),
    )
    return given, _subject(given, rules, options["family"], live=live)


def _faults(given: Inputs, subject: _Subject, packet: Packet) -> tuple[Finding, ...]:
    """What the rules do to Envoy's traffic and to applications."""
    applications = list(APPLICATIONS)
    if packet.uid is not None and packet.gid is not None:
        applications.append((packet.uid, packet.gid))
    proxy = given.config
    if not given.given & {"proxy_uid", "proxy_gid"}:
        proxy = with_proxies_of(proxy, subject.rulesets)
    faults = findings(subject.rulesets, subject.routes, proxy, applications)
    if subject.addresses is not None:
        warn(left_out_live(subject.rulesets, subject.own), strict=given.config.strict)
    return faults


def _warn_of_native_chains(found: Trace, subject: _Subject) -> None:
    native = {
        each.line
        for outcome in found.outcomes
        for each in passed(outcome, subject.unseen)
        if each.name.startswith("nftables")
    }
    if native:
        chains = ", ".join(sorted(native))
        tell("warning", (f"the kernel asks chains as well that are not followed: {chains}",))


def _remarks(found: Trace, subject: _Subject, config: Config) -> tuple[str, ...]:
    """What keeps a captured packet, or the answers to it, from arriving; live rules only."""
    if subject.addresses is None:
        return ()
    from istio_iptables.kernel.listeners import listens
    from istio_iptables.kernel.namespace import entered

    said = []
    for outcome in found.outcomes:
        if outcome.end is not End.DELIVERED or outcome.to_port is None:
            continue
        packet = outcome.packet
        with entered(config.network_namespace):
            if listens(packet.protocol, outcome.to_port, packet.family) is False:
                said.append(
                    f"nothing listens on {packet.protocol_name} port {outcome.to_port} here"
                )
        marks = {route.mark for route in subject.routes if route.family is packet.family}
        if outcome.taken_by == "TPROXY" and packet.mark is not None and packet.mark not in marks:
            said.append(
                f"no policy route delivers packets with the mark {packet.mark:#x} here: what the"
                " application answers to Envoy does not arrive"
            )
    return tuple(dict.fromkeys(said))


def _own_addresses(packet: Packet) -> tuple[str, ...]:
    """The addresses that must be the pod's for the packet to be what was asked about."""
    ends = [packet.destination] if packet.in_interface else [packet.source]
    if packet.out_interface == "lo":
        ends.append(packet.destination)
    return tuple(each for each in ends if each is not None)


def _subject(given: Inputs, rules: str | None, family: str | None, *, live: bool) -> _Subject:
    plan = given.plan
    if rules is not None:
        where = "stdin" if rules == "-" else rules
        return _Subject(read_rules(rules, family), plan.routes, None, where)
    if not live:
        return _Subject(plan.rulesets, plan.routes, None, "the plan")
    from istio_iptables.istio.ownership import OWNERSHIP
    from istio_iptables.kernel import live as kernel
    from istio_iptables.kernel import netlink, routes
    from istio_iptables.kernel.namespace import entered

    config = given.config
    try:
        state = kernel.read(
            plan, OWNERSHIP, namespace=config.network_namespace, backend=config.backend
        )
        with entered(config.network_namespace):
            addresses = netlink.interface_addresses()
            own = netlink.addresses()
            there = routes.delivering_routes()
    except KernelRefused as error:
        raise CannotTell(*error.lines) from error
    tell("warning", state.warnings)
    if state.other_rulesets:
        tell("warning", ("there are rules in the other backend too, which are not followed",))
    if state.unreadable:
        tables = ", ".join(state.unreadable)
        tell("warning", (f"tables that can't be read are not followed: {tables}",))
    source = f"the live rules ({state.backend})"
    return _Subject(state.rulesets, there, addresses, source, unseen(state), own)


def _option(name: str, about: str, metavar: str) -> click.Option:
    return click.Option([f"--{name}"], metavar=metavar, help=about)


command = SettingsCommand(
    CAPTURE_SETTINGS,
    name="explain",
    callback=_run,
    help="Follow one packet through the rules and say which of them decide: the rules of the capture"
    " flags, those of a namespace (--live), or those of a file (--rules).",
    epilog="Exit status: 0 answered; 2 it can't be told, or the command line is wrong.",
    more=(
        click.Option(["--in", "incoming"], is_flag=True, help="A packet that arrives at the pod."),
        click.Option(
            ["--out", "outgoing"], is_flag=True, help="A packet that a process sends (the default)."
        ),
        _option("proto", "Its protocol: a name or a number.  [default: tcp]", "PROTOCOL"),
        _option(
            "src",
            "Where it comes from: 10.0.0.1:4000, [fd00::1]:4000, an address alone.",
            "ADDR[:PORT]",
        ),
        _option("dst", "Where it is to go.", "ADDR[:PORT]"),
        _option("iface", "The interface: out of lo for an address of the pod, else eth0.", "NAME"),
        _option("uid", "The user of the process that sends it.  [default: 1000]", "UID"),
        _option("gid", "The group of that process.  [default: the uid]", "GID"),
        _option("mark", "The packet's mark.  [default: 0]", "NUMBER"),
        _option(
            "connmark", "The connection's mark.  [default: 0 for a new one, else unknown]", "NUMBER"
        ),
        _option(
            "ctstate", "NEW, ESTABLISHED, RELATED, INVALID or UNTRACKED.  [default: NEW]", "STATE"
        ),
        click.Option(
            ["--live"], is_flag=True, help="The rules in the kernel, not those of the flags."
        ),
        _option("rules", "The rules of this file of iptables-save's text; - is stdin.", "FILE"),
        click.Option(
            ["--family"],
            type=click.Choice([each.value for each in Family]),
            help="The family of that file, if its comments and addresses don't tell.",
        ),
        click.Option(
            ["-v", "--verbose", "near"],
            is_flag=True,
            help="Also why the rules that nearly matched did not.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ),
)
