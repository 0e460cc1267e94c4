"""The settings as a whole: what the machine completes, and what has no effect."""

from __future__ import annotations

import pytest

from istio_iptables.errors import KernelRefused, UsageProblems
from istio_iptables.settings.config import MAX_OWNER_GROUPS, Config, configure
from istio_iptables.settings.sources import gather
from istio_iptables.settings.types import IdRange
from tests.strategies import FixedMachine

IPV4 = FixedMachine(("10.0.0.5",))
IPV6_ONLY = FixedMachine(("fd00::5",))
BOTH = FixedMachine(("10.0.0.5", "fd00::5"))
NONE = FixedMachine(())


class Unreadable(FixedMachine):
    """A machine whose namespace can't be looked at."""

    def addresses(self, namespace: str) -> tuple[str, ...]:
        """Refuse."""
        message = f"can't open {namespace}"
        raise KernelRefused(message)


def configured(machine: FixedMachine = IPV4, /, **texts: str) -> tuple[Config, list[str]]:
    """The Config and the warnings of these settings; a dry run if nothing else is said."""
    values, _ = gather({"dry_run": "true"} | texts, {})
    return configure(values, machine)


class TestIds:
    """The proxy's uids and gids when they are not given."""

    def test_the_user_of_the_proxy(self) -> None:
        """The default is the uid of ENVOY_USER where that user exists."""
        machine = FixedMachine(users=(("istio-proxy", 2000), ("envoy", 3000)))
        values, _ = gather({"dry_run": "true"}, {})
        assert configure(values, machine)[0].proxy_uids == (IdRange(2000, 2000),)
        config, _ = configure(values, machine, envoy_user="envoy")
        assert config.proxy_uids == config.proxy_gids == (IdRange(3000, 3000),)

    def test_without_that_user(self) -> None:
        """Where the user does not exist it is 1337; a uid of 0 is a uid, too."""
        assert configured()[0].proxy_uids == (IdRange(1337, 1337),)
        values, _ = gather({"dry_run": "true"}, {})
        assert configure(values, IPV4, envoy_user="root")[0].proxy_uids == (IdRange(0, 0),)

    def test_groups_follow_users(self) -> None:
        """Without groups the users' numbers are those of the groups."""
        assert configured(proxy_uid="5,6")[0].proxy_gids == (IdRange(5, 5), IdRange(6, 6))
        assert configured(proxy_uid="5", proxy_gid="7")[0].proxy_gids == (IdRange(7, 7),)

    @pytest.mark.parametrize("name", ["proxy_uid", "proxy_gid"])
    def test_a_list_without_an_item(self, name: str) -> None:
        """A list of nothing but commas was meant to say something."""
        with pytest.raises(UsageProblems, match=r"is empty: name at least one (user|group)"):
            configured(**{name: ",,"})


class TestFamilies:
    """Whether IPv6 is on."""

    @pytest.mark.parametrize(
        ("machine", "dual_stack", "ip_family", "ipv6"),
        [
            (IPV4, "false", "auto", False),
            (IPV6_ONLY, "false", "auto", True),
            (BOTH, "false", "auto", False),
            (BOTH, "true", "auto", True),
            (IPV4, "true", "auto", False),
            (NONE, "true", "auto", False),
            (IPV4, "false", "dual", True),
            (IPV6_ONLY, "false", "ipv4", False),
            (BOTH, "true", "ipv4", False),
        ],
    )
    def test_table(
        self, machine: FixedMachine, dual_stack: str, ip_family: str, *, ipv6: bool
    ) -> None:
        """The first address decides, any with --dual-stack; --ip-family decides without asking."""
        config, _ = configured(machine, dual_stack=dual_stack, ip_family=ip_family)
        assert config.ipv6 is ipv6

    def test_a_dry_run_needs_no_address(self) -> None:
        """Without an address a dry run assumes IPv4 and says so."""
        config, warnings = configured(NONE)
        assert not config.ipv6
        assert warnings == ["no address to tell the address families by: IPv4 is assumed"]

    def test_a_dry_run_goes_on_without_the_namespace(self) -> None:
        """A namespace that can't be looked at is a warning in a dry run."""
        _, warnings = configured(Unreadable(), network_namespace="gone")
        assert warnings[0] == "can't open gone"

    def test_an_install_needs_an_address(self) -> None:
        """An install that can't know the families touches nothing."""
        with pytest.raises(KernelRefused, match="give --ip-family"):
            configured(NONE, dry_run="false")
        with pytest.raises(KernelRefused, match="can't open gone"):
            configured(Unreadable(), dry_run="false", network_namespace="gone")
        assert configured(NONE, dry_run="false", ip_family="dual")[0].ipv6


