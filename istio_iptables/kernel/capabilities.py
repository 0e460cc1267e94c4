"""Which capabilities the process lacks for changing rules."""

from __future__ import annotations

__all__ = ["missing"]

_NEEDED = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}


def missing() -> str:
    """A clause that names the capabilities we need and lack; "" if there are none of these."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            line = next(line for line in status if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        return ""
    effective = int(line.split()[1], 16)
    lacking = [name for name, bit in _NEEDED.items() if not effective >> bit & 1]
    if not lacking:
        return ""
    return f": {' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing"
