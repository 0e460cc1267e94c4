"""``istio-iptables inject``: the sidecar and all that goes with it, as Istio's injector makes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from istio_iptables.kubernetes.filling import fill
from istio_iptables.kubernetes.gojson import go_json
from istio_iptables.kubernetes.merging import merge
from istio_iptables.kubernetes.multus import with_network
from tests.program import run

if TYPE_CHECKING:
    from pathlib import Path


def injected(folder: Path, document: dict[str, Any], *words: str) -> dict[str, Any]:
    """*document* after ``inject``."""
    path = folder / "pod.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    result = run(["inject", "-f", str(path), *words])
    assert result.status == 0, result.err
    found: dict[str, Any] = yaml.safe_load(result.out)
    return found


def pod(annotations: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A Pod with one container."""
    spec = {"containers": [{"name": "app", "image": "a", "ports": [{"containerPort": 80}]}], **more}
    metadata = {"name": "p", "labels": {"app": "a"}, "annotations": annotations or {}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def proxy(document: dict[str, Any]) -> dict[str, Any]:
    """The container istio-proxy."""
    spec = document["spec"]
    both = [*spec["containers"], *spec.get("initContainers", [])]
    found: dict[str, Any] = next(each for each in both if each["name"] == "istio-proxy")
    return found


def variables(document: dict[str, Any]) -> dict[str, str | None]:
    """Those of istio-proxy with a text."""
    return {each["name"]: each.get("value") for each in proxy(document)["env"]}


def test_a_pod(tmp_path: Path) -> None:
    """What a pod without wishes gets."""
    found = injected(tmp_path, pod(volumes=[{"name": "mine", "emptyDir": {}}]))
    assert found["metadata"]["labels"] == {
        "app": "a",
        "security.istio.io/tlsMode": "istio",
        "service.istio.io/canonical-name": "a",
        "service.istio.io/canonical-revision": "latest",
    }
    status = json.loads(found["metadata"]["annotations"]["sidecar.istio.io/status"])
    volumes = [each["name"] for each in found["spec"]["volumes"]]
    assert volumes == [*status["volumes"], "mine"]
    assert (status["initContainers"], status["containers"]) == (["istio-init"], ["istio-proxy"])
    assert variables(found)["ISTIO_META_OWNER"] == "kubernetes://apis/v1/namespaces/default/pods/p"
    assert variables(found)["ISTIO_META_POD_PORTS"] == '[\n    {"containerPort":80}\n]'
    assert proxy(found)["securityContext"]["runAsUser"] == 1337


@pytest.mark.parametrize("native", [[], ["--native-sidecars"]])
def test_a_second_time_is_the_same(tmp_path: Path, native: list[str]) -> None:
    """What is injected is injected anew."""
    probe = {"httpGet": {"port": 80, "path": "/x"}, "timeoutSeconds": 3}
    document = pod({"prometheus.io/port": "9090"})
    document["spec"]["containers"][0]["readinessProbe"] = probe
    once = injected(tmp_path, document, *native)
    again = injected(tmp_path, once, *native)
    assert once == again
    told = json.loads(str(variables(once)["ISTIO_KUBE_APP_PROBERS"]))
    assert told == {"/app-health/app/readyz": {**probe}}


def test_a_proxy_of_the_pods_own(tmp_path: Path) -> None:
    """It stands over the template and is remembered; a second injection takes the template, as Istio's does."""
    own = {"name": "istio-proxy", "image": "auto", "securityContext": {"runAsUser": 7}}
    document = pod()
    document["spec"]["containers"].append(own)
    once = injected(tmp_path, document)
    assert proxy(once)["securityContext"]["runAsUser"] == 7
    assert once["metadata"]["annotations"]["proxy.istio.io/overrides"] == (
        '{"containers":[{"name":"istio-proxy","resources":{},"securityContext":{"runAsUser":7}}]}'
    )
    again = injected(tmp_path, once)
    assert proxy(again)["securityContext"]["runAsUser"] == 1337


def test_probes_ask_the_agent(tmp_path: Path) -> None:
    """Every kind of probe, with a named port as its number; not without the annotation."""
    document = pod()
    container = document["spec"]["containers"][0]
    container |= {
        "ports": [{"containerPort": 81, "name": "web"}],
        "readinessProbe": {"httpGet": {"port": "web", "scheme": "HTTPS"}},
        "livenessProbe": {"grpc": {"port": 5}},
        "startupProbe": {"exec": {"command": ["x"]}},
        "lifecycle": {"preStop": {"tcpSocket": {"port": 6}}},
    }
    found = injected(tmp_path, document)
    app = found["spec"]["containers"][0]
    assert app["readinessProbe"]["httpGet"] == {
        "port": 15020,
        "path": "/app-health/app/readyz",
        "scheme": "HTTP",
    }
    assert app["startupProbe"] == container["startupProbe"]
    assert variables(found)["ISTIO_KUBE_APP_PROBERS"] == (
        '{"/app-health/app/livez":{"grpc":{"port":5,"service":null}},'
        '"/app-health/app/readyz":{"httpGet":{"port":81,"scheme":"HTTPS"}},'
        '"/app-lifecycle/app/prestopz":{"tcpSocket":{"port":6}}}'
    )
    document["metadata"]["annotations"] = {"sidecar.istio.io/rewriteAppHTTPProbers": "false"}
    assert "ISTIO_KUBE_APP_PROBERS" not in variables(injected(tmp_path, document))


def test_the_user_with_tproxy(tmp_path: Path) -> None:
    """It runs as root, whatever the pod says."""
    own = {"name": "istio-proxy", "image": "auto", "securityContext": {"runAsUser": 7}}
    document = pod({"sidecar.istio.io/interceptionMode": "TPROXY"})
    document["spec"]["containers"].append(own)
    context = proxy(injected(tmp_path, document))["securityContext"]
    assert (context["runAsUser"], context["capabilities"]["add"]) == (0, ["NET_ADMIN"])


def test_values_of_every_part(tmp_path: Path) -> None:
    """Secrets, network, cluster, lifecycle, folders of certificates."""
    values = tmp_path / "values.yaml"
    values.write_text(
        "global: {imagePullSecrets: [s], network: net, mountMtlsCerts: true, meshID: m,"
        " multiCluster: {clusterName: c}, proxy: {lifecycle: {preStop: {exec: {command: [x]}}}}}\n"
        "pilot: {cni: {enabled: true, provider: multus}}\n"
    )
    found = injected(tmp_path, pod(), "--values", str(values))
    assert found["spec"]["imagePullSecrets"] == [{"name": "s"}]
    assert found["metadata"]["labels"]["topology.istio.io/network"] == "net"
    assert [each["name"] for each in proxy(found)["env"]][-2:] == [
        "ISTIO_META_CLUSTER_ID",
        "ISTIO_META_NETWORK",
    ]
    assert proxy(found)["lifecycle"] == {"preStop": {"exec": {"command": ["x"]}}}
    assert "istio-certs" in {each["name"] for each in found["spec"]["volumes"]}
    networks = found["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"]
    assert networks == "default/istio-cni"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "default/istio-cni"),
        ("a", "a, default/istio-cni"),
        ("a,default/istio-cni", "a,default/istio-cni"),
        ('[{"name": "a"}]', '[{"name": "a"}, {"name": "istio-cni", "namespace": "default"}]'),
        ("[x]", "[x]"),
    ],
)
def test_networks_of_multus(text: str, wanted: str) -> None:
    """A list of either spelling, with Istio's in it once."""
    assert with_network(text) == wanted


