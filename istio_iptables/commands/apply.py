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
    from istio_iptables.settings.config import Config

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


class _NodeCheck:
    """Warns, once, of a network namespace that is a node's and no pod's."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._looked = False

    def __call__(self, rulesets: Sequence[Ruleset]) -> None:
        from istio_iptables.kernel.node import signs

        if self._looked:
            return
        self._looked = True
        found = signs(rulesets)
        if found:
            where = self._config.network_namespace or "this network namespace"
            line = (
                f"{where} looks like a machine's own and no pod's ({found}): with these rules all"
            )
            warn([f"{line} of the machine's traffic goes to Envoy"], strict=self._config.strict)


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
            look=_NodeCheck(config),
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
