"""Connections without pause while a test changes the rules, and where each of them ended."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from tests.kernel.sandbox import command, forked
from tests.namespaces import new_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["APPLICATION", "INBOUND", "OUTBOUND", "OUTSIDE", "calling", "peer", "serving"]

#: Envoy's two listeners, and the application's own, which nobody may reach past Envoy.
OUTBOUND, INBOUND, APPLICATION = 15001, 15006, 8080

#: The pod's address, and that of a host outside on which the application's port is open too.
INSIDE, OUTSIDE = "10.20.0.1", "10.20.0.2"

_IP_TRANSPARENT = 19
_NO_LINGER = struct.pack("ii", 1, 0)


def _serve(ports: tuple[int, ...]) -> int:
    """Accept connections on each port, for ever; tell each client which port that was."""
    waiting = selectors.DefaultSelector()
    for port in ports:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
        listener.bind(("0.0.0.0", port))  # noqa: S104 - in a namespace of the test
        listener.listen(512)
        listener.settimeout(0)
        waiting.register(listener, selectors.EVENT_READ, port)
    while True:
        for key, _ in waiting.select():
            with contextlib.suppress(OSError):
                connection, _address = key.fileobj.accept()  # type: ignore[union-attr]  # a socket
                connection.sendall(f"{key.data}".encode())
                connection.close()


def _call(address: str, end: list[bool]) -> Counter[str]:
    """Connect, read who answered, and again, until *end*; how often each thing happened."""
    seen: Counter[str] = Counter()
    while not end:
        with socket.socket() as client:
            client.settimeout(5)
            # Ports come free at once: otherwise they would be used up within a minute.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            try:
                client.connect((address, APPLICATION))
                seen[client.recv(16).decode() or "closed"] += 1
            except OSError as error:
                seen[type(error).__name__] += 1
        # Half the time of a processor is for the one who replaces.
        time.sleep(0.0005)
    return seen


@contextlib.contextmanager
def _child(work: Callable[[], int]) -> Iterator[None]:
    child = forked(work)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@contextlib.contextmanager
def serving(*ports: int) -> Iterator[None]:
    """Listeners on these ports of this namespace."""
    with _child(partial(_serve, ports)):
        _wait_for(ports[-1])
        yield


def _wait_for(port: int) -> None:
    for _ in range(200):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    message = f"nothing listens on port {port}"
    raise TimeoutError(message)


@contextlib.contextmanager
def peer() -> Iterator[int]:
    """A host outside, in a network namespace of its own behind veth0, that serves the application's
    port; its process.
    """  # noqa: D205 - one sentence
    ready, told = os.pipe()
    go, gone = os.pipe()

    def work() -> int:
        new_network()
        os.write(told, b"1")
        os.read(go, 1)
        return _serve((APPLICATION,))

    child = forked(work)
    try:
        os.read(ready, 1)
        command("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        command("ip", "link", "set", "veth1", "netns", str(child))
        command("ip", "addr", "add", f"{INSIDE}/24", "dev", "veth0")
        command("ip", "link", "set", "veth0", "up")
        there = ("nsenter", f"--net=/proc/{child}/ns/net", "ip")
        command(*there, "addr", "add", f"{OUTSIDE}/24", "dev", "veth1")
        command(*there, "link", "set", "veth1", "up")
        os.write(gone, b"1")
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for end in (ready, told, go, gone):
            os.close(end)


@contextlib.contextmanager
def calling(address: str, results: Path, *, namespace: int = 0) -> Iterator[None]:
    """A client, no proxy, that opens connections to the application's port of *address*.

    It runs in the network namespace of the process *namespace*, if any; *results* holds, after
    the block, how often each listener answered, or what else happened.
    """

    def work() -> int:
        if namespace:
            with open(f"/proc/{namespace}/ns/net", "rb") as there:  # noqa: PTH123 - the descriptor
                _setns(there.fileno())
        written = os.open(results, os.O_WRONLY | os.O_CREAT)
        os.setgid(2000)
        os.setuid(2000)
        end: list[bool] = []
        signal.signal(signal.SIGTERM, lambda *_: end.append(True))
        os.write(written, json.dumps(_call(address, end)).encode())
        return 0

    child = forked(work)
    try:
        yield
    finally:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


def _setns(descriptor: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0):
        raise OSError(ctypes.get_errno(), "setns")
