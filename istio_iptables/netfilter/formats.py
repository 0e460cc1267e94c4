"""A plan as text for people and programs: save, annotated, restore, commands, JSON."""

from __future__ import annotations

from istio_iptables.netfilter import savefile
from istio_iptables.netfilter.edits import Action, edits, restore_lines
from istio_iptables.netfilter.model import Family
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_iptables.netfilter.model import Match, Option, Rule, Table, Target, Term
    from istio_iptables.netfilter.plan import DesiredState

__all__ = ["annotate", "as_json", "commands", "network", "network_json", "restore", "save"]


def save(plan: DesiredState) -> str:
    """What iptables-save says once *plan* is installed: one document a family, counters zero.

    Each document starts with a comment that starts with the family's name; routes and
    addresses follow as comments.
    """
    return "".join(
        f"# {ruleset.family.title}\n{savefile.render(ruleset)}{network(plan, ruleset.family)}"
        for ruleset in plan.rulesets
    )


def annotate(plan: DesiredState) -> str:
    """The text of ``save`` with each rule's reason as a comment above it.

    The comments are where iptables-restore allows them, so this text loads like the other.
    """
    lines = []
    for ruleset in plan.rulesets:
        lines.append(f"# {ruleset.family.title}")
        for table in ruleset.tables:
            lines.append(f"*{table.name}")
            lines += (f":{chain.name} {chain.policy or '-'} [0:0]" for chain in table.chains)
            for chain in table.chains:
                for rule in chain.rules:
                    lines += (f"# {rule.reason}", f"-A {chain.name} {rule.text}")
            lines.append("COMMIT")
        lines += network(plan, ruleset.family, reasons=True).splitlines()
    return "".join(f"{line}\n" for line in lines)


def restore(plan: DesiredState) -> str:
    """What to feed to iptables-restore --noflush, one document a family.

    Existing rules of others stay; our chains are made, or emptied if they are there.
    """
    documents = []
    for ruleset in plan.rulesets:
        lines = [f"# {ruleset.family.title}: for {_program(ruleset.family)}-restore --noflush"]
        for table in ruleset.tables:
            lines += restore_lines(table.name, edits(table.name, None, table))
        documents += [f"{line}\n" for line in lines]
        documents.append(network(plan, ruleset.family))
    return "".join(documents)


def commands(plan: DesiredState) -> str:
    """The iptables and ip commands that make *plan*, a line each, quoted for a shell."""
    from shlex import join  # no other format needs it

    lines = []
    for ruleset in plan.rulesets:
        program = _program(ruleset.family)
        for table in ruleset.tables:
            prefix = f"{program} -t {table.name}"
            for step in edits(table.name, None, table):
                if step.action is Action.RESET:
                    lines.append(f"{prefix} -N {step.chain}")
                elif step.action is Action.INSERT:
                    lines.append(f"{prefix} -I {step.chain} {step.position} {_shell(step.rule)}")
                else:
                    lines.append(f"{prefix} -A {step.chain} {_shell(step.rule)}")
        lines += (
            join(command) for item in plan.only(ruleset.family).network for command in item.commands
        )
    return "".join(f"{line}\n" for line in lines)


def as_json(plan: DesiredState) -> dict[str, object]:
    """The plan as plain data; docs/json.md describes it, and it only ever grows."""
    return {
        "families": [
            {
                "family": ruleset.family.value,
                "tables": [_table_json(table) for table in ruleset.tables],
            }
            for ruleset in plan.rulesets
        ],
        **network_json(plan),
    }


def network_json(plan: DesiredState) -> dict[str, object]:
    """The routes and addresses of the plan as plain data."""
    return {
        "routes": [
            {
                "family": route.family.value,
                "mark": route.mark,
                "table": route.table,
                "commands": [list(command) for command in route.commands],
                "reason": route.reason,
            }
            for route in plan.routes
        ],
        "addresses": [
            {
                "family": address.family.value,
                "address": f"{address.address}/{address.prefix}",
                "interface": address.interface,
                "commands": [list(command) for command in address.commands],
                "reason": address.reason,
            }
            for address in plan.addresses
        ],
    }


def _program(family: Family) -> str:
    return "iptables" if family is Family.IPV4 else "ip6tables"


def network(plan: DesiredState, family: Family, *, reasons: bool = False) -> str:
    """Routes and addresses of one family as comment lines."""
    lines = []
    for item in plan.only(family).network:
        if reasons:
            lines.append(f"# {item.reason}")
        lines += (f"# {' '.join(command)}" for command in item.commands)
    return "".join(f"{line}\n" for line in lines)


def _shell(rule: Rule) -> str:
    """The rule's text for a shell: ``!`` and ``*`` are the only words in it a shell may touch."""
    from shlex import quote  # no other format needs it

    return " ".join(word if word == "!" else quote(word) for word in rule.text.split())


def _table_json(table: Table) -> dict[str, object]:
    return {
        "table": table.name,
        "chains": [
            {
                "chain": chain.name,
                "policy": chain.policy,
                "rules": [
                    _rule_json(chain.name, number, rule)
                    for number, rule in enumerate(chain.rules, start=1)
                ],
            }
            for chain in table.chains
        ],
    }


def _rule_json(chain: str, number: int, rule: Rule) -> dict[str, object]:
    return {
        "number": number,
        "text": f"-A {chain} {rule.text}",
        "reason": rule.reason,
        "inserted": rule.inserted,
        **dict(_terms_json(rule)),
        "matches": [_part_json(match) for match in rule.matches],
        "target": None if rule.target is None else _part_json(rule.target),
    }


def _terms_json(rule: Rule) -> Iterator[tuple[str, object]]:
    for name in ("source", "destination", "in_interface", "out_interface", "protocol"):
        term: Term | None = getattr(rule, name)
        yield name, None if term is None else {"value": term.value, "negated": term.negated}


def _part_json(part: Match | Target) -> dict[str, object]:
    return {"name": part.name, "options": [_option_json(option) for option in part.options]}


def _option_json(option: Option) -> dict[str, object]:
    return {"name": option.name, "values": list(option.values), "negated": option.negated}
