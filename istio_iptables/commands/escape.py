"""The application that is asked about and runs as the proxy's user, whatever the flags say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_iptables.istio.rules import CHAIN_PREFIX, IN_REDIRECT
from istio_iptables.loops import Fault, Finding
from istio_iptables.netfilter.numbers import number
from istio_iptables.netfilter.trace import trace
from istio_iptables.verdict import judge

if TYPE_CHECKING:
    from istio_iptables.netfilter.model import Ruleset
    from istio_iptables.netfilter.packet import World
    from istio_iptables.netfilter.trace import Trace
    from istio_iptables.settings.config import Config

__all__ = ["escape"]

#: A user and group that no rule is about, as far as anyone can tell.
_NOBODY = 64999


def escape(found: Trace, ruleset: Ruleset, world: World, config: Config) -> Finding | None:
    """The fault that the packet is not captured only because its sender has the proxy's user.

    The proxy's users and groups are those of the settings, and those that the rules name.
    """
    packet = found.packet
    if packet.in_interface != "" or _captured(found, config):
        return None
    names = [
        f"{what} {asked}"
        for what, asked, ids in (
            ("uid", packet.uid, config.proxy_uids),
            ("gid", packet.gid, config.proxy_gids),
        )
        if asked is not None
        and (
            any(each.first <= asked <= each.last for each in ids)
            or asked in _proxies(ruleset, f"--{what}-owner")
        )
    ]
    other = packet._replace(uid=_NOBODY, gid=_NOBODY)
    if not names or not _captured(trace(ruleset, other, world), config):
        return None
    returns = [step for step in found.outcomes[0].steps if step.verdict == "RETURN"]
    if not returns:
        return None
    step = returns[-1]
    place = f"{step.table} {step.chain} {step.number}"
    source, destination = packet.endpoints
    line = (
        f"an application that runs as the proxy's {' and '.join(names)} escapes; decided by"
        f" {place} ({step.text}), for example {packet.protocol_name} {source} to {destination},"
        f" uid {packet.uid}, gid {packet.gid}"
    )
    return Finding(Fault.ESCAPE, packet.family, place, step.text, packet, line)


def _captured(found: Trace, config: Config) -> bool:
    return any(judge(each, config).captured for each in found.outcomes)


def _proxies(ruleset: Ruleset, option_name: str) -> set[int]:
    """The users or groups whose calls to the pod itself the rules send back to Envoy."""
    table = ruleset.table("nat")
    chain = table.chain(f"{CHAIN_PREFIX}OUTPUT") if table else None
    options = [
        match.option(option_name)
        for rule in (chain.rules if chain else ())
        if rule.target is not None and rule.target.name == IN_REDIRECT
        for match in rule.matches
        if match.name == "owner"
    ]
    values = {
        number(each.values[0])
        for each in options
        if each is not None and not each.negated and len(each.values) == 1
    }
    return {each for each in values if each is not None}
