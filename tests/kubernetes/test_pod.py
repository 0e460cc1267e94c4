"""``--pod``: a manifest is the flags of its istio-init, which it has or would be given."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.program import run

if TYPE_CHECKING:
    from pathlib import Path

DRY = ("--dry-run", "--ip-family=ipv4", "--resolv-conf=/dev/null")
TRAFFIC = "traffic.sidecar.istio.io/"


def pod(annotations: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A Pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "annotations": annotations or {}},
        "spec": {"containers": [{"name": "app", "image": "app"}], **spec},
    }


def write(folder: Path, *documents: Any, name: str = "pod.yaml") -> str:
    """A file of YAML in *folder*."""
    path = folder / name
    path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    return str(path)


OWN_PROXY = {
    "name": "istio-proxy",
    "securityContext": {"runAsUser": 1234, "runAsGroup": 4321},
}


def test_where_each_value_is_from(tmp_path: Path) -> None:
    """In JSON and with -v: annotation, mesh, value, the defaults of both, flag."""
    path = write(
        tmp_path,
        pod(
            {
                f"{TRAFFIC}excludeOutboundPorts": 3306,
                "proxy.istio.io/config": 'proxyMetadata: {INVALID_DROP: "true"}',
            }
        ),
    )
    mesh = write(
        tmp_path,
        {"kind": "ConfigMap", "data": {"mesh": "proxyListenPort: 15101\n"}},
        name="mesh.yaml",
    )
    line = [
        "--pod",
        path,
        "--mesh-config",
        mesh,
        "--set",
        "global.proxy.includeIPRanges=10.0.0.0/8",
    ]
    line += ["-b", "80", *DRY]
    result = run([*line, "--format", "json"])
    found = json.loads(result.out)["settings"]
    assert {
        name: (found[name]["value"], found[name]["source"], found[name]["place"])
        for name in (
            "envoy_port",
            "inbound_capture_port",
            "istio_service_cidr",
            "istio_local_outbound_ports_exclude",
            "istio_inbound_ports",
            "drop_invalid",
            "dual_stack",
        )
    } == {
        "envoy_port": ("15101", "manifest", "mesh proxyListenPort"),
        "inbound_capture_port": (
            "15006",
            "manifest",
            "default of mesh proxyInboundListenPort",
        ),
        "istio_service_cidr": ("10.0.0.0/8", "manifest", "value global.proxy.includeIPRanges"),
        "istio_local_outbound_ports_exclude": (
            "3306",
            "manifest",
            f"annotation {TRAFFIC}excludeOutboundPorts",
        ),
        "istio_inbound_ports": ("80", "flag", None),
        "drop_invalid": (
            "true",
            "manifest",
            "annotation proxy.istio.io/config, proxyMetadata.INVALID_DROP",
        ),
        "dual_stack": ("false", "default", None),
    }
    told = run([*line, "-v"]).err
    assert "--envoy-port = '15101' (mesh proxyListenPort)" in told


def test_the_environment_of_this_process_is_not_the_pods(tmp_path: Path) -> None:
    """The rules of a pod don't depend on who asks."""
    path = write(tmp_path, pod())
    strange = {"PROXY_GID": "7", "ISTIO_OUTBOUND_PORTS": "9", "DUAL_STACK": "true"}
    assert run(["--pod", path, *DRY], strange) == run(["--pod", path, *DRY])


def test_diff_and_explain(tmp_path: Path) -> None:
    """They take a pod as a dry run does."""
    path = write(tmp_path, pod({f"{TRAFFIC}excludeOutboundPorts": "3306"}))
    rules = tmp_path / "rules"
    rules.write_text(run(["--pod", path, *DRY]).out, encoding="utf-8")
    compared = run(["diff", "--pod", path, "--ip-family=ipv4", "--against", str(rules)])
    assert (compared.status, compared.out) == (0, f"{rules} is as planned (IPv4)\n")
    explained = run(
        ["explain", "--pod", path, "--ip-family=ipv4", "--out", "--dst", "10.9.9.9:3306"]
    )
    assert explained.status == 0
    assert "--dport 3306 -j RETURN" in explained.out


