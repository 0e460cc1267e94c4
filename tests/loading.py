"""Which modules each way through the program may load: sets, which do not grow unnoticed."""

from __future__ import annotations

import sys

__all__ = ["AGAIN", "CHANGING", "DRY", "LEGACY", "NFT", "command", "read"]

#: A dry run, beside Python's own start.
DRY = frozenset(
    {
        *("api", "api.capture", "api.rendering", "api.values", "cli", "commands", "commands.apply"),
        *("commands.flags", "commands.load", "errors", "interrupts", "istio", "istio.escapes"),
        *("istio.plan", "istio.rules", "kernel", "kernel.host", "netfilter", "netfilter.edits"),
        *("netfilter.fieldvalues", "netfilter.formats", "netfilter.model", "netfilter.plan"),
        *("netfilter.ownership", "netfilter.savefile", "settings", "settings.config"),
        *("settings.converters", "settings.declarations", "settings.sources", "settings.types"),
        *("sockets", "streams", "text", "typed"),
    }
)
#: What reads and changes a namespace; node looks where rules of a pod would do harm.
CHANGING = DRY | {
    *("api.installing", "istio.ownership", "kernel.backend", "kernel.capabilities"),
    *("kernel.detect", "kernel.install", "kernel.lock", "kernel.namespace", "kernel.netlink"),
    *("kernel.node", "kernel.reserve", "kernel.routes", "kernel.steps", "kernel.tablechange"),
    *("kernel.tablenames", "kernel.usernamespace"),
}
#: Where it is as planned: read through a program.
AGAIN = {
    "legacy": CHANGING | {"kernel.legacy", "kernel.programs"},
    "nft": CHANGING | {"kernel.nft", "kernel.nftables", "kernel.nftbatch", "kernel.programs"},
}
#: Through python-iptables; the extensions are what rules of ours are made of.
LEGACY = AGAIN["legacy"] | {
    *("kernel.libiptc", "kernel.xt_abi", "netfilter.extensions", "netfilter.parts"),
    *(
        f"netfilter.extensions.{name}"
        for name in (
            *("comment", "connmark", "conntrack", "ct", "mark", "multiport", "nat", "owner"),
            *("ports", "redirect", "tproxy"),
        )
    ),
}
NFT = AGAIN["nft"]


def command(*arguments: str) -> list[str]:
    """What runs the program with *arguments* and tells on stderr, last, what it has loaded."""
    program = (
        "import sys; from istio_iptables.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "print('loaded', *sys.modules, file=sys.stderr)\n"
        "sys.exit(status)"
    )
    return [sys.executable, "-c", program, *arguments]


def read(told: str) -> tuple[set[str], set[str]]:
    """What that told: our modules, and the names of the packages and modules of others."""
    loaded = told.rpartition("loaded ")[2].split()
    ours = {each.removeprefix("istio_iptables.") for each in loaded if "istio_iptables." in each}
    return ours, {each.partition(".")[0] for each in loaded}
