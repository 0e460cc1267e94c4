"""What the settings ask of the machine: users, addresses, DNS servers."""

from __future__ import annotations

import errno
import os
import stat

from istio_iptables.errors import KernelRefused
from istio_iptables.text import pattern

__all__ = ["ThisHost"]

#: More than any resolver reads; the file may be another process's.
_MOST_BYTES = 1 << 20
_MOST_LINKS = 40


class ThisHost:
    """Answers from this machine, in the namespace the process is in when it is asked."""

    def uid(self, name: str) -> int | None:
        """The uid of the user *name*, or None."""
        import pwd

        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            return None

    def gid(self, name: str) -> int | None:
        """The gid of the group *name*, or None."""
        import grp

        try:
            return grp.getgrnam(name).gr_gid
        except KeyError:
            return None

    def addresses(self, namespace: str) -> tuple[str, ...]:
        """The addresses of *namespace*, without loopback and link-local ones, IPv4 first."""
        from istio_iptables.kernel import netlink
        from istio_iptables.kernel.namespace import entered

        with entered(namespace):
            return netlink.addresses()

    def nameservers(self, resolv_conf: str) -> tuple[str, ...]:
        """The addresses on the nameserver lines of the file, in its order, repeats included.

        Lines that hold no address are passed over, as Istio does; a zone (fe80::1%eth0) is
        dropped, since a rule can't name one. Raises KernelRefused if the file can't be read.
        """
        from istio_iptables.sockets import AF_INET, AF_INET6, inet_ntop, inet_pton

        try:
            lines = _read(resolv_conf).splitlines()
        except OSError as error:
            message = f"can't read the DNS servers from {resolv_conf}: {error.strerror}"
            raise KernelRefused(message) from error
        servers = []
        for line in lines:
            words = line.split()
            if len(words) < 2 or words[0] != "nameserver":  # noqa: PLR2004 - name and value
                continue
            address = words[1].partition("%")[0]
            number = AF_INET6 if ":" in address else AF_INET
            try:
                servers.append(inet_ntop(number, inet_pton(number, address)))
            except (OSError, ValueError):
                continue
        return tuple(servers)


def _read(path: str) -> str:
    """The text of a file; below /proc/PID/root its links lead to where they do for that process."""
    root = path.startswith("/proc/") and pattern(r"/proc/\d+/root(?=/)").match(path)
    if root:
        path = _resolve_links(root[0], path.removeprefix(root[0]))
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    else:
        # A FIFO would keep us waiting for a writer.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(file, encoding="utf-8", errors="replace") as text:
        if not stat.S_ISREG(os.fstat(file).st_mode) and (root or path != os.devnull):
            raise OSError(0, "not a regular file")
        return text.read(_MOST_BYTES)


def _resolve_links(root: str, path: str) -> str:
    """*path* below *root* without links: an absolute one starts at *root*, and none leads out."""
    waiting = path.split("/")[::-1]
    found: list[str] = []
    links = 0
    while waiting:
        name = waiting.pop()
        if name in {"", "."}:
            continue
        if name == "..":
            del found[-1:]
            continue
        here = "/".join((root, *found, name))
        try:
            target = os.readlink(here)  # noqa: PTH115 - pathlib costs 5 ms
        except OSError:
            # No link, or not there, which opening it will tell.
            found.append(name)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if target.startswith("/"):
            found.clear()
        waiting += target.split("/")[::-1]
    return "/".join((root, *found))
