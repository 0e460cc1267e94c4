"""What the settings ask of the machine: users, addresses, DNS servers."""

from __future__ import annotations

from istio_iptables.errors import KernelRefused

__all__ = ["Host"]


class Host:
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
        from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

        try:
            with open(resolv_conf, encoding="utf-8", errors="replace") as file:
                lines = file.readlines()
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
            except OSError:
                continue
        return tuple(servers)
