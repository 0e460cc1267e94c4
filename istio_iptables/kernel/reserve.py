"""What a roll-back needs, held back: when descriptors or memory are short, that is why there is one."""

from __future__ import annotations

import mmap
import os

from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

from istio_iptables.errors import KernelRefused

__all__ = ["Reserve", "require_space"]

#: The files of a child, those of a table's transaction, and a connection to the kernel.
_DESCRIPTORS = 10
#: Address space, of which no page is touched: to read a large table and to write it again.
_BYTES = 8 << 20


def require_space(size: int) -> None:
    """Raise MemoryError where there are not *size* bytes of address space any more.

    Before a large import: short of memory in the middle of one, Python 3.11 may go round for ever.
    """
    try:
        mmap.mmap(-1, size).close()
    except OSError as error:
        raise MemoryError from error


class Reserve:
    """Descriptors and address space that nothing else has until they are released.

    Raises KernelRefused if there are not enough of them any more.
    """

    def __init__(self) -> None:
        self._descriptors: list[int] = []
        self._space: mmap.mmap | None = None

    def __enter__(self) -> Self:
        try:
            self._space = mmap.mmap(-1, _BYTES)
            self._descriptors.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            while len(self._descriptors) < _DESCRIPTORS:
                self._descriptors.append(os.dup(self._descriptors[0]))
        except OSError as error:
            self.release()
            message = (
                f"nothing was begun, since there is not enough to take it back: {error.strerror}"
            )
            raise KernelRefused(message) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give it all free."""
        if self._space is not None:
            self._space.close()
            self._space = None
        while self._descriptors:
            os.close(self._descriptors.pop())
