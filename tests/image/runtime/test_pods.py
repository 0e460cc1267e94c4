"""Injected pods in a real container runtime: containerd, runc and CNI plugins, and a real Envoy."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.image.runtime.kubelet import NAMESERVER, Ended, InitFailed, Kubelet, get
from tests.image.runtime.node import ADDRESSES, on_node
from tests.image.runtime.standins import INIT_IMAGE
from tests.image.runtime.traffic import (
    APP_PORT,
    OUTSIDE_PORT,
    Traffic,
    ask,
    rules,
    serve_outside,
    traffic,
)
from tests.program import Result, run
from tests.test_kubernetes import POD

pytestmark = [pytest.mark.kernel, pytest.mark.image]

_Json = dict[str, Any]


def article(annotations: dict[str, str] | None = None) -> _Json:
    """The article's pod before injection, with these annotations."""
    metadata: _Json = {"name": "testpod", "labels": {"app": "testpod"}}
    if annotations:
        metadata["annotations"] = annotations
    spec = {"containers": [{"name": "testpod", "image": "nginx"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def injected(folder: Path, pod: _Json, *words: str) -> _Json:
    """The pod after ``inject``, with our image as istio-init: also in the file injected.yaml."""
    raw = folder / "pod.yaml"
    raw.write_text(yaml.safe_dump(pod), encoding="utf-8")
    result = run(["inject", "-f", str(raw), "--init-image", INIT_IMAGE, *words])
    assert result.status == 0, result.err
    (folder / "injected.yaml").write_text(result.out, encoding="utf-8")
    made: _Json = yaml.safe_load(result.out)
    return made


class Case(NamedTuple):
    """A way to inject the pod."""

    words: tuple[str, ...] = ()
    annotations: dict[str, str] | None = None
    backend: str = "legacy"
    dual_stack: bool = False


CASES = {
    "REDIRECT": Case(),
    "native sidecar, DNS": Case(
        ("--native-sidecars",),
        {"proxy.istio.io/config": "proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true'}"},
    ),
    "TPROXY": Case(annotations={"sidecar.istio.io/interceptionMode": "TPROXY"}),
    "TPROXY, both families, nft, default seccomp profile": Case(
        ("--set", "global.proxy.seccompProfile.type=RuntimeDefault"),
        {
            "sidecar.istio.io/interceptionMode": "TPROXY",
            "proxy.istio.io/config": (
                "proxyMetadata: {FORCE_IPTABLES_BINARY: nft, ISTIO_DUAL_STACK: 'true'}"
            ),
        },
        backend="nft",
        dual_stack=True,
    ),
}


class Ran(NamedTuple):
    """A pod that ran: the order of its starts, what istio-init said, and what came of it."""

    order: list[str]
    log: str
    traffic: list[Traffic]
    rules: list[str]
    compared: Result


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_pod_is_captured(node_store: Path, tmp_path: Path, case: Case) -> None:
    """With our image as istio-init, connections in and out go through Envoy; the counters say so."""
    manifest = injected(tmp_path, article(case.annotations), *case.words)

    def work(kubelet: Kubelet) -> Ran:
        serve_outside()
        pod = kubelet.pod(manifest)
        order = pod.run()
        seen = [traffic(pod, case.backend, number) for number in range(len(pod.addresses))]
        # As from the node: by a process of the pod, and so with the DNS servers that the pod has.
        network = f"/proc/{pod.process('istio-proxy')}/ns/net"
        words = ["--network-namespace", network, "--pod", str(tmp_path / "injected.yaml")]
        compared = run(["diff", *words])
        return Ran(order, pod.log("istio-init"), seen, rules(pod, case.backend), compared)

    ran = on_node(node_store, work, dual_stack=case.dual_stack)
    first, second = ("testpod", "istio-proxy")
    if "--native-sidecars" in case.words:
        first, second = second, first
    assert ran.order == ["istio-init", first, second]
    assert f"backend {case.backend}" in ran.log
    assert "info: installed" in ran.log
    assert len(ran.traffic) == (2 if case.dual_stack else 1)
    for number, each in enumerate(ran.traffic):
        if "TPROXY" in str(case.annotations):
            peer = ADDRESSES[number]
            rule = "-A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY"
        else:
            peer = "127.0.0.6"
            rule = "-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006"
        assert each.inbound == (peer, ["pod inbound"])
        assert each.outbound[1] == ["pod outbound"]
        assert each.captured
        assert each.rules[rule] == 1
        assert each.rules["-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001"] == 1
    dns = f"-d {NAMESERVER}/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053"
    captured = any(each.endswith(dns) for each in ran.rules)
    assert captured is ("ISTIO_META_DNS_CAPTURE" in str(case.annotations))
    assert ran.compared.status == 0, ran.compared


RIGHTS = ("Uid", "Gid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")


def test_the_rights_are_the_injected_ones(node_store: Path, tmp_path: Path) -> None:
    """What the containers of an injected pod may do, as the kernel tells it."""
    seccomp = ("--set", "global.proxy.seccompProfile.type=RuntimeDefault")
    manifest = injected(tmp_path, article(), *seccomp)
    (init,) = manifest["spec"]["initContainers"]
    looking = {"name": "looking", "command": ["cat"], "args": ["/proc/self/status"]}
    manifest["spec"]["initContainers"] = [init, {**init, **looking}]

    def work(kubelet: Kubelet) -> list[str]:
        pod = kubelet.pod(manifest)
        pod.run()
        return [pod.log("looking"), pod.execute("istio-proxy", "cat", "/proc/1/status")]

    found = []
    for text in on_node(node_store, work):
        status = dict(line.split(":", 1) for line in text.splitlines())
        found.append([status[name].split()[0] for name in RIGHTS])
    capabilities = f"{(1 << 12) + (1 << 13):016x}"  # NET_ADMIN and NET_RAW
    assert found == [
        ["0", "0", capabilities, capabilities, "1", "2"],
        ["1337", "1337", f"{0:016x}", f"{0:016x}", "1", "2"],
    ]


def test_from_pod_to_pod(node_store: Path, tmp_path: Path) -> None:
    """A connection between injected pods goes through the Envoy of both."""
    manifest = injected(tmp_path, article())

    def work(kubelet: Kubelet) -> _Json:
        pods = [kubelet.pod(manifest) for _ in range(2)]
        for each in pods:
            each.run()
            each.wait_for_word("testpod", "listening")
        return ask(pods[0], pods[1].address, APP_PORT)

    seen = on_node(node_store, work)
    assert seen["peer"] == "127.0.0.6"
    assert seen["hops"] == ["pod outbound", "pod inbound"]


def test_the_manifest_of_the_readme(node_store: Path) -> None:
    """It runs as it is, from a read-only file system, and the pod is captured."""

    def work(kubelet: Kubelet) -> tuple[str, Traffic]:
        serve_outside()
        pod = kubelet.pod(POD)
        pod.run()
        pod.wait_for_answer("proxy", 15021, "/healthz/ready")
        return pod.log("istio-init"), traffic(pod)

    log, seen = on_node(node_store, work)
    assert "info: installed 18 rules (IPv4)" in log
    assert seen.captured


def failing(node_store: Path, manifest: _Json) -> tuple[str, Ended, list[str]]:
    """The init container that fails in a pod, what became of it, and the rules that are there then."""

    def work(kubelet: Kubelet) -> tuple[str, Ended, list[str]]:
        pod = kubelet.pod(manifest)
        with pytest.raises(InitFailed) as caught:
            pod.run()
        return caught.value.name, caught.value.ended, rules(pod)

    return on_node(node_store, work)


def test_what_the_injector_lets_through(node_store: Path, tmp_path: Path) -> None:
    """An annotation that Istio's injector does not check fails istio-init, whose log says why."""
    annotation = "traffic.sidecar.istio.io/includeOutboundPorts"
    manifest = injected(tmp_path, article({annotation: "80,http"}))
    name, ended, left = failing(node_store, manifest)
    assert (name, ended.status, left) == ("istio-init", 2, [])
    (line,) = ended.log.splitlines()
    assert line.startswith(
        "istio-iptables: error: --istio-outbound-ports (-q), item 2: 'http' is not a port"
    )


def test_a_capability_is_missing(node_store: Path, tmp_path: Path) -> None:
    """Where a policy takes NET_ADMIN away, istio-init says that it is missing."""
    manifest = injected(tmp_path, article())
    manifest["spec"]["initContainers"][0]["securityContext"]["capabilities"]["add"] = ["NET_RAW"]
    name, ended, left = failing(node_store, manifest)
    assert (name, ended.status, left) == ("istio-init", 1, [])
    (line,) = ended.log.splitlines()
    assert line.endswith("Operation not permitted: CAP_NET_ADMIN is missing")


def test_containers_start_again(node_store: Path, tmp_path: Path) -> None:
    """istio-init finds nothing to do, and a new Envoy the rules; a new sandbox has none."""
    manifest = injected(tmp_path, article(), "--native-sidecars")

    def work(kubelet: Kubelet) -> None:
        serve_outside()
        pod = kubelet.pod(manifest)
        # Wherever the first one is killed, the second one completes the work.
        pod.start("istio-init")
        pod.stop("istio-init")
        pod.run()
        assert traffic(pod).captured
        counted = rules(pod)

        pod.start("istio-init")
        ended = pod.wait("istio-init")
        assert ended.status == 0
        assert "the rules are in place already: nothing to do" in ended.log
        assert rules(pod) == counted

        pod.stop("istio-proxy")
        # Captured, and nobody listens: no connection goes around the proxy.
        with pytest.raises(ConnectionRefusedError):
            get(pod.address, APP_PORT)
        with pytest.raises(AssertionError, match="Connection refused"):
            ask(pod, ADDRESSES[0], OUTSIDE_PORT)
        pod.start("istio-proxy")
        pod.wait_ready()
        assert traffic(pod).captured

        pod.new_sandbox()
        assert rules(pod) == []
        pod.run()
        assert "info: installed" in pod.log("istio-init")
        assert traffic(pod).captured

    on_node(node_store, work)


def test_validation(node_store: Path, tmp_path: Path) -> None:
    """With Istio's CNI plugin, our image as istio-validation fails until the pod has its rules."""
    manifest = injected(tmp_path, article(), "--set", "pilot.cni.enabled=true")

    def work(kubelet: Kubelet) -> tuple[Ended, str, Traffic]:
        serve_outside()
        pod = kubelet.pod(manifest)
        with pytest.raises(InitFailed) as caught:
            pod.run()
        # What the plugin does, from the node: the rules of the raw pod.
        words = ["--network-namespace", pod.network, "--pod", str(tmp_path / "pod.yaml")]
        assert run(words).status == 0
        pod.run()
        return caught.value.ended, pod.log("istio-validation"), traffic(pod)

    failed, log, seen = on_node(node_store, work)
    assert failed.status == 126
    assert "rules missing" in failed.log
    assert "a connection to port 15002 was captured" in log
    assert seen.captured


def test_nothing_is_left(node_store: Path, tmp_path: Path) -> None:
    """After a node the machine has no process, mount or control group of its pods."""
    manifest = injected(tmp_path, article())

    def work(kubelet: Kubelet) -> list[str]:
        pod = kubelet.pod(manifest)
        pod.run()
        assert any(pod.id in text for text in commands())
        return [pod.id, *pod.containers.values()]

    names = on_node(node_store, work)
    assert len(names) == 4
    found = [*commands(), Path("/proc/self/mountinfo").read_text(encoding="utf-8")]
    found += map(str, Path("/sys/fs/cgroup").glob("**/"))
    assert not [text for text in found for name in [*names, str(node_store)] if name in text]


def commands() -> list[str]:
    """The command lines of all processes."""
    lines = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it may have ended
            lines.append(each.read_text(encoding="utf-8", errors="replace"))
    return lines
