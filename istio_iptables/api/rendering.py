"""A plan as text."""

from __future__ import annotations

from istio_iptables.netfilter import formats
from istio_iptables.netfilter.model import Family
from istio_iptables.typed import TYPE_CHECKING

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
    ``restore`` (for iptables-restore --noflush), ``commands`` (for a shell), ``annotated`` (as
    save, with the reason of each rule) or ``json`` (docs/json.md); with native nftables, the same
    for nft. Raises ValueError for another.
    """
    if format not in FORMATS:
        message = f"no format {format!r}: there are {', '.join(FORMATS)}"
        raise ValueError(message)
    state = plan.state if family is None else plan.state.only(Family(family))
    if plan.config.native_nftables:
        from istio_iptables.istio.native import build_native
        from istio_iptables.netfilter import native

        made = build_native(plan.config, state)
        if format == "json":
            return _json(plan, native.as_json(made))
        return native.text(made, format)
    return _json(plan, formats.as_json(state)) if format == "json" else _TEXTS[format](state)


def _json(plan: Plan, state: dict[str, object]) -> str:
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
        **state,
    }
    return json.dumps(document, indent=2) + "\n"


def effective_text(value: Value, config: Config) -> str:
    """The text of a setting in force: what was given, or what it came to if that is empty."""
    name = value.setting.name
    if value.text.strip(", ") or name not in {"proxy_uid", "proxy_gid"}:
        return value.text
    return ",".join(map(str, config.proxy_uids if name == "proxy_uid" else config.proxy_gids))
