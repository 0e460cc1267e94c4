"""How full the table of tracked connections is."""

from __future__ import annotations

__all__ = ["connections"]

_DIRECTORY = "/proc/sys/net/netfilter"


def connections() -> tuple[int, int] | None:
    """The connections that this network namespace tracks, and the most it may; None if unknown."""
    try:
        count, most = (int(_read(f"{_DIRECTORY}/nf_conntrack_{name}")) for name in ("count", "max"))
    except (OSError, ValueError):
        return None
    return count, most


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()
