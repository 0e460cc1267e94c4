"""A plan of the command line printed or applied, and ours removed: what needs no click to be asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from istio_iptables.api.rendering import render
from istio_iptables.commands.load import tell, warn
from istio_iptables.errors import ExitStatus, UsageProblems
from istio_iptables.kernel.host import Host
from istio_iptables.netfilter.model import Family
from istio_iptables.settings.converters import Names
from istio_iptables.settings.declarations import setting
from istio_iptables.settings.sources import convert, gather
from istio_iptables.text import write_exactly

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from istio_iptables.api.capture import Plan
    from istio_iptables.netfilter.model import Ruleset

__all__ = ["CLEAN_SETTINGS", "apply", "clean_up"]

#: The settings that a clean-up goes by.
CLEAN_SETTINGS = tuple(map(setting, ("network_namespace", "cni_mode", "force_iptables_binary")))


def apply(plan: Plan) -> ExitStatus:
    """Print *plan* for a dry run, else install, clean up and validate as its settings say."""
    config = plan.config
    if config.dry_run:
        only = Family(config.only) if config.only else None
        write_exactly(render(plan, config.format, family=only))
    else:
        _apply(plan)
    return ExitStatus.DONE


def clean_up(flags: Mapping[str, str], extra: list[str]) -> ExitStatus:
    """Remove our rules as *flags* and the environment say; *extra* are problems found before."""
    values, warnings = gather(flags, os.environ, CLEAN_SETTINGS)
    fields, problems = convert(values, Names(Host().uid, Host().gid))
    if extra or problems:
        raise UsageProblems([*extra, *problems])
    tell("warning", warnings)
    from istio_iptables.api.installing import clean

    clean(
        namespace=str(fields["network_namespace"]),
        backend=str(fields["force_iptables_binary"]),
        pod_lock=bool(fields["cni_mode"]),
        tell=_note,
    )
    return ExitStatus.DONE


def _note(line: str) -> None:
    tell("info", (line,))


class _Surveyor:
    """Warns, once, of a node's network namespace, and of foreign rules that decide before ours."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._looked = False

    def __call__(self, rulesets: Sequence[Ruleset]) -> None:
        from istio_iptables.istio.ownership import has_foreign
        from istio_iptables.kernel.node import signs

        if self._looked:
            return
        self._looked = True
        config = self._plan.config
        lines = []
        found = signs(rulesets)
        if found:
            where = config.network_namespace or "this network namespace"
            lines.append(
                f"{where} looks like a machine's own and no pod's ({found}): with these rules all of"
                " the machine's traffic goes to Envoy"
            )
        if any(has_foreign(table) for ruleset in rulesets for table in ruleset.tables):
            # What compares takes 5 ms to load, which few pods need.
            from istio_iptables.api.comparing import foreign_first

            lines += foreign_first(self._plan, rulesets)
        warn(lines, strict=config.strict)


def _apply(plan: Plan) -> None:
    from istio_iptables.api.installing import clean, install  # a dry run needs none of it

    config = plan.config
    if config.cleanup_only:
        clean(
            namespace=config.network_namespace,
            backend=config.backend,
            pod_lock=config.cni_mode,
            tell=_note,
        )
    elif not config.skip_rule_apply:
        install(
            plan,
            reconcile=config.reconcile or config.force_apply,
            tell=_note,
            look=_Surveyor(plan),
        )
    if config.run_validation:
        from istio_iptables.kernel.probe import Probe, validate

        validate(
            Probe(
                tuple(ruleset.family for ruleset in plan.rulesets),
                (config.envoy_port, config.inbound_capture_port),
                config.probe_port,
                config.proxy_uids,
                config.proxy_gids,
                config.probe_timeout,
                plan.routes,
            ),
            _note,
            namespace=config.network_namespace,
        )
