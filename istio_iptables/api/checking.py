"""What is wrong in a namespace, or with rules: all that the other questions would find one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.api.comparing import diff, holds_ours, planned_rulesets
from istio_iptables.api.diagnostics import Diagnostic, Report, Severity
from istio_iptables.api.evidence import gather
from istio_iptables.api.livechecks import LiveChecks, proxy_of
from istio_iptables.api.recovering import install_again
from istio_iptables.api.rules import LIVE, Live
from istio_iptables.api.subjects import subject_of
from istio_iptables.differences.rulesets import ChangeKind
from istio_iptables.istio.checks import FindingKind, findings, losses
from istio_iptables.istio.escapes import APPLICATIONS
from istio_iptables.istio.ownership import NATIVE_NAMES, OWNERSHIP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_iptables.api.capture import Plan
    from istio_iptables.api.rules import Source
    from istio_iptables.api.subjects import Subject
    from istio_iptables.differences.rulesets import Difference
    from istio_iptables.netfilter.model import Family, Ruleset

__all__ = ["Diagnostic", "Report", "Severity", "check"]


def check(
    plan: Plan | None = None,
    rules: Source = LIVE,
    *,
    family: Family | None = None,
    name: str = "the text",
) -> Report:
    """What is wrong with *rules*, and around them where they are live.

    They are held against *plan*, or against the settings that they were made by. *family* and
    *name* are as in ``diff``. Raises CannotTell for rules that can't be read.
    """
    subject = subject_of(plan, rules, family=family, name=name, follow=False)
    missing: tuple[Ruleset, ...] = ()
    if not holds_ours(_all_rules(subject)):
        missing = () if subject.plan.config.native_nftables else subject.plan.rulesets
        found = [_nothing(subject)]
    else:
        differing = list(_differences(subject))
        changed = any(each.severity is Severity.ERROR for each in differing)
        found = [*differing, *_of_the_rules(subject, changed=changed), *_captures_nothing(subject)]
    unread: tuple[str, ...] = ()
    what = name
    if subject.state is not None:
        kind = "native nftables" if subject.native else subject.state.backend
        what = f"{subject.namespace or 'this namespace'} ({kind})"
        with subject.asking():
            evidence = gather(subject.namespace, _all_rules(subject), missing)
            found += LiveChecks(subject, evidence).findings()
        unread = (*subject.state.unreadable, *evidence.unread)
    order = list(Severity)
    found.sort(key=lambda each: order.index(each.severity))
    recovered = subject.recovered if subject.recovered and subject.recovered.ours else None
    return Report(what, tuple(dict.fromkeys(found)), unread, recovered)


def _all_rules(subject: Subject) -> tuple[Ruleset, ...]:
    others = subject.state.other_rulesets if subject.state else ()
    return (*subject.native, *subject.rulesets, *others)


def _nothing(subject: Subject) -> Diagnostic:
    return Diagnostic(
        "nothing-installed",
        Severity.ERROR,
        f"no rules of ours are in {subject.source}: nothing is captured",
        "run istio-iptables with the pod's arguments, or see why its istio-init did not",
    )


def _differences(subject: Subject) -> Iterator[Diagnostic]:
    """What is otherwise than the settings ask for, and what decides before our rules."""
    rules: Source = subject.native or subject.rulesets
    if subject.state is not None:
        rules = Live(subject.namespace, subject.state.backend)
    differences = diff(subject.plan, rules, name=subject.source)
    again = _again(subject) if differences else ""
    for each in differences:
        foreign = each.kind is ChangeKind.FOREIGN
        remedy = again
        if foreign:
            remedy = "see with explain what it decides"
        elif _refused(each):
            remedy = (
                "it is not ours: move it to a table of its own, since install and clean refuse to"
                " change a table that holds it"
            )
        yield Diagnostic(
            f"{each.kind.value}-rule" if each.chain else each.kind.value,
            Severity.WARNING if foreign else Severity.ERROR,
            each.line,
            remedy,
        )
    for sign in subject.recovered.signs if subject.recovered else ():
        yield Diagnostic("origin", Severity.INFO, sign, "clean, then install once")


def _again(subject: Subject) -> str:
    """The advice to install again, by the settings that the rules are held against."""
    live = subject.state is not None
    line = install_again(subject.plan, subject.namespace, subject.recovered, live=live)
    if subject.recovered is None:
        return f"install again: {line}"
    if {"0.0.0.0/0", "::/0"}.intersection(subject.recovered.arguments):
        # Where all rules of one family are lost, -i '*' looks like everything of the other one.
        return "install again with the pod's arguments, which the rules that are left do not tell"
    return f"install again with the pod's arguments, by the rules that are left: {line}"


def _refused(difference: Difference) -> bool:
    """Whether it is something of others in a native table of ours, which none of our commands removes."""
    if difference.kind is not ChangeKind.EXTRA or difference.table not in NATIVE_NAMES:
        return False
    name = difference.table.partition(" ")[2]
    if not difference.chain:
        return not difference.text.startswith(("flags:", "comment:"))
    return difference.chain not in OWNERSHIP.native.chains(name)


def _of_the_rules(subject: Subject, *, changed: bool) -> Iterator[Diagnostic]:
    """Loops, applications that pass for Envoy, and what is dropped behind the rules.

    *changed* says whether rules of ours are otherwise than the settings ask for.
    """
    rulesets = subject.followed
    for each in findings(rulesets, subject.routes, proxy_of(subject), APPLICATIONS):
        loop = each.fault is FindingKind.LOOP
        yield Diagnostic(
            each.fault.value,
            Severity.ERROR if loop else Severity.WARNING,
            each.line,
            _against_a_loop(subject, changed=changed)
            if loop
            else "run the application as another user and group",
        )
    for each in losses(rulesets, subject.routes, proxy_of(subject)):
        yield Diagnostic(
            each.fault.value,
            Severity.WARNING,
            each.line,
            "remove that rule, or let it accept what goes to Envoy's ports",
        )


def _against_a_loop(subject: Subject, *, changed: bool) -> str:
    plan = subject.plan
    if any(
        each.fault is FindingKind.LOOP
        for each in findings(planned_rulesets(plan), plan.routes, proxy_of(subject), ())
    ):
        return (
            "the settings themselves lead there, see with explain by which rule: give the proxy's"
            " user and group (-u, -g) as Envoy runs, and what counts as loopback as Istio has it"
        )
    if changed:
        return f"the rules are not as the settings ask for, so {_again(subject)}"
    return "see with explain which rule leads there"


def _captures_nothing(subject: Subject) -> Iterator[Diagnostic]:
    """Directions of which the settings capture nothing: as asked for, or as rules were lost."""
    config = subject.plan.config
    for way, captured, flags, example in (
        (
            "outbound",
            (config.outbound_cidrs or config.outbound_ports) and config.owner_groups,
            "-i or -q",
            "-i '*'",
        ),
        ("inbound", config.inbound_ports, "-b", "-b '*'"),
    ):
        if not captured:
            but = " but DNS" if way == "outbound" and config.redirect_dns else ""
            recovered = subject.recovered is not None
            yield Diagnostic(
                "nothing-captured",
                Severity.WARNING if recovered else Severity.INFO,
                f"no {way} TCP{but} is captured: the settings name none ({flags})",
                f"if that is not meant, install with the pod's arguments, such as {example}; if it is,"
                " give check the flags"
                if recovered
                else f"{example} captures all of it",
            )
