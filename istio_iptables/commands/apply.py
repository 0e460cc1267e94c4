"""A plan of the command line printed or applied: what the program does when no command is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.api.rendering import render
from istio_iptables.commands.load import tell, warn
from istio_iptables.errors import ExitStatus
from istio_iptables.netfilter.model import Family
from istio_iptables.text import write_exactly

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_iptables.api.capture import Plan
    from istio_iptables.netfilter.model import Ruleset

__all__ = ["apply"]


def apply(plan: Plan) -> ExitStatus:
    """Print *plan* for a dry run, else install, clean up and validate as its settings say."""
    config = plan.config
    if config.dry_run:
        only = Family(config.only) if config.only else None
        write_exactly(render(plan, config.format, family=only))
    else:
        _apply(plan)
    return ExitStatus.DONE


def _note(line: str) -> None:
    tell("info", (line,))


class _Surveyor:
    """Warns, once, of a node's network namespace, and of foreign rules that decide before ours."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._looked = False

    def __call__(self, rulesets: Sequence[Ruleset]) -> None:
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
        if any(ruleset.rule_count for ruleset in rulesets):
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
