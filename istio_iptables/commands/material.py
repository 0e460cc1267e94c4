"""What diff and explain work on: the plan of the given flags, and rules from a file or the kernel."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.builder import build
from istio_iptables.commandline import flags_given, split_extra
from istio_iptables.configured import configured, tell
from istio_iptables.errors import CannotTell, KernelRefused, SaveFileError
from istio_iptables.netfilter.documents import rulesets
from istio_iptables.netfilter.model import Family
from istio_iptables.settings.options import (
    DNS,
    FAMILIES,
    INBOUND,
    OUTBOUND,
    PROXY,
    SETTINGS,
    setting,
)
from istio_iptables.settings.sources import gather

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

    from istio_iptables.netfilter.model import Ruleset
    from istio_iptables.netfilter.plan import Plan
    from istio_iptables.settings.config import Config

__all__ = [
    "CAPTURE_SETTINGS",
    "Asked",
    "answerable",
    "asked",
    "read_rules",
    "read_text",
    "require_namespace",
]

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


def asked(ctx: click.Context, *, either_family: bool) -> Asked:
    """The plan of the flags and the environment; warnings are told.

    With *either_family*, the plan has both families unless --ip-family says otherwise: the
    rules that it is held against are those of another machine than this.
    """
    own = {each.name for each in CAPTURE_SETTINGS}
    flags = {name: text for name, text in flags_given(ctx).items() if name in own}
    if either_family:
        flags.setdefault("ip_family", "dual")
    # Nothing is installed here, so what is unknown about the machine is assumed, and said.
    flags["dry_run"] = "true"
    config, _ = configured(flags, split_extra(ctx.args), os.environ)
    if config.dns_servers_file:
        tell("info", (f"the DNS servers are those of {config.dns_servers_file} (--resolv-conf)",))
    return Asked(config, build(config))


@contextmanager
def answerable() -> Iterator[None]:
    """Whatever keeps the block from its end is why nothing can be told: exit status 1 is an answer.

    Only for reading, not for writing the answer.
    """
    try:
        yield
    except KernelRefused as error:
        raise CannotTell(*error.lines) from error
    except MemoryError as error:
        message = "out of memory"
        raise CannotTell(message) from error
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"{error.filename}: {reason}" if error.filename else reason
        raise CannotTell(message) from error
    except (ImportError, SystemError) as error:
        # As under a lack of memory or of files that may be open.
        message = f"can't load a part of the program: {error}"
        raise CannotTell(message) from error


def require_namespace(ctx: click.Context) -> None:
    """Raise KernelRefused if the namespace that is asked about can't be entered.

    The settings would make do without its addresses, and warn of what is an error here.
    """
    from istio_iptables.kernel.namespace import entered

    values, _ = gather(flags_given(ctx), os.environ, (setting("network_namespace"),))
    with entered(values["network_namespace"].text):
        pass


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
