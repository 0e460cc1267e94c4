"""Config: what the user asked for as typed values, checked as a whole."""

from __future__ import annotations

from contextlib import suppress

from istio_iptables.errors import KernelRefused, UsageProblems
from istio_iptables.settings.converters import MAX_INTERFACE_BYTES, Names
from istio_iptables.settings.sources import convert
from istio_iptables.settings.types import (
    ALL,
    IPV6,
    IdRange,
    Mode,
    Network,
    PortRange,
    Wildcard,
    within,
)
from istio_iptables.text import pattern
from istio_iptables.typed import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from istio_iptables.settings.sources import Value

__all__ = [
    "DEFAULT_PROXY_ID",
    "FIELDS",
    "MAX_OWNER_GROUPS",
    "Config",
    "Host",
    "StandIn",
    "configure",
    "resolv_conf_of",
    "typed_fields",
    "uncaptured_ipv6",
]

#: Included groups become one rule with a match of five words each, and iptables-restore reads at
#: most 255 words in a rule: 49 groups load, 50 do not, legacy and nft alike (Istio promises 64,
#: and fails beyond 49, since it uses the same tool). tests/kernel/test_limits.py keeps it.
MAX_OWNER_GROUPS = 49

DEFAULT_PROXY_ID = 1337
_OUTBOUND_MARK = 1338
#: A namespace named by a process, which has a resolv.conf of its own.
_NAMESPACE_OF_PROCESS = r"(?a)(/proc/\d+)/(?:task/\d+/)?ns/net"
_DNS_PORT = 53
_AGENT_DNS_PORT = 15053
_LAST_PORT = 65535
_OUTBOUND_PORT, _INBOUND_PORT = 15001, 15006
#: The address on lo that goes with IPv6 rules, and how many others a line names.
_PASSTHROUGH_IPV6 = "::6"
_MOST_ADDRESSES = 3
_MAIN_ROUTE_TABLES = {253: "default", 254: "main", 255: "local"}


class Host(Protocol):
    """What is asked of the machine to complete the settings; ``kernel.host`` answers it."""

    def uid(self, name: str) -> int | None:
        """The uid of the user *name*, or None."""

    def gid(self, name: str) -> int | None:
        """The gid of the group *name*, or None."""

    def addresses(self, namespace: str) -> tuple[str, ...]:
        """The addresses of *namespace* ("" is the current one), without loopback and link-local.

        IPv4 before IPv6. Raises KernelRefused if they can't be read.
        """

    def nameservers(self, resolv_conf: str) -> tuple[str, ...]:
        """The DNS servers listed in the file *resolv_conf*; raises KernelRefused without it."""


class StandIn(NamedTuple):
    """A Host that answers what it is given, for every namespace and every file."""

    #: The addresses of the machine.
    own: tuple[str, ...] = ()
    #: The DNS servers.
    servers: tuple[str, ...] = ()
    #: The number of every user and group; *names* is asked in its place if it is given.
    number: int | None = None
    names: Host | None = None

    def uid(self, name: str) -> int | None:
        """The uid of the user *name*."""
        return self.names.uid(name) if self.names else self.number

    def gid(self, name: str) -> int | None:
        """The gid of the group *name*."""
        return self.names.gid(name) if self.names else self.number

    def addresses(self, namespace: str) -> tuple[str, ...]:  # noqa: ARG002 - the same in every one
        """The addresses of the machine."""
        return self.own

    def nameservers(self, resolv_conf: str) -> tuple[str, ...]:  # noqa: ARG002 - the same in every one
        """The DNS servers."""
        return self.servers


