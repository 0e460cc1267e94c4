"""Likely mistakes in a manifest: told wherever one is read, and errors with --strict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.program import run

if TYPE_CHECKING:
    from pathlib import Path

TRAFFIC = "traffic.sidecar.istio.io/"
MODE = "sidecar.istio.io/interceptionMode"
STATUS_PORT = "status.sidecar.istio.io/port"
CONFIG = "proxy.istio.io/config"
CNI = ("--set", "pilot.cni.enabled=true")
#: The image, which is told of otherwise.
CHOSEN = ("--set", "global.hub=docker.io/istio,global.tag=1.25.2")
INJECT = "sidecar.istio.io/inject"
NO_FOR_PLUGIN = "is no for Istio's CNI plugin and not for the injector: there are no rules"
REFUSED_BY_PLUGIN = "Istio's CNI plugin refuses the pod, which does not start"
FAMILY = "--ip-family=ipv4"
DRY = ("--dry-run", FAMILY)


def pod(annotations: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A Pod."""
    labels = more.pop("labels", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "annotations": annotations or {}, "labels": labels},
        "spec": {"containers": [{"name": "app", "image": "app"}], **more},
    }


def deployment(outside: dict[str, Any], inside: dict[str, Any] | None = None) -> dict[str, Any]:
    """A Deployment with annotations of its own, and its pod's."""
    inner = pod(inside)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "annotations": outside},
        "spec": {"template": {"metadata": inner["metadata"], "spec": inner["spec"]}},
    }


def cron_job(outside: dict[str, Any], inside: dict[str, Any]) -> dict[str, Any]:
    """A CronJob with annotations of its jobTemplate, and of the pod."""
    inner = pod(inside)
    del inner["metadata"]["name"]
    template = {"metadata": inner["metadata"], "spec": inner["spec"]}
    job = {"metadata": {"annotations": outside}, "spec": {"template": template}}
    metadata = {"name": "c"}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": metadata,
        "spec": {"jobTemplate": job},
    }


def own_proxy(**context: int) -> list[dict[str, Any]]:
    """The containers of a pod that brings an istio-proxy."""
    return [
        {"name": "app"},
        {"name": "istio-proxy", "image": "auto", "securityContext": context},
    ]


def write(folder: Path, *documents: dict[str, Any]) -> str:
    """A file of YAML in *folder*."""
    path = folder / "pod.yaml"
    path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    return str(path)


def metadata(**variables: str) -> dict[str, str]:
    """The annotation with *variables* as proxyMetadata."""
    return {CONFIG: yaml.safe_dump({"proxyMetadata": variables})}


NO_NAME = "Istio has no such name: did you mean"

