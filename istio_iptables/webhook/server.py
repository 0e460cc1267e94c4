"""A server whose threads are limited, and whose clients can't keep one for longer than they may."""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["REQUEST_SECONDS", "Client", "Server"]

#: From the first byte to the last: as long as the API server waits for an answer, unless told otherwise.
REQUEST_SECONDS = 10.0
#: Between two requests: longer than the 90 seconds that Go's clients keep a connection.
_IDLE_SECONDS = 120.0
#: For a client to read an error that came before it had sent everything.
_LAST_SECONDS = 1.0
#: How often it is seen to who has had their time.
_LOOK_SECONDS = 0.1


class Client:
    """A connection, and since when the server waits for the other side."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        #: True between two requests.
        self.idle = False
        self._since = self.deadline = 0.0
        self.waits(REQUEST_SECONDS)

    @property
    def since(self) -> float:
        """When the waiting began; never while the server itself is at work."""
        return self._since

    def waits(self, seconds: float) -> None:
        """From now on, for so long at most, it is the client's turn."""
        self._since = time.monotonic()
        self.deadline = self._since + seconds

    def waits_idle(self) -> None:
        """It may send another request."""
        self.idle = True
        self.waits(_IDLE_SECONDS)

    def begins(self) -> None:
        """The first byte of a request has come."""
        self.idle = False
        self.waits(REQUEST_SECONDS)

    def works(self) -> None:
        """It is the server's turn, which nobody cuts short."""
        self._since = self.deadline = float("inf")

    def cut(self) -> None:
        """End the connection, whatever its thread is waiting for."""
        with suppress(OSError):
            # Not the method of SSLSocket, which takes the TLS away from the thread that uses it.
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)

    def close(self, *, unread: bool) -> None:
        """Close the connection; with *unread*, what the client still sends is thrown away first.

        Otherwise the kernel would reset the connection, and the client may never see the answer.
        """
        self.waits(_LAST_SECONDS)
        with suppress(OSError, ValueError):
            if isinstance(self.connection, ssl.SSLSocket):
                # Says that this is the end, and that nobody cut it off.
                self.connection.unwrap()
        with suppress(OSError, ValueError):
            self.connection.shutdown(socket.SHUT_WR)
            while unread and self.connection.recv(1 << 16):
                pass
        self.connection.close()


class Server(socketserver.TCPServer):
    """A thread a connection, up to *limit*; then who has waited longest for its client has to go.

    *handler* is made with the connection, its address and this server, and handles it. *context*
    is asked for each connection how it is made; None for plain HTTP. *failed* hears of a connection
    that ended by an error: its address, and the reason.
    """

    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(
        self,
        address: tuple[str, int],
        handler: Callable[[Any, Client, Server], Any],
        *,
        limit: int,
        context: Callable[[], ssl.SSLContext] | None = None,
        failed: Callable[[str, str], object] = lambda _address, _reason: None,
    ) -> None:
        if ":" in address[0] or not address[0]:
            self.address_family = socket.AF_INET6
        self._handler = handler
        self._context = context
        self._failed = failed
        self._free = threading.Semaphore(limit)
        self._lock = threading.Lock()
        self._clients: set[Client] = set()
        self.draining = False
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind; an address of IPv6 that is every address takes IPv4 as well."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._clients)

    def start(self) -> None:
        """Serve in a thread of its own."""
        threading.Thread(target=self.serve_forever, args=(_LOOK_SECONDS,), daemon=True).start()

    def drain(self, seconds: float, *, or_when: Callable[[], bool] = lambda: False) -> bool:
        """Take no more connections, and finish what has begun, in *seconds* or until *or_when* says so.

        Returns whether that was enough time.
        """
        self.draining = True
        self.shutdown()
        # Those that the kernel has taken already.
        self.timeout = 0
        while self.socket.fileno() >= 0:
            self.handle_request()
        end = time.monotonic() + seconds
        while self._clients and time.monotonic() < end and not or_when():
            self._cut(lambda each: each.idle)
            self.service_actions()
            time.sleep(0.01)
        return not self._clients

    def handle_timeout(self) -> None:
        """There are no more connections to be taken."""
        self.socket.close()

    def service_actions(self) -> None:
        """Cut off who has had their time."""
        now = time.monotonic()
        self._cut(lambda each: each.deadline < now)

    def _cut(self, chosen: Callable[[Client], bool]) -> None:
        with self._lock:
            for each in self._clients:
                if chosen(each):
                    each.cut()

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection; its handshake is its thread's."""
        connection, address = super().get_request()
        # A large answer takes several packets, and none of them waits until the last one was acknowledged.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is None:
            return connection, address
        try:
            wrapped = self._context().wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        except (OSError, ValueError) as error:
            # It has gone again.
            connection.close()
            raise OSError(str(error)) from error
        return wrapped, address

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - socketserver's
        """Handle a connection in a thread, as soon as one is free."""
        if not self._free.acquire(blocking=False):
            self._make_room()
            while not self._free.acquire(timeout=_LOOK_SECONDS):
                # All of them were at work, or one takes its time to end.
                self.service_actions()
                self._make_room()
        client = Client(request)
        with self._lock:
            self._clients.add(client)
        try:
            threading.Thread(target=self._work, args=(client, client_address), daemon=True).start()
        except RuntimeError:
            # No more threads on this machine.
            self._forget(client)
            client.close(unread=False)

    def _make_room(self) -> None:
        with self._lock:
            waiting = [each for each in self._clients if each.deadline < float("inf")]
            if waiting:
                min(waiting, key=lambda each: each.since).cut()

    def _forget(self, client: Client) -> None:
        with self._lock:
            self._clients.discard(client)
        self._free.release()

    def _work(self, client: Client, address: Any) -> None:  # noqa: ANN401 - socketserver's
        unread = False
        try:
            if isinstance(client.connection, ssl.SSLSocket):
                client.connection.do_handshake()
            unread = self._handler(client, address, self).handle()
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
            # The other side has gone, or was cut off.
            pass
        except ssl.SSLError as error:
            self._failed(str(address[0]), f"TLS: {error.reason or error}")
        except Exception as error:  # noqa: BLE001 - one connection ends, and the others go on
            self._failed(str(address[0]), f"internal error: {type(error).__name__}: {error}")
        finally:
            client.close(unread=unread)
            self._forget(client)