class Config(NamedTuple):
    """Everything that decides about the rules, and how they are to be applied or printed."""

    envoy_port: int
    inbound_capture_port: int
    inbound_tunnel_port: int
    proxy_uids: tuple[IdRange, ...]
    proxy_gids: tuple[IdRange, ...]
    mode: Mode
    inbound_ports: tuple[PortRange, ...] | Wildcard
    inbound_ports_exclude: tuple[PortRange, ...]
    exclude_interfaces: tuple[str, ...]
    virtual_interfaces: tuple[str, ...]
    tproxy_mark: int
    tproxy_route_table: int
    drop_invalid: bool
    outbound_cidrs: tuple[Network, ...] | Wildcard
    outbound_cidrs_exclude: tuple[Network, ...]
    outbound_ports: tuple[PortRange, ...]
    outbound_ports_exclude: tuple[PortRange, ...]
    owner_groups: tuple[IdRange, ...] | Wildcard
    owner_groups_exclude: tuple[IdRange, ...]
    loopback: Network
    #: Whether DNS is captured at all: asked for, and there is a server to capture.
    redirect_dns: bool
    capture_all_dns: bool
    dns_servers_ipv4: tuple[str, ...]
    dns_servers_ipv6: tuple[str, ...]
    #: The file that the servers were read from; "" if none was.
    dns_servers_file: str
    ipv6: bool
    network_namespace: str
    cni_mode: bool
    backend: str
    skip_rule_apply: bool
    reconcile: bool
    force_apply: bool
    cleanup_only: bool
    native_nftables: bool
    nft_like_iptables: bool
    nft_sets: bool
    dry_run: bool
    format: str
    only: str
    verbose: bool
    strict: bool
    run_validation: bool
    probe_port: int
    #: Seconds.
    probe_timeout: float


#: The field of Config that each setting becomes, where the names differ or Istio's is long.
FIELDS = {
    "istio_inbound_interception_mode": "mode",
    "istio_inbound_ports": "inbound_ports",
    "istio_local_exclude_ports": "inbound_ports_exclude",
    "istio_exclude_interfaces": "exclude_interfaces",
    "kube_virt_interfaces": "virtual_interfaces",
    "istio_inbound_tproxy_mark": "tproxy_mark",
    "istio_inbound_tproxy_route_table": "tproxy_route_table",
    "istio_service_cidr": "outbound_cidrs",
    "istio_service_exclude_cidr": "outbound_cidrs_exclude",
    "istio_outbound_ports": "outbound_ports",
    "istio_local_outbound_ports_exclude": "outbound_ports_exclude",
    "istio_outbound_owner_groups": "owner_groups",
    "istio_outbound_owner_groups_exclude": "owner_groups_exclude",
    "istio_outbound_ipv4_loopback_cidr": "loopback",
    "proxy_uid": "proxy_uids",
    "proxy_gid": "proxy_gids",
    "force_iptables_binary": "backend",
    "iptables_probe_port": "probe_port",
}

#: Settings that only help to find others and are no part of Config.
_HELPERS = frozenset({"resolv_conf", "ip_family", "json"})


def configure(
    values: Mapping[str, Value],
    machine: Host,
    *,
    envoy_user: str = "istio-proxy",
    live: bool = False,
    plan_counts: bool = True,
) -> tuple[Config, list[str]]:
    """The Config that *values* make on *machine*, and a warning for each setting without effect.

    With *live* the namespace itself is what the settings are about, as it is to an install: its
    addresses matter although --ip-family was given. Without *plan_counts* the rules in question
    are others than those of the settings, so what these leave out is not told.

    Raises UsageProblems with one line for each bad item when anything can't be used; the machine
    is asked for its addresses and DNS servers only after everything else is right.
    """
    fields = typed_fields(values, machine)
    if not fields["proxy_uids"]:
        uid = machine.uid(envoy_user)
        fields["proxy_uids"] = (IdRange.single(DEFAULT_PROXY_ID if uid is None else uid),)
    if not fields["proxy_gids"]:
        fields["proxy_gids"] = fields["proxy_uids"]
    warnings: list[str] = []
    if not fields["dry_run"]:
        # What makes no rules leaves nothing out.
        plan_counts = not (fields["cleanup_only"] or fields["skip_rule_apply"])
        live = plan_counts
    addresses = _complete_families(fields, values, machine, warnings, live=live)
    as_iptables = fields["nft_like_iptables"] or not fields["native_nftables"]
    if plan_counts and not fields["ipv6"] and as_iptables:
        auto = fields["ip_family"] == "auto"
        warnings += uncaptured_ipv6(addresses, "--dual-stack" if auto else "--ip-family dual")
    _complete_dns(fields, values, machine, warnings)
    for helper in _HELPERS:
        del fields[helper]
    config = Config(**fields)  # type: ignore[arg-type]  # the kinds give each field its type
    warnings += _without_effect(config, values)
    return config, warnings


