"""The small servers of the lab: each answers with its name and with whom it saw."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from istio_iptables.lab.messages import dns_answer, http_response
from istio_iptables.lab.nodes import LabServer, ServerProtocol

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = ["serve"]

_LENGTH_BYTES = 2
_BACKLOG = 256


def serve(servers: tuple[LabServer, ...], ready: Callable[[], None]) -> None:
    """Run *servers*, which are of one node and identity, until the process is ended."""
    asyncio.run(_serve(servers, ready))


async def _serve(servers: tuple[LabServer, ...], ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for server in servers:
        talk = _speak_http(server) if server.speaks is ServerProtocol.HTTP else _speak_dns(server)
        for family in (socket.AF_INET, socket.AF_INET6):
            listening = _socket(family, socket.SOCK_STREAM, server)
            await asyncio.start_server(talk, sock=listening, backlog=_BACKLOG)
            if server.speaks is ServerProtocol.DNS:
                await loop.create_datagram_endpoint(
                    lambda server=server: _Datagrams(server),  # type: ignore[misc]  # its default
                    sock=_socket(family, socket.SOCK_DGRAM, server),
                )
    ready()
    await asyncio.Event().wait()


_ANYWHERE = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104 - inside the world
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def _socket(
    family: socket.AddressFamily, kind: socket.SocketKind, server: LabServer
) -> socket.socket:
    """A socket of one family, opened by the server's own user."""
    bound = socket.socket(family, kind)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family is socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    bound.bind(((_LOOPBACK if server.on_loopback else _ANYWHERE)[family], server.port))
    bound.setblocking(False)  # noqa: FBT003 - socket's own
    return bound


_Talk = Any


def _speak_http(server: LabServer) -> _Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = [line.partition(":") for line in head[1:] if line]
            writer.write(
                http_response(
                    {
                        "server": server.name,
                        "peer": writer.get_extra_info("peername")[0],
                        "path": head[0].split()[1],
                        "hops": [
                            value.strip() for name, _, value in headers if name == "x-lab-hop"
                        ],
                    }
                )
            )
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client went away, which it will say itself
        finally:
            writer.close()

    return talk


def _speak_dns(server: LabServer) -> _Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
            query = await reader.readexactly(length)
            answer = dns_answer(query, server.name, writer.get_extra_info("peername")[0])
            writer.write(len(answer).to_bytes(_LENGTH_BYTES, "big") + answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client went away, which it will say itself
        finally:
            writer.close()

    return talk


class _Datagrams(asyncio.DatagramProtocol):
    """DNS over udp."""

    def __init__(self, server: LabServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember how to answer."""
        self._transport = transport  # type: ignore[assignment]  # asyncio's own promise for udp

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer one query."""
        if self._transport is not None:
            self._transport.sendto(dns_answer(data, self._server.name, addr[0]), addr)