def given_container(**container: Any) -> dict[str, Any]:
    """A pod with an istio-init of its own."""
    return pod(initContainers=[{"name": "istio-init", **container}])


@pytest.mark.parametrize(
    "container",
    [
        {"args": ["istio-iptables", "-p", "15101"]},
        {"args": ["-p", "15101"]},
        {"command": ["/usr/local/bin/pilot-agent"], "args": ["istio-iptables", "-p", "15101"]},
        {"command": ["/usr/local/bin/istio-iptables", "-p", "15101"]},
        {"args": ["-p", "$(PORT)"], "env": [{"name": "PORT", "value": "15101"}]},
    ],
)
def test_the_container_as_it_may_be_written(tmp_path: Path, container: dict[str, Any]) -> None:
    """Behind pilot-agent, as a command, as arguments alone; with variables."""
    path = write(tmp_path, given_container(**container))
    assert run(["--pod", path, *DRY])[:2] == run(["-p", "15101", *DRY])[:2]


SEVERAL = (pod(), {**pod(), "metadata": {"name": "q"}}, {"kind": "Service", "apiVersion": "v1"})


@pytest.mark.parametrize(
    ("documents", "words", "line"),
    [
        (SEVERAL, [], "holds several pods: give --pod-name with one of: Pod p, Pod q"),
        (SEVERAL, ["--pod-name=x"], "holds no 'x', but: Pod p, Pod q"),
        (SEVERAL[2:], [], "holds no Pod, nor what makes one"),
        ([pod(hostNetwork=True)], [], "Pod p: is not injected: it has host networking"),
        ([pod({"sidecar.istio.io/inject": "false"})], [], "sidecar.istio.io/inject is false"),
        (
            [pod({"sidecar.istio.io/interceptionMode": "NONE"})],
            [],
            "gets no init container: the mode is NONE (annotation sidecar.istio.io/",
        ),
        ([pod({"inject.istio.io/templates": "gateway"})], [], "asks for another template"),
        ([pod({f"{TRAFFIC}includeInboundPorts": "80,x"})], [], "item 2: 'x' is no port"),
        ([pod({f"{TRAFFIC}includeOutboundPorts": "x"})], [], "includeOutboundPorts)"),
        ([pod({"inject.istio.io/templates": "mine"})], [], "template 'mine' is not known here"),
        ([pod({"inject.istio.io/templates": "m" * 500})], [], f"template '{'m' * 120}'... is not"),
        ([pod()], ["--set", "a." * 3000 + "b=c"], "is nested too deep"),
        ([pod(containers=7)], [], "containers is no list of containers"),
        ([{**pod(), "spec": "x"}], [], "Pod: spec is no mapping"),
        ([{**pod(), "metadata": {"annotations": [1]}}], [], "annotations is no mapping of texts"),
        ([given_container(command=["sh", "-c", "true"])], [], "starts 'sh' and not istio-iptables"),
        ([given_container(args=["-p"])], [], "args of istio-init: '-p' is no option"),
        (
            [given_container(args=["--log_target", "x", "--bogus"])],
            [],
            "args of istio-init: '--bogus' is no option",
        ),
        ([given_container(args=["--vklog"])], [], "args of istio-init: --vklog: the value is"),
        ([given_container(args=["-p", "x"])], [], "'x' is not a port"),
        ([given_container(args={"a": 1})], [], "args of istio-init is no list of texts"),
        ([given_container(env=["x"])], [], "env of istio-init is no list"),
        (["x"], [], "'x' is no Kubernetes object"),
        ([pod()], ["--set", "x"], "--set: 'x' is not KEY=VALUE"),
        ([pod()], ["--set", "global.proxy.includeIPRanges.x=1"], "is no text"),
        ([pod()], ["--set", "meshConfig.proxyListenPort=x"], "proxyListenPort 'x' is no port"),
        ([pod()], ["--values", "/nowhere"], "can't read /nowhere"),
    ],
)
def test_refusals(tmp_path: Path, documents: list[Any], words: list[str], line: str) -> None:
    """One clear line, exit status 2, nothing printed."""
    result = run(["--pod", write(tmp_path, *documents), *words, *DRY])
    assert (result.status, result.out) == (2, "")
    assert line in result.err
    assert len(result.errors) == len(result.err.splitlines())


