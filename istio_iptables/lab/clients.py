"""What the lab sends: requests and queries, in parallel, and what comes back."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from enum import Enum
from typing import NamedTuple

from istio_iptables.errors import KernelRefused
from istio_iptables.lab.messages import dns_query, dns_seen, http_request, is_complete, read_http

__all__ = ["Request", "RequestKind", "Seen", "send"]

_PATIENCE_SECONDS = 5.0
_LENGTH_BYTES = 2


class RequestKind(Enum):
    """What is sent; the value is for people."""

    HTTP = "HTTP"
    #: To Envoy's own ports, which answer with a text and not with whom they saw.
    PLAIN_HTTP = "HTTP, Envoy's own"
    DNS_UDP = "DNS, udp"
    DNS_TCP = "DNS, tcp"

    @property
    def protocol(self) -> int:
        """The number of the protocol below."""
        return socket.IPPROTO_UDP if self is RequestKind.DNS_UDP else socket.IPPROTO_TCP


class Request(NamedTuple):
    """What is sent to where, so many times at once."""

    kind: RequestKind
    address: str
    port: int
    path: str = "/"
    times: int = 1


class Seen(NamedTuple):
    """What came back for one request."""

    #: The server that answered, the peer that it saw, and the proxies that the request named.
    server: str = ""
    peer: str = ""
    hops: tuple[str, ...] = ()
    path: str = ""
    #: Why there is nothing of that.
    problem: str = ""


def send(request: Request) -> list[Seen]:
    """Send *request*; returns what came back each time."""
    return asyncio.run(_send(request))


async def _send(request: Request) -> list[Seen]:
    connected: list[socket.socket] = []
    everyone = asyncio.Event()
    return await asyncio.gather(
        *(_one(request, number, connected, everyone) for number in range(request.times))
    )


async def _one(
    request: Request, number: int, connected: list[socket.socket], everyone: asyncio.Event
) -> Seen:
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await _exchange(request, number, connected, everyone)
    except TimeoutError:
        return Seen(problem=f"no answer within {_PATIENCE_SECONDS:g} s")
    except OSError as error:
        # asyncio puts its own words where the kernel's would be.
        return Seen(problem=os.strerror(error.errno) if error.errno else str(error))
    except KernelRefused as error:
        return Seen(problem=error.lines[0])
    finally:
        everyone.set()


async def _exchange(
    request: Request, number: int, connected: list[socket.socket], everyone: asyncio.Event
) -> Seen:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in request.address else socket.AF_INET
    datagrams = request.kind is RequestKind.DNS_UDP
    with socket.socket(family, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM) as ours:
        ours.setblocking(False)  # noqa: FBT003 - socket's own
        await loop.sock_connect(ours, (request.address, request.port))
        connected.append(ours)
        if len(connected) == request.times:
            everyone.set()
        # All connections are open at once before anything is asked on one.
        await everyone.wait()
        if request.kind in {RequestKind.HTTP, RequestKind.PLAIN_HTTP}:
            await loop.sock_sendall(ours, http_request(request.path, request.address))
            text = b""
            # Envoy keeps a connection open for a second behind an answer of its own.
            while not is_complete(text) and (chunk := await loop.sock_recv(ours, 1 << 16)):
                text += chunk
            return _http_seen(request.kind, text)
        query = dns_query(number)
        if datagrams:
            await loop.sock_sendall(ours, query)
            return Seen(*dns_seen(await loop.sock_recv(ours, 4096), number))
        await loop.sock_sendall(ours, len(query).to_bytes(_LENGTH_BYTES, "big") + query)
        text = b""
        while chunk := await loop.sock_recv(ours, 1 << 16):
            text += chunk
        return Seen(*dns_seen(text[_LENGTH_BYTES:], number))


def _http_seen(kind: RequestKind, text: bytes) -> Seen:
    response = read_http(text)
    if response.status != 200:  # noqa: PLR2004 - OK
        said = response.body.decode(errors="replace").strip()[:80]
        return Seen(problem=f"status {response.status}: {said}" if response.status else "no answer")
    if kind is RequestKind.PLAIN_HTTP:
        return Seen(server=response.body.decode(errors="replace").split("\n", 1)[0][:40])
    try:
        value = json.loads(response.body)
        return Seen(value["server"], value["peer"], tuple(value["hops"]), value["path"])
    except (ValueError, KeyError):
        return Seen(problem="the answer is not one of the lab's servers'")