def typed_fields(values: Mapping[str, Value], machine: Host) -> dict[str, object]:
    """The typed value of each setting, by its field of Config or its own name.

    Raises UsageProblems with one line for each item that can't be used, alone or with others.
    """
    read, problems = convert(values, Names(machine.uid, machine.gid))
    fields = {FIELDS.get(name, name): value for name, value in read.items()}
    problems += _wrong_together(fields, values)
    if problems:
        raise UsageProblems(problems)
    return fields


def _wrong_together(fields: Mapping[str, object], values: Mapping[str, Value]) -> list[str]:
    """What is wrong with settings whose items are right, one by one."""
    problems = [
        f"{values[name].label}: {values[name].text!r} is empty: name at least one {what}"
        for name, what in (("proxy_uid", "user"), ("proxy_gid", "group"))
        if values[name].text and not values[name].text.strip(", ")
    ]
    groups = fields["owner_groups"]
    if isinstance(groups, tuple) and len(groups) > MAX_OWNER_GROUPS:
        problems.append(
            f"{values['istio_outbound_owner_groups'].label}: {len(groups)} groups are more than"
            f" one rule can carry: at most {MAX_OWNER_GROUPS}"
        )
    if fields["native_nftables"]:
        problems += _not_natively(fields, values)
    if not fields["dry_run"]:
        problems += (
            f"{values[name].label}: says how to print, and only a dry run prints: add --dry-run"
            for name in ("format", "only")
            if values[name].given
        )
    return problems


def _not_natively(fields: Mapping[str, object], values: Mapping[str, Value]) -> Iterator[str]:
    """What native nftables rules can't do."""
    for field, name in (
        ("exclude_interfaces", "istio_exclude_interfaces"),
        ("virtual_interfaces", "kube_virt_interfaces"),
    ):
        # None where an item was wrong already.
        for each in cast("tuple[str, ...] | None", fields[field]) or ():
            # nft counts the backslash that keeps a * at the end from being a wildcard.
            if (
                each.endswith("*")
                and len(each.encode(errors="surrogateescape")) == MAX_INTERFACE_BYTES
            ):
                yield f"{values[name].label}: {each!r} is too long for nft, since it ends in *"


def _complete_families(
    fields: dict[str, object],
    values: Mapping[str, Value],
    machine: Host,
    warnings: list[str],
    *,
    live: bool,
) -> tuple[str, ...]:
    """Decide whether IPv6 is on (docs/contract.md, section 1, "IPv6"); returns the addresses, if asked for."""
    asked = fields["ip_family"]
    addresses: tuple[str, ...] = ()
    if fields["cleanup_only"]:
        # A clean-up goes by what is there, in both families.
        fields["ipv6"] = True
    elif asked == "auto":
        try:
            addresses = machine.addresses(str(fields["network_namespace"]))
        except KernelRefused as error:
            if not fields["dry_run"]:
                raise
            warnings += error.lines
        if not addresses:
            if not fields["dry_run"]:
                message = (
                    "the namespace has no address but loopback and link-local ones, so it can't"
                    " be told whether IPv6 is in use: give --ip-family"
                )
                raise KernelRefused(message)
            warnings.append("no address to tell the address families by: IPv4 is assumed")
        seen = addresses if fields["dual_stack"] else addresses[:1]
        fields["ipv6"] = any(":" in address for address in seen)
    else:
        fields["ipv6"] = asked == "dual"
        if live and not fields["ipv6"]:
            # Only a warning hangs on it: a namespace that can't be looked at is told of later.
            with suppress(KernelRefused):
                addresses = machine.addresses(str(fields["network_namespace"]))
    if fields["dual_stack"] and not fields["ipv6"]:
        why = "there is no IPv6 address" if asked == "auto" else f"--ip-family is {asked}"
        warnings.append(f"{values['dual_stack'].label}: no effect: {why}")
    del fields["dual_stack"]
    return addresses


def uncaptured_ipv6(addresses: Iterable[str], flag: str) -> list[str]:
    """A line about the IPv6 addresses among *addresses* where there are IPv4 rules alone.

    *flag* is what makes IPv6 rules too.
    """
    # ::6 is our own: an earlier installation with IPv6 put it there.
    ipv6 = [address for address in addresses if ":" in address and address != _PASSTHROUGH_IPV6]
    if not ipv6:
        return []
    named = ", ".join(ipv6[:_MOST_ADDRESSES])
    if len(ipv6) > _MOST_ADDRESSES:
        named += f" and {len(ipv6) - _MOST_ADDRESSES} more"
    what = "IPv6 address" if len(ipv6) == 1 else "IPv6 addresses"
    return [
        f"{what} {named}: not captured, since the rules are for IPv4 only: {flag} captures IPv6"
    ]


