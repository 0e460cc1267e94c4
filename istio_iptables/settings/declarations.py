"""Every setting of the program, declared once: names, default, kind and help.

The command line, the environment, ``--help``, the verbose listing and the JSON output are all
made from this table (docs/contract.md, section 1). The text of a value becomes a typed one in
``kinds``; where it came from is ``sources``' business.
"""

from __future__ import annotations

from enum import Enum

from istio_iptables.typed import NamedTuple

__all__ = ["GROUPS", "SETTINGS", "Group", "Setting", "ValueKind", "setting"]


class ValueKind(Enum):
    """What sort of value a setting takes; the value is what ``--help`` calls it."""

    FLAG = ""
    PORT = "PORT"
    #: Takes 0 too, which is no port.
    TUNNEL_PORT = "PORT|0"
    PORTS = "PORTS"
    PORTS_OR_ALL = "PORTS|*"
    CIDR = "CIDR"
    CIDRS = "CIDRS"
    CIDRS_OR_ALL = "CIDRS|*"
    UIDS = "UIDS"
    GIDS = "GIDS"
    GIDS_OR_ALL = "GIDS|*"
    INTERFACES = "INTERFACES"
    MODE = "REDIRECT|TPROXY"
    NUMBER = "NUMBER"
    DURATION = "DURATION"
    BACKEND = "legacy|nft"
    FORMAT = "save|restore|commands|annotated|json"
    FAMILY = "ipv4|ipv6"
    IP_FAMILY = "auto|ipv4|dual"
    TEXT = "TEXT"
    PATH = "PATH"


class Group(NamedTuple):
    """A heading of ``--help`` and what it gathers."""

    title: str
    about: str = ""


PROXY = Group("The proxy")
INBOUND = Group("Inbound: what comes to the pod")
OUTBOUND = Group("Outbound: what leaves the application")
DNS = Group("DNS")
FAMILIES = Group("Address families and the machine")
APPLYING = Group("Applying the rules")
PRINTING = Group("Printing instead of applying")
VALIDATION = Group("Validation")

GROUPS = (PROXY, INBOUND, OUTBOUND, DNS, FAMILIES, APPLYING, PRINTING, VALIDATION)


