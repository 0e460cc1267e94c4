"""The locks that keep two programs from changing one namespace's rules at once."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import ExitStack, contextmanager

from istio_iptables.errors import KernelRefused
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["WAIT_SECONDS", "locked"]

#: As long as Istio lets iptables wait (--wait=30).
WAIT_SECONDS = 30.0

_POLL_SECONDS = 0.02
_TELL_AFTER_SECONDS = 1.0
_DEFAULT_FILE = "/run/xtables.lock"
_NAMESPACE_FILE = "/proc/thread-self/ns/net"


@contextmanager
def locked(
    tell: Callable[[str], None], *, pod_only: bool = False, wait: float = WAIT_SECONDS
) -> Iterator[None]:
    """Hold the locks for the length of the block.

    The namespace's own file is locked always: it is the same file in every container of a pod,
    and nft programs know no other lock. The file that iptables locks ($XTABLES_LOCKFILE, else
    /run/xtables.lock) is locked too, but for *pod_only* (--cni-mode), where it would be the
    node's. Raises KernelRefused after *wait* seconds, naming the holder if it can be known.
    """
    with ExitStack() as held:
        try:
            namespace = os.open(_NAMESPACE_FILE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            message = f"can't lock the network namespace: {_NAMESPACE_FILE}: {error.strerror}"
            if error.errno == errno.ENOENT:
                message += " (is /proc mounted?)"
            raise KernelRefused(message) from error
        held.callback(os.close, namespace)
        _take(namespace, "of the network namespace", tell, wait)
        if not pod_only:
            path = os.environ.get("XTABLES_LOCKFILE") or _DEFAULT_FILE
            file = _open(path, tell)
            if file is not None:
                held.callback(os.close, file)
                _take(file, path, tell, wait)
        yield


def _open(path: str, tell: Callable[[str], None]) -> int | None:
    """The lock file, made if need be; None if it can't be had and was not asked for by name."""
    try:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            # Enough for a lock: the file may be root's, or on a read-only file system.
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if os.environ.get("XTABLES_LOCKFILE"):
            message = f"can't open the lock {path} ($XTABLES_LOCKFILE): {error.strerror}"
            raise KernelRefused(message) from error
        reason = "no such directory" if error.errno == errno.ENOENT else error.strerror
        tell(f"no lock {path} ({reason}): only the namespace's own lock is taken")
        return None


def _take(file: int, name: str, tell: Callable[[str], None], wait: float) -> None:
    start = time.monotonic()
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - start
            if waited >= wait:
                message = f"the xtables lock {name} was not free for {wait:g} s{_holder(file)}"
                raise KernelRefused(message) from None
            if not told and waited >= _TELL_AFTER_SECONDS:
                tell(f"waiting for the xtables lock {name}{_holder(file)}")
                told = True
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            message = f"can't take the xtables lock {name}: {error.strerror}"
            raise KernelRefused(message) from error
        else:
            return


def _holder(file: int) -> str:
    """Who holds the lock, as far as /proc tells: `` (held by iptables, process 17)``."""
    status = os.fstat(file)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="utf-8", errors="replace") as locks:
            for line in locks:
                words = line.split()
                if device in words and "FLOCK" in words and "->" not in words:
                    process = words[4]
                    with open(f"/proc/{process}/comm", encoding="utf-8", errors="replace") as name:
                        return f" (held by {name.read().strip()}, process {process})"
    except (OSError, IndexError):
        pass
    return ""