def test_merging_is_kubernetes_own() -> None:
    """What is new comes first, what is in both stays where it was, null takes away."""
    below = {"env": [{"name": "a"}, {"name": "b", "value": "1"}], "args": [1], "x": 1}
    over = {"env": [{"name": "b", "value": "2"}, {"name": "c"}], "args": [2], "x": None}
    assert merge(below, over) == {
        "env": [{"name": "a"}, {"name": "b", "value": "2"}, {"name": "c"}],
        "args": [2],
    }
    assert merge({"volumes": [{"name": "a"}]}, {"volumes": [{"name": "b"}]})["volumes"] == [
        {"name": "b"},
        {"name": "a"},
    ]


def test_json_is_gos_own() -> None:
    """Fields in the order of their declaration, and letters of HTML escaped."""
    text = go_json({"securityContext": {"runAsUser": 0}, "name": "<", "tty": False, "env": []})
    assert text == '{"name":"\\u003c","securityContext":{"runAsUser":0}}'


def test_the_language_of_templates() -> None:
    """Marks, conditions and what is left out."""
    node = {
        "a": "<one or 'x'>",
        "b": "pre-<none>",
        "c": ["<list>", {"if": "one = 1", "then": "yes"}, {"unless": "one", "d": 1}],
        "e": {"first": ["<none>", "<one>"]},
        "f": "<number none or '0'>",
    }
    found = {"one": 1, "list": [5, 6]}
    assert fill(node, found.get) == {"a": 1, "c": [5, 6, "yes"], "e": 1}