@pytest.mark.parametrize("wanted", ["web", "a/web", "Pod a/web", "Pod without a name"])
def test_one_of_several(tmp_path: Path, wanted: str) -> None:
    """By its name, or as a message calls it."""
    documents = [pod(), pod(), pod()]
    for document, namespace, port in zip(documents, ("a", "b", ""), ("1", "2", "3"), strict=True):
        document["metadata"] = {"name": "web", "namespace": namespace} if namespace else {}
        document["metadata"]["annotations"] = {f"{TRAFFIC}excludeOutboundPorts": port}
    result = run(["--pod", write(tmp_path, *documents), "--pod-name", wanted, *DRY])
    if wanted == "web":
        assert "holds several 'web', but: Pod a/web, Pod b/web, Pod without a name" in result.err
    else:
        assert f"--dport {1 if '/' in wanted else 3} -j RETURN" in result.out


def test_refusals_of_the_line_itself(tmp_path: Path) -> None:
    """What is for a manifest needs one, and stdin is one file."""
    assert run(["--set", "a=b", *DRY]).errors == ["--set: is for a manifest: give --pod"]
    result = run(["--pod", "-", "--values", "-", *DRY])
    assert result.errors == ["stdin holds one file: give - once"]
    (tmp_path / "x").write_text("a: [\n", encoding="utf-8")
    result = run(["--pod", str(tmp_path / "x"), *DRY])
    assert result.status == 2
    assert "x: line 2: " in result.err


