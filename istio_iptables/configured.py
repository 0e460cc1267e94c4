"""Settings to Config for a command: problems raised together, warnings told on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from istio_iptables.errors import UsageProblems
from istio_iptables.kernel.host import Host
from istio_iptables.settings.config import Config, configure
from istio_iptables.settings.sources import Value, gather
from istio_iptables.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["PROGRAM", "configured", "effective", "tell"]

PROGRAM = "istio-iptables"


def tell(kind: str, lines: Iterable[str]) -> None:
    """Write each line to stderr, behind the program's name and what kind of line it is."""
    for line in lines:
        print(f"{PROGRAM}: {kind}: {printable(line)}", file=sys.stderr)


def configured(
    flags: Mapping[str, str], extra: list[str], environ: Mapping[str, str]
) -> tuple[Config, dict[str, Value]]:
    """The settings, all their problems raised together, their warnings told."""
    values, warnings = gather(flags, environ)
    try:
        config, more = configure(
            values, Host(), envoy_user=environ.get("ENVOY_USER") or "istio-proxy"
        )
    except UsageProblems as error:
        raise UsageProblems([*extra, *error.lines]) from None
    if extra:
        raise UsageProblems(extra)
    warnings += more
    if config.strict and warnings:
        raise UsageProblems([f"{warning} (--strict)" for warning in warnings])
    tell("warning", warnings)
    if config.verbose:
        tell(
            "setting",
            (
                f"{value.setting.label} = {effective(value, config)!r} ({value.source})"
                for value in values.values()
            ),
        )
    return config, values


def effective(value: Value, config: Config) -> str:
    """The text of a setting in force: what was given, or what it came to if that names nobody."""
    name = value.setting.name
    if value.text.strip(", ") or name not in {"proxy_uid", "proxy_gid"}:
        return value.text
    return ",".join(map(str, config.proxy_uids if name == "proxy_uid" else config.proxy_gids))
