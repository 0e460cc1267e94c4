"""A trace as text and as JSON: the rules that matched, their reasons, the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.api.notes import Notes
from istio_iptables.api.unseen import chains_on_way
from istio_iptables.istio.capture import DEPENDS, Verdict, deciding_step, describe, fate_of
from istio_iptables.netfilter.canonical import canonical
from istio_iptables.netfilter.nftrules import NftRule
from istio_iptables.text import printable
from istio_iptables.trace.hooks import End

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_iptables.api.packets import PacketQuery
    from istio_iptables.api.unseen import Unseen
    from istio_iptables.istio.checks import Finding
    from istio_iptables.netfilter.model import Family, Rule, Ruleset
    from istio_iptables.netfilter.packet import Packet
    from istio_iptables.netfilter.plan import DesiredState
    from istio_iptables.settings.config import Config
    from istio_iptables.trace.hooks import Outcome, Trace, TraceStep
    from istio_iptables.trace.table import Assumption, Miss

__all__ = ["Answer", "Explanation"]

#: How many near misses of one chain are worth reading.
_MOST_MISSES = 12
#: Verdicts by which a rule decides, whosever it is.
_FINAL = frozenset({"ACCEPT", "DROP", "REJECT", "RETURN", "TARPIT"})


class Answer(NamedTuple):
    """What was asked, what came of it, and what it was asked of."""

    question: PacketQuery
    trace: Trace
    config: Config
    plan: DesiredState
    #: Of the packet's family, and of the other one.
    ruleset: Ruleset
    others: tuple[Ruleset, ...] = ()
    findings: tuple[Finding, ...] = ()
    #: Chains that the kernel asks as well, and whose rules aren't known.
    unseen: tuple[Unseen, ...] = ()
    #: What else is to be said about the packet's end.
    remarks: tuple[str, ...] = ()
    #: One line for each thing about the rules that is not seen, or that escapes.
    warnings: tuple[str, ...] = ()


class Explanation:
    """What becomes of one packet, and why."""

    def __init__(self, answer: Answer) -> None:
        trace, config = answer.trace, answer.config
        self._question, self._trace, self._config = answer.question, trace, config
        #: Faults of the rules, whatever the packet: traffic of Envoy that loops, what escapes.
        self.findings = answer.findings
        #: One line for each thing about the rules that is not seen, or that escapes.
        self.warnings = answer.warnings
        #: The rules that the packet was followed through, those of its family.
        self.ruleset = answer.ruleset
        #: The settings that these are held against.
        self.config = config
        self._plan = answer.plan
        self._unseen = [chains_on_way(outcome, answer.unseen) for outcome in trace.outcomes]
        judged = [describe(outcome, config) for outcome in trace.outcomes]
        self._verdicts = list(map(_conditional, judged, self._unseen))
        self._about = Notes(answer.ruleset, answer.others)
        why = [
            note
            for outcome, verdict in zip(trace.outcomes, judged, strict=True)
            if verdict.to_port is None and verdict.captured is None and _is_let_through(outcome)
            for note in self._about.why_not_captured(outcome)
        ]
        #: Why nothing captured the packet, or what keeps it from arriving: lines of text.
        self.notes = tuple(dict.fromkeys((*why, *answer.remarks)))
        self._reasons: dict[tuple[str, str, str], str] | None = None

    def __repr__(self) -> str:
        return f"<Explanation: {self.verdict}>"

    @property
    def _verdict(self) -> Verdict:
        """The verdict, if all ways that the packet can take come to the same."""
        same = len(set(self._verdicts)) == 1 and self._trace.complete
        return self._verdicts[0] if same else DEPENDS

    @property
    def packet(self) -> Packet:
        """The packet, with what was assumed about it."""
        return self._question.packet

    @property
    def question(self) -> str:
        """The packet in one line, and what of it was assumed."""
        return self._question.line

    @property
    def verdict(self) -> str:
        """What becomes of the packet, in words."""
        return self._verdict.text

    @property
    def fate(self) -> str:
        """The same in words that are true for every packet of its class in a ``matrix``."""
        return fate_of(self._trace, self._config).text

    @property
    def rule(self) -> str | None:
        """The place of the rule that decides, such as ``nat ISTIO_OUTPUT 3``; None if none does."""
        step = deciding_step(self._trace)
        return step.place if step else None

    @property
    def captured(self) -> str | None:
        """``outbound``, ``inbound`` or ``dns``; None if it is not captured, or that depends."""
        return self._verdict.captured

    @property
    def to_port(self) -> int | None:
        """The port that the packet is handed to instead of the one it asked for, or None."""
        return self._verdict.to_port

    @property
    def path(self) -> tuple[TraceStep, ...]:
        """The steps that all outcomes share, from the first on: all there are if there is one."""
        return _shared_steps(self._trace.outcomes)

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The ways that the packet can take: one, unless something can't be known from here."""
        return self._trace.outcomes

    # Text.

    def text(self, *, near: bool = False) -> str:
        """The rules that matched, a line each with its reason below; last the verdict."""
        lines = [f"packet: {self._question.line}"]
        outcomes = self._trace.outcomes
        for number, (outcome, verdict) in enumerate(zip(outcomes, self._verdicts, strict=True), 1):
            if len(outcomes) > 1:
                lines += ("", f"{number} of {len(outcomes)} ways it can go:")
                lines += (f"  {_assumed(each)}" for each in outcome.assumptions)
            unknown = {each.place for each in outcome.assumptions}
            came_back = self._about.came_back(outcome)
            for at, step in enumerate(outcome.steps):
                lines += self._step_lines(step, unknown, came_back.get(at, ""), near=near)
            if len(outcomes) > 1:
                lines.append(
                    f"then it {verdict.text}" if _is_verb(verdict) else f"then: {verdict.text}"
                )
        if not self._trace.complete:
            lines += ("", "there are more ways, which are not followed")
        if len(outcomes) > 1:
            lines.append("")
        lines += (f"note: {note}" for note in self.notes)
        lines.append(self.verdict)
        return "".join(f"{printable(line)}\n" for line in lines)

    def _step_lines(
        self, step: TraceStep, unknown: set[str], note: str, *, near: bool
    ) -> Iterator[str]:
        if near:
            yield from _miss_lines(step.misses)
        number = "policy" if step.number is None else step.number
        place = f"{step.table} {step.chain} {number}"
        again = "[back over lo] " if step.journey > 1 else ""
        mark = ""
        if not step.certain:
            mark = "  [may match, which changes nothing]"
        elif place in unknown:
            mark = "  [can't be known: taken to match]"
        if self._is_foreign(step) and (step.change or step.verdict in _FINAL):
            mark += "  [foreign rule]"
        yield f"{again}{place} {step.text}{mark}"
        if step.change or note:
            yield f"    => {step.change or note}"
        reason = self.reason(step.table, step.chain, step.rule)
        if reason:
            yield f"    {reason}"

    def _is_foreign(self, step: TraceStep) -> bool:
        """Whether a rule that matched is not one of ours."""
        return (
            step.rule is not None
            and not self.reason(step.table, step.chain, step.rule)
            and self._about.is_foreign(step.table, step.chain, step.number)
        )

    def reason(self, table: str, chain: str, rule: Rule | None) -> str:
        """Why the rule is there: its own reason, or that of the planned rule like it."""
        if rule is None:
            return ""
        if rule.reason:
            return rule.reason
        family = self._question.packet.family
        if self._reasons is None:
            self._reasons = self._planned_reasons(family)
        text = rule.text if isinstance(rule, NftRule) else canonical(rule, family).text
        return self._reasons.get((table, chain, text), "")

    def _planned_reasons(self, family: Family) -> dict[tuple[str, str, str], str]:
        return {
            (table.name, chain.name, rule.text): rule.reason
            for ruleset in self._plan.rulesets
            if ruleset.family is family
            for table in ruleset.tables
            for chain in table.chains
            for rule in chain.rules
        }

    # JSON.

    def as_json(self) -> dict[str, object]:
        """The same as a JSON document; docs/json.md describes it, and it only ever grows."""
        outcomes = self._trace.outcomes
        shared = _shared_steps(outcomes)
        document: dict[str, object] = {
            "version": 1,
            "packet": self._packet_json(),
            "path": self._path_json(outcomes[0], len(shared)),
            "verdict": self.verdict,
            "rule": self.rule,
            "fate": self.fate,
            "to_port": self.to_port,
            "captured": self.captured,
            "outcomes": [],
            "notes": list(self.notes),
            "unless": [
                {
                    "name": each.name,
                    "kind": each.kind,
                    "hook": each.hook,
                    "priority": each.priority,
                }
                for each in dict.fromkeys(each for chains in self._unseen for each in chains)
            ],
            "findings": [
                {
                    "fault": each.fault.value,
                    "family": each.family.value,
                    "rule": each.place,
                    "text": each.text,
                    "line": each.line,
                }
                for each in self.findings
            ],
        }
        if len(outcomes) > 1:
            document["outcomes"] = [
                {
                    "if": [
                        {"rule": each.place or None, "condition": each.text, "holds": each.answer}
                        for each in outcome.assumptions
                    ],
                    "path": self._path_json(outcome, len(outcome.steps)),
                    "verdict": each.text,
                    "to_port": each.to_port,
                    "captured": each.captured,
                }
                for outcome, each in zip(outcomes, self._verdicts, strict=True)
            ]
        return document

    def _packet_json(self) -> dict[str, object]:
        packet = self._question.packet
        return {
            "direction": self._question.direction,
            "family": packet.family.value,
            "protocol": packet.protocol_name,
            "source": packet.source,
            "source_port": packet.source_port,
            "destination": packet.destination,
            "destination_port": packet.destination_port,
            "in_interface": packet.in_interface or None,
            "out_interface": packet.out_interface or None,
            "uid": packet.uid,
            "gid": packet.gid,
            "mark": packet.mark,
            "connmark": packet.connmark,
            "ctstate": packet.state,
            "assumed": list(self._question.assumed),
        }

    def _path_json(self, outcome: Outcome, length: int) -> list[dict[str, object]]:
        notes = self._about.came_back(outcome)
        return [
            self._step_json(step, notes.get(number, ""))
            for number, step in enumerate(outcome.steps[:length])
        ]

    def _step_json(self, step: TraceStep, note: str) -> dict[str, object]:
        return {
            "table": step.table,
            "chain": step.chain,
            "rule": step.number,
            "text": step.text,
            "reason": self.reason(step.table, step.chain, step.rule),
            "verdict": step.verdict,
            "change": step.change,
            "hook": step.hook,
            "journey": step.journey,
            "certain": step.certain,
            "note": note,
            "foreign": self._is_foreign(step),
        }


