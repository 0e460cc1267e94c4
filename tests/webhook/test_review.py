"""Reviews: the patch makes the pod that ``inject`` makes, and what can't be injected is not let in."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import jsonpatch
import kubernetes_validate
import pytest
import yaml
from kubernetes import client

from istio_iptables.commands.started import mistakes_in
from istio_iptables.kubernetes.values import read_installation
from istio_iptables.webhook.review import (
    NoReview,
    Settings,
    answer,
    require_injection,
    variables_of,
)
from tests.program import run
from tests.webhook.webhooks import patch_of, pod, review

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = Settings(
    read_installation([], [], None), native=False, revision="default", init_image=""
)
PROBE = {"httpGet": {"port": 8080, "path": "/"}}
APP = {"name": "app", "image": "app", "ports": [{"containerPort": 8080}], "readinessProbe": PROBE}
OWN_PROXY = {"name": "istio-proxy", "image": "auto", "securityContext": {"runAsUser": 7}}
#: Pods of many kinds, and what a webhook is started with for them.
PODS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "plain": (pod(), ()),
    "native": (pod(initContainers=[{"name": "first", "image": "a"}]), ("--native-sidecars",)),
    "tproxy": (pod({"sidecar.istio.io/interceptionMode": "TPROXY"}), ()),
    "none": (pod({"sidecar.istio.io/interceptionMode": "NONE"}), ()),
    "cni": (pod({"traffic.sidecar.istio.io/excludeInboundPorts": "1,2"}), ("--set", "pilot.cni.enabled=true")),
    "probes": (pod(containers=[APP], volumes=[{"name": "v", "emptyDir": {}}]), ()),
    "own proxy": (pod(containers=[OWN_PROXY, APP]), ("--init-image", "mine/istio-iptables:1")),
    "gateway": (pod({"inject.istio.io/templates": "gateway"}, containers=[OWN_PROXY]), ()),
    "held": (pod({"proxy.istio.io/config": "holdApplicationUntilProxyStarts: true"}), ("--revision", "canary")),
    "metrics": (pod({"prometheus.io/port": "9090", "prometheus.io/scrape": "true"}), ()),
    "nulls": (pod(nodeSelector=None, containers=[{**APP, "command": None}]), ()),
}  # fmt: skip


def settings_of(words: tuple[str, ...]) -> Settings:
    """What a webhook goes by that is started with *words*."""
    given = dict(zip(words[::2], words[1::2], strict=False))
    sets = [given["--set"]] if "--set" in given else []
    return Settings(
        read_installation([], sets, None),
        "--native-sidecars" in words,
        given.get("--revision", "default"),
        given.get("--init-image", ""),
    )


def response_of(asked: dict[str, Any], path: str = "/inject") -> dict[str, Any]:
    """The response to a review."""
    found = answer(json.dumps(asked).encode(), path, SETTINGS).document
    assert (found["apiVersion"], found["kind"]) == (asked["apiVersion"], "AdmissionReview")
    response: dict[str, Any] = found["response"]
    assert response["uid"] == asked["request"]["uid"]
    return response


def admitted(document: dict[str, Any], path: str = "/inject", **request: Any) -> dict[str, Any]:
    """A pod after the patch of its review, as another reader of patches makes it."""
    response = response_of(review(document, **request), path)
    assert response["allowed"], response
    found: dict[str, Any] = jsonpatch.apply_patch(copy.deepcopy(document), patch_of(response))
    return found


@pytest.mark.parametrize("name", PODS)
def test_the_patch_makes_what_inject_makes(name: str, tmp_path: Path) -> None:
    """The same pod to the last value, which Kubernetes' schema and its client's models know all of."""
    document, words = PODS[name]
    body = json.dumps(review(document)).encode()
    response = answer(body, "/inject", settings_of(words)).document["response"]
    patch = patch_of(response)
    found = jsonpatch.apply_patch(copy.deepcopy(document), patch)
    path = tmp_path / "pod.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    result = run(["inject", "-f", str(path), *words])
    assert (result.status, result.errors) == (0, [])
    assert json.dumps(found, sort_keys=True) == json.dumps(
        yaml.safe_load(result.out), sort_keys=True
    )
    # What the pod said is not said again.
    assert not {each["path"] for each in patch} & {"", "/spec", "/metadata", "/spec/containers"}

    kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)
    api = client.ApiClient()
    known = api.deserialize(json.dumps(found), "V1Pod", "application/json")
    assert api.sanitize_for_serialization(known) == without_nulls(found)  # type: ignore[no-untyped-call]  # no types there


def without_nulls(value: Any) -> Any:
    """What of a document says something."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def test_a_second_review_changes_nothing() -> None:
    """The API server may ask again (reinvocationPolicy); then there is no patch."""
    once = admitted(pod(containers=[APP]))
    assert response_of(review(once)) == {"uid": review(None)["request"]["uid"], "allowed": True}


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_the_version_of_the_question(version: str) -> None:
    """It is that of the answer."""
    assert response_of(review(pod(), version))["allowed"]


