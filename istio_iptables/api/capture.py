"""What is to be captured, and the plan that this makes: rules, routes and addresses."""

from __future__ import annotations

import os

from istio_iptables.api.values import Unusable, text_of
from istio_iptables.errors import UsageProblems
from istio_iptables.istio.escapes import plan_warnings
from istio_iptables.istio.plan import build
from istio_iptables.kernel.host import ThisHost
from istio_iptables.settings.config import configure, typed_fields
from istio_iptables.settings.declarations import (
    APPLYING,
    PRINTING,
    SETTINGS,
    VALIDATION,
    setting,
)
from istio_iptables.settings.sources import Origin, gather
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Self

    from istio_iptables.api.values import SettingValue
    from istio_iptables.netfilter.model import Ruleset
    from istio_iptables.netfilter.plan import DesiredState, InterfaceAddress, PolicyRoute
    from istio_iptables.settings.config import Config
    from istio_iptables.settings.sources import Value

__all__ = ["CAPTURE_NAMES", "Capture", "Plan", "Purpose", "plan"]

#: Whose uid is the proxy's by default, if there is such a user.
_ENVOY_USER = "istio-proxy"
#: The keywords of Capture: the settings that decide about the rules and where they are.
CAPTURE_NAMES = tuple(
    each.name
    for each in SETTINGS
    if each.group not in {APPLYING, PRINTING, VALIDATION} or each.name == "force_iptables_binary"
)


class Capture:
    """What of a pod's traffic is to be captured, in the settings of istio-iptables.

    The keywords are the names of the flags with underscores (``istio_service_cidr="*"``), and of
    the environment variables that have no flag, in small letters
    (``istio_outbound_owner_groups``). A value is text as on the command line, or a number, a
    bool, an address or network of ``ipaddress``, or a list of items. Environment variables are not read; ``from_environment`` reads them.

    Raises TypeError for an unknown keyword, and UsageProblems, an IstioIptablesError whose
    ``lines`` holds each problem, for values that can't be used.
    """

    def __init__(self, **settings: SettingValue) -> None:
        self._take(settings, {})

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, /, **settings: SettingValue
    ) -> Self:
        """As the constructor, with what *settings* leave open read from *environ* (os.environ)."""
        capture = cls.__new__(cls)
        capture._take(settings, os.environ if environ is None else environ)  # noqa: SLF001 - its own
        return capture

    @classmethod
    def from_texts(
        cls,
        flags: Mapping[str, str],
        environ: Mapping[str, str],
        beneath: Mapping[str, Value] | None = None,
    ) -> Self:
        """The capture of a command line: *flags* by setting name, any setting; nothing is checked.

        *beneath* holds the values that a manifest gives, in place of defaults.
        """
        capture = cls.__new__(cls)
        capture._gather(flags, environ, Origin.FLAG, beneath)  # noqa: SLF001 - its own
        return capture

    def _take(self, settings: Mapping[str, SettingValue], environ: Mapping[str, str]) -> None:
        unknown = [name for name in settings if name not in CAPTURE_NAMES]
        if unknown:
            message = f"Capture() has no setting {', '.join(map(repr, unknown))}"
            raise TypeError(message)
        texts, problems = {}, []
        for name, value in settings.items():
            try:
                texts[name] = text_of(setting(name).kind, value)
            except Unusable as error:
                problems.append(f"{name}: {error}")
        self._gather(texts, environ, Origin.KEYWORD)
        try:
            typed_fields(self.values, ThisHost())
        except UsageProblems as error:
            problems += error.lines
        if problems:
            raise UsageProblems(problems)

    def _gather(
        self,
        texts: Mapping[str, str],
        environ: Mapping[str, str],
        origin: Origin,
        beneath: Mapping[str, Value] | None = None,
    ) -> None:
        if origin is Origin.KEYWORD:
            # Nothing is installed by a plan, so what is unknown about the machine is assumed.
            environ = {name: text for name, text in environ.items() if name not in _HOW}
            texts = {**texts, "dry_run": "true"}
        self.values, self.warnings = gather(texts, environ, origin=origin, beneath=beneath)
        self.envoy_user = environ.get("ENVOY_USER") or _ENVOY_USER

    def __repr__(self) -> str:
        given = [
            f"{name}={value.text!r}"
            for name, value in self.values.items()
            if value.given and name in CAPTURE_NAMES
        ]
        if self.envoy_user != _ENVOY_USER:
            given.append(f"ENVOY_USER={self.envoy_user!r}")
        return f"Capture({', '.join(given)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Capture):
            return NotImplemented
        return (self.texts, self.envoy_user) == (other.texts, other.envoy_user)

    def __hash__(self) -> int:
        return hash((*self.texts.items(), self.envoy_user))

    @property
    def texts(self) -> dict[str, str]:
        """The text of every setting by name, defaults included."""
        return {name: self.values[name].text for name in CAPTURE_NAMES}


#: The environment variables of settings that say how to apply, print or validate.
_HOW = frozenset(
    variable for each in SETTINGS if each.name not in CAPTURE_NAMES for variable in each.environment
)


class Purpose(NamedTuple):
    """What a plan is for, which decides what is worth a warning about it."""

    #: The directions in which it matters what the plan leaves uncaptured; none where the rules in
    #: question are others than the plan's.
    ways: Collection[str] = ("outbound", "inbound")
    #: As in ``plan_warnings``.
    follow: bool = True
    #: As in ``configure``.
    live: bool = False


_ITSELF = Purpose()


class Plan(NamedTuple):
    """What a namespace is to hold for a capture: immutable, and the same whoever uses it."""

    #: Rules, policy routes and addresses.
    state: DesiredState
    #: The settings that they were made from, typed and complete.
    config: Config
    #: The settings as they were given, by name.
    values: Mapping[str, Value]
    #: One line for each setting without effect, and for each thing that is not captured.
    warnings: tuple[str, ...] = ()

    @property
    def rulesets(self) -> tuple[Ruleset, ...]:
        """The rules, one ruleset for each address family in use."""
        return self.state.rulesets

    @property
    def routes(self) -> tuple[PolicyRoute, ...]:
        """The policy routes that TPROXY needs."""
        return self.state.routes

    @property
    def addresses(self) -> tuple[InterfaceAddress, ...]:
        """The addresses that the rules need on an interface."""
        return self.state.addresses


def plan(capture: Capture, *, purpose: Purpose = _ITSELF) -> Plan:
    """The plan that *capture* makes on this machine.

    Which address families are in use (without ``ip_family``), which DNS servers there are and
    which ids names have is asked of the machine; what can't be told is assumed, with a warning.
    Raises UsageProblems for settings that can't be used, KernelRefused where the machine can't
    tell what the rules depend on.
    """
    config, warnings = configure(
        capture.values,
        ThisHost(),
        envoy_user=capture.envoy_user,
        live=purpose.live,
        plan_counts=bool(purpose.ways),
    )
    warnings = [*capture.warnings, *warnings]
    state = build(config)
    if config.dry_run or not (config.cleanup_only or config.skip_rule_apply):
        warnings += plan_warnings(
            state, config, capture.values, purpose.ways, follow=purpose.follow
        )
    return Plan(state, config, capture.values, tuple(warnings))
