"""The arguments of istio-init in Istio's injection template (files/injection-template.yaml of its chart).

Each row is an argument of the container in its order; ``injection`` fills it in. The rest of the
template is a pod, in sidecar.yaml and gateway.yaml.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from istio_iptables.kubernetes import annotations as names

__all__ = ["ARGUMENTS", "CNI", "INIT_CONTEXT", "MODE", "VALIDATION_CONTEXT", "Argument"]


class Argument(NamedTuple):
    """One argument: its option, and where its value is looked for, the first that there is."""

    option: str
    annotations: tuple[str, ...] = ()
    #: A Helm value.
    value: str = ""
    #: A path of the mesh configuration.
    mesh: str = ""
    #: Left out unless an annotation is there, or the value is not empty.
    optional: bool = False
    #: An option alone, left out unless the value is true.
    switch: bool = False
    #: A Helm value that must be false.
    unless: str = ""


CNI = "pilot.cni.enabled"
MODE = Argument("-m", (names.MODE,), mesh="defaultConfig.interceptionMode")
ARGUMENTS: tuple[Argument, ...] = (
    Argument("-p", mesh="proxyListenPort"),
    Argument("-z", mesh="proxyInboundListenPort"),
    # 1337, or that of a container istio-proxy which the pod brings along.
    Argument("-u"),
    MODE,
    Argument("-i", (names.INCLUDE_OUTBOUND_RANGES,), "global.proxy.includeIPRanges"),
    Argument("-x", (names.EXCLUDE_OUTBOUND_RANGES,), "global.proxy.excludeIPRanges"),
    Argument("-b", (names.INCLUDE_INBOUND_PORTS,), "global.proxy.includeInboundPorts"),
    # Behind Envoy's own ports and before the status port.
    Argument("-d", (names.EXCLUDE_INBOUND_PORTS,), "global.proxy.excludeInboundPorts"),
    Argument(
        "-q",
        (names.INCLUDE_OUTBOUND_PORTS,),
        "global.proxy.includeOutboundPorts",
        optional=True,
    ),
    Argument(
        "-o",
        (names.EXCLUDE_OUTBOUND_PORTS,),
        "global.proxy.excludeOutboundPorts",
        optional=True,
    ),
    Argument("-k", (names.REROUTE_INTERFACES, names.KUBEVIRT_INTERFACES), optional=True),
    Argument("-c", (names.EXCLUDE_INTERFACES,), optional=True),
    Argument("--log_output_level=", (names.AGENT_LOG_LEVEL,), "global.logging.level"),
    Argument("--log_as_json", value="global.logAsJson", switch=True),
    Argument("--run-validation", value=CNI, switch=True),
    Argument("--skip-rule-apply", value=CNI, switch=True),
    Argument(
        "--force-apply", value="global.proxy_init.forceApplyIptables", switch=True, unless=CNI
    ),
    Argument("--native-nftables", value="global.nativeNftables", switch=True),
)

#: What else both contexts have is the value global.proxy.privileged.
INIT_CONTEXT: dict[str, Any] = {
    "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
    "readOnlyRootFilesystem": False,
    "runAsGroup": 0,
    "runAsNonRoot": False,
    "runAsUser": 0,
}
VALIDATION_CONTEXT: dict[str, Any] = {
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsGroup": 1337,
    "runAsUser": 1337,
    "runAsNonRoot": True,
}
