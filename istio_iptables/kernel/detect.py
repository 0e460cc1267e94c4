"""Which backend to use, told from what both of them hold, each of which is read once."""

from __future__ import annotations

from istio_iptables.kernel.tablenames import legacy_tables, nft_tables
from istio_iptables.netfilter.model import Family
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_iptables.kernel.backend import Backend, Reading
    from istio_iptables.netfilter.ownership import Ownership

    #: A backend, and what it holds of each family.
    Contents = tuple[Backend, tuple[Reading, ...]]

__all__ = ["Detected", "detect", "prefer"]


class Detected(NamedTuple):
    """The backend to use, what it holds of each family, and why it is this one."""

    backend: Backend
    readings: tuple[Reading, ...]
    #: The other one, if it has tables in this namespace that may hold rules of ours.
    other: Contents | None
    reason: str

    @property
    def contents(self) -> tuple[Contents, ...]:
        """Both backends with what they hold, the chosen one first."""
        chosen = (self.backend, self.readings)
        return (chosen, self.other) if self.other else (chosen,)


def detect(forced: str, ownership: Ownership, asked_by: str = "") -> Detected:
    """The backend for this namespace: the *forced* one, else the one whose tables hold rules.

    *asked_by* names what forces it. Without rules anywhere it is legacy, where the kernel has it. Where there are no tables, this
    loads and starts nothing.
    """
    legacy = {family: legacy_tables(family, ownership.tables) for family in Family}
    used = {"legacy": any(legacy.values()), "nft": any(map(nft_tables, Family))}
    contents = {name: _look(name, ownership) for name in used if used[name]}
    name, reason = forced, f"asked for by {asked_by}" if asked_by else "asked for"
    if not name:
        readings = {name: contents[name][1] if used[name] else () for name in used}
        has_legacy = legacy[Family.IPV4] is not None
        name, reason = prefer(readings["legacy"], readings["nft"], has_legacy=has_legacy)
    other = contents.get("nft" if name == "legacy" else "legacy")
    return Detected(*(contents.get(name) or _look(name, ownership)), other, reason)


def prefer(
    legacy: Sequence[Reading], nft: Sequence[Reading], *, has_legacy: bool
) -> tuple[str, str]:
    """The name of the backend to use by what both hold, and the reason."""
    in_legacy, in_nft = _hold_rules(legacy), _hold_rules(nft)
    if in_legacy and in_nft:
        # Both are in use: ours stay where they are.
        ours = (_hold_ours(legacy), _hold_ours(nft))
        where = ", and ours are in this one" if any(ours) else ""
        reason = f"both backends hold rules in this namespace{where}"
        return "nft" if ours == (False, True) else "legacy", reason
    if in_legacy or in_nft:
        return "legacy" if in_legacy else "nft", "its tables hold rules in this namespace"
    if has_legacy:
        return "legacy", "no table holds rules yet, and the kernel has it"
    return "nft", "the kernel has no legacy tables"


def _hold_rules(readings: Sequence[Reading]) -> bool:
    return any(each.holds_rules for each in readings)


def _hold_ours(readings: Sequence[Reading]) -> bool:
    return any(each.holds_ours for each in readings)


def _look(name: str, ownership: Ownership) -> Contents:
    # Imported when it is used: what the one needs, the other does not.
    backend: Backend
    if name == "legacy":
        from istio_iptables.kernel.legacy import Legacy

        backend = Legacy(ownership)
    elif name != "nft":
        message = f"there is no backend {name!r}: there are legacy and nft"
        raise ValueError(message)
    else:
        from istio_iptables.kernel.nft import Nft

        backend = Nft(ownership)
    return backend, backend.look()
