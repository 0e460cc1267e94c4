"""What a plan lets past Envoy, or sends back to it: told by every command that works on a plan.

Most of it can be told from the settings. Only where Envoy's traffic or that of a usual
application may really be at stake are example packets followed through the rules (``checks``),
which takes longer than all the rest of a dry run.
"""

from __future__ import annotations

from istio_iptables.settings.converters import MAX_ID
from istio_iptables.settings.types import ALL, IPV4, IPV6, Mode, within
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from istio_iptables.netfilter.plan import DesiredState
    from istio_iptables.settings.config import Config
    from istio_iptables.settings.sources import Value
    from istio_iptables.settings.types import IdRange, PortRange

__all__ = ["APPLICATIONS", "plan_warnings", "worth_following"]

#: What applications in containers run as when nobody says otherwise: (uid, gid).
APPLICATIONS = ((0, 0), (1000, 0), (1000, 1000))

_LAST_PORT = 65535


def plan_warnings(
    plan: DesiredState,
    config: Config,
    values: Mapping[str, Value],
    ways: Collection[str],
    *,
    follow: bool,
) -> list[str]:
    """What *plan* leaves uncaptured in the directions *ways*, and what it sends back to Envoy.

    With native nftables rules also what they do otherwise.

    The latter only with *follow*, and so for applications that pass for Envoy.
    """
    lines = _nothing_captured(config, values, ways)
    if config.native_nftables and not config.nft_like_iptables:
        lines += _otherwise_natively(config, values)
    if follow and worth_following(config):
        from istio_iptables.istio.checks import findings

        found = findings(plan.rulesets, plan.routes, config, APPLICATIONS)
        lines += (finding.line for finding in found)
    return lines


def _otherwise_natively(config: Config, values: Mapping[str, Value]) -> Iterator[str]:
    """What Istio's native nftables rules do otherwise than its rules for iptables."""
    redirects = (
        (config.inbound_ports and config.mode is Mode.REDIRECT)
        or config.outbound_cidrs is ALL
        or config.outbound_ports
        or (config.redirect_dns and config.capture_all_dns)
    )
    if redirects and not config.ipv6:
        yield (
            "IPv6 is off, and is captured all the same: native nftables rules that name no address"
            " hold for both families, and the exceptions for ::1 and ::6 are missing"
        )
    if config.inbound_ports and config.mode is Mode.TPROXY:
        yield (
            f"{values['istio_inbound_interception_mode'].label}: while Envoy does not listen on port"
            f" {config.inbound_capture_port}, native nftables rules let new inbound connections"
            " through to the application; those of iptables drop them"
        )
    if config.drop_invalid:
        yield (
            f"{values['drop_invalid'].label}: native nftables rules drop invalid packets of TCP"
            " alone; those of iptables drop invalid packets of every protocol"
        )


def worth_following(config: Config) -> bool:
    """Whether ``checks.findings`` can find anything in the plan of *config*.

    Under REDIRECT the rules about the proxy's users and groups come before every rule that
    captures, so what Envoy sends comes back only where its own loopback address is not excepted.
    """
    return (
        config.mode is Mode.TPROXY
        or str(config.loopback) != "127.0.0.1/32"
        or any(
            within(uid, config.proxy_uids) or within(gid, config.proxy_gids)
            for uid, gid in APPLICATIONS
        )
    )


def _nothing_captured(
    config: Config, values: Mapping[str, Value], ways: Collection[str]
) -> list[str]:
    """Why nothing at all is captured in a direction, if that is so."""
    not_even_dns = _all_excluded(config, values)
    outbound = not_even_dns or _no_destination(config, values)
    nothing = "nothing but DNS" if config.redirect_dns and not not_even_dns else "nothing"
    reasons = {"outbound": outbound, "inbound": _no_inbound(config, values)}
    why = {way: reason for way, reason in reasons.items() if reason and way in ways}
    if len(why) == len(reasons):
        listed = "; ".join(dict.fromkeys(why.values()))
        return [f"{nothing} is captured, outbound or inbound: {listed}"]
    return [
        f"{nothing if way == 'outbound' else 'nothing'} {way} is captured: {reason}"
        for way, reason in why.items()
    ]


def _all_excluded(config: Config, values: Mapping[str, Value]) -> str:
    """Which setting keeps everything outbound from being captured, DNS too; "" for none."""
    if not config.owner_groups:
        return f"{values['istio_outbound_owner_groups'].label} is empty"
    for name, ids in (("proxy_uid", config.proxy_uids), ("proxy_gid", config.proxy_gids)):
        if _covers(ids, 0, MAX_ID):
            return f"{values[name].label} names everyone"
    if _covers(config.outbound_ports_exclude, 1, _LAST_PORT):
        return f"{values['istio_local_outbound_ports_exclude'].label} excludes every port"
    return _no_interface(config, values)


def _no_destination(config: Config, values: Mapping[str, Value]) -> str:
    """Which setting leaves no destination to capture; "" for none."""
    if not config.outbound_cidrs and not config.outbound_ports:
        return f"{values['istio_service_cidr'].label} is empty"
    versions = (IPV4, IPV6) if config.ipv6 else (IPV4,)
    everywhere = {each.version for each in config.outbound_cidrs_exclude if each.prefix == 0}
    if everywhere.issuperset(versions):
        return f"{values['istio_service_exclude_cidr'].label} excludes every destination"
    return ""


def _no_inbound(config: Config, values: Mapping[str, Value]) -> str:
    if not config.inbound_ports:
        return f"{values['istio_inbound_ports'].label} is empty"
    if config.inbound_ports is ALL and _covers(config.inbound_ports_exclude, 1, _LAST_PORT):
        return f"{values['istio_local_exclude_ports'].label} excludes every port"
    return _no_interface(config, values)


def _no_interface(config: Config, values: Mapping[str, Value]) -> str:
    if "+" in config.exclude_interfaces:
        return f"{values['istio_exclude_interfaces'].label} excludes every interface"
    return ""


def _covers(ranges: Iterable[PortRange | IdRange], first: int, last: int) -> bool:
    """Whether *ranges* together hold every number from *first* to *last*."""
    following = first
    for each in sorted(ranges):
        if each.first > following:
            return False
        following = max(following, each.last + 1)
    return following > last
