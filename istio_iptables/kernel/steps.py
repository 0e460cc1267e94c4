"""Steps that are done one after the other: all of them, or none."""

from __future__ import annotations

from istio_iptables.errors import KernelRefused
from istio_iptables.interrupts import held
from istio_iptables.kernel.backend import retrying
from istio_iptables.kernel.reserve import Reserve
from istio_iptables.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Step", "carry_out"]


class Step(NamedTuple):
    """One thing to do, and how to take it back, be it done, half done or not done at all."""

    what: str
    do: Callable[[], None]
    back: Callable[[], None]


def carry_out(steps: Sequence[Step], tell_done: Callable[[], object]) -> None:
    """Do the steps; if something is raised, take back what was done and raise it again.

    Interrupts wait until it is over, and *tell_done* has said so.
    """
    begun: list[Step] = []
    with held(), Reserve() as reserve:
        try:
            for step in steps:
                begun.append(step)
                step.do()
        except BaseException as error:
            reserve.release()
            failed = _take_back(begun)
            if isinstance(error, KernelRefused):
                lines = [*error.lines, *failed]
                if len(begun) > 1 and not failed:
                    lines.append("everything that was changed before was put back")
                refused = KernelRefused(*lines)
                # Not to be tried again after a failed roll-back: the half would pass for the old state.
                refused.busy = error.busy and not failed
                raise refused from error
            if failed:
                what = f"{type(error).__name__}: {error}".rstrip(": ")
                message = f"the change was broken off: {what}"
                raise KernelRefused(message, *failed) from error
            raise
        tell_done()


def _take_back(begun: Sequence[Step]) -> list[str]:
    """Take back the steps, the last of which may be done or not; what could not be, as lines."""
    failed: list[str] = []
    for step in reversed(begun):
        try:
            retrying(step.back)
        except KernelRefused as error:
            failed += (f"could not put back {step.what}: {line}" for line in error.lines)
        except Exception as error:  # noqa: BLE001 - the other steps have to go back all the same
            failed.append(f"could not put back {step.what}: {type(error).__name__}: {error}")
    return failed
