"""Interrupts as one exception, and held back while a change of the kernel is under way.

Imports nothing but the standard library's signal module: it is there before everything else.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["Interrupted", "as_by_default", "held", "mask_of_children", "raised"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: The signal mask from before they were held back; None while they are not.
_before: set[int | signal.Signals] | None = None


class Interrupted(BaseException):
    """One of the signals that ask a program to end has come.

    No KeyboardInterrupt, which click would turn into an exception and a line of its own.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def status(self) -> int:
        """The exit status that tells of it, as shells count."""
        return 128 + self.number


def _raise(number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


@contextmanager
def raised() -> Iterator[None]:
    """INT, TERM and HUP raise Interrupted in the block; one that is ignored stays ignored.

    In a thread that is not the main one nothing changes: Python handles no signals there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: handler
        for number in _SIGNALS
        # None is a handler that was not made by Python, and can't be put back by it.
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    try:
        for number in before:
            signal.signal(number, _raise)
        yield
    finally:
        for number, handler in before.items():
            # Those that the block had changed itself are as it left them.
            if signal.getsignal(number) is _raise:
                signal.signal(number, handler)


def as_by_default() -> None:
    """In a forked process that is to end by these signals as any other does."""
    for number in _SIGNALS:
        if signal.getsignal(number) is _raise:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)


@contextmanager
def held() -> Iterator[None]:
    """INT, TERM and HUP wait until the end of the block."""
    global _before  # noqa: PLW0603 - a process has one mask, and its children have to get it
    if _before is not None:
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        # What came before may be raised by this very call, when they are blocked already.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        _before = mask
        yield
    finally:
        _before = None
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def mask_of_children() -> Callable[[], None] | None:
    """What a child process calls before it begins, so that it does not hold signals back too."""
    mask = _before
    if mask is None:
        return None

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return unblock