def test_the_namespace_of_the_request() -> None:
    """A pod without one is in it, also for what Istio leaves alone."""
    document = pod()
    del document["metadata"]["namespace"]
    assert admitted(document, namespace="blue")["metadata"]["namespace"] == "blue"
    assert "patch" not in response_of(review(document, namespace="kube-system"))


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/inject", {}),
        ("/inject/", {}),
        ("/inject/cluster/c1/net/n1", {"ISTIO_META_CLUSTER_ID": "c1", "ISTIO_META_NETWORK": "n1"}),
        ("/inject/net/a--slash--b/", {"ISTIO_META_NETWORK": "a/b"}),
        ("/inject/istio_meta_x/1/odd", {"ISTIO_META_X": "1"}),
        ("/inject/cluster/a%20b", {"ISTIO_META_CLUSTER_ID": "a b"}),
        ("/inject/:ENV:cluster=x:ENV:A=:ENV:=b", {"cluster": "x", "A": ""}),
    ],
)
def test_paths_of_istiod(path: str, wanted: dict[str, str]) -> None:
    """They have variables for istio-proxy; the last word without another one is nothing."""
    assert variables_of(path) == wanted
    containers = admitted(pod(), path)["spec"]["containers"]
    (proxy,) = (each for each in containers if each["name"] == "istio-proxy")
    environment = {each["name"]: each.get("value") for each in proxy["env"]}
    assert environment.items() >= wanted.items()


def test_the_network_of_the_path() -> None:
    """It stands over that of the installation and under the pod's own label, and is its label too."""
    label = "topology.istio.io/network"
    assert admitted(pod(), "/inject/net/n1")["metadata"]["labels"][label] == "n1"
    document = pod()
    document["metadata"]["labels"][label] = "mine"
    assert admitted(document, "/inject/net/n1")["metadata"]["labels"][label] == "mine"


SKIPPED: list[tuple[dict[str, Any], str]] = [
    (review(pod(hostNetwork=True)), "it has host networking"),
    (review(pod({"sidecar.istio.io/inject": "false"})), "sidecar.istio.io/inject is false"),
    (review(pod(), operation="UPDATE"), "the operation is UPDATE"),
    (review(None, operation="DELETE"), "the operation is DELETE"),
    (review(pod(), subResource="status"), "it is about pods/status"),
]


@pytest.mark.parametrize(("asked", "reason"), SKIPPED)
def test_let_in_as_it_is(asked: dict[str, Any], reason: str) -> None:
    """Allowed without a patch, and the log knows why."""
    found = answer(json.dumps(asked).encode(), "/inject", SETTINGS)
    assert (found.verdict, found.reason) == ("skipped", reason)
    assert found.document["response"] == {"uid": found.uid, "allowed": True}


#: Kinds that others may be asked about, by a configuration that is wrong.
_DEPLOYMENT = {"group": "apps", "version": "v1", "kind": "Deployment"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        review(pod({"traffic.sidecar.istio.io/excludeOutboundPorts": "a,b"})),
        "annotation traffic.sidecar.istio.io/excludeOutboundPorts: item 1: 'a' is no port (0 to 65535)",
    ),
    (review(pod({"proxy.istio.io/config": "[]"})), "is no mapping"),
    (review(pod({"inject.istio.io/templates": "grpc-agent"})), "template 'grpc-agent' is not known"),
    (review(pod(), kind=_DEPLOYMENT), "this webhook is for pods"),
    (review({**pod(), "kind": "Deployment"}), "is no Pod of v1"),
    (review({**pod(), "apiVersion": "v2"}), "is no Pod of v1"),
    (review(None), "has no object"),
    (review([]), "has no object"),
    (review({}), "is no Pod of v1"),
    (review({**pod(), "spec": None}), "spec is missing"),
    (review({"apiVersion": "v1", "kind": "Pod"}), "spec is missing"),
    (review({**pod(), "spec": []}), "spec is no mapping"),
    (review({**pod(), "metadata": 5}), "metadata is no mapping"),
    (review(pod(containers=[])), "it has no containers"),
    (review(pod(containers={})), "it has no containers"),
    (review(pod(containers=["a"])), "containers is no list of containers"),
    (review(pod(containers=[{"name": str(n)} for n in range(300)])), "more than 250 containers"),
    (review(pod({"a": "x" * 300_000})), "its annotations are more than 256 KiB"),
    (review(pod({"proxy.istio.io/config": "a: " + "[1]" * 11_000})), "config: is more than 32 KiB"),
    (review({**pod(), "metadata": {"annotations": {"a": {}}}}), "annotations is no mapping of texts"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_refused(asked: dict[str, Any], reason: str) -> None:
    """With a status that kubectl shows, and never a patch."""
    response = response_of(asked)
    assert set(response) == {"uid", "allowed", "status"}
    assert response["allowed"] is False
    assert reason in response["status"].pop("message")
    assert response["status"] == {"status": "Failure", "reason": "BadRequest", "code": 400}


def test_every_reason_at_once() -> None:
    """A line each in the message, and one in the log."""
    annotations = {
        "traffic.sidecar.istio.io/excludeOutboundPorts": "a",
        "sidecar.istio.io/interceptionMode": "tproxy",
    }
    found = answer(json.dumps(review(pod(annotations))).encode(), "/inject", SETTINGS)
    lines = found.document["response"]["status"]["message"].splitlines()
    assert [each.partition(":")[0] for each in lines] == ["Pod shop/web"] * 2
    assert found.reason == "; ".join(lines)


NO_REVIEWS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"kind": "AdmissionReview"}',
    b'{"kind": "AdmissionReview", "apiVersion": []}',
    json.dumps(review(pod())).encode("utf-16"),
    json.dumps(review(pod(), "v2")).encode(),
    json.dumps({**review(pod()), "kind": "Pod"}).encode(),
    json.dumps({**review(pod()), "request": None}).encode(),
    json.dumps(review(pod(), uid="")).encode(),
    json.dumps(review(pod(), uid=5)).encode(),
    json.dumps(review(pod(), uid="x" * 300)).encode(),
    json.dumps(review(pod(), extra=float("nan"))).encode(),
    json.dumps(review(pod(), extra=5)).replace('"extra": 5', '"extra": 1e999').encode(),
    b"[" * 100_000,
    b'{"a": ' * 50_000,
    b"1" * 5000,
]


