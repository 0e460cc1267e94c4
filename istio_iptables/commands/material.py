"""What diff and explain work on: the plan of the given flags, and rules from a file or the kernel."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.commandline import flags_given, split_extra
from istio_iptables.configured import Purpose, configured
from istio_iptables.errors import CannotTell, SaveFileError
from istio_iptables.netfilter.documents import rulesets
from istio_iptables.netfilter.model import Family
from istio_iptables.settings.options import (
    DNS,
    FAMILIES,
    INBOUND,
    OUTBOUND,
    PROXY,
    SETTINGS,
)

if TYPE_CHECKING:
    import click

    from istio_iptables.netfilter.model import Ruleset
    from istio_iptables.netfilter.plan import Plan
    from istio_iptables.settings.config import Config

__all__ = ["CAPTURE_SETTINGS", "Asked", "asked", "read_rules", "read_text"]

#: The settings that decide about the rules and where they are, and none of how to apply them.
CAPTURE_SETTINGS = tuple(
    each
    for each in SETTINGS
    if each.group in {PROXY, INBOUND, OUTBOUND, DNS, FAMILIES}
    or each.name in {"force_iptables_binary", "strict"}
)


class Asked(NamedTuple):
    """The settings that were given, and the plan that they make."""

    config: Config
    plan: Plan
    #: The names of the settings that somebody gave.
    given: frozenset[str]


def asked(ctx: click.Context, *, either_family: bool, purpose: Purpose | None = None) -> Asked:
    """The plan of the flags and the environment; warnings are told, as *purpose* has it.

    With *either_family*, the plan has both families unless --ip-family says otherwise: the
    rules that it is held against are those of another machine than this.
    """
    own = {each.name for each in CAPTURE_SETTINGS}
    flags = {name: text for name, text in flags_given(ctx).items() if name in own}
    if either_family:
        flags.setdefault("ip_family", "dual")
    # Nothing is installed here, so what is unknown about the machine is assumed, and said.
    flags["dry_run"] = "true"
    config, values, plan = configured(flags, split_extra(ctx), os.environ, purpose or Purpose())
    return Asked(config, plan, frozenset(name for name in values if values[name].given))


def read_text(path: str) -> str:
    """The text of a file, or of stdin for ``-``; raises CannotTell if it can't be read."""
    try:
        if path == "-":
            return sys.stdin.buffer.read().decode(errors="surrogateescape")
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:  # noqa: PTH123 - pathlib costs 5 ms
            return file.read()
    except OSError as error:
        message = f"can't read {path}: {error.strerror}"
        raise CannotTell(message) from error


def read_rules(path: str, family: str | None) -> tuple[Ruleset, ...]:
    """The rulesets of a file of iptables-save's text; raises CannotTell with the bad line."""
    try:
        found = rulesets(read_text(path), Family(family) if family else None)
    except SaveFileError as error:
        name = "stdin" if path == "-" else path
        message = f"{name}: {error.lines[0]}"
        raise CannotTell(message) from error
    if not any(ruleset.tables for ruleset in found):
        message = f"{'stdin' if path == '-' else path}: holds no table of iptables-save"
        raise CannotTell(message)
    return found
