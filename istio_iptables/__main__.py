"""``python -m istio_iptables`` is the same as ``istio-iptables``."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until the program takes interrupts itself, one ends the process: Python would show where.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import gc
import os
import sys
from contextlib import suppress

from istio_iptables import interrupts
from istio_iptables.errors import status_of_failure
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["run"]

#: So many objects may be made before Python looks for cycles, of which a run has next to none. With
#: its own 700, that takes 1 ms of a dry run, and 7 ms at 5,000 rules.
_OBJECTS_BETWEEN_COLLECTIONS = 50_000
#: Address space that an installation needs. With less, Python itself may print a traceback, raise a
#: SystemError without a reason, or loop forever in an import.
_ROOM_BYTES = 12 << 20


def run() -> NoReturn:
    """Run the program as this process and end it.

    It ends without Python's taking its modules apart one by one, which is 8 ms of a run of 65
    and helps nobody: the results are written, and the kernel closes what is open.
    """
    try:
        gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
        # No page of it is touched.
        bytes(_ROOM_BYTES)
        # From here on: to load the program takes long enough to be interrupted.
        with interrupts.raised():
            from istio_iptables.cli import main

            status = main()
            for stream in filter(None, (sys.stdout, sys.stderr)):
                with suppress(OSError):
                    # main() has told of what could not be written.
                    stream.flush()
            os._exit(status)
    except interrupts.Interrupted as interrupted:
        _end("interrupted", interrupted.status)
    except MemoryError as error:
        # To let go of what it holds is what makes room for a line.
        error.__traceback__ = error.__context__ = None
        _end("out of memory")
    except Exception as error:
        # Nobody is left who could tell it in a line.
        if os.environ.get(interrupts.TRACEBACK):
            raise
        _end(f"can't start: {type(error).__name__}: {error}")


def _end(line: str, status: int | None = None) -> NoReturn:
    if status is None:
        status = status_of_failure(sys.argv[1:])
    with suppress(OSError):
        os.write(2, f"istio-iptables: error: {line}\n".encode(errors="replace"))
    os._exit(status)


if __name__ == "__main__":
    run()
