"""Quantities of Kubernetes (``100m``, ``1Gi``) in the one spelling that it writes."""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["canonical"]

_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL = ("n", "u", "m", "", "k", "M", "G", "T", "P", "E")
_TEXT = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,3}|)"
)
_LONGEST = 64


def canonical(text: str) -> str | None:
    """*text* as Kubernetes writes it; None for no quantity."""
    found = _TEXT.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        return None
    number, suffix = Fraction(found[1]), found[2]
    if suffix in _BINARY[1:]:
        amount = number * 1024 ** _BINARY.index(suffix)
        if amount.denominator == 1 and abs(amount) >= 1024:  # noqa: PLR2004 - the step of the suffixes
            power = 0
            while power + 1 < len(_BINARY) and amount % 1024 ** (power + 1) == 0:
                power += 1
            return f"{amount // 1024**power}{_BINARY[power]}"
        return _decimal(amount)
    if suffix[:1] in {"e", "E"} and suffix[1:]:
        return _exponent(number * Fraction(10) ** int(suffix[1:]))
    return _decimal(number * Fraction(1000) ** (_DECIMAL.index(suffix) - 3))


def _decimal(amount: Fraction) -> str:
    """With the largest suffix that leaves a whole number, rounded up to nanos."""
    nanos = -(-amount * 10**9 // 1)
    power = 0
    while nanos and power + 1 < len(_DECIMAL) and nanos % 1000 == 0:
        nanos //= 1000
        power += 1
    return f"{nanos}{_DECIMAL[power]}" if nanos else "0"


def _exponent(amount: Fraction) -> str:
    nanos, power = -(-amount * 10**9 // 1), -9
    while nanos and nanos % 1000 == 0:
        nanos //= 1000
        power += 3
    return f"{nanos}{f'e{power}' if power else ''}" if nanos else "0"
