"""What the lab's own servers and clients say to each other: a little HTTP, a little DNS."""

from __future__ import annotations

import json
import struct
from ipaddress import ip_address
from typing import Any, NamedTuple

from istio_iptables.errors import KernelRefused

__all__ = [
    "Response",
    "dns_answer",
    "dns_query",
    "dns_seen",
    "http_request",
    "http_response",
    "is_complete",
    "read_http",
]

_TYPE_TXT = 16
_CLASS_IN = 1
_QUESTION_FLAGS, _ANSWER_FLAGS = 0x0100, 0x8180
_HEADER = struct.Struct("!6H")


class Response(NamedTuple):
    """An HTTP response."""

    status: int
    body: bytes


def http_request(path: str, host: str) -> bytes:
    """A request for *path* on a connection of its own."""
    host = f"[{host}]" if ":" in host else host
    # Envoy answers HTTP/1.0 with 426.
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def http_response(value: dict[str, Any]) -> bytes:
    """A response that carries *value* as JSON."""
    body = f"{json.dumps(value)}\n".encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def read_http(text: bytes) -> Response:
    """The response that *text*, all of a connection, is; status 0 for none."""
    head, _, body = text.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    words = lines[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/"):  # noqa: PLR2004 - version and status
        return Response(0, text)
    if any(line.lower().replace(b" ", b"") == b"transfer-encoding:chunked" for line in lines):
        body = _unchunked(body)
    return Response(int(words[1]), body)


def is_complete(text: bytes) -> bool:
    """Whether *text* holds a whole response, so that there is no need to wait for the end."""
    head, end, body = text.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return bool(end) and len(body) >= int(value)
        if name == b"transfer-encoding":
            return body.endswith(b"\r\n0\r\n\r\n")
    return False


def _unchunked(text: bytes) -> bytes:
    body = b""
    while text:
        size, _, text = text.partition(b"\r\n")
        length = int(size.partition(b";")[0] or b"0", 16)
        body += text[:length]
        text = text[length + 2 :]
        if not length:
            break
    return body


def dns_query(number: int) -> bytes:
    """A question for the text record of ``who.lab``."""
    name = b"\x03who\x03lab\x00"
    return _HEADER.pack(number, _QUESTION_FLAGS, 1, 0, 0, 0) + name + struct.pack("!HH", 16, 1)


def dns_answer(query: bytes, who: str, peer: str) -> bytes:
    """The answer to *query*: who answers, and whom they saw."""
    (number,) = struct.unpack_from("!H", query)
    # What comes behind the question, such as EDNS, is not answered.
    question = query[_HEADER.size : query.index(b"\0", _HEADER.size) + 5]
    texts = b"".join(bytes([len(text)]) + text for text in (who.encode(), peer.encode()))
    record = b"\xc0\x0c" + struct.pack("!HHIH", _TYPE_TXT, _CLASS_IN, 0, len(texts)) + texts
    return _HEADER.pack(number, _ANSWER_FLAGS, 1, 1, 0, 0) + question + record


def dns_seen(answer: bytes, number: int) -> tuple[str, str]:
    """Who answered and whom they saw; raises KernelRefused when that is no such answer."""
    query = dns_query(number)
    texts = answer[len(query) + 12 :]
    if len(answer) < len(query) or answer[:2] != query[:2] or not texts:
        message = "what came back is not the answer to the DNS query"
        raise KernelRefused(message)
    first = texts[1 : 1 + texts[0]]
    second = texts[2 + texts[0] :]
    return first.decode(), str(ip_address(second.decode()))
