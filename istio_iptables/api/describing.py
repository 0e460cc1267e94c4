"""What rules do and by which settings they were made: each with its reason, and what is left over."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.api.capture import Plan
from istio_iptables.api.comparing import diff, native_of_ours, planned_rulesets
from istio_iptables.api.recovering import RESOLV_CONF, recover
from istio_iptables.api.rules import LIVE, Live
from istio_iptables.api.subjects import subject_of
from istio_iptables.differences.rulesets import ChangeKind, Difference, find_respelled
from istio_iptables.errors import KernelRefused
from istio_iptables.istio.ownership import find_owned
from istio_iptables.netfilter.canonical import canonical
from istio_iptables.netfilter.model import Family, each_table
from istio_iptables.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from istio_iptables.api.comparing import Differences
    from istio_iptables.api.recovering import Recovered
    from istio_iptables.api.rules import Source
    from istio_iptables.netfilter.model import Counters, Ruleset, Table

__all__ = ["DescribedRule", "Description", "describe"]


class DescribedRule(NamedTuple):
    """One rule, where it is, and why it is there."""

    #: None for a native rule.
    family: Family | None
    table: str
    chain: str
    #: In its chain, from 1.
    number: int
    #: As iptables-save prints it, with ``-A CHAIN``, or as nft does.
    text: str
    #: One sentence; "" for a rule that the settings do not explain.
    reason: str
    #: Whether it is a rule of others than us.
    foreign: bool
    counters: Counters | None = None

    @property
    def counted(self) -> str:
        """How often it has matched, in words; "" if that isn't known."""
        if self.counters is None:
            return ""
        # nat sees the first packet of a connection alone.
        what = "connection" if self.table.endswith("nat") else "packet"
        count = self.counters.packets
        return f"{count} {what}" if count == 1 else f"{count} {what}s"


class Description:
    """Rules, the settings that make them, and what these leave unexplained."""

    def __init__(
        self,
        rulesets: tuple[Ruleset, ...],
        recovered: Recovered,
        differences: Differences,
        warnings: Iterable[str] = (),
    ) -> None:
        #: The plan of the settings: what the rules would be if nothing were unexplained.
        self.plan = recovered.plan
        #: Whether there are rules of ours at all.
        self.ours = recovered.ours
        #: The words of a command line that makes the rules, defaults left out.
        self.arguments = recovered.arguments
        #: The environment variables that it needs.
        self.environment = dict(recovered.environment)
        #: The DNS servers that its file resolv.conf has to list.
        self.nameservers = recovered.nameservers
        #: What the rules tell of how they came to be there, a line each.
        self.signs = recovered.signs
        #: The command line without the program's name.
        self.settings = recovered.line
        #: The command line for a shell, its variables in front.
        self.command = recovered.spelled("istio-iptables")
        #: What was described: ``this namespace (legacy)``, ...
        self.what = differences.what
        #: The rules as they were read.
        self.rulesets = rulesets
        #: Every rule, in the order of the kernel's tables and chains.
        self.rules = tuple(_described(rulesets, recovered))
        #: What differs between the rules and the plan, and then the other rules that are foreign.
        self.unexplained = tuple(_unexplained(self.rules, differences, ours=self.ours))
        #: One line for everything that was not seen or is not in force.
        self.warnings = tuple(dict.fromkeys((*warnings, *differences.warnings)))

    def __repr__(self) -> str:
        return f"<Description: {self.command}>"

    @property
    def complete(self) -> bool:
        """Whether there are rules of ours, and the settings explain every rule."""
        return self.ours and not self.unexplained

    @property
    def verdict(self) -> str:
        """In one sentence, whose rules these are; the command line follows it."""
        if not self.ours:
            if all(each.foreign for each in self.rules):
                return f"no rules of ours are in {self.what}"
            return f"{self.what} has chains of our names, and no settings make their rules"
        count = len(self.unexplained)
        if count > sum(bool(each.reason) for each in self.rules):
            return f"{self.what} is nearest to this command line, with {count} differences:"
        but = f", but for {count} {'difference' if count == 1 else 'differences'}" if count else ""
        return f"{self.what} has the rules of this command line{but}:"

    def text(self) -> str:
        """The rules with their reasons, what is unexplained, and last the command line."""
        lines = list(self._rule_lines())
        if lines:
            lines.append("")
        told = [each for each in self.unexplained if not _is_marked(each)]
        for each in told:
            lines += each.lines
        marked = len(self.unexplained) - len(told)
        if marked:
            rules = "rule is" if marked == 1 else "rules are"
            lines.append(f"{marked} {rules} foreign and marked so above")
        lines += (f"note: {sign}" for sign in self.signs)
        lines.append(self.verdict)
        if self.ours:
            if self.nameservers:
                servers = ", ".join(self.nameservers)
                lines.append(f"# {RESOLV_CONF} has to list the DNS servers {servers}")
            lines.append(self.command)
        return "".join(f"{printable(line)}\n" for line in lines)

    def _rule_lines(self) -> Iterator[str]:
        families = {each.family for each in self.rules}
        for each in self.rules:
            family = f"{each.family.title} " if each.family and len(families) > 1 else ""
            mark = "  [foreign rule]" if each.foreign else ""
            if not (mark or each.reason):
                mark = "  [not explained]"
            counted = f"  [{each.counted}]" if each.counted else ""
            yield f"{family}{each.table} {each.chain} {each.number} {each.text}{counted}{mark}"
            if each.reason:
                yield f"    {each.reason}"

    def as_json(self) -> dict[str, object]:
        """The same as a JSON document; docs/json.md describes it, and it only ever grows."""
        return {
            "version": 1,
            "source": self.what,
            "ours": self.ours,
            "arguments": list(self.arguments),
            "environment": self.environment,
            "nameservers": list(self.nameservers),
            "notes": list(self.signs),
            "rules": [
                {
                    "family": each.family.value if each.family else None,
                    "table": each.table,
                    "chain": each.chain,
                    "rule": each.number,
                    "text": each.text,
                    "reason": each.reason,
                    "foreign": each.foreign,
                    "packets": each.counters.packets if each.counters else None,
                    "bytes": each.counters.bytes if each.counters else None,
                }
                for each in self.rules
            ],
            "unexplained": [
                {
                    "kind": each.kind.value,
                    "family": each.family.value if each.family else None,
                    "table": each.table or None,
                    "chain": each.chain or None,
                    "text": each.text,
                    "live_rule": each.live_number,
                    "wanted_rule": each.wanted_number,
                    "details": list(each.details),
                    "reason": each.reason,
                }
                for each in self.unexplained
            ],
        }