def resolv_conf_of(namespace: str) -> str:
    """The resolv.conf of the process that names *namespace*; "" where none does."""
    process = namespace and pattern(_NAMESPACE_OF_PROCESS).fullmatch(namespace)
    return f"{process[1]}/root/etc/resolv.conf" if process else ""


def _complete_dns(
    fields: dict[str, object], values: Mapping[str, Value], machine: Host, warnings: list[str]
) -> None:
    """Find the DNS servers to capture (docs/contract.md, section 1, "DNS")."""
    redirect, everything = fields["redirect_dns"], fields["capture_all_dns"]
    servers: Sequence[str] = ()
    fields["dns_servers_file"] = ""
    if redirect and not everything and not fields["cleanup_only"]:
        path = str(fields["resolv_conf"])
        if not values["resolv_conf"].given:
            path = resolv_conf_of(str(fields["network_namespace"])) or path
        fields["dns_servers_file"] = path
        servers = machine.nameservers(path)
        if not servers:
            label = values["redirect_dns"].label
            warnings.append(f"{label}: no effect: {path} names no DNS server")
            fields["redirect_dns"] = False
    elif values["resolv_conf"].given:
        why = "every DNS server is captured" if redirect else "DNS is not captured"
        warnings.append(f"{values['resolv_conf'].label}: no effect: {why}")
    fields["dns_servers_ipv4"] = tuple(server for server in servers if ":" not in server)
    fields["dns_servers_ipv6"] = tuple(server for server in servers if ":" in server)
    if fields["dns_servers_ipv6"] and not fields["ipv6"]:
        listed = ", ".join(fields["dns_servers_ipv6"])  # type: ignore[arg-type]  # strings
        warnings.append(f"DNS server {listed}: not captured: IPv6 is off")


def _without_effect(config: Config, values: Mapping[str, Value]) -> list[str]:
    """One line for each setting that was given and changes nothing, or harms."""
    warnings = [
        f"{values[name].label}: no effect: {why}"
        for name, idle, why in _idle(config)
        if idle and values[name].given and values[name].text.strip(", ")
    ]
    return warnings + _harmful(config, values)


def _idle(config: Config) -> tuple[tuple[str, object, str], ...]:
    """For each setting that may be without effect: its name, whether it is, and why."""
    tproxy = config.mode is Mode.TPROXY
    captures_out = config.outbound_cidrs or config.outbound_ports
    no_probe = (not config.run_validation, "it needs --run-validation")
    # A captured loopback network counts without a rule of its own (docs/contract.md, rule 9b).
    included = () if config.ipv6 else _ipv6(config.outbound_cidrs, loopback=False)
    excluded = () if config.ipv6 else _ipv6(config.outbound_cidrs_exclude)
    no_ipv6 = "IPv6 is off, which leaves {} without a rule"
    return (
        (
            "istio_outbound_ports",
            config.outbound_cidrs is ALL,
            "all outbound traffic is captured already (-i '*')",
        ),
        (
            "istio_local_exclude_ports",
            config.inbound_ports is not ALL,
            "it excludes ports from -b '*' only",
        ),
        (
            "redirect_dns",
            config.redirect_dns and within(_DNS_PORT, config.outbound_ports_exclude),
            f"port {_DNS_PORT} is left out of outbound capture (-o)",
        ),
        (
            "capture_all_dns",
            config.capture_all_dns and not config.redirect_dns,
            "it needs --redirect-dns",
        ),
        (
            "force_iptables_binary",
            config.native_nftables and not config.dry_run,
            "native nftables rules are in no backend of iptables",
        ),
        ("nft_like_iptables", not config.native_nftables, "it needs --native-nftables"),
        ("nft_sets", not config.native_nftables, "it needs --native-nftables"),
        ("istio_service_cidr", included, no_ipv6.format(", ".join(included))),
        ("istio_service_exclude_cidr", excluded, no_ipv6.format(", ".join(excluded))),
        ("istio_service_exclude_cidr", not captures_out, "nothing outbound is captured"),
        (
            "kube_virt_interfaces",
            # Under REDIRECT it also keeps their traffic out of what is captured inbound.
            not config.outbound_cidrs and (tproxy or not config.inbound_ports),
            "no destination is captured (-i), so nothing is rerouted",
        ),
        (
            "istio_outbound_owner_groups_exclude",
            config.owner_groups is not ALL,
            "ISTIO_OUTBOUND_OWNER_GROUPS names the groups already",
        ),
        ("istio_inbound_tproxy_mark", not tproxy, "only TPROXY marks packets (-m)"),
        (
            "istio_inbound_tproxy_route_table",
            not (tproxy and config.inbound_ports),
            "only TPROXY with -b needs a route (-m)",
        ),
        ("only", config.only == "ipv6" and not config.ipv6, "IPv6 is off: nothing is printed"),
        ("iptables_probe_port", *no_probe),
        ("probe_timeout", *no_probe),
    )


