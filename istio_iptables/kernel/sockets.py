"""The TCP and UDP sockets of the current network namespace, from /proc/thread-self/net."""

from __future__ import annotations

import sys
from socket import AF_INET, AF_INET6, inet_ntop
from typing import NamedTuple

from istio_iptables.netfilter.model import Family

__all__ = ["TCP", "UDP", "Socket", "listens", "sockets", "takes"]

TCP, UDP = 6, 17
_FILES = {
    ("tcp", TCP): Family.IPV4,
    ("tcp6", TCP): Family.IPV6,
    ("udp", UDP): Family.IPV4,
    ("udp6", UDP): Family.IPV6,
}
#: The states in which a socket takes what is new: TCP_LISTEN, and for UDP any that isn't connected.
_OPEN = {TCP: "0A", UDP: "07"}
_ESTABLISHED = "01"
_MAPPED = bytes(10) + b"\xff\xff"


class Socket(NamedTuple):
    """One socket; an IPv4 connection of an IPv6 socket counts as IPv4."""

    protocol: int
    family: Family
    address: str
    port: int
    #: The other end; the unspecified address and port 0 where there is none.
    peer: str
    peer_port: int
    #: The user that made it, as this user namespace has him.
    uid: int
    #: Whether it takes new connections, or datagrams from anywhere.
    listening: bool
    #: Whether it has a connection that is up.
    connected: bool
    #: Its number among /proc/PID/fd.
    inode: int


def sockets() -> tuple[Socket, ...] | None:
    """All sockets of TCP and UDP; None if they can't be read."""
    found: list[Socket] = []
    for (name, protocol), family in _FILES.items():
        try:
            with open(f"/proc/thread-self/net/{name}", encoding="ascii") as file:
                lines = file.readlines()[1:]
        except FileNotFoundError:
            # A kernel without IPv6 has no such file.
            if family is Family.IPV6:
                continue
            return None
        except OSError:
            return None
        found += (_socket(line.split(), protocol, family) for line in lines)
    return tuple(found)


def _socket(words: list[str], protocol: int, family: Family) -> Socket:
    here, port = _end(words[1])
    there, peer_port = _end(words[2])
    if family is Family.IPV6 and (here[:12] == _MAPPED or there[:12] == _MAPPED):
        family, here, there = Family.IPV4, here[12:], there[12:]
    kind = AF_INET if family is Family.IPV4 else AF_INET6
    return Socket(
        protocol,
        family,
        inet_ntop(kind, here),
        port,
        inet_ntop(kind, there),
        peer_port,
        int(words[7]),
        words[3] == _OPEN[protocol],
        words[3] == _ESTABLISHED,
        int(words[9]),
    )


def _end(text: str) -> tuple[bytes, int]:
    """An address and a port; the file has the address in words of the machine's byte order."""
    address, _, port = text.rpartition(":")
    words = (int(address[at : at + 8], 16) for at in range(0, len(address), 8))
    return b"".join(word.to_bytes(4, sys.byteorder) for word in words), int(port, 16)


def listens(protocol: int, port: int, family: Family) -> bool | None:
    """Whether anything takes what is sent to *port*; None if that can't be read."""
    found = sockets()
    if found is None or protocol not in _OPEN:
        return None
    return any(takes(each, protocol, port, family) for each in found)


def takes(socket: Socket, protocol: int, port: int, family: Family) -> bool:
    """Whether *socket* takes what is sent to *port* over *family*."""
    # A socket for all addresses of IPv6 takes IPv4 as well, unless it was told not to.
    return (
        socket.listening
        and (socket.protocol, socket.port) == (protocol, port)
        and (socket.family is family or (family is Family.IPV4 and socket.address == "::"))
    )