class Setting(NamedTuple):
    """One setting. *environment* is in ascending precedence; a flag beats them all."""

    name: str
    group: Group
    kind: ValueKind
    help: str
    default: str = ""
    short: str = ""
    environment: tuple[str, ...] = ()
    #: False for a setting that only the environment can give.
    on_command_line: bool = True
    #: How the default is told when it is not a fixed value.
    default_note: str = ""

    @property
    def flag(self) -> str:
        """The long option, such as ``--envoy-port``."""
        return "--" + self.name.replace("_", "-")

    @property
    def label(self) -> str:
        """What a message calls the setting: its flag, or its variable if it has no flag."""
        return self.flag if self.on_command_line else self.environment[0]


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "envoy_port",
        PROXY,
        ValueKind.PORT,
        "Envoy's outbound listener: where captured outbound traffic is sent.",
        default="15001",
        short="p",
    ),
    Setting(
        "inbound_capture_port",
        PROXY,
        ValueKind.PORT,
        "Envoy's inbound listener: where captured inbound traffic is sent.",
        default="15006",
        short="z",
        environment=("INBOUND_CAPTURE_PORT",),
    ),
    Setting(
        "inbound_tunnel_port",
        PROXY,
        ValueKind.TUNNEL_PORT,
        "The HBONE tunnel's port, which is never redirected.",
        default="15008",
        short="e",
        environment=("INBOUND_TUNNEL_PORT",),
    ),
    Setting(
        "proxy_uid",
        PROXY,
        ValueKind.UIDS,
        "Users the proxy runs as; what they send is not captured again.",
        short="u",
        environment=("PROXY_UID",),
        default_note="the uid of $ENVOY_USER (istio-proxy), or 1337",
    ),
    Setting(
        "proxy_gid",
        PROXY,
        ValueKind.GIDS,
        "Groups the proxy runs as; what they send is not captured again.",
        short="g",
        environment=("PROXY_GID",),
        default_note="the value of --proxy-uid",
    ),
    Setting(
        "istio_inbound_interception_mode",
        INBOUND,
        ValueKind.MODE,
        "How inbound connections reach Envoy; TPROXY keeps the client's address.",
        default="REDIRECT",
        short="m",
        environment=("ISTIO_INBOUND_INTERCEPTION_MODE",),
    ),
    Setting(
        "istio_inbound_ports",
        INBOUND,
        ValueKind.PORTS_OR_ALL,
        "Inbound ports to capture; * is all of them, nothing is none.",
        short="b",
        environment=("ISTIO_INBOUND_PORTS",),
    ),
    Setting(
        "istio_local_exclude_ports",
        INBOUND,
        ValueKind.PORTS,
        "Inbound ports to leave alone; only with -b '*'.",
        short="d",
        environment=("ISTIO_LOCAL_EXCLUDE_PORTS",),
    ),
    Setting(
        "istio_exclude_interfaces",
        INBOUND,
        ValueKind.INTERFACES,
        "Interfaces whose traffic is not captured in either direction; br+ is every interface whose name starts with br.",
        short="c",
        environment=("ISTIO_EXCLUDE_INTERFACES",),
    ),
    Setting(
        "kube_virt_interfaces",
        INBOUND,
        ValueKind.INTERFACES,
        "Virtual interfaces whose inbound traffic is treated as outbound.",
        short="k",
        environment=("KUBE_VIRT_INTERFACES",),
    ),
    Setting(
        "istio_inbound_tproxy_mark",
        INBOUND,
        ValueKind.NUMBER,
        "The packet mark of TPROXY, decimal or hexadecimal",
        default="1337",
        short="t",
        environment=("ISTIO_INBOUND_TPROXY_MARK",),
    ),
    Setting(
        "istio_inbound_tproxy_route_table",
        INBOUND,
        ValueKind.NUMBER,
        "The routing table that delivers marked packets locally, decimal or hexadecimal",
        default="133",
        short="r",
        environment=("ISTIO_INBOUND_TPROXY_ROUTE_TABLE",),
    ),
    Setting(
        "drop_invalid",
        INBOUND,
        ValueKind.FLAG,
        "Drop packets that connection tracking calls invalid.",
        default="false",
        environment=("DROP_INVALID", "INVALID_DROP"),
    ),
    Setting(
        "istio_service_cidr",
        OUTBOUND,
        ValueKind.CIDRS_OR_ALL,
        "Destinations to capture; * is all of them, nothing is none.",
        short="i",
        environment=("ISTIO_SERVICE_CIDR",),
    ),
    Setting(
        "istio_service_exclude_cidr",
        OUTBOUND,
        ValueKind.CIDRS,
        "Destinations to leave alone, whatever else is captured.",
        short="x",
        environment=("ISTIO_SERVICE_EXCLUDE_CIDR",),
    ),
    Setting(
        "istio_outbound_ports",
        OUTBOUND,
        ValueKind.PORTS,
        "Destination ports to capture wherever they lead; no effect with -i '*'.",
        short="q",
        environment=("ISTIO_OUTBOUND_PORTS",),
    ),
    Setting(
        "istio_local_outbound_ports_exclude",
        OUTBOUND,
        ValueKind.PORTS,
        "Destination ports to leave alone, tcp and udp, before every other rule.",
        short="o",
        environment=("ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE",),
    ),
    Setting(
        "istio_outbound_owner_groups",
        OUTBOUND,
        ValueKind.GIDS_OR_ALL,
        "Groups whose outbound traffic is captured; set but empty captures nothing.",
        default="*",
        environment=("ISTIO_OUTBOUND_OWNER_GROUPS",),
        on_command_line=False,
    ),
    Setting(
        "istio_outbound_owner_groups_exclude",
        OUTBOUND,
        ValueKind.GIDS,
        "Groups whose outbound traffic is left alone; only while all groups are captured.",
        environment=("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",),
        on_command_line=False,
    ),
    Setting(
        "istio_outbound_ipv4_loopback_cidr",
        OUTBOUND,
        ValueKind.CIDR,
        "What counts as IPv4 loopback: a network in 127.0.0.0/8.",
        default="127.0.0.1/32",
        environment=("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",),
        on_command_line=False,
    ),
    Setting(
        "redirect_dns",
        DNS,
        ValueKind.FLAG,
        "Send DNS to the agent's resolver on port 15053.",
        default="false",
        environment=("REDIRECT_DNS", "ISTIO_META_DNS_CAPTURE"),
    ),
    Setting(
        "capture_all_dns",
        DNS,
        ValueKind.FLAG,
        "Capture port 53 to any server, not only to those of resolv.conf.",
        default="false",
        environment=("CAPTURE_ALL_DNS",),
    ),
    Setting(
        "resolv_conf",
        DNS,
        ValueKind.PATH,
        "Where the DNS servers to capture are listed.",
        default="/etc/resolv.conf",
    ),
    Setting(
        "dual_stack",
        FAMILIES,
        ValueKind.FLAG,
        "Turn IPv6 on if there is any IPv6 address, not only if the first one is.",
        default="false",
        environment=("DUAL_STACK", "ISTIO_DUAL_STACK"),
    ),
    Setting(
        "ip_family",
        FAMILIES,
        ValueKind.IP_FAMILY,
        "Address families to make rules for; auto looks at the namespace's addresses.",
        default="auto",
    ),
    Setting(
        "network_namespace",
        FAMILIES,
        ValueKind.PATH,
        "The namespace to work in: a name under /run/netns, or a path.",
        environment=("NETWORK_NAMESPACE",),
        default_note="the current one",
    ),
    Setting(
        "cni_mode",
        FAMILIES,
        ValueKind.FLAG,
        "Hold the pod's lock only, not the node's /run/xtables.lock.",
        default="false",
        environment=("CNI_MODE",),
    ),
    Setting(
        "force_iptables_binary",
        APPLYING,
        ValueKind.BACKEND,
        "Which of the kernel's two backends for rules to use.",
        environment=("FORCE_IPTABLES_BINARY",),
        default_note="the one that holds rules, else legacy",
    ),
    Setting(
        "skip_rule_apply",
        APPLYING,
        ValueKind.FLAG,
        "Install nothing; --run-validation still runs.",
        default="false",
        environment=("SKIP_RULE_APPLY",),
    ),
    Setting(
        "reconcile",
        APPLYING,
        ValueKind.FLAG,
        "Replace rules of ours that differ, instead of failing.",
        default="false",
        environment=("RECONCILE",),
    ),
    Setting(
        "force_apply",
        APPLYING,
        ValueKind.FLAG,
        "Replace rules of ours that differ, without asking: here the same as --reconcile.",
        default="false",
        environment=("FORCE_APPLY",),
    ),
    Setting(
        "cleanup_only",
        APPLYING,
        ValueKind.FLAG,
        "Remove our rules and install nothing, as the command clean does.",
        default="false",
        environment=("CLEANUP_ONLY",),
    ),
    Setting(
        "json",
        APPLYING,
        ValueKind.FLAG,
        "Print what was done in each of several namespaces as JSON.",
        default="false",
    ),
    Setting(
        "native_nftables",
        APPLYING,
        ValueKind.FLAG,
        "Native nftables rules in place of those of iptables; with --dry-run, as nft lists them.",
        default="false",
        environment=("NATIVE_NFTABLES",),
    ),
    Setting(
        "nft_like_iptables",
        APPLYING,
        ValueKind.FLAG,
        "Native nftables rules that treat every packet as those of iptables do, which Istio's don't.",
        default="false",
    ),
    Setting(
        "nft_sets",
        APPLYING,
        ValueKind.FLAG,
        "Native nftables rules with a set for each list of ports or networks, in place of a rule each.",
        default="false",
    ),
    Setting(
        "dry_run",
        PRINTING,
        ValueKind.FLAG,
        "Print what would be installed; touch nothing, need no privilege.",
        default="false",
        short="n",
        environment=("DRY_RUN",),
    ),
    Setting(
        "format",
        PRINTING,
        ValueKind.FORMAT,
        "How a dry run prints.",
        default="save",
    ),
    Setting(
        "only",
        PRINTING,
        ValueKind.FAMILY,
        "Print this family's document alone.",
        default_note="both",
    ),
    Setting(
        "verbose",
        PRINTING,
        ValueKind.FLAG,
        "Show each setting and where its value came from, on stderr.",
        default="false",
        short="v",
    ),
    Setting(
        "strict",
        PRINTING,
        ValueKind.FLAG,
        "Take every warning as an error.",
        default="false",
    ),
    Setting(
        "run_validation",
        VALIDATION,
        ValueKind.FLAG,
        "Send a real connection through the rules; exit 126 if it does not arrive.",
        default="false",
        environment=("RUN_VALIDATION",),
    ),
    Setting(
        "iptables_probe_port",
        VALIDATION,
        ValueKind.PORT,
        "The port that the validation connects to.",
        default="15002",
        environment=("IPTABLES_PROBE_PORT",),
    ),
    Setting(
        "probe_timeout",
        VALIDATION,
        ValueKind.DURATION,
        "How long the validation waits, such as 5s, 1m30s or 500ms.",
        default="5s",
        environment=("PROBE_TIMEOUT",),
    ),
)

_BY_NAME = {each.name: each for each in SETTINGS}


def setting(name: str) -> Setting:
    """The setting of this name; raises KeyError if there is none."""
    return _BY_NAME[name]
