"""Settings to Config for a command: problems raised together, warnings told on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.errors import UsageProblems
from istio_iptables.istio.escapes import plan_warnings
from istio_iptables.istio.plan import build
from istio_iptables.kernel.host import Host
from istio_iptables.settings.config import Config, configure
from istio_iptables.settings.sources import Value, gather
from istio_iptables.text import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from istio_iptables.netfilter.plan import Plan

__all__ = ["PROGRAM", "Purpose", "effective_text", "load_config", "tell", "warn"]

PROGRAM = "istio-iptables"


def tell(kind: str, lines: Iterable[str]) -> None:
    """Write each line to stderr, behind the program's name and what kind of line it is."""
    for line in lines:
        print(f"{PROGRAM}: {kind}: {printable(line)}", file=sys.stderr)


def warn(lines: Collection[str], *, strict: bool) -> None:
    """Tell warnings; with *strict* they are raised as UsageProblems."""
    if strict and lines:
        raise UsageProblems([f"{line} (--strict)" for line in lines])
    tell("warning", lines)


class Purpose(NamedTuple):
    """What the plan of the settings is for, which decides what is worth a warning about it."""

    #: The directions in which it matters what the plan leaves uncaptured; none where the rules in
    #: question are others than the plan's.
    ways: Collection[str] = ("outbound", "inbound")
    #: As in ``plan_warnings``.
    follow: bool = True
    #: As in ``configure``.
    live: bool = False


_ITSELF = Purpose()


def load_config(
    flags: Mapping[str, str],
    extra: list[str],
    environ: Mapping[str, str],
    purpose: Purpose = _ITSELF,
) -> tuple[Config, dict[str, Value], Plan]:
    """The settings and their plan; all problems raised together, the warnings told."""
    values, warnings = gather(flags, environ)
    try:
        config, more = configure(
            values,
            Host(),
            envoy_user=environ.get("ENVOY_USER") or "istio-proxy",
            live=purpose.live,
            plan_counts=bool(purpose.ways),
        )
    except UsageProblems as error:
        raise UsageProblems([*extra, *error.lines]) from None
    if extra:
        raise UsageProblems(extra)
    warnings += more
    plan = build(config)
    if config.dry_run or not (config.cleanup_only or config.skip_rule_apply):
        warnings += plan_warnings(plan, config, values, purpose.ways, follow=purpose.follow)
    warn(warnings, strict=config.strict)
    if config.verbose:
        tell(
            "setting",
            (
                f"{value.setting.label} = {effective_text(value, config)!r} ({value.source})"
                for value in values.values()
            ),
        )
    return config, values, plan


def effective_text(value: Value, config: Config) -> str:
    """The text of a setting in force: what was given, or what it came to if that names nobody."""
    name = value.setting.name
    if value.text.strip(", ") or name not in {"proxy_uid", "proxy_gid"}:
        return value.text
    return ",".join(map(str, config.proxy_uids if name == "proxy_uid" else config.proxy_gids))