CASES = [
    # Names.
    (
        pod({f"{TRAFFIC}excludeOutboundPort": "1"}),
        (),
        [f"annotation {TRAFFIC}excludeOutboundPort: {NO_NAME} excludeOutboundPorts?"],
    ),
    (
        pod({"sidecar.istio.io/includeInboundPorts": "1"}),
        (),
        [
            (
                f"annotation sidecar.istio.io/includeInboundPorts: {NO_NAME}"
                f" {TRAFFIC}includeInboundPorts?"
            )
        ],
    ),
    (
        pod({"traffic.sidecar.istio/excludeOutboundIPranges": "1"}),
        (),
        [
            (
                f"annotation traffic.sidecar.istio/excludeOutboundIPranges: {NO_NAME}"
                f" {TRAFFIC}excludeOutboundIPRanges?"
            )
        ],
    ),
    (
        pod(labels={"sidecar.istio.io/injct": "true"}),
        (),
        [f"label sidecar.istio.io/injct: {NO_NAME} inject?"],
    ),
    (pod({"sidecar.istio.io/elephant": "1", "example.com/inject": "1"}), (), []),
    (pod({"sidecar.istio.io/inject": "true", "istio.io/rev": "x"}), (), []),
    (
        pod({CONFIG: "statusPorts: 15020\nelephant: 1\n"}),
        (),
        [
            f"annotation {CONFIG}: ProxyConfig has no field 'statusPorts': did you mean statusPort?",
            f"annotation {CONFIG}: ProxyConfig has no field 'elephant'",
        ],
    ),
    # Places.
    (
        deployment({f"{TRAFFIC}excludeOutboundPorts": "1", "team": "x"}),
        (),
        [
            (
                f"annotation {TRAFFIC}excludeOutboundPorts: no effect at metadata.annotations: it is"
                " read at spec.template.metadata.annotations"
            )
        ],
    ),
    (deployment({MODE: "TPROXY"}, {MODE: "TPROXY"}), (), []),
    (
        pod(labels={f"{TRAFFIC}excludeOutboundPorts": "1"}),
        (),
        [
            f"label {TRAFFIC}excludeOutboundPorts: no effect: Istio reads it as an annotation",
        ],
    ),
    (
        pod({"sidecar.istio.io/inject": "false"}, labels={"sidecar.istio.io/inject": "true"}),
        (),
        ["annotation sidecar.istio.io/inject: no effect: the label of that name counts"],
    ),
    (
        pod({f"{TRAFFIC}excludeOutboundPorts": 3306}),
        (),
        [
            (
                f"annotation {TRAFFIC}excludeOutboundPorts: '3306' is no text, which Kubernetes refuses:"
                " put it in quotes"
            )
        ],
    ),
    # What has no effect.
    (
        pod({f"{TRAFFIC}excludeInboundPorts": "9", f"{TRAFFIC}includeInboundPorts": "80"}),
        (),
        [
            (
                "--istio-local-exclude-ports (Istio's template, annotation"
                f" {TRAFFIC}excludeInboundPorts, default of value global.proxy.statusPort): no effect: it"
                " excludes ports from -b '*' only"
            )
        ],
    ),
    (pod({f"{TRAFFIC}includeInboundPorts": "80"}), (), []),
    (pod({f"{TRAFFIC}includeInboundPorts": "80", STATUS_PORT: "123"}), (), []),
    (
        pod({f"{TRAFFIC}includeInboundPorts": "80"}),
        ("--set-string", "global.proxy.excludeInboundPorts=9"),
        [
            (
                "--istio-local-exclude-ports (Istio's template, value global.proxy.excludeInboundPorts,"
                " default of value global.proxy.statusPort): no effect: it excludes ports from -b '*' only"
            )
        ],
    ),
    (
        pod({f"{TRAFFIC}includeOutboundPorts": "80"}),
        (),
        [
            (
                f"--istio-outbound-ports (annotation {TRAFFIC}includeOutboundPorts): no effect: all"
                " outbound traffic is captured already (-i '*')"
            )
        ],
    ),
    (
        pod(
            {
                f"{TRAFFIC}includeOutboundPorts": "80,81",
                f"{TRAFFIC}excludeOutboundPorts": "81 ",
                f"{TRAFFIC}includeOutboundIPRanges": "10.0.0.0/8",
            }
        ),
        (),
        [
            (
                f"annotation {TRAFFIC}includeOutboundPorts: no effect for 81:"
                f" {TRAFFIC}excludeOutboundPorts has it too"
            )
        ],
    ),
    (
        pod(
            {
                f"{TRAFFIC}includeOutboundIPRanges": "",
                f"{TRAFFIC}excludeOutboundIPRanges": "::1/128",
            }
        ),
        (),
        [
            (
                f"--istio-service-exclude-cidr (annotation {TRAFFIC}excludeOutboundIPRanges): no effect:"
                " nothing outbound is captured"
            )
        ],
    ),
    (
        pod({f"{TRAFFIC}kubevirtInterfaces": "a", "istio.io/reroute-virtual-interfaces": "b"}),
        (),
        [
            (
                f"annotation {TRAFFIC}kubevirtInterfaces: no effect: istio.io/reroute-virtual-interfaces"
                " counts"
            )
        ],
    ),
    (
        pod({MODE: "NONE", f"{TRAFFIC}excludeOutboundPorts": "1"}),
        (),
        [
            (
                f"annotation {TRAFFIC}excludeOutboundPorts: no effect: there are no rules: the mode is NONE"
                f" (annotation {MODE})"
            )
        ],
    ),
    (
        pod({"readiness.status.sidecar.istio.io/applicationPorts": "1"}),
        (),
        [
            (
                "annotation readiness.status.sidecar.istio.io/applicationPorts: no effect: Istio's"
                " template reads it no more"
            )
        ],
    ),
    (
        pod({STATUS_PORT: "0", "readiness.status.sidecar.istio.io/periodSeconds": "1"}),
        (),
        [
            (
                "annotation readiness.status.sidecar.istio.io/periodSeconds: no effect: the status port is"
                " 0, so there is no probe"
            )
        ],
    ),
    (
        pod({"sidecar.istio.io/proxyImage": "r/p:1", "sidecar.istio.io/proxyImageType": "debug"}),
        (),
        [
            (
                "annotation sidecar.istio.io/proxyImageType: no effect: sidecar.istio.io/proxyImage is a"
                " whole image"
            )
        ],
    ),
    (
        pod({CONFIG: "statusPort: 15099"}),
        (),
        [
            (
                f"annotation {CONFIG}, statusPort: 15099 is captured: annotation {STATUS_PORT} would leave"
                " it out"
            )
        ],
    ),
    (pod({CONFIG: "statusPort: 15099", STATUS_PORT: "15099"}), (), []),
    (
        pod(metadata(ISTIO_SERVICE_CIDR="10.0.0.0/8", ISTIO_OUTBOUND_PORTS="80")),
        ("--set", "global.proxy.includeIPRanges=10.0.0.0/8"),
        [
            f"annotation {CONFIG}, proxyMetadata.ISTIO_SERVICE_CIDR: no effect: the argument -i counts"
        ],
    ),
    (
        pod(metadata(IPTABLES_TRACE_LOGGING="true")),
        (),
        [
            (
                f"annotation {CONFIG}, proxyMetadata.IPTABLES_TRACE_LOGGING: makes istio-proxy privileged,"
                " and no rule: Istio has none that trace"
            )
        ],
    ),
    (
        pod({f"{TRAFFIC}excludeOutboundPorts": "53", **metadata(ISTIO_META_DNS_CAPTURE="true")}),
        (),
        [
            (
                f"--redirect-dns (annotation {CONFIG}, proxyMetadata.ISTIO_META_DNS_CAPTURE): no effect:"
                " port 53 is left out of outbound capture (-o)"
            )
        ],
    ),
    (
        pod(metadata(DUAL_STACK="yes")),
        (),
        ["DUAL_STACK: 'yes' is not a boolean and is ignored"],
    ),
    # Istio's CNI plugin.
    (
        pod({MODE: "NONE"}),
        CNI,
        [f"annotation {MODE}: Istio's CNI plugin refuses NONE, so that the pod does not start"],
    ),
    (
        pod(),
        (*CNI, "--set", "global.proxy.includeIPRanges="),
        [
            (
                "value global.proxy.includeIPRanges: Istio's CNI plugin does not see that it is empty, and"
                " captures all"
            )
        ],
    ),
    (
        pod(metadata(PROXY_GID="7", INVALID_DROP="true")),
        (*CNI, "--set", "meshConfig.proxyListenPort=15101"),
        [
            (
                f"annotation {CONFIG}, proxyMetadata.PROXY_GID: no effect: Istio's CNI plugin does not read"
                " it"
            ),
            "mesh proxyListenPort: Istio's CNI plugin does not read it",
        ],
    ),
    # What the injector lets through.
    (
        pod({f"{TRAFFIC}includeOutboundPorts": "80,x"}),
        (),
        [
            (
                "istio-iptables refuses it: --istio-outbound-ports (annotation"
                f" {TRAFFIC}includeOutboundPorts), item 2: 'x' is not a port"
            )
        ],
    ),
    (
        pod(metadata(ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR="10.0.0.0/8")),
        (),
        [
            (
                "istio-iptables refuses it: ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR (annotation"
                f" {CONFIG}, proxyMetadata.ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR): '10.0.0.0/8'"
            )
        ],
    ),
    # Who passes for Envoy.
    (
        pod(containers=[{"name": "app", "securityContext": {"runAsUser": 1337}}]),
        (),
        [
            (
                "container app runs as uid 1337, which the rules take for Envoy's: nothing that it sends"
                " is captured"
            )
        ],
    ),
    (
        pod(securityContext={"runAsGroup": 1337}),
        (),
        [
            (
                "container app runs as gid 1337, which the rules take for Envoy's: nothing that it sends"
                " is captured"
            )
        ],
    ),
    (
        pod(
            containers=[{"name": "app", "securityContext": {"runAsUser": 5, "runAsGroup": 5}}],
            securityContext={"runAsUser": 1337, "runAsGroup": 1337},
        ),
        (),
        [],
    ),
    # Often meant so: for its traffic not to be captured.
    (pod(initContainers=[{"name": "i", "securityContext": {"runAsUser": 1337}}]), (), []),
    (
        pod(
            initContainers=[
                {"name": "i", "restartPolicy": "Always", "securityContext": {"runAsUser": 1337}}
            ]
        ),
        (),
        [
            (
                "container i runs as uid 1337, which the rules take for Envoy's: nothing that it sends is"
                " captured"
            )
        ],
    ),
    (
        pod(metadata(PROXY_GID="7"), securityContext={"runAsGroup": 7, "runAsUser": 1}),
        (),
        [
            (
                "container app runs as gid 7, which the rules take for Envoy's: nothing that it sends is"
                " captured"
            )
        ],
    ),
    (
        pod({MODE: "TPROXY"}, containers=own_proxy(runAsUser=1234, runAsGroup=4321)),
        (),
        [
            (
                "istio-proxy runs as uid 0 and gid 4321, and the rules are for uid 1234 and gid 1234: what"
                " Envoy sends is captured, and comes back to it"
            )
        ],
    ),
    (pod({MODE: "TPROXY"}, containers=own_proxy(runAsUser=1234, runAsGroup=1234)), (), []),
    (pod(containers=own_proxy(runAsUser=1234, runAsGroup=4321)), (), []),
    (pod({MODE: "TPROXY"}), (), []),
    (pod(hostNetwork=True), (), ["is left as it is: it has host networking"]),
    (
        pod({STATUS_PORT: " 123 "}),
        (),
        [
            (
                f"annotation {STATUS_PORT}: ' 123 ' has blanks, which Istio can't read for the"
                " application's probes: they ask port 0"
            )
        ],
    ),
    (
        pod(containers=[{"name": "app"}, {"name": "app"}]),
        (),
        ["container app is there twice, which Kubernetes refuses"],
    ),
    # Of the CNI plugin: what it refuses, and what it takes for no.
    (pod({INJECT: "0"}), CNI, [f"annotation {INJECT}: '0' {NO_FOR_PLUGIN}"]),
    (pod(labels={INJECT: "False"}), CNI, [f"label {INJECT}: 'False' {NO_FOR_PLUGIN}"]),
    (pod({INJECT: "False"}), (), []),
    (
        pod({f"{TRAFFIC}includeOutboundPorts": "80,"}),
        (*CNI, "--set", "global.proxy.includeIPRanges=10.0.0.0/8"),
        [f"annotation {TRAFFIC}includeOutboundPorts: {REFUSED_BY_PLUGIN}: item 2: '' is no port"],
    ),
    (
        pod(),
        (*CNI, "--set", "global.proxy.includeIPRanges=10.0.0.0/8\\, 10.1.0.0/16"),
        [f"value global.proxy.includeIPRanges: {REFUSED_BY_PLUGIN}: item 2: ' 10.1.0.0/16' is no"],
    ),
    # The pod has no rules.
    (
        pod({CONFIG: 'proxyMetadata: {DRY_RUN: "true"}'}),
        (),
        [f"annotation {CONFIG}, proxyMetadata.DRY_RUN: leaves the pod without rules"],
    ),
    (
        pod({CONFIG: 'proxyMetadata: {SKIP_RULE_APPLY: "T"}'}),
        (),
        [f"annotation {CONFIG}, proxyMetadata.SKIP_RULE_APPLY: leaves the pod without rules"],
    ),
    (
        pod({CONFIG: 'proxyMetadata: {CLEANUP_ONLY: "1"}'}),
        (),
        [f"annotation {CONFIG}, proxyMetadata.CLEANUP_ONLY: leaves the pod without rules"],
    ),
    (pod({CONFIG: 'proxyMetadata: {DRY_RUN: "false"}'}), (), []),
    # The pod of the documentation.
    (pod({"sidecar.istio.io/inject": "true"}), (), []),
    (deployment({}, {}), CNI, []),
    (cron_job({}, {}), (), []),
    (
        cron_job({}, {MODE: "TPROXY"}),
        (),
        [
            (
                f"annotation {MODE}: no effect at spec.jobTemplate.spec.template.metadata.annotations: it is"
                " read at spec.jobTemplate.metadata.annotations"
            )
        ],
    ),
]


