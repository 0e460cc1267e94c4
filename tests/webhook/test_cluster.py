"""The manifests of docs/kubernetes.md, and a real kubectl that makes pods through the webhook.

There is no kube-apiserver to be had here: tests/webhook/api.py stands in for it, and says for what.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import kubernetes_validate
import pytest
import yaml

from istio_iptables.kubernetes.template import ARGUMENTS
from tests.readme import ROOT
from tests.webhook.api import Api, serving
from tests.webhook.webhooks import AUTHORITY, Running, certificate, running

if TYPE_CHECKING:
    from collections.abc import Iterator

KUBECTL = Path(sys.executable).with_name("kubectl")
PAGE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
(TEXT,) = (
    text
    for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    if "kind: MutatingWebhookConfiguration" in text
)
MANIFESTS: dict[str, dict[str, Any]] = {each["kind"]: each for each in yaml.safe_load_all(TEXT)}
CONFIGURATION = MANIFESTS["MutatingWebhookConfiguration"]
(CONTAINER,) = MANIFESTS["Deployment"]["spec"]["template"]["spec"]["containers"]
SERVICE = "istio-iptables-webhook.istio-system.svc"
NAMESPACES = {
    "istio-system": {},
    "plain": {},
    "enabled": {"istio-injection": "enabled"},
    "revision": {"istio.io/rev": "default"},
    "other": {"istio.io/rev": "canary"},
    "disabled": {"istio-injection": "disabled"},
}
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "testpod", "labels": {"app": "testpod"}},
    "spec": {"containers": [{"name": "testpod", "image": "nginx"}]},
}


class Done(NamedTuple):
    """What kubectl said."""

    status: int
    out: str
    err: str


class Cluster(NamedTuple):
    """A webhook, the API that asks it, and kubectl."""

    webhook: Running
    api: Api
    address: str
    home: Path

    def kubectl(self, *words: str, given: str = "") -> Done:
        """Run it."""
        done = subprocess.run(
            [KUBECTL, "--server", self.address, *words],
            input=given,
            capture_output=True,
            text=True,
            env={"HOME": str(self.home), "KUBECONFIG": "/dev/null"},
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def create(self, document: dict[str, Any], namespace: str, *words: str) -> Done:
        """``kubectl create`` in *namespace*."""
        create = ("create", "--validate=false", "-n", namespace, "-f", "-", *words)
        return self.kubectl(*create, given=json.dumps(document))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """With the manifests of the page made by kubectl, and the container of the Deployment running."""
    folder = tmp_path_factory.mktemp("cluster")
    files = certificate(folder / "tls", SERVICE)
    (folder / "values").write_text('{"global": {"hub": "docker.io/istio", "tag": "1.25.2"}}')
    (folder / "mesh").write_text("accessLogFile: /dev/stdout\n")
    words = list(CONTAINER["args"])
    assert words.pop(0) == "webhook"
    places = {
        "/etc/istio/inject/values": str(folder / "values"),
        "/etc/istio/config/mesh": str(folder / "mesh"),
        "/etc/webhook/tls/tls.crt": str(files[0]),
        "/etc/webhook/tls/tls.key": str(files[1]),
        ":9443": "127.0.0.1:0",
        ":9090": "127.0.0.1:0",
    }
    assert places.keys() <= set(words)
    with running(folder, *(places.get(word, word) for word in words), files=files) as webhook:
        api = Api(NAMESPACES, {f"{SERVICE}:443": webhook.port})
        with serving(api) as address:
            found = Cluster(webhook, api, address, folder)
            done = found.kubectl("create", "--validate=false", "-f", "-", given=TEXT)
            assert done.status == 0, done
            # What cert-manager does for the annotation of the configuration.
            bundle = base64.b64encode(AUTHORITY.cert_pem.bytes()).decode()
            for each in api.configurations():
                each["clientConfig"]["caBundle"] = bundle
            yield found


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_the_manifests_are_valid(version: str) -> None:
    """Kubernetes' schemas know all of every field; cert-manager's two are its own."""
    assert set(MANIFESTS) == {
        "Issuer",
        "Certificate",
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "MutatingWebhookConfiguration",
    }
    for kind, each in MANIFESTS.items():
        if each["apiVersion"].startswith("cert-manager.io/"):
            with pytest.raises(kubernetes_validate.SchemaNotFoundError):
                kubernetes_validate.validate(each, version, strict=True)
        else:
            assert kind
            kubernetes_validate.validate(each, version, strict=True)


def test_the_manifests_fit_together() -> None:
    """Names, ports, labels and files of one are those of the others."""
    template = MANIFESTS["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    service = MANIFESTS["Service"]
    assert f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc" == SERVICE
    for selector in (
        service["spec"]["selector"],
        MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert labels.items() >= selector.items()
    ports = {each["name"]: each["containerPort"] for each in CONTAINER["ports"]}
    assert {each["targetPort"] for each in service["spec"]["ports"]} <= set(ports)
    args = CONTAINER["args"]
    assert args[args.index("--listen") + 1] == f":{ports['reviews']}"
    assert args[args.index("--metrics-listen") + 1] == f":{ports['metrics']}"
    mounted = {each["mountPath"] for each in CONTAINER["volumeMounts"]}
    files = [word for word in args if word.startswith("/")]
    assert {file.rpartition("/")[0] for file in files} == mounted
    names = {each["name"] for each in template["spec"]["volumes"]}
    assert {each["name"] for each in CONTAINER["volumeMounts"]} == names
    certified = MANIFESTS["Certificate"]
    secrets = [v["secret"]["secretName"] for v in template["spec"]["volumes"] if "secret" in v]
    assert secrets == [certified["spec"]["secretName"]]
    assert certified["spec"]["dnsNames"] == [SERVICE]
    assert certified["spec"]["issuerRef"]["name"] == MANIFESTS["Issuer"]["metadata"]["name"]
    metadata = certified["metadata"]
    annotation = CONFIGURATION["metadata"]["annotations"]["cert-manager.io/inject-ca-from"]
    assert annotation == f"{metadata['namespace']}/{metadata['name']}"
    for each in CONFIGURATION["webhooks"]:
        assert each["failurePolicy"] == "Fail"
        assert each["sideEffects"] == "None"
        assert each["clientConfig"]["service"] == {
            "name": service["metadata"]["name"],
            "namespace": service["metadata"]["namespace"],
            "path": "/inject",
            "port": 443,
        }


def test_where_the_arguments_are_from() -> None:
    """The table of the page is that of the template, in its order."""
    section = PAGE.partition("\n### A pod on its way in")[2].partition("\n### ")[0]
    rows = [line.split("|")[1:4] for line in section.splitlines() if line.startswith("| `-")]
    assert len(rows) == len(ARGUMENTS)
    for each, (option, noted, otherwise) in zip(ARGUMENTS, rows, strict=True):
        assert option.split("`")[1] == each.option
        assert tuple(re.findall(r"`(.*?)`", noted)) == each.annotations
        assert re.findall(r"`(.*?)`", otherwise) == [*filter(None, (each.value or each.mesh,))], (
            each
        )
        assert ("if there is" in option) is each.optional


def test_the_probes_are_answered(cluster: Cluster) -> None:
    """At the paths and ports of the Deployment."""
    for name in ("readinessProbe", "livenessProbe"):
        probe = CONTAINER[name]["httpGet"]
        assert (probe["scheme"], probe["port"]) == ("HTTPS", "reviews")
        context = cluster.webhook.connection()
        context.close()
        assert cluster.webhook.ports["reviews"]
        # By a name that the certificate does not have: a kubelet does not look.
        done = subprocess.run(
            ["curl", "-sk", f"https://127.0.0.1:{cluster.webhook.port}{probe['path']}"],
            capture_output=True,
            check=False,
        )
        assert done.stdout == b"ok\n"


def test_kubectl_creates_a_pod(cluster: Cluster) -> None:
    """What it gets back, and gets again, is the injected pod with our image as istio-init."""
    done = cluster.create(POD, "enabled", "-o", "json")
    assert (done.status, done.err) == (0, "")
    made = json.loads(done.out)
    (init,) = made["spec"]["initContainers"]
    assert init["name"] == "istio-init"
    assert init["image"] == "registry.example/istio-iptables:0.1.0"
    assert init["args"][:9] == ["istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT"]  # fmt: skip
    names = [each["name"] for each in made["spec"]["containers"]]
    assert names == ["testpod", "istio-proxy"]
    assert made["spec"]["containers"][1]["image"] == "docker.io/istio/proxyv2:1.25.2"
    got = cluster.kubectl("get", "pod", "testpod", "-n", "enabled", "-o", "json")
    assert json.loads(got.out) == made
    line = cluster.webhook.log[-1]
    uid = cluster.api.reviews[-1]["review"]["request"]["uid"]
    assert (line["uid"], line["namespace"], line["name"]) == (uid, "enabled", "testpod")


def test_kubectl_is_refused(cluster: Cluster) -> None:
    """With the reason, and nothing is stored."""
    annotation = {"traffic.sidecar.istio.io/excludeOutboundPorts": "http"}
    bad = {**POD, "metadata": {"name": "bad", "annotations": annotation}}
    done = cluster.create(bad, "enabled")
    assert (done.status, done.out) == (1, "")
    assert done.err == (
        'Error from server (BadRequest): error when creating "STDIN": admission webhook'
        ' "namespace.istio-iptables.webhook" denied the request: Pod enabled/bad: annotation'
        " traffic.sidecar.istio.io/excludeOutboundPorts: item 1: 'http' is no port (0 to 65535)\n"
    )
    assert cluster.kubectl("get", "pod", "bad", "-n", "enabled").status == 1


@pytest.mark.parametrize(
    ("namespace", "labels", "asked"),
    [
        ("enabled", {}, 1),
        ("enabled", {"sidecar.istio.io/inject": "false"}, 0),
        ("plain", {}, 0),
        ("plain", {"sidecar.istio.io/inject": "true"}, 1),
        ("plain", {"istio.io/rev": "default"}, 1),
        ("plain", {"istio.io/rev": "canary", "sidecar.istio.io/inject": "true"}, 0),
        ("revision", {}, 1),
        ("revision", {"sidecar.istio.io/inject": "false"}, 0),
        ("other", {}, 0),
        ("other", {"sidecar.istio.io/inject": "true"}, 0),
        ("disabled", {"sidecar.istio.io/inject": "true"}, 0),
    ],
)
def test_who_is_asked_about(
    cluster: Cluster, namespace: str, labels: dict[str, str], asked: int
) -> None:
    """As by Istio's own configuration of the revision "default", and once at most."""
    before = len(cluster.api.reviews)
    document = {**POD, "metadata": {"name": "x", "namespace": namespace, "labels": labels}}
    made = cluster.api.create(
        f"/api/v1/namespaces/{namespace}/pods", json.loads(json.dumps(document))
    )
    assert len(cluster.api.reviews) - before == asked
    assert len(made["spec"]["containers"]) == 1 + asked


def test_its_own_pods_are_let_alone(cluster: Cluster) -> None:
    """Otherwise it could not start while it does not run."""
    template = MANIFESTS["Deployment"]["spec"]["template"]
    metadata = {**template["metadata"], "name": "w"}
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    before = len(cluster.api.reviews)
    for namespace in NAMESPACES:
        path = f"/api/v1/namespaces/{namespace}/pods"
        cluster.api.create(path, json.loads(json.dumps(document)))
    assert len(cluster.api.reviews) == before


def test_nobody_gets_in_while_it_is_away(tmp_path: Path, cluster: Cluster) -> None:
    """The policy is to fail: a pod without the rules would go around the mesh."""
    api = Api(NAMESPACES, {f"{SERVICE}:443": 1})
    api.objects = dict(cluster.api.objects)
    with serving(api) as address:
        away = Cluster(cluster.webhook, api, address, tmp_path)
        done = away.create({**POD, "metadata": {"name": "lost"}}, "enabled")
    assert done.status == 1
    assert 'failed calling webhook "namespace.istio-iptables.webhook"' in done.err
