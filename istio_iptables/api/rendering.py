"""A plan as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.netfilter import formats
from istio_iptables.netfilter.model import Family

if TYPE_CHECKING:
    from istio_iptables.api.capture import Plan
    from istio_iptables.settings.config import Config
    from istio_iptables.settings.sources import Value

__all__ = ["FORMATS", "effective_text", "render"]

_TEXTS = {
    "save": formats.save,
    "restore": formats.restore,
    "commands": formats.commands,
    "annotated": formats.annotate,
}
FORMATS = (*_TEXTS, "json")


def render(plan: Plan, format: str = "save", *, family: Family | str | None = None) -> str:  # noqa: A002 - as the flag
    """The text of *plan*, or of one address family of it.

    *format* is ``save`` (what iptables-save says once it is installed, and what a dry run prints),
    ``restore`` (for iptables-restore --noflush), ``commands`` (for a shell), ``annotate`` (as
    save, with the reason of each rule) or ``json`` (docs/json.md). Raises ValueError for another.
    """
    state = plan.state if family is None else plan.state.only(Family(family))
    if format == "json":
        import json  # no other format needs it

        document = {
            "version": 1,
            "settings": {
                name: {
                    "value": effective_text(value, plan.config),
                    "source": value.origin.value,
                    "variable": value.variable or None,
                    "place": value.place or None,
                }
                for name, value in plan.values.items()
            },
            **formats.as_json(state),
        }
        return json.dumps(document, indent=2) + "\n"
    if format not in _TEXTS:
        message = f"no format {format!r}: there are {', '.join(FORMATS)}"
        raise ValueError(message)
    return _TEXTS[format](state)


def effective_text(value: Value, config: Config) -> str:
    """The text of a setting in force: what was given, or what it came to if that names nobody."""
    name = value.setting.name
    if value.text.strip(", ") or name not in {"proxy_uid", "proxy_gid"}:
        return value.text
    return ",".join(map(str, config.proxy_uids if name == "proxy_uid" else config.proxy_gids))