def _is_let_through(outcome: Outcome) -> bool:
    """Whether the packet went on, rather than being dropped or lost out of sight."""
    return outcome.end in {End.SENT, End.DELIVERED, End.FORWARDED}


def _conditional(verdict: Verdict, unseen: tuple[Unseen, ...]) -> Verdict:
    """The verdict as far as it can be known beside chains that were not followed."""
    if not unseen:
        return verdict
    names = list(dict.fromkeys(each.name for each in unseen))
    text = f"{verdict.text}, unless {' or '.join(names)} decides otherwise"
    return Verdict(text)


def _shared_steps(outcomes: tuple[Outcome, ...]) -> tuple[TraceStep, ...]:
    """The steps that all ways have in common, from the first on."""
    first, *others = outcomes
    length = len(first.steps)
    for other in others:
        same = 0
        while same < min(length, len(other.steps)) and other.steps[same] == first.steps[same]:
            same += 1
        length = same
    return first.steps[:length]


def _assumed(assumption: Assumption) -> str:
    if assumption.place:
        holds = "holds" if assumption.answer else "does not hold"
        return f"if in {assumption.place} {assumption.text} {holds}"
    return f"{'if' if assumption.answer else 'unless'} {assumption.text}"


def _is_verb(verdict: Verdict) -> bool:
    return verdict.text.split(" ", 1)[0] in {"goes", "reaches", "is"}


def _miss_lines(misses: tuple[Miss, ...]) -> Iterator[str]:
    """Why rules did not match that only one condition kept from it."""
    near = [
        (miss, failed[0])
        for miss in misses
        if len(failed := [each for each in miss.conditions if each.holds is False]) == 1
    ]
    for miss, condition in near[:_MOST_MISSES]:
        text = miss.rule.text
        shown = text if isinstance(miss.rule, NftRule) else f"-A {miss.chain} {text}"
        yield f"  not {miss.table} {miss.chain} {miss.number} {shown}"
        yield f"      because of {condition.text}: {condition.has}"
    if len(near) > _MOST_MISSES:
        yield f"  ... and {len(near) - _MOST_MISSES} more that one condition kept from matching"
