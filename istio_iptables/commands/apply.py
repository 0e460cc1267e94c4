"""A plan of the command line printed or applied, and ours removed: what needs no click to be asked for."""

from __future__ import annotations

import os

from istio_iptables.api.capture import Capture
from istio_iptables.api.rendering import render
from istio_iptables.commands.load import Given, load_plan, tell, warn
from istio_iptables.errors import ExitStatus, UsageProblems
from istio_iptables.kernel.host import ThisHost
from istio_iptables.netfilter.model import Family
from istio_iptables.settings.config import typed_fields
from istio_iptables.settings.converters import Names
from istio_iptables.settings.declarations import setting
from istio_iptables.settings.sources import convert, gather
from istio_iptables.text import write_exactly
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from istio_iptables.api.capture import Plan
    from istio_iptables.commands.flags import Flags
    from istio_iptables.commands.load import Tell
    from istio_iptables.netfilter.model import Ruleset

__all__ = ["CLEAN_SETTINGS", "apply", "clean_ready", "clean_up", "ready"]

#: The settings that a clean-up goes by.
CLEAN_SETTINGS = tuple(
    map(setting, ("network_namespace", "cni_mode", "force_iptables_binary", "json"))
)


def apply(plan: Plan, tell: Tell = tell) -> ExitStatus:
    """Print *plan* for a dry run, else install, clean up and validate as its settings say."""
    config = plan.config
    if config.dry_run:
        only = Family(config.only) if config.only else None
        write_exactly(render(plan, config.format, family=only))
    else:
        _apply(plan, tell)
    return ExitStatus.DONE


def clean_up(flags: Mapping[str, str], extra: list[str], tell: Tell = tell) -> ExitStatus:
    """Remove our rules as *flags* and the environment say; *extra* are problems found before."""
    fields, warnings = _clean_fields(flags, extra)
    tell("warning", warnings)
    from istio_iptables.api.installing import clean

    clean(
        namespace=str(fields["network_namespace"]),
        backend=str(fields["force_iptables_binary"]),
        pod_lock=bool(fields["cni_mode"]),
        tell=lambda line: tell("info", (line,)),
    )
    return ExitStatus.DONE


def _clean_fields(
    flags: Mapping[str, str], extra: list[str]
) -> tuple[dict[str, object], list[str]]:
    """The settings of a clean-up, and the warnings about them."""
    values, warnings = gather(flags, os.environ, CLEAN_SETTINGS)
    fields, problems = convert(values, Names(ThisHost().uid, ThisHost().gid))
    if extra or problems:
        raise UsageProblems([*extra, *problems])
    return fields, warnings


def ready(flags: Flags, extra: list[str], given: Given | None = None) -> Callable[[], ExitStatus]:
    """What does as *flags* say, once it is called: print, or install in one namespace or in many.

    *extra* are problems that were found before, *given* what counts beside the flags (os.environ).
    Raises UsageProblems for settings that can't be used; the warnings are told.
    """
    given = given or Given(os.environ)
    if len(flags.namespaces) > 1 or "json" in flags.texts:
        return _ready_for_each(flags, extra, given)
    plan = load_plan(flags.texts, extra, given)
    return lambda: apply(plan)


def _ready_for_each(flags: Flags, extra: list[str], given: Given) -> Callable[[], ExitStatus]:
    from istio_iptables.commands.each import in_each

    try:
        capture = Capture.from_texts(flags.texts, given.environ, given.values)
        fields = typed_fields(capture.values, ThisHost())
    except UsageProblems as error:
        raise UsageProblems([*extra, *error.lines]) from None
    if fields["dry_run"] and fields["json"]:
        extra = [*extra, "--json: says what was done: for a dry run, give --format json"]
    elif fields["dry_run"]:
        extra = [*extra, "--network-namespace: a dry run prints for one: give one of them"]
    extra = [*extra, *_nameless(flags)]
    if extra:
        raise UsageProblems(extra)

    def act(namespace: str, tell: Tell) -> None:
        here = {**flags.texts, "network_namespace": namespace}
        apply(load_plan(here, [], given, tell=tell), tell)

    namespaces = flags.namespaces or (str(fields["network_namespace"]),)
    return lambda: in_each(namespaces, act, as_json=bool(fields["json"]))


def _nameless(flags: Flags) -> list[str]:
    """A problem if one of several namespaces has no name, as that of a variable that is not set."""
    if len(flags.namespaces) > 1 and "" in flags.namespaces:
        return ["--network-namespace: one of several is empty, which is the current one: name it"]
    return []


def clean_ready(flags: Flags, extra: list[str]) -> Callable[[], ExitStatus]:
    """What removes our rules as *flags* say, from one namespace or from many, once it is called."""
    if len(flags.namespaces) <= 1 and "json" not in flags.texts:
        return lambda: clean_up(flags.texts, extra)
    from istio_iptables.commands.each import in_each

    fields, _ = _clean_fields(flags.texts, [*extra, *_nameless(flags)])

    def act(namespace: str, tell: Tell) -> None:
        clean_up({**flags.texts, "network_namespace": namespace}, [], tell)

    namespaces = flags.namespaces or (os.environ.get("NETWORK_NAMESPACE", ""),)
    return lambda: in_each(namespaces, act, as_json=bool(fields["json"]))


class _Surveyor:
    """Warns, once, of a node's network namespace, and of foreign rules that decide before ours."""

    def __init__(self, plan: Plan, tell: Tell) -> None:
        self._plan = plan
        self._tell = tell
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
        # Native rules are in no chain that others have rules in.
        if not config.native_nftables and any(
            has_foreign(table) for ruleset in rulesets for table in ruleset.tables
        ):
            # What compares takes 5 ms to load, which few pods need.
            from istio_iptables.api.comparing import foreign_first

            lines += foreign_first(self._plan, rulesets)
        warn(lines, strict=config.strict, tell=self._tell)


def _apply(plan: Plan, tell: Tell) -> None:
    from istio_iptables.api.installing import clean, install  # a dry run needs none of it

    config = plan.config

    def note(line: str) -> None:
        tell("info", (line,))

    if config.cleanup_only:
        clean(
            namespace=config.network_namespace,
            backend=config.backend,
            pod_lock=config.cni_mode,
            tell=note,
        )
    elif not config.skip_rule_apply:
        install(
            plan,
            reconcile=config.reconcile or config.force_apply,
            tell=note,
            look=_Surveyor(plan, tell),
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
            note,
            namespace=config.network_namespace,
        )
