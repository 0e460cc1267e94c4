"""Ids that the user namespace does not map: the kernel takes no rule that names one."""

from __future__ import annotations

from istio_iptables.errors import KernelRefused
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.netfilter.plan import DesiredState

__all__ = ["require_mapped", "require_plan_mapped"]

_MAPS = {"uid": "/proc/self/uid_map", "gid": "/proc/self/gid_map"}


def require_plan_mapped(plan: DesiredState) -> None:
    """Raise KernelRefused with a line for each uid and gid in the plan's rules that is not mapped.

    The kernel's own answer to a rule with such an id is "Invalid argument".
    """
    require_mapped(_ids(plan, "--uid-owner"), _ids(plan, "--gid-owner"))


def require_mapped(uids: Iterable[int], gids: Iterable[int]) -> None:
    """Raise KernelRefused with a line for each id that this user namespace does not map."""
    lines = []
    for (kind, path), ids in zip(_MAPS.items(), (uids, gids), strict=True):
        ranges = _mapped(path)
        if ranges is not None:
            lines += [
                f"{kind} {number} is not mapped in this user namespace ({path}): the kernel knows"
                " no such user or group here"
                for number in sorted(set(ids))
                if not any(number in each for each in ranges)
            ]
    if lines:
        raise KernelRefused(*lines)


def _mapped(path: str) -> list[range] | None:
    """The ids that are mapped; None where that can't be read, or all of them are."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = [list(map(int, line.split())) for line in file]
    except OSError:
        # The kernel itself refuses what is not mapped.
        return None
    found = [range(first, first + count) for first, _, count in rows]
    return None if range(0xFFFFFFFF) in found else found


def _ids(plan: DesiredState, name: str) -> Iterator[int]:
    for ruleset in plan.rulesets:
        for table in ruleset.tables:
            for chain in table.chains:
                for rule in chain.rules:
                    for match in rule.matches:
                        option = match.option(name) if match.name == "owner" else None
                        if option:
                            yield from map(int, option.values[0].split("-"))
