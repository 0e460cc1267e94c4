"""Whether a process listens on a port of this network namespace, from /proc/self/net."""

from __future__ import annotations

from istio_iptables.netfilter.model import Family

__all__ = ["listens"]

_TCP = 6
_NAMES = {_TCP: "tcp", 17: "udp"}
#: The states in which a socket takes what is new: TCP_LISTEN, and for UDP any that isn't connected.
_OPEN = {_TCP: "0A", 17: "07"}
_ANY = "0" * 32


def listens(protocol: int, port: int, family: Family) -> bool | None:
    """Whether anything takes what is sent to *port*; None if that can't be read."""
    name = _NAMES.get(protocol)
    if name is None:
        return None
    found = False
    if family is Family.IPV4:
        bound = _bound(name, _OPEN[protocol])
        if bound is None:
            return None
        found = any(number == port for _, number in bound)
    # A socket for all addresses of IPv6 takes IPv4 as well, unless it was told not to.
    six = _bound(f"{name}6", _OPEN[protocol])
    if six is None:
        return True if found else None
    return found or any(
        number == port and (family is Family.IPV6 or address == _ANY) for address, number in six
    )


def _bound(name: str, state: str) -> list[tuple[str, int]] | None:
    """The addresses and ports of the sockets in a state; None if they can't be read."""
    try:
        with open(f"/proc/self/net/{name}", encoding="ascii") as file:
            lines = file.readlines()[1:]
    except FileNotFoundError:
        # A kernel without IPv6 has no such file.
        return [] if name.endswith("6") else None
    except OSError:
        return None
    found = []
    for line in lines:
        words = line.split()
        if words[3] == state:
            address, _, port = words[1].rpartition(":")
            found.append((address, int(port, 16)))
    return found
