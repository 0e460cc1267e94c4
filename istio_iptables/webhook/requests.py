"""HTTP: which requests are read at all, reviews, health, metrics; all others get an error and no more."""

from __future__ import annotations

import http.client
import json
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from istio_iptables import __version__
from istio_iptables.webhook.review import NoReview, answer

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator, Mapping

    from istio_iptables.webhook.log import Log
    from istio_iptables.webhook.review import Settings
    from istio_iptables.webhook.server import Client, Server

__all__ = ["Health", "Reviews"]

#: What istiod reads; Kubernetes stores no object of more than 1.5 MiB.
_LARGEST_BODY = 6 << 20
#: Of larger ones only so many are read at a time: all connections at once would fill any memory.
_LARGE_BODY = 256 << 10
_LARGE_BODIES = 8
#: More than the longest line that the library takes.
_LARGEST_HEAD = 128 << 10
_TEXT = "text/plain; charset=utf-8"


class _Head:
    """What a request is read from, with a limit for all lines before its body."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._left = _LARGEST_HEAD
        self.read = file.read

    def readline(self, size: int) -> bytes:
        """The next line of the head."""
        if not self._left:
            message = "head of the request"
            raise http.client.LineTooLong(message)
        line = self._file.readline(min(size, self._left))
        self._left -= len(line)
        return line


class Health(BaseHTTPRequestHandler):
    """``/healthz`` and ``/ready``, and what else can be read with GET."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"
    server_version = f"istio-iptables/{__version__}"
    sys_version = ""

    def __init__(
        self,
        client: Client,
        address: Any,  # noqa: ANN401 - socketserver's
        server: Server,
        pages: Mapping[str, tuple[str, Callable[[], bytes]]] | None = None,
    ) -> None:
        #: What can be read beside them, its type, and what makes it.
        self._pages = pages or {}
        self._client = client
        self._unread = False
        self.server: Any = server
        self.client_address = address
        # Written as one, so that a small answer is one packet.
        self.wfile = client.connection.makefile("wb")
        self._input = client.connection.makefile("rb")

    def handle(self) -> bool:  # type: ignore[override]  # socketserver does not call it
        """Handle requests until one of the sides ends it; returns whether the client may still send."""
        # Whatever still refers to the socket keeps it from being closed.
        with self.wfile, self._input:
            self.close_connection = False
            # Up to the first byte of the next one.
            while not self.close_connection and self._input.peek(1):
                self._client.begins()
                self._unread = False
                self.rfile = _Head(self._input)  # type: ignore[assignment]  # what is used of it
                self.handle_one_request()
                self.wfile.flush()
                self._client.waits_idle()
            return self._unread

    def do_GET(self) -> None:
        """A page, or how it is."""
        path = self.path.partition("?")[0]
        if path in self._pages:
            kind, content = self._pages[path]
            self._answer(HTTPStatus.OK, content(), kind)
        elif path == "/healthz" or (path == "/ready" and not self.server.draining):
            self._answer(HTTPStatus.OK, b"ok\n")
        elif path == "/ready":
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"draining\n")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with an error in one line; the connection is then closed."""
        status = HTTPStatus(code)
        self.close_connection = True
        self._unread = True
        self.failed(status, explain or message or status.phrase)
        self._answer(status, f"{explain or message or status.phrase}\n".encode(errors="replace"))

    def failed(self, status: HTTPStatus, reason: str) -> None:
        """Hear of an error that is answered."""

    def log_message(self, *_: object) -> None:
        """Say nothing: the log has a line for each review."""

    def _answer(self, status: HTTPStatus, content: bytes, kind: str = _TEXT) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "POST")
        if self.server.draining:
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if getattr(self, "command", None) != "HEAD":
            self.wfile.write(content)


class Reviews(Health):
    """Health, and reviews at ``/inject`` and below."""

    #: One review after the other: of two at once both would take twice as long, and the memory of both.
    _turn = threading.Lock()
    _large = threading.Semaphore(_LARGE_BODIES)

    def __init__(
        self,
        client: Client,
        address: Any,  # noqa: ANN401 - socketserver's
        server: Server,
        settings: Callable[[], Settings],
        log: Log,
    ) -> None:
        super().__init__(client, address, server)
        self._settings = settings
        self._log = log

    @property
    def _is_review(self) -> bool:
        path = self.path.partition("?")[0]
        return path == "/inject" or path.startswith("/inject/")

    def do_GET(self) -> None:
        """Health."""
        if self._is_review:
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)
        else:
            super().do_GET()

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def do_POST(self) -> None:
        """Answer a review."""
        if refusal := self._refusal():
            self.send_error(*refusal)
            return
        length = int(self.headers["Content-Length"])
        if length <= _LARGE_BODY:
            self._review(length)
        elif self._large.acquire(blocking=False):
            try:
                self._review(length)
            finally:
                self._large.release()
        else:
            message = (
                f"{_LARGE_BODIES} reviews of more than {_LARGE_BODY} bytes are on their way already"
            )
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, message)

    def _review(self, length: int) -> None:
        body = self.rfile.read(length)
        if len(body) < length:
            self.send_error(HTTPStatus.BAD_REQUEST, "the body is shorter than its Content-Length")
            return
        self._client.works()
        try:
            with self._turn:
                started = time.perf_counter()
                found = answer(body, self.path.partition("?")[0], self._settings())
                content = json.dumps(found.document, separators=(",", ":"), allow_nan=False)
                seconds = time.perf_counter() - started
        except NoReview as error:
            self._client.begins()
            self.send_error(HTTPStatus.BAD_REQUEST, str(error))
            return
        self._client.begins()
        self._log.review(found, seconds)
        self._answer(HTTPStatus.OK, content.encode(), "application/json")

    def handle_expect_100(self) -> bool:
        """Ask for the body, unless it is refused by what is known already."""
        if refusal := self._refusal():
            self.send_error(*refusal)
            return False
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def failed(self, status: HTTPStatus, reason: str) -> None:
        """Log a request that is no review."""
        self._log.no_review(getattr(self, "path", ""), status, reason)

    def _refusal(self) -> tuple[HTTPStatus, str] | None:
        """Why the body of this request is not read."""
        return next(self._refusals(), None) if self.command == "POST" else None

    def _refusals(self) -> Iterator[tuple[HTTPStatus, str]]:
        if not self._is_review:
            yield HTTPStatus.NOT_FOUND, "reviews are answered at /inject"
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            yield HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type has to be application/json"
        if self.headers.get("Content-Encoding", "identity") != "identity":
            yield HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Encoding is not read"
        lengths = set(self.headers.get_all("Content-Length", []))
        if "Transfer-Encoding" in self.headers or not lengths:
            yield HTTPStatus.LENGTH_REQUIRED, "Content-Length is needed"
        length = lengths.pop()
        if lengths or not (length.isascii() and length.isdigit()):
            yield HTTPStatus.BAD_REQUEST, "Content-Length is no number"
        if len(length.lstrip("0")) > len(str(_LARGEST_BODY)) or int(length) > _LARGEST_BODY:
            yield (
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body is larger than {_LARGEST_BODY} bytes",
            )