@pytest.mark.parametrize(("document", "words", "lines"), CASES)
def test_inject_tells(
    tmp_path: Path, document: dict[str, Any], words: tuple[str, ...], lines: list[str]
) -> None:
    """Each mistake is a line that names the pod; with --strict nothing is printed."""
    command = ["inject", "-f", write(tmp_path, document), *CHOSEN, *words]
    result = run(command)
    assert result.status == 0, result.err
    told = [line.partition(": ")[2] for line in result.warnings]
    assert len(told) == len(lines), told
    for line, start in zip(told, lines, strict=True):
        assert line.startswith(start)
    strict = run([*command, "--strict"])
    assert (strict.status, strict.out == "") == ((2, True) if lines else (0, False))
    assert strict.errors == [f"{line} (--strict)" for line in result.warnings]


@pytest.mark.parametrize("words", [["--dry-run"], ["diff", "--cni"], ["explain"], ["lab"]])
def test_every_command_tells(tmp_path: Path, words: list[str]) -> None:
    """Once, and as an error with --strict."""
    document = pod({f"{TRAFFIC}excludeOutboundPort": "1"})
    line = f"Pod p: annotation {TRAFFIC}excludeOutboundPort: {NO_NAME} excludeOutboundPorts?"
    family = "--ip-family=dual" if words == ["lab"] else FAMILY
    command = [*words, "--pod", write(tmp_path, document), family]
    if words != ["lab"]:
        result = run(command)
        assert result.warnings == [line], result.err
    strict = run([*command, "--strict"])
    assert (strict.status, strict.errors) == (2, [f"{line} (--strict)"])