def _ipv6(networks: tuple[Network, ...] | Wildcard, *, loopback: bool = True) -> tuple[str, ...]:
    if networks is ALL:
        return ()
    return tuple(
        str(network)
        for network in networks
        if network.version == IPV6 and (loopback or not network.loopback)
    )


def _harmful(config: Config, values: Mapping[str, Value]) -> list[str]:
    """One line for each setting whose value breaks the pod although the kernel takes it."""
    warnings = [*_same_ports(config, values), *_port_zero(config, values)]
    if (config.envoy_port, config.inbound_capture_port) == (_INBOUND_PORT, _OUTBOUND_PORT):
        labels = f"{values['envoy_port'].label}, {values['inbound_capture_port'].label}"
        warnings.append(
            f"{labels}: these look swapped: -p is the outbound listener ({_OUTBOUND_PORT}), -z the"
            f" inbound one ({_INBOUND_PORT})"
        )
    if config.mode is not Mode.TPROXY:
        return warnings
    table = _MAIN_ROUTE_TABLES.get(config.tproxy_route_table)
    if table and config.inbound_ports:
        warnings.append(
            f"{values['istio_inbound_tproxy_route_table'].label}: {config.tproxy_route_table} is the"
            f" {table} table: a local default route there takes all traffic of the pod"
        )
    if config.tproxy_mark == _OUTBOUND_MARK:
        warnings.append(
            f"{values['istio_inbound_tproxy_mark'].label}: {_OUTBOUND_MARK} is the mark of Envoy's"
            " own traffic to the application, which can't be told apart then"
        )
    return warnings


def _same_ports(config: Config, values: Mapping[str, Value]) -> list[str]:
    """One line for each pair of ports that can't be the same, and are."""
    ports = [
        (values["envoy_port"].label, config.envoy_port),
        (values["inbound_capture_port"].label, config.inbound_capture_port),
        (values["inbound_tunnel_port"].label, config.inbound_tunnel_port),
    ]
    if config.redirect_dns:
        ports.append(("the agent's DNS resolver", _AGENT_DNS_PORT))
    if config.run_validation:
        ports.append((values["iptables_probe_port"].label, config.probe_port))
    return [
        f"{label}: {port} is also the port of {earlier}: one listener gets what is meant for the other"
        for number, (label, port) in enumerate(ports)
        for earlier, other in ports[:number]
        if port == other
    ]


def _port_zero(config: Config, values: Mapping[str, Value]) -> list[str]:
    """One line for each port 0, and for each range that is every port."""
    lists: tuple[tuple[str, tuple[PortRange, ...] | Wildcard], ...] = (
        ("istio_inbound_ports", config.inbound_ports),
        ("istio_local_exclude_ports", config.inbound_ports_exclude),
        ("istio_outbound_ports", config.outbound_ports),
        ("istio_local_outbound_ports_exclude", config.outbound_ports_exclude),
        (
            "inbound_tunnel_port",
            (PortRange(config.inbound_tunnel_port, config.inbound_tunnel_port),),
        ),
    )
    return [
        f"{values[name].label}: {_odd_range(each)}"
        for name, ports in lists
        if ports is not ALL
        for each in dict.fromkeys(ports)
        if _odd_range(each)
    ]


def _odd_range(ports: PortRange) -> str:
    if ports == (0, 0):
        return "port 0 matches next to nothing: no connection is made to it"
    if ports == (0, _LAST_PORT):
        return f"{ports} is every port"
    return ""
