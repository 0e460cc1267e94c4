"""What the program needs of ``socket``, whose enums of 600 constants take 2 ms of an install's 30.

It is that module's own, compiled part; its sockets are closed with ``contextlib.closing``.
"""

from __future__ import annotations

from _socket import (
    AF_INET,
    AF_INET6,
    AF_NETLINK,
    MSG_DONTWAIT,
    NETLINK_ROUTE,
    SOCK_CLOEXEC,
    SOCK_RAW,
    if_indextoname,
    if_nameindex,
    if_nametoindex,
    inet_ntop,
    inet_pton,
    socket,
)

__all__ = [
    "AF_INET",
    "AF_INET6",
    "MSG_DONTWAIT",
    "NETLINK_ROUTE",
    "if_indextoname",
    "if_nameindex",
    "if_nametoindex",
    "inet_ntop",
    "inet_pton",
    "netlink",
    "socket",
]


def netlink(protocol: int) -> socket:
    """A connection to a part of the kernel, of the network namespace that the process is in."""
    return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)
