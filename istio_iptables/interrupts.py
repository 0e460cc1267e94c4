"""Interrupts as one exception, and held back while a change of the kernel is under way.

Python drops an exception that is raised while it runs a finalizer, with a traceback. An
interrupt that comes just then is raised again a little later, by the alarm clock.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager

from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import NoReturn

__all__ = [
    "TRACEBACK",
    "Interrupted",
    "as_by_default",
    "held",
    "is_waiting",
    "mask_of_children",
    "raised",
    "take",
]

#: The variable that is set by those who look for a mistake in the program.
TRACEBACK = "ISTIO_IPTABLES_TRACEBACK"

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Of the alarm clock; long enough for a finalizer to be over.
_LATER_SECONDS = 0.002

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


#: The one that Python has dropped; the alarm clock raises it again.
_dropped = 0


def _raise(number: int, _frame: FrameType | None) -> NoReturn:
    # An alarm may come from whoever started us as well.
    raise Interrupted((number == signal.SIGALRM and _dropped) or number)


@contextmanager
def raised() -> Iterator[None]:
    """INT, TERM and HUP raise Interrupted in the block; one that is ignored stays ignored.

    In a thread that is not the main one nothing changes: Python handles no signals there.
    """
    # Who never imported it (0.5 ms) has no other threads.
    threading = sys.modules.get("threading")
    if threading is not None and threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: handler
        for number in (*_SIGNALS, signal.SIGALRM)
        # None is a handler that was not made by Python, and can't be put back by it.
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    hook = sys.unraisablehook

    # Whatever else a finalizer raises, of a library that ran out of something, is for nobody.
    def unraisable(dropped: sys.UnraisableHookArgs) -> None:
        global _dropped  # noqa: PLW0603 - the handler of a signal gets nothing but its number
        if isinstance(dropped.exc_value, Interrupted):
            _dropped = dropped.exc_value.number
            signal.setitimer(signal.ITIMER_REAL, _LATER_SECONDS)
        elif os.environ.get(TRACEBACK):
            hook(dropped)

    try:
        for number in before:
            signal.signal(number, _raise)
        sys.unraisablehook = unraisable
        yield
    finally:
        sys.unraisablehook = hook
        if before.get(signal.SIGALRM, _raise) is not _raise:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            # Those that the block had changed itself are as it left them.
            if signal.getsignal(number) is _raise:
                signal.signal(number, handler)


def as_by_default() -> None:
    """In a forked process that is to end by these signals as any other does."""
    for number in (*_SIGNALS, signal.SIGALRM):
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
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_SIGNALS, signal.SIGALRM))
        _before = mask
        yield
    finally:
        _before = None
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def is_waiting() -> bool:
    """Whether a signal has come that is held back."""
    return bool(signal.sigpending() & _not_ignored())


def take(seconds: float) -> bool:
    """Wait for a signal that is held back, *seconds* at most; returns whether one came, which then is gone."""
    return signal.sigtimedwait(_not_ignored(), seconds) is not None


def _not_ignored() -> set[signal.Signals]:
    # The kernel keeps one that is blocked, whether it is ignored or not.
    return {number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}


def mask_of_children() -> set[int | signal.Signals]:
    """The signal mask for a child process, which must not hold signals back as we may do."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, ()) if _before is None else _before