class TestDns:
    """Which servers are captured."""

    def test_servers_by_family(self) -> None:
        """Servers are told apart by family, in the order of the file."""
        machine = FixedMachine(("10.0.0.5", "fd00::5"), ("fd00::a", "10.0.0.2", "fd00::b"))
        config, warnings = configured(machine, redirect_dns="true", dual_stack="true")
        assert config.dns_servers_ipv4 == ("10.0.0.2",)
        assert config.dns_servers_ipv6 == ("fd00::a", "fd00::b")
        assert not warnings

    def test_no_server(self) -> None:
        """Without a server there is nothing to capture, which is told."""
        config, (warning,) = configured(redirect_dns="true")
        assert not config.redirect_dns
        assert warning == "--redirect-dns: no effect: /etc/resolv.conf names no DNS server"

    def test_every_server(self) -> None:
        """With --capture-all-dns the file is not looked at."""
        machine = FixedMachine(servers=("10.0.0.2",))
        config, warnings = configured(machine, redirect_dns="true", capture_all_dns="true")
        assert config.redirect_dns
        assert config.dns_servers_ipv4 == ()
        assert not warnings

    def test_a_server_of_a_family_that_is_off(self) -> None:
        """An IPv6 server while IPv6 is off has no rules, which is told."""
        machine = FixedMachine(servers=("10.0.0.2", "fd00::a"))
        _, (warning,) = configured(machine, redirect_dns="true")
        assert warning == "DNS server fd00::a: not captured: IPv6 is off"


def test_all_problems_are_told_at_once() -> None:
    """Every bad item of every setting is a line, each with its option, number and reason."""
    with pytest.raises(UsageProblems) as caught:
        configured(
            envoy_port="0",
            istio_inbound_ports="80,x,81,y",
            istio_service_cidr="10.0.0.1,10.0.0.0/8",
            istio_inbound_interception_mode="tproxy",
        )
    lines = caught.value.lines
    assert [line.split(":")[0] for line in lines] == [
        "--envoy-port (-p)",
        "--istio-inbound-interception-mode (-m)",
        "--istio-inbound-ports (-b), item 2",
        "--istio-inbound-ports (-b), item 4",
        "--istio-service-cidr (-i), item 1",
    ]


def test_more_groups_than_a_rule_carries() -> None:
    """As many groups as one rule can carry are taken, one more is refused."""
    most = ",".join(map(str, range(MAX_OWNER_GROUPS)))
    assert len(configured(istio_outbound_owner_groups=most)[0].owner_groups) == MAX_OWNER_GROUPS  # type: ignore[arg-type]
    with pytest.raises(UsageProblems, match=r"50 groups .* at most 49"):
        configured(istio_outbound_owner_groups=f"{most},99")


WITHOUT_EFFECT: list[tuple[dict[str, str], str]] = [
    ({"istio_outbound_ports": "80", "istio_service_cidr": "*"}, "-q): no effect: all outbound"),
    ({"istio_local_exclude_ports": "80"}, "-d): no effect: it excludes ports from -b '*' only"),
    ({"istio_local_exclude_ports": "80", "istio_inbound_ports": "90"}, "-d): no effect"),
    ({"capture_all_dns": "true"}, "--capture-all-dns: no effect: it needs --redirect-dns"),
    ({"istio_service_cidr": "10.0.0.0/8,fd00::/8"}, "fd00::/8 without a rule"),
    (
        {"istio_service_cidr": "*", "istio_service_exclude_cidr": "fd00::/8"},
        "fd00::/8 without a rule",
    ),
    ({"istio_service_exclude_cidr": "10.0.0.0/8"}, "-x): no effect: nothing outbound is captured"),
    ({"kube_virt_interfaces": "eth1"}, "-k): no effect"),
    (
        {
            "kube_virt_interfaces": "eth1",
            "istio_inbound_ports": "*",
            "istio_inbound_interception_mode": "TPROXY",
        },
        "-k): no effect",
    ),
    (
        {"istio_outbound_owner_groups": "5", "istio_outbound_owner_groups_exclude": "6"},
        "OWNER_GROUPS_EXCLUDE: no effect",
    ),
    ({"istio_inbound_tproxy_mark": "5"}, "-t): no effect: only TPROXY marks packets"),
    ({"istio_inbound_tproxy_route_table": "5"}, "-r): no effect: only TPROXY with -b"),
    (
        {"istio_inbound_interception_mode": "TPROXY", "istio_inbound_tproxy_route_table": "5"},
        "-r): no effect: only TPROXY with -b",
    ),
    (
        {
            "istio_inbound_interception_mode": "TPROXY",
            "istio_inbound_ports": "*",
            "istio_inbound_tproxy_route_table": "255",
        },
        "255 is the local table",
    ),
    (
        {"istio_inbound_interception_mode": "TPROXY", "istio_inbound_tproxy_mark": "1338"},
        "1338 is the mark of Envoy's own traffic",
    ),
    ({"iptables_probe_port": "80"}, "--iptables-probe-port: no effect: it needs --run-validation"),
    ({"probe_timeout": "1s"}, "--probe-timeout: no effect: it needs --run-validation"),
    ({"dual_stack": "true"}, "--dual-stack: no effect: there is no IPv6 address"),
    ({"dual_stack": "true", "ip_family": "ipv4"}, "--dual-stack: no effect: --ip-family is ipv4"),
    ({"resolv_conf": "/x"}, "--resolv-conf: no effect: DNS is not captured"),
    (
        {"resolv_conf": "/x", "redirect_dns": "true", "capture_all_dns": "true"},
        "--resolv-conf: no effect: every DNS server is captured",
    ),
]


