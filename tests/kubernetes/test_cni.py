"""``--cni``: what Istio's CNI plugin makes of a pod, which is not what its istio-init makes of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.program import run

if TYPE_CHECKING:
    from pathlib import Path

DRY = ("--dry-run", "--ip-family=ipv4")
FAMILY = "--ip-family=ipv4"
TRAFFIC = "traffic.sidecar.istio.io/"
MODE = "sidecar.istio.io/interceptionMode"
#: What the plugin asks for without any wish of a pod's.
DEFAULT = ("-i", "*", "-b", "*", "-d", "15020,15021,15090", "-o", "15020")


def pod(annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A raw Pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "annotations": annotations or {}},
        "spec": {"containers": [{"name": "app", "image": "app"}], **spec},
    }


def injected(annotations: dict[str, str] | None = None, **proxy: Any) -> dict[str, Any]:
    """A Pod that was injected where the plugin installs the rules."""
    found = pod({"sidecar.istio.io/status": "{}", **(annotations or {})})
    found["spec"]["containers"].append({"name": "istio-proxy", "image": "proxyv2", **proxy})
    return found


def write(folder: Path, document: Any, name: str = "pod.yaml") -> str:
    """A file of YAML in *folder*."""
    path = folder / name
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return str(path)


OWN = {"name": "istio-proxy", "securityContext": {"runAsUser": 1234, "runAsGroup": 4321}}
DNS = 'proxyMetadata: {ISTIO_META_DNS_CAPTURE: "true"}'


@pytest.mark.parametrize(
    ("document", "words", "wanted"),
    [
        (pod(), [], DEFAULT),
        (injected(), [], DEFAULT),
        # The order of the ports, and that each is there once.
        (
            pod({f"{TRAFFIC}excludeInboundPorts": "9, 15021"}),
            [],
            ("-i", "*", "-b", "*", "-d", "9,15021,15020,15090", "-o", "15020"),
        ),
        (pod({f"{TRAFFIC}excludeOutboundPorts": "22"}), [], (*DEFAULT, "-o", "22")),
        (pod({f"{TRAFFIC}excludeOutboundPorts": ""}), [], (*DEFAULT[:-1], "")),
        # The ports of Envoy's listeners are the plugin's own.
        (pod(), ["--set", "meshConfig.proxyListenPort=15101"], DEFAULT),
        # Nothing outbound by a value is not written on the pod, and lost; by an annotation it counts.
        (pod(), ["--set", "global.proxy.includeIPRanges="], DEFAULT),
        (
            pod({f"{TRAFFIC}includeOutboundIPRanges": ""}),
            [],
            ("-b", "*", *DEFAULT[4:]),
        ),
        (
            pod(),
            ["--set", "global.proxy.includeIPRanges=10.0.0.0/8"],
            ("-i", "10.0.0.0/8", *DEFAULT[2:]),
        ),
        # Every DNS server is captured, whatever resolv.conf has.
        (
            pod({"proxy.istio.io/config": DNS}),
            [],
            (*DEFAULT, "--redirect-dns", "--capture-all-dns"),
        ),
        # Of the other variables it knows these two alone.
        (
            injected(
                env=[
                    {"name": "INVALID_DROP", "value": "1"},
                    {"name": "DROP_INVALID", "value": "false"},
                    {"name": "ISTIO_OUTBOUND_OWNER_GROUPS", "value": "7"},
                ]
            ),
            [],
            (*DEFAULT, "--drop-invalid"),
        ),
        (pod(containers=[OWN]), [], (*DEFAULT, "-u", "1234", "-g", "4321")),
        # Under TPROXY the proxy is root, and its group tells.
        (
            pod({MODE: "TPROXY"}, containers=[OWN]),
            [],
            (*DEFAULT, "-m", "TPROXY", "-u", "1337", "-g", "4321"),
        ),
        (
            pod({f"{TRAFFIC}kubevirtInterfaces": "a", "istio.io/reroute-virtual-interfaces": "b"}),
            [],
            (*DEFAULT, "-k", "b"),
        ),
    ],
)
def test_what_the_plugin_makes(
    tmp_path: Path, document: dict[str, Any], words: list[str], wanted: tuple[str, ...]
) -> None:
    """The rules are those of these arguments."""
    result = run(["--pod", write(tmp_path, document), "--cni", *words, *DRY])
    assert result.status == 0, result.err
    assert result.out == run([*wanted, *DRY]).out


@pytest.mark.parametrize(
    ("document", "line"),
    [
        (
            pod({MODE: "NONE"}),
            "istio-cni refuses it: annotation sidecar.istio.io/interceptionMode: 'NONE' is not",
        ),
        (
            pod({f"{TRAFFIC}includeOutboundPorts": "1:2"}),
            "istio-cni refuses it: annotation traffic.sidecar.istio.io/includeOutboundPorts: item 1",
        ),
        (pod(initContainers=[{"name": "istio-init"}]), "has istio-init"),
        (pod({"sidecar.istio.io/status": "{}"}), "it has no istio-proxy"),
        (injected(args=["proxy", "router"]), "its istio-proxy is a router and no sidecar"),
        (
            injected(env=[{"name": "DISABLE_ENVOY", "value": "true"}]),
            "leaves it alone: DISABLE_ENVOY is true",
        ),
        (injected({"sidecar.istio.io/inject": "false"}), "sidecar.istio.io/inject is false"),
        (injected({"sidecar.istio.io/inject": "F"}), "sidecar.istio.io/inject is false"),
        (injected({"sidecar.istio.io/inject": "0"}), "sidecar.istio.io/inject is false"),
        (pod(hostNetwork=True), "is not injected: it has host networking"),
        (injected({f"{TRAFFIC}excludeOutboundPorts": "*"}), "'*' is not accepted here"),
        (
            injected({f"{TRAFFIC}excludeOutboundIPRanges": "*"}),
            "istio-cni refuses it: annotation traffic.sidecar.istio.io/excludeOutboundIPRanges: item 1",
        ),
        (injected(env=7), "env of istio-proxy is no list"),
    ],
)
def test_what_the_plugin_refuses_or_leaves(
    tmp_path: Path, document: dict[str, Any], line: str
) -> None:
    """A line, exit status 2."""
    result = run(["--pod", write(tmp_path, document), "--cni", *DRY])
    assert (result.status, result.out) == (2, "")
    assert line in result.err
    assert len(result.errors) == len(result.err.splitlines())


def test_where_each_value_is_from(tmp_path: Path) -> None:
    """The pod's, the installation's, or the plugin's own."""
    path = write(tmp_path, pod({f"{TRAFFIC}excludeInboundPorts": "9"}, containers=[OWN]))
    words = ["--set-string", "global.proxy.includeInboundPorts=80", "--format", "json"]
    found = json.loads(run(["--pod", path, "--cni", *words, *DRY]).out)["settings"]
    assert {name: found[name]["place"] for name in PLACES} == PLACES