def _is_marked(difference: Difference) -> bool:
    """Whether a foreign rule has nothing to be told of but its mark."""
    return difference.kind is ChangeKind.FOREIGN and not difference.details


def describe(
    rules: Source | Plan = LIVE,
    *,
    family: Family | str | None = None,
    name: str = "the text",
) -> Description:
    """By which settings *rules* were made, each rule with its reason, and what these do not explain.

    *rules* are the text of iptables-save or nft, rulesets, those in the kernel (``LIVE``, and
    ``Live(namespace, backend)``), or those of a plan. *family* and *name* are as in ``diff``. Raises
    CannotTell for rules that can't be read.
    """
    if isinstance(rules, Plan):
        planned = planned_rulesets(rules)
        recovered = recover(planned, rules.routes)
        found = diff(recovered.plan, planned, name="the plan")
        return Description(planned, recovered, found)
    subject = subject_of(
        None, rules, family=Family(family) if family else None, name=name, follow=False
    )
    recovered = subject.recovered or recover(subject.rulesets)
    if subject.state is None:
        there = subject.native or subject.rulesets
        found = diff(recovered.plan, there, name=name)
        return Description(there, recovered, found)
    backend = subject.state.backend
    found = diff(recovered.plan, Live(subject.namespace, backend))
    counted = _counted(subject.rulesets, subject.namespace, backend)
    return Description((*subject.native, *counted), recovered, found, subject.warnings)


def _counted(rulesets: tuple[Ruleset, ...], namespace: str, backend: str) -> tuple[Ruleset, ...]:
    from istio_iptables.kernel.counters import with_counters
    from istio_iptables.kernel.namespace import entered

    try:
        with entered(namespace):
            return with_counters(rulesets, backend)
    except KernelRefused:
        # The rules were read; how often they matched is not known.
        return rulesets


def _described(rulesets: Iterable[Ruleset], recovered: Recovered) -> Iterator[DescribedRule]:
    """Every rule, with the reason of the planned rule like it."""
    reasons = {
        (family, table.name, chain.name, rule.text): rule.reason
        for family, table in each_table(planned_rulesets(recovered.plan) if recovered.ours else ())
        for chain in table.chains
        for rule in chain.rules
    }
    for family, table in each_table(rulesets):
        if family is None:
            yield from _described_natively(table, reasons)
            continue
        owned = find_respelled(family, table, find_owned)
        for chain in table.chains:
            ours = chain.name in owned.own_chains
            numbers = owned.shared.get(chain.name, {})
            place = (family, table.name, chain.name)
            targets = {
                each[3].rpartition("-j ")[2].partition(" ")[0]
                for each in reasons
                if each[:3] == place
            }
            for number, rule in enumerate(chain.rules):
                reason = reasons.get((*place, rule.text), "")
                if not reason and any(each in rule.text for each in targets):
                    # Others may have very many rules.
                    reason = reasons.get((*place, canonical(rule, family).text), "")
                foreign = not (reason or ours or number in numbers)
                text = f"-A {chain.name} {rule.text}".rstrip()
                yield DescribedRule(*place, number + 1, text, reason, foreign, rule.counters)


def _described_natively(
    table: Table, reasons: Mapping[tuple[Family | None, str, str, str], str]
) -> Iterator[DescribedRule]:
    foreign = not native_of_ours([table])
    for chain in table.chains:
        for number, rule in enumerate(chain.rules, start=1):
            place = (None, table.name, chain.name)
            reason = reasons.get((*place, rule.text), "")
            yield DescribedRule(*place, number, rule.text, reason, foreign, rule.counters)


def _unexplained(
    rules: Iterable[DescribedRule], differences: Iterable[Difference], *, ours: bool
) -> Iterator[Difference]:
    """What differs from the plan, if rules of ours make one, and then the other foreign rules."""
    told = set()
    for each in differences:
        # Without rules of ours there is no plan, from which all that has our names is extra.
        if ours or each.kind is ChangeKind.EXTRA:
            told.add((each.family, each.table, each.chain, each.live_number))
            yield each
    for rule in rules:
        place = (rule.family, rule.table, rule.chain)
        if rule.foreign and (*place, rule.number) not in told:
            yield Difference(ChangeKind.FOREIGN, *place, rule.text, live_number=rule.number)
