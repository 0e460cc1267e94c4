"""What diff and explain work on: the plan of the given flags, and rules from a file or the kernel."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from istio_iptables.api.rules import require_tables
from istio_iptables.commands.load import Given, Purpose, load_plan, tell
from istio_iptables.commands.options import flags_given, split_extra
from istio_iptables.errors import CannotTell, KernelRefused, SaveFileError, UsageProblems
from istio_iptables.netfilter.documents import decode_lines, read
from istio_iptables.netfilter.model import Family
from istio_iptables.settings.declarations import (
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
    from typing import BinaryIO

    import click

    from istio_iptables.api.capture import Plan
    from istio_iptables.netfilter.model import Ruleset

__all__ = [
    "CAPTURE_SETTINGS",
    "read_inputs",
    "read_rules",
    "read_text",
    "require_namespace",
]

#: The settings that decide about the rules and where they are, and none of how to apply them.
CAPTURE_SETTINGS = tuple(
    each
    for each in SETTINGS
    if each.group in {PROXY, INBOUND, OUTBOUND, DNS, FAMILIES}
    or each.name
    in {
        "force_iptables_binary",
        "native_nftables",
        "nft_like_iptables",
        "nft_sets",
        "strict",
    }
)


def read_inputs(
    ctx: click.Context,
    *,
    either_family: bool,
    given: Given | None = None,
    purpose: Purpose | None = None,
) -> Plan:
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
    try:
        plan = load_plan(flags, split_extra(ctx), given or Given(os.environ), purpose or Purpose())
    except KernelRefused as error:
        raise CannotTell(*error.lines) from error
    file = plan.config.dns_servers_file
    if file:
        tell("info", (f"the DNS servers are those of {file} (--resolv-conf)",))
    return plan


def require_namespace(ctx: click.Context) -> None:
    """Raise CannotTell if the namespace that is asked about can't be entered, UsageProblems for several.

    The settings would make do without its addresses, and warn of what is an error here.
    """
    from istio_iptables.kernel.namespace import entered

    if ctx.obj and len(ctx.obj.namespaces) > 1:
        message = "--network-namespace: is there several times, and this is about one namespace"
        raise UsageProblems([message])
    values, _ = gather(flags_given(ctx), os.environ, (setting("network_namespace"),))
    try:
        with entered(values["network_namespace"].text):
            pass
    except KernelRefused as error:
        raise CannotTell(*error.lines) from error


#: A golden file is what a dry run prints; a larger one is something else.
_LARGEST_TEXT = 1 << 24


def read_text(path: str, kind: str = "golden file") -> str:
    """The text of a file, or of stdin for ``-``; raises CannotTell if it can't be read."""
    with _open(path) as file:
        content = file.read(_LARGEST_TEXT + 1)
    if len(content) > _LARGEST_TEXT:
        message = f"{_name(path)}: is larger than {_LARGEST_TEXT >> 20} MiB: this is not a {kind}"
        raise CannotTell(message)
    if b"\0" in content:
        message = f"{_name(path)}: holds a NUL byte: this is not a {kind}"
        raise CannotTell(message)
    return content.decode(errors="surrogateescape")


def read_rules(path: str, family: str | None) -> tuple[Ruleset, ...]:
    """The rulesets of a file of iptables-save's or nft's text; raises CannotTell with the bad line."""
    with _open(path) as file:
        try:
            found = read(decode_lines(file.readline), Family(family) if family else None)
        except SaveFileError as error:
            message = f"{_name(path)}: {error.lines[0]}"
            raise CannotTell(message) from error
    return require_tables(found, _name(path))


def _name(path: str) -> str:
    return "stdin" if path == "-" else path


@contextmanager
def _open(path: str) -> Iterator[BinaryIO]:
    """The file, or stdin for ``-``; raises CannotTell when it can't be opened or read."""
    try:
        if path != "-":
            with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs 5 ms
                yield file
        elif sys.stdin is None:
            message = "can't read stdin: it is closed"
            raise CannotTell(message)
        else:
            yield sys.stdin.buffer
    except OSError as error:
        message = f"can't read {_name(path)}: {error.strerror}"
        raise CannotTell(message) from error
    except ValueError as error:
        # A NUL byte can't be in a name.
        message = f"can't read {_name(path)}: {error}"
        raise CannotTell(message) from error
