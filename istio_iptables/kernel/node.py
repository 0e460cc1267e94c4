"""Whether a network namespace is the machine's own, where rules for a pod do harm."""

from __future__ import annotations

from istio_iptables.kernel import netlink
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_iptables.kernel.nftables import NftChain
    from istio_iptables.netfilter.model import Ruleset

__all__ = ["signs"]

#: Whose chains stand on nodes alone, by how their names begin. Docker also has chains in the
#: namespaces of its containers, for its DNS: DOCKER_OUTPUT and DOCKER_POSTROUTING.
_CHAINS = {
    "KUBE-": "kube-proxy",
    "DOCKER-": "Docker",
    "CNI-": "CNI plugins",
    "cali-": "Calico",
    "FLANNEL-": "flannel",
    "CILIUM_": "Cilium",
    "NETAVARK": "netavark",
}
#: The same for whole nftables tables.
_TABLES = {"kube-proxy": "kube-proxy", "docker-bridges": "Docker", "netavark": "netavark"}
_MOST_INTERFACES = 3


def signs(rulesets: Iterable[Ruleset]) -> str:
    """What shows that the current namespace is a node's and no pod's, in a few words, or "".

    *rulesets* are those of both backends. nftables chains are asked of the kernel, also where
    iptables can't show their rules.
    """
    found = []
    interfaces = netlink.physical_interfaces()
    if interfaces:
        found.append(f"physical interface {', '.join(interfaces[:_MOST_INTERFACES])}")
    nft = _nft_chains()
    owners: dict[str, str] = {}
    for name in (*_chains(rulesets), *(chain.name for chain in nft)):
        # Docker's first chain has no dash.
        prefix = next((each for each in _CHAINS if f"{name}-".startswith(each)), None)
        if prefix is not None:
            owners.setdefault(_CHAINS[prefix], f"chain {name}")
    for chain in nft:
        if chain.table in _TABLES:
            owners.setdefault(_TABLES[chain.table], f"table {chain.table}")
    found += (f"{what} of {owner}" for owner, what in owners.items())
    return "; ".join(found)


def _nft_chains() -> tuple[NftChain, ...]:
    if not netlink.nft_tables():
        return ()
    from istio_iptables.kernel import nftables  # 1 ms; few pods have such tables

    return nftables.chains()


def _chains(rulesets: Iterable[Ruleset]) -> Iterator[str]:
    for ruleset in rulesets:
        for table in ruleset.tables:
            yield from (chain.name for chain in table.chains)
