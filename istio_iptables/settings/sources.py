"""Flag over environment over default: the text of each setting and where it came from."""

from __future__ import annotations

from enum import Enum

from istio_iptables.settings.converters import FALSE, TRUE, Names, parse
from istio_iptables.settings.declarations import SETTINGS, Setting, ValueKind
from istio_iptables.text import excerpt
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Origin", "Value", "convert", "gather"]


class Origin(Enum):
    """The sort of place that a value came from."""

    FLAG = "flag"
    KEYWORD = "keyword"
    ENVIRONMENT = "environment"
    MANIFEST = "manifest"
    DEFAULT = "default"


class Value(NamedTuple):
    """The text of one setting, and where it came from."""

    setting: Setting
    text: str
    origin: Origin
    #: The environment variable that gave the value; "" for another origin.
    variable: str = ""
    #: What in a manifest gave the value, as a reader would say it; "" for another origin.
    place: str = ""
    #: Whether a manifest gives it without anyone's wish, so that it is no news if it has no effect.
    unasked: bool = False

    @property
    def label(self) -> str:
        """What a message about this value names: the variable or the option it came from."""
        if self.place:
            return f"{self.setting.label} ({self.place})"
        if self.variable:
            return self.variable
        if self.origin is Origin.KEYWORD:
            return self.setting.name
        label = self.setting.label
        return f"{label} (-{self.setting.short})" if self.setting.short else label

    @property
    def source(self) -> str:
        """Where the value came from, as a reader would say it."""
        if self.origin is Origin.MANIFEST:
            return self.place
        if self.origin is Origin.ENVIRONMENT:
            return f"${self.variable}"
        if self.origin is Origin.KEYWORD:
            return f"{self.setting.name}="
        return self.setting.flag if self.origin is Origin.FLAG else "default"

    @property
    def given(self) -> bool:
        """Whether the user gave the value, by flag, environment or manifest."""
        return self.origin is not Origin.DEFAULT and not self.unasked


def gather(
    flags: Mapping[str, str],
    environ: Mapping[str, str],
    settings: Iterable[Setting] = SETTINGS,
    *,
    origin: Origin = Origin.FLAG,
    beneath: Mapping[str, Value] | None = None,
) -> tuple[dict[str, Value], list[str]]:
    """The value of each setting by name, and warnings about environment variables.

    *flags* holds the texts given by *origin*: the command line, or a Python call; *beneath* the
    values that stand where the defaults would. A boolean in the
    environment that is neither true nor false is left out, as in Istio, but not in silence.
    """
    values: dict[str, Value] = {}
    warnings = []
    for setting in settings:
        value = Value(setting, setting.default, Origin.DEFAULT)
        if beneath and setting.name in beneath:
            value = beneath[setting.name]
        for variable in setting.environment:
            text = environ.get(variable)
            if text is None:
                continue
            if setting.kind is ValueKind.FLAG and text not in TRUE and text not in FALSE:
                warnings.append(f"{variable}: {excerpt(text)} is not a boolean and is ignored")
            else:
                value = Value(setting, text, Origin.ENVIRONMENT, variable)
        if setting.name in flags:
            value = Value(setting, flags[setting.name], origin)
        values[setting.name] = value
    if "ENVOY_PORT" in environ and "envoy_port" in values:
        warnings.append("ENVOY_PORT: not read, as in Istio; --envoy-port sets the outbound port")
    return values, warnings


def convert(values: Mapping[str, Value], names: Names) -> tuple[dict[str, object], list[str]]:
    """The typed value of each setting by name, and one line for each item that can't be used."""
    fields: dict[str, object] = {}
    problems = []
    for name, value in values.items():
        fields[name], faults = parse(value.setting.kind, value.text, names)
        for fault in faults:
            item = f", item {fault.item}" if fault.item else ""
            problems.append(f"{value.label}{item}: {excerpt(fault.text)} {fault.reason}")
    return fields, problems