def test_an_injected_pod(tmp_path: Path) -> None:
    """The template's own ports are no mistake, what the pod adds to them is; and who passes for Envoy."""
    words = ["istio-iptables", "-u", "1234", "-i", "*", "-b", "80", "-d", "15090,15021,15020"]
    document = pod(
        initContainers=[{"name": "istio-init", "args": words}],
        containers=own_proxy(runAsUser=1, runAsGroup=1),
    )
    path = write(tmp_path, document)
    result = run(["--pod", path, *DRY])
    assert result.warnings == [
        (
            "Pod p: istio-proxy runs as uid 1 and gid 1, and the rules are for uid 1234 and gid 1234: what"
            " Envoy sends is captured, and comes back to it"
        )
    ]
    words[-1] += ",9"
    path = write(tmp_path, document)
    assert run(["--pod", path, *DRY]).warnings[1:] == [
        (
            "--istio-local-exclude-ports (args of istio-init): no effect: it excludes ports from -b '*'"
            " only"
        )
    ]


def test_a_skipped_pod_is_no_mistake(tmp_path: Path) -> None:
    """Who does not want a sidecar is told so, also with --strict."""
    path = write(tmp_path, pod({"sidecar.istio.io/inject": "false"}))
    result = run(["inject", "-f", path, "--strict"])
    assert result.status == 0
    assert result.err == (
        "istio-iptables: info: Pod p: is left as it is: sidecar.istio.io/inject is false\n"
    )


