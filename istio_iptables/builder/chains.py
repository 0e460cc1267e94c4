"""Istio's chains by name, and what each step of the builder is given and gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.netfilter.model import Family, Rule, Term
from istio_iptables.settings.values import Mode

if TYPE_CHECKING:
    from istio_iptables.settings.config import Config

__all__ = [
    "AGENT_DNS_PORT",
    "CHAIN_PREFIX",
    "DIVERT",
    "DROP_CHAIN",
    "INBOUND",
    "IN_REDIRECT",
    "LO",
    "OUTBOUND_MARK",
    "OUTPUT",
    "OUTPUT_DNS",
    "REDIRECT",
    "TCP",
    "TPROXY",
    "UDP",
    "Placed",
    "Scope",
    "interface",
]

#: Every chain of ours has a name that starts so, and no stranger's has.
CHAIN_PREFIX = "ISTIO_"
INBOUND = "ISTIO_INBOUND"
IN_REDIRECT = "ISTIO_IN_REDIRECT"
OUTPUT = "ISTIO_OUTPUT"
REDIRECT = "ISTIO_REDIRECT"
OUTPUT_DNS = "ISTIO_OUTPUT_DNS"
DIVERT = "ISTIO_DIVERT"
TPROXY = "ISTIO_TPROXY"
DROP_CHAIN = "ISTIO_DROP"

#: Where the agent answers DNS.
AGENT_DNS_PORT = 15053
#: The mark of what Envoy sends to its own pod under TPROXY; Istio fixes it.
OUTBOUND_MARK = 1338

TCP = Term("tcp")
UDP = Term("udp")
LO = Term("lo")


class Placed(NamedTuple):
    """A rule, and where it goes: to the end of a chain, or to *position* (from 0)."""

    table: str
    chain: str
    rule: Rule
    position: int | None = None


class Scope(NamedTuple):
    """What a step builds for: the configuration, in one address family."""

    config: Config
    family: Family

    @property
    def version(self) -> int:
        """4 or 6."""
        return 4 if self.family is Family.IPV4 else 6

    @property
    def loopback(self) -> str:
        """The network that counts as loopback: LOOP in the contract."""
        return str(self.config.loopback) if self.family is Family.IPV4 else "::1/128"

    @property
    def passthrough(self) -> str:
        """The address from which Envoy's inbound side connects to the application."""
        return "127.0.0.6/32" if self.family is Family.IPV4 else "::6/128"

    @property
    def tproxy(self) -> bool:
        """Whether inbound connections are handed over by TPROXY."""
        return self.config.mode is Mode.TPROXY

    @property
    def dns_servers(self) -> tuple[str, ...]:
        """The DNS servers of this family whose traffic is captured."""
        config = self.config
        return config.dns_servers_ipv4 if self.family is Family.IPV4 else config.dns_servers_ipv6


def interface(name: str) -> Term | None:
    """The condition on an interface; ``+`` alone is any interface, which is no condition."""
    return None if name == "+" else Term(name)
