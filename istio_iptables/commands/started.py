"""How an init container starts istio-iptables, as settings: their values, and what in them is a likely mistake."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from istio_iptables.commands.flags import read_flags
from istio_iptables.commands.load import Given
from istio_iptables.errors import UsageProblems
from istio_iptables.kubernetes.annotations import EXCLUDE_INBOUND_PORTS, STATUS_PORT
from istio_iptables.kubernetes.lint import lint_injection, lint_owners
from istio_iptables.kubernetes.pod import started_by
from istio_iptables.settings.config import StandIn, configure
from istio_iptables.settings.converters import TRUE
from istio_iptables.settings.declarations import SETTINGS, setting
from istio_iptables.settings.sources import Origin, Value, gather
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_iptables.kubernetes.injection import Injection
    from istio_iptables.kubernetes.pod import Start

__all__ = ["given_of", "mistakes_in"]

#: The settings that say where this process works, and nothing of the pod's rules: a manifest that is
#: another's must not decide which namespace is changed.
_OWN = tuple(map(setting, ("network_namespace", "cni_mode")))
#: Those that leave a pod without rules.
_WITHOUT_RULES = ("dry_run", "skip_rule_apply", "cleanup_only")
_EXCLUDED = "istio_local_exclude_ports"
#: What Istio leaves out of inbound capture of its own accord.
_ISTIOS_PORTS = frozenset({"15020", "15021", "15090", "0", ""})


#: A machine of which nothing is known: no container is given that user, and servers are in no one's way.
_ANYWHERE = StandIn(servers=("192.0.2.53",), number=1 << 31)


def given_of(start: Start) -> Given:
    """What *start* gives in place of the environment and the defaults; raises UsageProblems for bad words."""
    values, warnings = _values(start)
    with suppress(UsageProblems):
        # What can't be used is told of with the flags that may stand over it.
        warnings += _mistakes(start, values)[0]
    own = (name for each in _OWN for name in each.environment)
    left = {name: os.environ[name] for name in own if name in os.environ}
    left |= {name: text for name, (text, _) in start.environment.items() if name == "ENVOY_USER"}
    return Given(left, values, (*start.warnings, *warnings), start.workload.title)


def mistakes_in(injection: Injection) -> list[str]:
    """One line for each likely mistake in a pod that is to be injected, what istio-iptables refuses included."""
    if injection.reason_for_none:
        return lint_injection(injection)
    start = started_by(injection)
    try:
        values, warnings = _values(start)
        mine, rest = _mistakes(start, values)
    except UsageProblems as error:
        title = start.workload.title
        return [
            *start.warnings,
            *(f"{title}: istio-iptables refuses it: {line}" for line in error.lines),
        ]
    told = (f"{start.workload.title}: {line}" for line in (*warnings, *rest))
    return [*start.warnings, *mine, *told]


def _mistakes(start: Start, values: dict[str, Value]) -> tuple[list[str], list[str]]:
    """Those in what the pod runs as, and those in the settings; raises UsageProblems for bad ones."""
    # Whatever the machine: of the families and servers nothing is said.
    asked = {"ip_family": "dual", "dry_run": "true"}
    every, _ = gather(asked, {}, beneath=values)
    config, warnings = configure(every, _ANYWHERE, plan_counts=False)
    return lint_owners(start.workload, start.proxy, config), warnings


def _values(start: Start) -> tuple[dict[str, Value], list[str]]:
    """The values that *start* gives by name, and warnings about its variables."""
    texts: dict[str, str] = {}
    places: dict[str, str] = {}
    for words, place in start.arguments:
        read = _read(words, place)
        texts |= read
        places |= dict.fromkeys(read, place)
    environ = {name: text for name, (text, _) in start.environment.items()}
    values, warnings = gather(texts, environ)
    own = {
        name: value._replace(
            origin=Origin.MANIFEST,
            place=places.get(name) or start.environment[value.variable][1],
        )
        for name, value in values.items()
        if value.given
    }
    for each in _OWN:
        if value := own.pop(each.name, None):
            warnings.append(
                f"{value.label}: counts in the container only: with --pod that of the command line does"
            )
    warnings += _no_rules(own)
    if _EXCLUDED in own and not _asked(start, own[_EXCLUDED]):
        own[_EXCLUDED] = own[_EXCLUDED]._replace(unasked=True)
    return own, warnings


def _no_rules(values: Mapping[str, Value]) -> list[str]:
    """What among the variables of a pod leaves it without rules."""
    given = {name: values[name] for name in _WITHOUT_RULES if name in values}
    if any(each.text in TRUE and not each.variable for each in given.values()):
        # Arguments: of istio-validation, or somebody's who wrote them for this.
        return []
    return [
        f"{each.place}: leaves the pod without rules: nothing is captured"
        for each in given.values()
        if each.text in TRUE
    ]


def _asked(start: Start, ports: Value) -> bool:
    """Whether a pod itself or its mesh wants *ports* left out, and not the template alone."""
    if ports.place.startswith("args of "):
        status = start.workload.annotations.get(STATUS_PORT, "").strip()
        return not {each.strip() for each in ports.text.split(",")} <= {*_ISTIOS_PORTS, status}
    return EXCLUDE_INBOUND_PORTS in ports.place or "value global.proxy.exclude" in ports.place


def _read(words: tuple[str, ...], place: str) -> dict[str, str]:
    """The settings that the words of a container give; raises UsageProblems for other words."""
    try:
        flags = read_flags(words)
    except UsageProblems as error:
        raise UsageProblems([f"{place}: {line}" for line in error.lines]) from None
    left = iter(flags.arguments)
    known = {each.flag for each in SETTINGS}
    for word in left if not flags.complete else ():
        if word not in known or next(left, None) is None:
            message = f"{place}: {excerpt(word)} is no option of istio-iptables, or has no value"
            raise UsageProblems([message])
    return flags.texts