def test_names_of_an_installation(tmp_path: Path) -> None:
    """One that is like a name of Istio's is told, once; another one is somebody's."""
    path = write(tmp_path, pod(), pod())
    values, mesh = tmp_path / "values.yaml", tmp_path / "mesh.yaml"
    values.write_text("{global: {proxy: {includeIpRanges: x}}, revisionTags: [a], mine: {a: 1}}")
    mesh.write_text(
        "{proxyListnPort: 1, defaultConfig: {interceptionmode: TPROXY, drainDuration: 9s}}"
    )
    words = ["--values", str(values), "--mesh-config", str(mesh)]
    told = [
        "value global.proxy.includeIpRanges: Istio has no such one: did you mean includeIPRanges?",
        "mesh proxyListnPort: Istio has no such one: did you mean proxyListenPort?",
        "mesh defaultConfig.interceptionmode: Istio has no such one: did you mean interceptionMode?",
    ]
    assert run(["inject", "-f", path, *words, *CHOSEN]).warnings == told
    path = write(tmp_path, pod())
    assert run(["--pod", path, *words, *DRY]).warnings == told


def test_an_image_that_nobody_chose(tmp_path: Path) -> None:
    """It is Istio's of the day; told once, where it is written, and for no rules."""
    path = write(tmp_path, pod(), pod())
    line = "image registry.istio.io/testing/proxyv2:{}: the default of {} is Istio's development: give {}"
    given = "--set global.hub=... --set global.tag=..."
    both = line.format("latest", "global.hub and global.tag", given)
    result = run(["inject", "-f", path])
    assert (result.status, result.warnings) == (0, [both])
    strict = run(["inject", "-f", path, "--strict"])
    assert (strict.status, strict.out, strict.errors) == (2, "", [f"{both} (--strict)"])
    hub = line.format("1.25.2", "global.hub", "--set global.hub=...")
    assert run(["inject", "-f", path, "--set", "global.tag=1.25.2"]).warnings == [hub]
    assert run(["inject", "-f", path, "--set", "global.proxy.image=mine/proxy:1"]).warnings == []
    path = write(tmp_path, pod())
    assert run(["--pod", path, *DRY, "--strict"]).status == 0
