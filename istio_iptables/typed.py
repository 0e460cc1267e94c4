"""What the program needs of ``typing`` while it runs, which itself takes 4 ms of a dry run's 28.

To type checkers it is typing's own. NamedTuple there also compiles each annotation: 2 ms more.
"""

from __future__ import annotations

from collections import namedtuple

#: As in typing: true for type checkers alone.
TYPE_CHECKING = False

__all__ = ["TYPE_CHECKING", "NamedTuple", "Protocol", "cast", "overload"]

if TYPE_CHECKING:
    from typing import Any, NamedTuple, Protocol, cast, overload
else:

    class _Maker(type):
        """Makes a named tuple of a class whose body declares the fields."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = body["__annotations__"]
            defaults = [body[field] for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])  # noqa: PYI024
            for key, value in body.items():
                if key not in fields:
                    setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_Maker):
        """The base of classes that are named tuples."""

    class Protocol:
        """The base of classes that say what others have to have."""

    def cast(_kind: object, value: Any) -> Any:  # noqa: ANN401 - as typing's
        """*value*, which is known to be of that kind."""
        return value

    def overload(function: Any) -> Any:  # noqa: ANN401 - as typing's
        """*function*, which tells of one way to call the one behind it."""
        return function