def test_without_yaml_it_says_what_to_install(tmp_path: Path) -> None:
    """In one line."""
    program = (
        "import sys; sys.modules['yaml'] = None\n"
        "from istio_iptables.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    line = [sys.executable, "-c", program, "--pod", write(tmp_path, pod()), *DRY]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("istio-iptables: error: --pod: needs PyYAML: pip install PyYAML\n")


JUNK: st.SearchStrategy[Any] = st.sampled_from(
    (None, True, 7, 1.5, "", "x", "*", [], ["x"], [{}], {}, {"x": 1}, "\x00", "é")
)
WHOLE = given_container(
    args=["istio-iptables", "-p", "15101"],
    env=[{"name": "A", "value": "b"}, {"name": "C", "valueFrom": {}}],
    securityContext={"runAsUser": 1},
    resources={"limits": {"cpu": 1}},
)
WHOLE["metadata"]["annotations"] = {
    "sidecar.istio.io/status": "{}",
    "proxy.istio.io/config": "statusPort: 1",
}
WHOLE["spec"]["containers"].append(OWN_PROXY)
HELM = {
    "global": {
        "proxy": {"resources": {"limits": {"cpu": 1}}, "statusPort": 1},
        "hub": "x",
    },
    "pilot": {"cni": {"enabled": True}},
    "meshConfig": {
        "proxyListenPort": 1,
        "defaultConfig": {"proxyMetadata": {"A": "b"}, "interceptionMode": "NONE", "statusPort": 1},
    },
}


def places_in(tree: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a tree."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [before, *(path for key in keys for path in places_in(tree[key], (*before, key)))]


def with_junk(tree: Any, path: tuple[Any, ...], junk: Any) -> Any:
    """The tree with *junk* at *path*."""
    if not path:
        return junk
    copy = tree.copy()
    copy[path[0]] = with_junk(tree[path[0]], path[1:], junk)
    return copy


@given(
    pods=st.tuples(st.sampled_from((WHOLE, {**WHOLE, "spec": pod()["spec"]})), st.data()),
    junk=JUNK,
    helm=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_junk_anywhere_is_no_accident(
    tmp_path: Path, pods: tuple[dict[str, Any], st.DataObject], junk: Any, *, helm: bool
) -> None:
    """Whatever stands wherever in a manifest or in values is used, or refused in lines."""
    document, data = pods
    values: dict[str, Any] = HELM
    path = data.draw(st.sampled_from(places_in(values if helm else document)))
    if helm:
        values = with_junk(values, path, junk)
    else:
        document = with_junk(document, path, junk)
    given = ["--values", write(tmp_path, values, name="values.yaml")]
    for line in (
        ["--pod", write(tmp_path, document), *DRY],
        ["inject", "-f", write(tmp_path, document)],
    ):
        result = run([*line, *given])
        assert result.status in (0, 2), result.err
        assert result.status == 0 or not result.out
        assert "internal error" not in result.err


TEMPLATES = {
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "DaemonSet": "apps/v1",
    "ReplicaSet": "apps/v1",
    "ReplicationController": "v1",
    "Job": "batch/v1",
}


@pytest.mark.parametrize("kind", [*TEMPLATES, "CronJob", "List"])
def test_every_kind_that_has_a_pod(tmp_path: Path, kind: str) -> None:
    """The pod's own annotations count, wherever the pod is."""
    inner = pod({f"{TRAFFIC}excludeOutboundPorts": "3306"})
    template = {"metadata": inner["metadata"], "spec": inner["spec"]}
    outer: dict[str, Any] = {"kind": kind, "apiVersion": TEMPLATES.get(kind, "v1")}
    outer["metadata"] = {"name": "p"}
    if kind == "List":
        outer["items"] = [inner]
    elif kind == "CronJob":
        outer |= {
            "apiVersion": "batch/v1",
            "spec": {"jobTemplate": {"spec": {"template": template}}},
        }
    else:
        outer["spec"] = {"template": template}
    assert run(["--pod", write(tmp_path, outer), *DRY]) == run(
        ["--pod", write(tmp_path, inner, name="inner.yaml"), *DRY]
    )


def test_what_the_cluster_alone_knows_is_a_warning(tmp_path: Path) -> None:
    """A variable from elsewhere is named, and left out."""
    container = given_container(
        args=["-p", "$$(X)", "-p", "15001"],
        env=[{"name": "PROXY_GID", "valueFrom": {"fieldRef": {}}}],
        envFrom=[{"configMapRef": {"name": "x"}}],
    )
    result = run(["--pod", write(tmp_path, container), *DRY])
    assert result.status == 0
    assert result.warnings[:2] == [
        "Pod p: env PROXY_GID of istio-init is known to the cluster only",
        "Pod p: envFrom of istio-init is known to the cluster only",
    ]


def test_helm_values_as_helm_prints_them(tmp_path: Path) -> None:
    """With its headings, the chart's defaults of --all, and meshConfig; files over each other."""
    path = write(tmp_path, pod())
    one, two = (tmp_path / name for name in ("one", "two"))
    one.write_text(
        "COMPUTED VALUES:\n_internal_defaults_do_not_set:\n  global:\n    proxy:\n"
        "      statusPort: 123\n      includeInboundPorts: '80'\nglobal: {hub: x}\n"
    )
    two.write_text("meshConfig: {proxyListenPort: 15101}\nglobal: {proxy: {statusPort: 0}}\n")
    line = ["--pod", path, "--values", str(one), "--values", str(two), *DRY]
    wanted = ["-p", "15101", "-i", "*", "-b", "80", "-d", "15090,15021", *DRY]
    assert run(line).out == run(wanted).out


ELSEWHERE = "counts in the container only: with --pod that of the command line does"


def test_a_manifest_does_not_say_where(tmp_path: Path) -> None:
    """Which namespace is changed is the operator's to say, by flag or variable, and nobody else's."""
    place = "annotation proxy.istio.io/config, proxyMetadata."
    config = "proxyMetadata: {NETWORK_NAMESPACE: /proc/1/ns/net, CNI_MODE: 'true'}"
    raw = write(tmp_path, pod({"proxy.istio.io/config": config}))
    words = ["istio-iptables", "-i", "*", "--network-namespace", "/proc/1/ns/net", "--cni-mode"]
    made = pod(initContainers=[{"name": "istio-init", "args": words}])
    for path, places in (
        (raw, (f"{place}NETWORK_NAMESPACE", f"{place}CNI_MODE")),
        (write(tmp_path, made, name="made.yaml"), ("args of istio-init",) * 2),
    ):
        for own in ({}, {"NETWORK_NAMESPACE": "/proc/self/ns/net"}):
            result = run(["--pod", path, *DRY, "--format", "json"], own)
            assert result.warnings[:2] == [
                f"--network-namespace ({places[0]}): {ELSEWHERE}",
                f"--cni-mode ({places[1]}): {ELSEWHERE}",
            ]
            found = json.loads(result.out)["settings"]
            assert found["network_namespace"]["value"] == own.get("NETWORK_NAMESPACE", "")
            assert found["cni_mode"]["value"] == "false"
    flag = ["--network-namespace", "/proc/self/ns/net", "--format", "json"]
    found = json.loads(run(["--pod", raw, *DRY, *flag]).out)["settings"]
    assert found["network_namespace"]["value"] == "/proc/self/ns/net"
    lint = run(["inject", "-f", raw]).warnings
    assert f"Pod p: --network-namespace ({place}NETWORK_NAMESPACE): {ELSEWHERE}" in lint


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--pod", "", "-n"], "--pod: the name of the file is empty"),
        (["--pod", "a", "--pod", "b", "-n"], "--pod: is there 2 times: one manifest is read"),
        (["inject", "-f", "a", "--filename", "b"], "-f: is there 2 times: one manifest is read"),
        (
            ["inject", "web.yaml"],
            "unexpected argument 'web.yaml': did you mean --filename web.yaml?",
        ),
        (["-n", "--", "-b", "80"], "-b: stands behind --, which ends the options"),
    ],
)
def test_a_line_about_which_manifest(tmp_path: Path, words: list[str], line: str) -> None:
    """None is read, and none is forgotten in silence."""
    write(tmp_path, pod(), name="web.yaml")
    result = run(words, folder=tmp_path)
    assert result.status == 2
    assert line in result.errors


NO_NUMBER, NO_TRUTH = "is not a whole number", "is not true or false"


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"hostNetwork": "false"}, f"hostNetwork: 'false' {NO_TRUTH}"),
        ({"hostNetwork": 1}, f"hostNetwork: '1' {NO_TRUTH}"),
        (
            {"securityContext": {"runAsUser": True}},
            f"securityContext.runAsUser: 'true' {NO_NUMBER}",
        ),
        (
            {"containers": [{"name": "a", "securityContext": {"runAsGroup": "1234"}}]},
            f"a: securityContext.runAsGroup: '1234' {NO_NUMBER}",
        ),
        (
            {"initContainers": [{"name": "istio-init", "securityContext": {"runAsUser": [1]}}]},
            f"istio-init: securityContext.runAsUser: this {NO_NUMBER}",
        ),
    ],
)
def test_types_that_kubernetes_refuses(tmp_path: Path, spec: dict[str, Any], line: str) -> None:
    """Of what decides whether and as whom a pod is captured; not taken for a yes, or for a number."""
    path = write(tmp_path, pod(**spec))
    for words in (["--pod", path, *DRY], ["inject", "-f", path]):
        result = run(words)
        assert (result.status, result.out) == (2, "")
        assert result.errors == [f"Pod p: {line}"]