@pytest.mark.parametrize(("texts", "fragment"), WITHOUT_EFFECT)
def test_without_effect(texts: dict[str, str], fragment: str) -> None:
    """A setting that was given and changes nothing is told in one line."""
    (warning,) = configured(**texts)[1]
    assert fragment in warning


WITH_EFFECT: list[dict[str, str]] = [
    {},
    {"istio_outbound_ports": "80"},
    {"istio_outbound_ports": "", "istio_service_cidr": "*"},
    {"istio_outbound_ports": " ,", "istio_service_cidr": "*"},
    {"istio_inbound_ports": "*", "istio_local_exclude_ports": "80"},
    {"istio_service_cidr": "10.0.0.0/8", "istio_service_exclude_cidr": "10.1.0.0/16"},
    {"istio_outbound_ports": "80", "istio_service_exclude_cidr": "10.1.0.0/16"},
    # It captures nothing itself, but leaves out the rule that spares loopback.
    {"istio_service_cidr": "10.0.0.0/8,::1/128"},
    # What the proxy sends to its own pod is captured however little else is.
    {"istio_local_outbound_ports_exclude": "80"},
    # Its traffic would be captured inbound otherwise.
    {"kube_virt_interfaces": "eth1", "istio_inbound_ports": "*"},
    {"kube_virt_interfaces": "eth1", "istio_service_cidr": "*"},
    {"istio_inbound_interception_mode": "TPROXY", "istio_inbound_tproxy_mark": "5"},
    {"run_validation": "true", "probe_timeout": "1s", "iptables_probe_port": "80"},
    {"istio_outbound_owner_groups_exclude": "6", "istio_service_cidr": "*"},
]


@pytest.mark.parametrize("texts", WITH_EFFECT)
def test_with_effect(texts: dict[str, str]) -> None:
    """A setting that changes something, or was given as nothing, is not complained about."""
    assert configured(**texts)[1] == []


@pytest.mark.parametrize("name", ["format", "only"])
def test_only_a_dry_run_prints(name: str) -> None:
    """How to print is refused where nothing is printed, rather than left out."""
    text = {"format": "json", "only": "ipv4"}[name]
    with pytest.raises(UsageProblems, match="add --dry-run"):
        configured(dry_run="false", **{name: text})


def test_native_nftables_is_in_no_backend() -> None:
    """A backend of iptables that is named all the same has no effect, which is told."""
    config, warnings = configured(
        native_nftables="true", dry_run="false", force_iptables_binary="nft", ip_family="dual"
    )
    assert config.native_nftables
    (line,) = warnings
    assert line.startswith("--force-iptables-binary: no effect: native nftables rules")


def test_a_clean_up_asks_nobody() -> None:
    """A clean-up is for both families, whatever addresses and DNS servers there are now."""
    config, warnings = configured(
        Unreadable(), dry_run="false", cleanup_only="true", redirect_dns="true"
    )
    assert config.ipv6
    assert config.dns_servers_ipv4 == ()
    assert warnings == []