PLACES = {
    "istio_local_exclude_ports": (
        "annotation traffic.sidecar.istio.io/excludeInboundPorts,"
        " default of value global.proxy.statusPort, istio-cni"
    ),
    "istio_inbound_ports": "value global.proxy.includeInboundPorts",
    "istio_local_outbound_ports_exclude": "default of istio-cni",
    "proxy_gid": "securityContext.runAsGroup of istio-proxy",
    "envoy_port": None,
}


def test_a_variable_that_is_no_boolean_is_a_warning(tmp_path: Path) -> None:
    """As the plugin has it."""
    document = injected(env=[{"name": "INVALID_DROP", "value": "yes"}])
    result = run(["--pod", write(tmp_path, document), "--cni", *DRY])
    assert result.warnings == [
        "Pod p: env INVALID_DROP of istio-proxy: 'yes' is not a boolean and is ignored"
    ]


INBOUND, OUTPUT, RETURN = "ISTIO_INBOUND -p tcp -m tcp", "ISTIO_OUTPUT", " -j RETURN"


def test_the_two_compared(tmp_path: Path) -> None:
    """``diff`` without anything else to compare with says what differs between the two."""
    path = write(tmp_path, pod())
    result = run(["diff", "--pod", path, "--cni", FAMILY])
    assert (result.status, result.err) == (1, "")
    lines = [line for line in result.out.splitlines() if not line.startswith(" ")]
    assert [line.partition(" -A ")[::2] for line in lines] == [
        ("moved: IPv4 nat ISTIO_INBOUND rule 4 (should be 2):", f"{INBOUND} --dport 15090{RETURN}"),
        ("moved: IPv4 nat ISTIO_INBOUND rule 3 (should be 3):", f"{INBOUND} --dport 15021{RETURN}"),
        ("extra: IPv4 nat ISTIO_OUTPUT rule 1:", f"{OUTPUT} -p tcp -m tcp --dport 15020{RETURN}"),
        ("extra: IPv4 nat ISTIO_OUTPUT rule 2:", f"{OUTPUT} -p udp -m udp --dport 15020{RETURN}"),
        ("what istio-cni makes of the pod differs from the plan: 4 differences", ""),
    ]
    document = json.loads(run(["diff", "--pod", path, "--cni", FAMILY, "--json"]).out)
    assert (document["same"], len(document["differences"])) == (False, 4)
    rules = tmp_path / "rules"
    rules.write_text(run(["--pod", path, "--cni", *DRY]).out, encoding="utf-8")
    same = run(["diff", "--pod", path, "--cni", FAMILY, "--against", str(rules)])
    assert (same.status, same.out) == (0, f"{rules} is as planned (IPv4)\n")


def test_a_flag_beside_it_wins_in_both(tmp_path: Path) -> None:
    """What is given on the line is the same on both sides."""
    path = write(tmp_path, pod())
    words = ["-d", "15090", "-o", "9", FAMILY]
    result = run(["diff", "--pod", path, "--cni", *words])
    assert result.status == 0, result.out


def test_it_is_for_a_manifest() -> None:
    """Alone it says nothing."""
    assert run(["--cni", *DRY]).errors == ["--cni: is for a manifest: give --pod"]
