"""Where a value comes from: flag over second variable over first variable over default."""

from __future__ import annotations

import pytest

from istio_iptables.settings.declarations import SETTINGS, Setting, ValueKind, setting
from istio_iptables.settings.sources import Origin, gather

# docs/contract.md, section 1, in short: flag, short form, variables, default.
CONTRACT = """
--envoy-port                       -p  -                                        15001
--inbound-capture-port             -z  INBOUND_CAPTURE_PORT                     15006
--inbound-tunnel-port              -e  INBOUND_TUNNEL_PORT                      15008
--proxy-uid                        -u  PROXY_UID                                -
--proxy-gid                        -g  PROXY_GID                                -
--istio-inbound-interception-mode  -m  ISTIO_INBOUND_INTERCEPTION_MODE          REDIRECT
--istio-inbound-ports              -b  ISTIO_INBOUND_PORTS                      -
--istio-local-exclude-ports        -d  ISTIO_LOCAL_EXCLUDE_PORTS                -
--istio-exclude-interfaces         -c  ISTIO_EXCLUDE_INTERFACES                 -
--istio-service-cidr               -i  ISTIO_SERVICE_CIDR                       -
--istio-service-exclude-cidr       -x  ISTIO_SERVICE_EXCLUDE_CIDR               -
--istio-outbound-ports             -q  ISTIO_OUTBOUND_PORTS                     -
--istio-local-outbound-ports-exclude -o ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE      -
--kube-virt-interfaces             -k  KUBE_VIRT_INTERFACES                     -
--istio-inbound-tproxy-mark        -t  ISTIO_INBOUND_TPROXY_MARK                1337
--istio-inbound-tproxy-route-table -r  ISTIO_INBOUND_TPROXY_ROUTE_TABLE         133
--dry-run                          -n  DRY_RUN                                  false
--redirect-dns                     -   REDIRECT_DNS,ISTIO_META_DNS_CAPTURE      false
--capture-all-dns                  -   CAPTURE_ALL_DNS                          false
--drop-invalid                     -   DROP_INVALID,INVALID_DROP                false
--dual-stack                       -   DUAL_STACK,ISTIO_DUAL_STACK              false
--skip-rule-apply                  -   SKIP_RULE_APPLY                          false
--run-validation                   -   RUN_VALIDATION                           false
--iptables-probe-port              -   IPTABLES_PROBE_PORT                      15002
--probe-timeout                    -   PROBE_TIMEOUT                            5s
--network-namespace                -   NETWORK_NAMESPACE                        -
--cni-mode                         -   CNI_MODE                                 false
--reconcile                        -   RECONCILE                                false
--cleanup-only                     -   CLEANUP_ONLY                             false
--force-apply                      -   FORCE_APPLY                              false
--native-nftables                  -   NATIVE_NFTABLES                          false
--force-iptables-binary            -   FORCE_IPTABLES_BINARY                    -
-                                  -   ISTIO_OUTBOUND_OWNER_GROUPS              *
-                                  -   ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE      -
-                                  -   ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR        127.0.0.1/32
"""
#: What is ours alone: it exists for printing, or to take from the machine what it would say.
OWN = {
    "resolv_conf",
    "ip_family",
    "format",
    "only",
    "verbose",
    "strict",
    "json",
    "nft_like_iptables",
    "nft_sets",
}

NAMES = [each.name for each in SETTINGS]


def texts(each: Setting) -> tuple[str, str, str]:
    """Three texts that the setting can be given, told apart by their look."""
    return ("true", "false", "1") if each.kind is ValueKind.FLAG else ("first", "second", "flag")


def test_the_table_is_the_contracts() -> None:
    """Every setting of the contract is there with its names and default, and nothing else of Istio."""
    declared = {
        (
            each.flag if each.on_command_line else "-",
            f"-{each.short}" if each.short else "-",
            ",".join(each.environment) or "-",
            each.default or "-",
        )
        for each in SETTINGS
        if each.name not in OWN
    }
    assert declared == {tuple(line.split()) for line in CONTRACT.strip().splitlines()}


def test_no_two_settings_share_a_name() -> None:
    """Flags, short forms and variables belong to one setting each."""
    for names in (
        NAMES,
        [each.short for each in SETTINGS if each.short],
        [variable for each in SETTINGS for variable in each.environment],
    ):
        assert len(names) == len(set(names))


@pytest.mark.parametrize("name", NAMES)
def test_default(name: str) -> None:
    """A setting that nobody gave has its default, and says so."""
    value = gather({}, {})[0][name]
    assert (value.text, value.origin, value.source, value.given) == (
        setting(name).default,
        Origin.DEFAULT,
        "default",
        False,
    )


@pytest.mark.parametrize("name", [each.name for each in SETTINGS if each.environment])
def test_later_variables_beat_earlier_ones(name: str) -> None:
    """Each variable of a setting beats the ones before it, and names itself as the source."""
    each = setting(name)
    given = dict(zip(each.environment, texts(each), strict=False))
    for count in range(1, len(given) + 1):
        environ = dict(list(given.items())[:count])
        value = gather({}, environ)[0][name]
        last = each.environment[count - 1]
        assert (value.text, value.source, value.label) == (given[last], f"${last}", last)
        assert value.given


@pytest.mark.parametrize("name", [each.name for each in SETTINGS if each.on_command_line])
def test_a_flag_beats_every_variable(name: str) -> None:
    """A flag counts whatever the environment says, also when it is empty."""
    each = setting(name)
    environ = dict.fromkeys(each.environment, texts(each)[0])
    for text in (texts(each)[2], ""):
        value = gather({name: text}, environ)[0][name]
        assert (value.text, value.source) == (text, each.flag)
        assert value.label.startswith(each.flag)


@pytest.mark.parametrize("name", [each.name for each in SETTINGS if each.environment])
def test_an_empty_variable_is_a_value(name: str) -> None:
    """Set but empty is given (and "" for a boolean is a mistake that is told)."""
    each = setting(name)
    values, warnings = gather({}, {each.environment[0]: ""})
    assert values[name].given is (each.kind is not ValueKind.FLAG)
    assert bool(warnings) is (each.kind is ValueKind.FLAG)


@pytest.mark.parametrize(
    "variable",
    [variable for each in SETTINGS if each.kind is ValueKind.FLAG for variable in each.environment],
)
@pytest.mark.parametrize("text", ["yes", "on", "2", "tRUE", " true", ""])
def test_a_bad_boolean_is_left_out_and_told(variable: str, text: str) -> None:
    """What is no boolean to Go does not count, and a warning names the variable and the text."""
    values, warnings = gather({}, {variable: text})
    assert not any(value.given for value in values.values())
    assert warnings == [f"{variable}: {text!r} is not a boolean and is ignored"]


def test_a_bad_boolean_leaves_the_first_variable_in_force() -> None:
    """The second name of a boolean, if it is no boolean, does not hide the first."""
    values, warnings = gather({}, {"DROP_INVALID": "true", "INVALID_DROP": "nonsense"})
    assert (values["drop_invalid"].text, values["drop_invalid"].source) == ("true", "$DROP_INVALID")
    assert len(warnings) == 1


def test_envoy_port_is_not_read() -> None:
    """ENVOY_PORT means something else in Istio: it is left alone, with a warning."""
    values, warnings = gather({}, {"ENVOY_PORT": "9"})
    assert values["envoy_port"].text == "15001"
    assert len(warnings) == 1