@pytest.mark.parametrize("body", NO_REVIEWS, ids=range(len(NO_REVIEWS)))
def test_no_review(body: bytes) -> None:
    """What can have no answer gets none."""
    with pytest.raises(NoReview):
        answer(body, "/inject", SETTINGS)


def test_deep_and_odd_values_are_refused_or_kept() -> None:
    """Numbers that JSON can't hold are not made up, and depth is no crash."""
    deep: Any = "x"
    for _ in range(400):
        deep = [deep]
    for odd in (deep, 10**400, 1e308, "\ud800", {"~/": None}):
        response = response_of(review(pod(containers=[{**APP, "odd": odd}], odd=odd)))
        if response["allowed"]:
            patch_of(response)
        else:
            assert response["status"]["code"] == 400


def test_null_in_place_of_an_item() -> None:
    """What Kubernetes does not know is merged as the rest is, and refused by it, not here."""
    proxy = {**OWN_PROXY, "securityContext": {"odd": {"containers": [None, {"odd": 1}]}}}
    body = json.dumps(review(pod(containers=[proxy, APP]))).encode()
    assert answer(body, "/inject", SETTINGS).verdict == "injected"


def test_a_mistake_of_our_own_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is raised inside, the pod is not let in as it is."""

    def broken(*_: object) -> None:
        raise KeyError("x")  # noqa: EM101 - any

    monkeypatch.setattr("istio_iptables.webhook.review.inject", broken)
    found = answer(json.dumps(review(pod())).encode(), "/inject", SETTINGS)
    response = found.document["response"]
    assert (found.verdict, response["allowed"], response["status"]["code"]) == (
        "failed",
        False,
        500,
    )


def test_an_installation_that_can_inject_nothing() -> None:
    """It is told when it is read, not at each pod."""
    from istio_iptables.errors import UsageProblems

    broken = SETTINGS._replace(
        installation=read_installation([("v", "global: {proxy: {resources: 5}}")], [], None)
    )
    with pytest.raises(UsageProblems, match="no mapping"):
        require_injection(broken)
    require_injection(SETTINGS)


def test_likely_mistakes_are_told(tmp_path: Path) -> None:
    """Those that ``inject`` tells, to v1 alone, which knows of warnings; few, and short."""
    name = "traffic.sidecar.istio.io/excludeOutboundPort"
    document = pod({name: "1", "proxy.istio.io/config": "statusPort: 15099"})
    settings = SETTINGS._replace(lint=mistakes_in)
    for version in ("v1", "v1beta1"):
        body = json.dumps(review(document, version)).encode()
        found = answer(body, "/inject", settings)
        assert found.verdict == "injected"
        told = found.document["response"].get("warnings", [])
        assert list(found.warnings) == (told or list(found.warnings))
        assert (told != []) == (version == "v1")
    path = tmp_path / "pod.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    lines = run(["inject", "-f", str(path)]).warnings
    assert list(found.warnings) == [line for line in lines if not line.startswith("image ")]
    document = pod({f"{name}s{'x' * 50}{number}": "1" for number in range(50)} | {name: "1"})
    settings = SETTINGS._replace(lint=lambda _: ["a\n" * 200] * 50)
    found = answer(json.dumps(review(document)).encode(), "/inject", settings)
    assert len(found.warnings) == 10
    assert {len(line) <= 256 and line.isprintable() for line in found.warnings} == {True}
    document = pod({f"{name}s{number}": "1" for number in range(200)})
    assert answer(json.dumps(review(document)).encode(), "/inject", settings).warnings == ()


def test_a_mistake_in_what_is_told_keeps_nobody_out() -> None:
    """The pod is injected without a warning."""

    def fails(_: object) -> list[str]:
        raise LookupError

    found = answer(json.dumps(review(pod())).encode(), "/inject", SETTINGS._replace(lint=fails))
    assert (found.verdict, found.warnings) == ("injected", ())
