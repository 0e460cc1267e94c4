"""Does a connection really arrive: Istio's validation, and the reason when it does not.

As Istio's validator, it listens where Envoy will (on loopback, both listeners) and connects as
the proxy would to its own pod (127.0.0.6, ::6). With the rules in place that connection ends
at a listener, which asks the kernel for the port it was meant for.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables import interrupts
from istio_iptables.errors import KernelRefused, ValidationFailed
from istio_iptables.kernel.namespace import entered
from istio_iptables.kernel.routes import delivers
from istio_iptables.netfilter.model import Family

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from istio_iptables.netfilter.plan import PolicyRoute

__all__ = ["Probe", "validate"]

_SO_ORIGINAL_DST = 80
_RETRY_SECONDS = 0.1
_LISTEN = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}
_CONNECT = {Family.IPV4: "127.0.0.6", Family.IPV6: "::6"}


class Probe(NamedTuple):
    """What to try: listeners, the port to connect to, as whom, and for how many seconds."""

    families: tuple[Family, ...]
    #: Envoy's listeners, outbound and inbound.
    listeners: tuple[int, ...]
    port: int
    #: Ids the rules know the proxy by, as (first, last).
    uids: Sequence[tuple[int, int]]
    gids: Sequence[tuple[int, int]]
    timeout: float
    #: The policy routes without which what is captured never arrives.
    routes: tuple[PolicyRoute, ...] = ()


def validate(probe: Probe, tell: Callable[[str], None], *, namespace: str = "") -> None:
    """Return when a connection of each family was captured.

    Under TPROXY that is the way by nat, which the policy routes have no part in: they are looked
    at for themselves. Raises ValidationFailed, one line a family and a route, with the reason as
    far as it can be known, and KernelRefused if the kernel can't be asked.
    """
    with entered(namespace):
        problems = []
        for family in probe.families:
            problem = _attempt(probe, family)
            if problem:
                problems.append(f"{family.title}: {problem}")
            else:
                tell(f"{family.title}: a connection to port {probe.port} was captured")
        problems += (
            f"{route.family.title}: the policy route is missing: what TPROXY captures is not"
            f" delivered, and answers of the application do not come back"
            f" ({'; '.join(' '.join(command) for command in route.commands)})"
            for route in probe.routes
            if not delivers(route)
        )
    if problems:
        raise ValidationFailed(*problems)


def _attempt(probe: Probe, family: Family) -> str:
    """Why no connection arrived within the time; "" if one did."""
    target = f"{_CONNECT[family]} port {probe.port}"
    with ExitStack() as open_sockets:
        listening, taken = _listen(probe, family, open_sockets)
        if not listening:
            return f"listener taken: {taken}; is Envoy running already?"
        end = time.monotonic() + probe.timeout
        last = errno.ETIMEDOUT
        while (left := end - time.monotonic()) > 0:
            last = _connect_as_proxy(probe, family, left)
            if last == 0 and _arrived(listening, probe.port, family, min(left, _RETRY_SECONDS)):
                return ""
            time.sleep(min(_RETRY_SECONDS, max(0.0, end - time.monotonic())))
    return _reason(probe, last, target, taken)


def _reason(probe: Probe, last: int, target: str, taken: str) -> str:
    """Why no connection arrived, from the error number of the *last* one."""
    if not _is_proxy(probe) and not _can_become_proxy(probe):
        return (
            f"not running as the proxy: the rules know users {_ids(probe.uids)} and groups"
            f" {_ids(probe.gids)}, this is user {os.geteuid()}, group {os.getegid()}, which may"
            " not become one of them (CAP_SETUID)"
        )
    if last == 0:
        return f"rules missing: {target} answered itself, nothing led the connection to Envoy"
    if last == errno.ECONNREFUSED:
        held = f" (or it went to a listener that was taken: {taken})" if taken else ""
        return f"rules missing: the connection to {target} was not captured{held}"
    hint = ""
    if last in {errno.EADDRNOTAVAIL, errno.ENETUNREACH}:
        hint = "; is lo up, and has it the address?"
    return f"no connection to {target} in {probe.timeout:g} s: {os.strerror(last)}{hint}"


def _ids(ranges: Sequence[tuple[int, int]]) -> str:
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _listen(
    probe: Probe, family: Family, open_sockets: ExitStack
) -> tuple[list[socket.socket], str]:
    """The listeners that could be had, and which ones could not."""
    listening, taken = [], []
    for port in dict.fromkeys(probe.listeners):
        try:
            listener = open_sockets.enter_context(socket.socket(family.number, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((_LISTEN[family], port))
            listener.listen(16)
        except OSError as error:
            taken.append(f"{_LISTEN[family]} port {port} ({error.strerror})")
            continue
        listener.settimeout(0)
        listening.append(listener)
    return listening, ", ".join(taken)


def _arrived(listening: Sequence[socket.socket], port: int, family: Family, seconds: float) -> bool:
    """Whether a listener has a connection that was meant for *port*."""
    with selectors.DefaultSelector() as selector:
        for listener in listening:
            selector.register(listener, selectors.EVENT_READ, listener)
        for key, _ in selector.select(seconds):
            try:
                connection, _ = key.data.accept()
            except OSError:
                # Who connected has given up already.
                continue
            with connection:
                if _original_port(connection, family) == port:
                    return True
    return False


def _original_port(connection: socket.socket, family: Family) -> int | None:
    """The port the connection was made to, before the rules turned it round."""
    level, size = (socket.SOL_IP, 16) if family is Family.IPV4 else (socket.IPPROTO_IPV6, 28)
    try:
        address = connection.getsockopt(level, _SO_ORIGINAL_DST, size)
    except OSError:
        return None
    return int(struct.unpack_from("!H", address, 2)[0])


def _is_proxy(probe: Probe) -> bool:
    return any(low <= os.geteuid() <= high for low, high in probe.uids) or any(
        low <= os.getegid() <= high for low, high in probe.gids
    )


def _can_become_proxy(probe: Probe) -> bool:
    """Whether a child of ours may take a user or a group id that the rules know."""

    def become() -> int:
        try:
            os.setgid(probe.gids[0][0])
        except OSError:
            os.setuid(probe.uids[0][0])
        return 0

    return _in_child(become) == 0


def _in_child(work: Callable[[], int]) -> int:
    """The small number that *work* returns in a process of its own, or that of its OSError."""
    try:
        child = os.fork()
    except OSError as error:
        message = f"can't start a process for the probe: {error.strerror}"
        raise KernelRefused(message) from error
    if child == 0:
        interrupts.as_by_default()
        status = errno.EIO
        try:
            status = work()
        except OSError as error:
            status = error.errno or errno.EIO
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _connect_as_proxy(probe: Probe, family: Family, seconds: float) -> int:
    """Connect once, as the proxy if we may be it; returns the error number, 0 for none."""
    if _is_proxy(probe):
        return _connect(probe, family, seconds)

    def connect() -> int:
        # Istio's validator stays root here, and so it always fails as root.
        with suppress(OSError):
            os.setgroups([])
            os.setgid(probe.gids[0][0])
        with suppress(OSError):
            os.setuid(probe.uids[0][0])
        return _connect(probe, family, seconds)

    return _in_child(connect)


def _connect(probe: Probe, family: Family, seconds: float) -> int:
    try:
        with socket.socket(family.number, socket.SOCK_STREAM) as client:
            client.settimeout(seconds)
            client.bind((_LISTEN[family], 0))
            client.connect((_CONNECT[family], probe.port))
    except TimeoutError:
        return errno.ETIMEDOUT
    except OSError as error:
        return error.errno or errno.EIO
    return 0
