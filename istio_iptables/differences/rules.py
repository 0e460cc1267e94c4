"""Two rules, part by part: whether one is the other changed, and what changed."""

from __future__ import annotations

from istio_iptables.netfilter.model import HEADER_OPTIONS, quote
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeGuard

    from istio_iptables.netfilter.model import Option, Rule
    from istio_iptables.netfilter.nftrules import NftRule

__all__ = ["diff_rules", "option_text", "parts", "resemble"]


def parts(rule: Rule) -> dict[str, str]:
    """The parts of a rule by what they are about: ``{"-p": "-p tcp", "tcp --dport": …}``."""
    return dict(_parts(rule))


def _parts(rule: Rule) -> Iterator[tuple[str, str]]:
    if _is_native(rule):
        for place, each in enumerate(rule.statements):
            # A condition by its field; of what is done, there is seldom more than one of a kind.
            does = each.target.name if each.target else each.text
            yield (
                each.field or ("verdict" if place == len(rule.statements) - 1 else does),
                each.text,
            )
        return
    for flag, term in zip(HEADER_OPTIONS, rule.header, strict=True):
        if term is not None:
            sense = "! " if term.negated else ""
            yield flag, f"{sense}{flag} {term.value}".rstrip()
    for place, match in enumerate(rule.matches):
        if not match.options:
            yield f"-m {match.name} {place}", f"-m {match.name}"
        for again, option in enumerate(match.options):
            # Two owner matches in one rule are two parts.
            yield (
                f"{match.name} {option.name} {place} {again}",
                f"-m {match.name} {option_text(option)}",
            )
    if rule.target is not None:
        yield "-j", f"{'-g' if rule.target.goto else '-j'} {rule.target.name}"
        for option in rule.target.options:
            yield f"-j {option.name}", option_text(option)


def _is_native(rule: Rule) -> TypeGuard[NftRule]:
    """Whether it is a rule of nftables, whose module is loaded when there is one."""
    return hasattr(rule, "statements")


def option_text(option: Option) -> str:
    """The option as iptables-save prints it: ``! --dport 80``."""
    words = [option.name, *map(quote, option.values)]
    return " ".join(("!", *words) if option.negated else words)


def resemble(left: Rule, right: Rule) -> bool:
    """Whether at least half of the parts are the same: then one was made from the other."""
    some, others = parts(left), parts(right)
    same = sum(1 for name, text in some.items() if others.get(name) == text)
    return 2 * same >= max(len(some), len(others))


def diff_rules(live: Rule, wanted: Rule) -> tuple[str, ...]:
    """What is different in *live*, one sentence a part."""
    there, asked = parts(live), parts(wanted)
    told = []
    for name in (*asked, *(name for name in there if name not in asked)):
        old, new = there.get(name), asked.get(name)
        if old == new:
            continue
        if old is None:
            told.append(f"{new} is missing")
        elif new is None:
            told.append(f"{old} is extra")
        else:
            told.append(f"{old} instead of {new}")
    return tuple(told)
