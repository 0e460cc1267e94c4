"""``istio-iptables inject``: the init container, and its place, as Istio's injector has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from istio_iptables.kubernetes.annotations import problems
from istio_iptables.kubernetes.proxyconfig import typed
from istio_iptables.kubernetes.quantity import canonical
from istio_iptables.kubernetes.values import read_installation
from tests.program import run

if TYPE_CHECKING:
    from pathlib import Path

TRAFFIC = "traffic.sidecar.istio.io/"
#: The image, which is told of otherwise.
CHOSEN = ("--set", "global.hub=docker.io/istio,global.tag=1.25.2")


def injected(folder: Path, document: dict[str, Any], *words: str) -> dict[str, Any]:
    """*document* after ``inject``."""
    path = folder / "pod.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    result = run(["inject", "-f", str(path), *words])
    assert result.status == 0, result.err
    found: dict[str, Any] = yaml.safe_load(result.out)
    return found


def pod(annotations: dict[str, str] | None = None, *init: str, **more: Any) -> dict[str, Any]:
    """A Pod with init containers of its own."""
    spec = {
        "initContainers": [{"name": name} for name in init],
        "containers": [{"name": "app"}],
        **more,
    }
    metadata = {"name": "p", "annotations": annotations or {}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def names(document: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The containers of a pod in their order."""
    spec = document["spec"]
    return tuple([each["name"] for each in spec[key]] for key in ("initContainers", "containers"))  # type: ignore[return-value]  # two


@pytest.mark.parametrize(
    ("words", "init", "containers"),
    [
        ([], ["mine", "istio-init"], ["app", "istio-proxy"]),
        (["--native-sidecars"], ["istio-init", "istio-proxy", "mine"], ["app"]),
        (["--set", "pilot.cni.enabled=true"], ["istio-validation", "mine"], ["app", "istio-proxy"]),
        (
            ["--set", "global.proxy.holdApplicationUntilProxyStarts=true"],
            ["mine", "istio-init"],
            ["istio-proxy", "app"],
        ),
        (
            ["--set", "meshConfig.defaultConfig.interceptionMode=2"],
            ["mine"],
            ["app", "istio-proxy"],
        ),
    ],
)
def test_order(tmp_path: Path, words: list[str], init: list[str], containers: list[str]) -> None:
    """Where Istio puts its containers, and which there are."""
    assert names(injected(tmp_path, pod({}, "mine"), *words)) == (init, containers)


@pytest.mark.parametrize(
    ("annotations", "values", "tail"),
    [
        ({}, [], ["-d", "15090,15021,15020"]),
        ({"status.sidecar.istio.io/port": "123"}, [], ["-d", "15090,15021,123"]),
        ({"status.sidecar.istio.io/port": "0"}, [], ["-d", "15090,15021"]),
        ({f"{TRAFFIC}excludeInboundPorts": "15020, 4"}, [], ["-d", "15090,15021,15020, 4"]),
        ({f"{TRAFFIC}excludeInboundPorts": "4, 5"}, [], ["-d", "15090,15021,4,5,15020"]),
        (
            {f"{TRAFFIC}excludeOutboundPorts": ""},
            ["global.proxy.excludeOutboundPorts=22"],
            ["-d", "15090,15021,15020", "-o", ""],
        ),
        (
            {f"{TRAFFIC}kubevirtInterfaces": "a", "istio.io/reroute-virtual-interfaces": ""},
            ["global.proxy.includeOutboundPorts=22"],
            ["-d", "15090,15021,15020", "-q", "22", "-k", ""],
        ),
    ],
)
def test_arguments(
    tmp_path: Path, annotations: dict[str, str], values: list[str], tail: list[str]
) -> None:
    """The list of Istio's template, from -d on."""
    words = [word for each in values for word in ("--set-string", each)]
    (init,) = injected(tmp_path, pod(annotations), *words)["spec"]["initContainers"]
    assert init["args"][:3] == ["istio-iptables", "-p", "15001"]
    assert init["args"][init["args"].index("-d") :] == [*tail, "--log_output_level=default:info"]


def test_switches(tmp_path: Path) -> None:
    """What stands alone behind the log level."""
    path = "global.proxy_init.forceApplyIptables=true,global.logAsJson=true"
    (init,) = injected(tmp_path, pod(), "--set", path)["spec"]["initContainers"]
    assert init["args"][-2:] == ["--log_as_json", "--force-apply"]
    (init,) = injected(tmp_path, pod(), "--set", f"{path},pilot.cni.enabled=true")["spec"][
        "initContainers"
    ]
    assert init["args"][-3:] == ["--log_as_json", "--run-validation", "--skip-rule-apply"]


def test_a_proxy_of_the_pods_own(tmp_path: Path) -> None:
    """Its user is -u; istio-validation runs as that user and group, but not with TPROXY."""
    proxy = {"name": "istio-proxy", "securityContext": {"runAsUser": 1234, "runAsGroup": 4321}}
    cni = ("--set", "pilot.cni.enabled=true")
    for asked, who in (
        ({}, (1234, 4321)),
        ({"sidecar.istio.io/interceptionMode": "TPROXY"}, (1337, 1337)),
    ):
        found = injected(tmp_path, pod(asked, containers=[proxy]), *cni)
        (init,) = found["spec"]["initContainers"]
        assert init["args"][5:7] == ["-u", "1234"]
        context = init["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == who


def test_again_is_the_same(tmp_path: Path) -> None:
    """An injected pod keeps its containers."""
    status = {"sidecar.istio.io/status": '{"initContainers":["istio-init"]}'}
    once = injected(tmp_path, pod(status, "mine"))
    assert injected(tmp_path, once) == once


KEPT = """\
# A skipped pod, and what has none
apiVersion: v1
kind: Pod
metadata: # nothing
spec: {hostNetwork: on,  containers: [ ]}
--- # second
{"apiVersion": "v1", "kind": "ConfigMap",
   "data": {"a": 'b', "c": 010}}
---
apiVersion: apps/v1
kind: Deployment
spec:
  template:   # no metadata
    spec:
      hostNetwork: true
---

apiVersion: v1
kind: List
items:
- kind: Service # a service
  apiVersion: v1
# the pod
- kind: Pod
  apiVersion: v1
  metadata:
    name: "p"   # its name
  spec:
    # what runs
    containers:
    - name: 'app'
      command: &words [sh, -c, "on"]
      args: *words
    # volumes of its own
    volumes:
    - name: data
      emptyDir: {}
...
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_text_is_kept(tmp_path: Path, newline: str) -> None:
    """Each line of a manifest is there afterwards; of what has no pod to inject, each byte."""
    path = tmp_path / "kept.yaml"
    text = KEPT.replace("\n", newline)
    path.write_bytes(text.encode())
    result = run(["inject", "-f", str(path)])
    assert result.status == 0, result.err
    skipped = text.partition("kind: List")[0]
    assert result.out.startswith(skipped)
    left = iter(result.out.splitlines(keepends=True))
    for line in text.splitlines(keepends=True):
        assert line in left, line
    assert set(result.out.splitlines(keepends=True)) & {"\n", "\r\n"} == {newline}
    (*_, found) = yaml.safe_load_all(result.out)
    service, pod = found["items"]
    assert service == {"kind": "Service", "apiVersion": "v1"}
    assert pod["spec"]["containers"][0]["args"] == ["sh", "-c", "on"]
    assert pod["spec"]["containers"][1]["name"] == "istio-proxy"
    assert [each["name"] for each in pod["spec"]["volumes"]][-1] == "data"


def test_lost_comments_and_double_keys_are_told(tmp_path: Path) -> None:
    """Where a document can't be changed in its place; the last of two keys counts."""
    path = tmp_path / "double.yaml"
    path.write_text(
        "kind: Pod\napiVersion: v1\nmetadata: {name: a}\n# here\nmetadata: {name: b}\n"
        "spec: {containers: []}\n",
        encoding="utf-8",
    )
    result = run(["inject", "-f", str(path), *CHOSEN])
    assert yaml.safe_load(result.out)["metadata"]["name"] == "b"
    told = "line 5: metadata is there twice: the last one counts here, and Kubernetes may refuse it"
    assert result.warnings == [f"{path}: {told}"]
    assert (
        f"info: {path}: line 1: what stands here is written anew, without its comments"
        in result.err
    )
    assert run(["inject", "--strict", "-f", str(path)]).status == 2
    result = run(["--pod", str(path), "--dry-run"])
    assert "line 5: metadata is there twice" in result.warnings[0]


def test_a_refused_pod_leaves_nothing_on_stdout(tmp_path: Path) -> None:
    """Every reason of every pod; a skipped one is a warning."""
    path = tmp_path / "pods.yaml"
    bad = pod({f"{TRAFFIC}excludeInboundPorts": "*", "sidecar.istio.io/interceptionMode": "x"})
    path.write_text(yaml.safe_dump_all([bad, bad]), encoding="utf-8")
    result = run(["inject", "-f", str(path)])
    assert (result.status, result.out, len(result.errors)) == (2, "", 4)
    # Of what is no pod at all too, wherever it stands.
    broken = {**bad, "spec": None}
    path.write_text(yaml.safe_dump_all([broken, {"kind": "Service"}, bad, "x"]), encoding="utf-8")
    result = run(["inject", "-f", str(path)])
    assert (result.status, result.out, len(result.errors)) == (2, "", 4)
    path.write_text("# nothing\n--- {kind: Service}\n", encoding="utf-8")
    result = run(["inject", "-f", str(path)])
    assert (result.status, result.out) == (0, path.read_text(encoding="utf-8"))
    assert result.err == (
        f"istio-iptables: info: {path}: holds no Pod, nor what makes one (Deployment, Job, ...): nothing"
        " is injected\n"
    )
    assert run(["inject", "-f", "-", "--values", "-"]).errors == [
        "stdin holds one file: give - once"
    ]
    path.write_text(yaml.safe_dump(pod(hostNetwork=True)), encoding="utf-8")
    result = run(["inject", "-f", str(path)])
    assert yaml.safe_load(result.out) == pod(hostNetwork=True)
    assert result.warnings == ["Pod p: is left as it is: it has host networking"]


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            f"{TRAFFIC}includeOutboundIPRanges",
            ["*", "", "10.0.0.1/24", "fd00::/8,1.2.3.4/0"],
            ["10.0.0.1", "10.0.0.0/33", " 10.0.0.0/8", "10.0.0.0/8,", "010.0.0.0/8", "10.0.0.0/08"],
        ),
        (f"{TRAFFIC}excludeOutboundIPRanges", ["", "1.2.3.4/32"], ["*", "fe80::%1/64"]),
        (
            f"{TRAFFIC}includeInboundPorts",
            ["*", "", " ", "0", "1, 2", "065535"],
            ["1,", "65536", "1:2"],
        ),
        (f"{TRAFFIC}excludeOutboundPorts", ["", "22"], ["*", "-1", "+1", "٣"]),
        (f"{TRAFFIC}includeOutboundPorts", ["*", "x", "1:2"], []),
        (
            f"{TRAFFIC}excludeInterfaces",
            ["", "eth0, net.1", "a-b_c"],
            ["br+", "0a", "a,", " ", "a" * 16],
        ),
        ("status.sidecar.istio.io/port", ["0", " 123 "], ["", "1,2", "abc"]),
        ("sidecar.istio.io/interceptionMode", ["REDIRECT", "NONE"], ["tproxy", ""]),
        ("prometheus.istio.io/merge-metrics", ["T", "false"], ["yes"]),
        ("sidecar.istio.io/proxyCPU", ["100m", "2", "1e3"], ["", "1.5.2", "1 Gi"]),
    ],
)
def test_what_the_injector_takes(name: str, good: list[str], bad: list[str]) -> None:
    """Its own rules, which are not those of istio-iptables."""
    assert [text for text in good if problems({name: text})] == []
    assert [text for text in bad if not problems({name: text})] == []


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("concurrency", [(0, 0), ("2", 2), (3.0, 3)], ["two", True, 2**31, 1.5, [1]]),
        ("interceptionMode", [("NONE", "NONE"), (1, "TPROXY")], ["tproxy", 3, -1, True]),
        (
            "drainDuration",
            [("45s", "45s"), ("1m30s", "90s"), ("1000ms", "1s"), ("0.5m", "30s")],
            [5, "0s", "1500ms", "5", "1d", "-5s", ""],
        ),
        (
            "terminationDrainDuration",
            [("1.5s", "1.500s"), ("-1us", "-0.000001s"), ("0", "0s"), ("1h0m.5s", "3600.500s")],
            [5, "s", "1 s", "1s2", "."],
        ),
        (
            "discoveryAddress",
            [(each, each) for each in ("a-b.c:1", "10.0.0.1:65535", "[fd00::1]:80", "a.:1")],
            ["a", "a:0", "a:65536", "a:b", "fd00::1:80", "-a:1", "a.1:1", "[a:1", "", 1, "a..b:1"],
        ),
        ("statusPort", [("1234", 1234)], [0, 65536, "x"]),
        ("configPath", [("/x", "/x")], ["", 1]),
        ("holdApplicationUntilProxyStarts", [(False, False)], ["true", 1]),
        ("image", [({"imageType": "debug"}, {"imageType": "debug"})], ["debug"]),
        ("extraStatTags", [(["a"], ["a"])], ["a"]),
        ("status_port", [(1, 1)], [0]),
        ("elephant", [("x", "x"), (None, None)], []),
    ],
)
def test_fields_of_proxy_config(field: str, good: list[tuple[Any, Any]], bad: list[Any]) -> None:
    """What Protobuf's JSON reads of each, as it is told to istio-proxy, and what Istio refuses."""
    for value, wanted in good:
        found, problems = typed({field: value})
        assert ([*found.values()], problems) == ([wanted], [])
    assert [value for value in bad if len(typed({field: value})[1]) != 1] == []


@pytest.mark.parametrize(
    ("text", "read"),
    [("80\n", "80 "), ("80\\x2c81", "80,81"), ('80" # x', "80"), ('8"0', None), ("8\x01", None)],
)
def test_what_stands_between_quotes(tmp_path: Path, text: str, read: str | None) -> None:
    """Istio's template writes it as it is, and YAML reads it: what ends the quotes is refused."""
    metadata = {"proxy.istio.io/config": yaml.safe_dump({"proxyMetadata": {"A": text}})}
    for asked in ({f"{TRAFFIC}includeOutboundPorts": text}, metadata):
        if read is None:
            path = tmp_path / "pod.yaml"
            path.write_text(yaml.safe_dump(pod(asked)), encoding="utf-8")
            result = run(["inject", "-f", str(path)])
            assert (result.status, result.out, len(result.errors)) == (2, "", 1)
            assert "can't stand between the double quotes of Istio's template" in result.err
            continue
        (init,) = injected(tmp_path, pod(asked))["spec"]["initContainers"]
        values = [*init["args"], *(each["value"] for each in init.get("env", []))]
        assert read in values


def test_what_is_written_without_quotes(tmp_path: Path) -> None:
    """A number is YAML's; an item without a name is called by its place."""
    asked = {
        "readiness.status.sidecar.istio.io/periodSeconds": "010",
        "sidecar.istio.io/userVolume": '[{"emptyDir":{}}]',
        "proxy.istio.io/config": "image: {imageType: debug}",
    }
    found = injected(tmp_path, pod(asked))["spec"]
    proxy = found["containers"][1]
    assert proxy["readinessProbe"]["periodSeconds"] == 8
    assert proxy["image"].endswith("-debug")
    assert not found["initContainers"][0]["image"].endswith("-debug")
    assert found["volumes"][-1] == {"name": "0", "emptyDir": {}}
    asked = {"readiness.status.sidecar.istio.io/periodSeconds": "4294967295"}
    path = tmp_path / "pod.yaml"
    path.write_text(yaml.safe_dump(pod(asked)), encoding="utf-8")
    assert run(["inject", "-f", str(path)]).status == 2


@pytest.mark.parametrize(
    ("mesh", "told"),
    [
        ("proxyListenPort: 99999", "mesh: proxyListenPort '99999' is no port"),
        ("proxy_listen_port: 0", "mesh: proxyListenPort '0' is no port"),
        ("proxyInboundListenPort: x", "mesh: proxyInboundListenPort 'x' is no whole number"),
        ("defaultConfig: [1]", "mesh: defaultConfig or its proxyMetadata is no mapping"),
        ("defaultConfig: {concurrency: x}", "mesh: concurrency 'x' is no whole"),
        ("inboundTrafficPolicy: x", "mesh inboundTrafficPolicy: is no mapping"),
        ("proxy_listen_port: 15101\ndefault_config: {statusPort: 0}", ""),
    ],
)
def test_the_mesh_configuration(tmp_path: Path, mesh: str, told: str) -> None:
    """What Istio refuses in it; a name with underlines is one too, but for that of the proxies' part."""
    path = tmp_path / "mesh.yaml"
    path.write_text(mesh, encoding="utf-8")
    manifest = tmp_path / "pod.yaml"
    manifest.write_text(yaml.safe_dump(pod()), encoding="utf-8")
    result = run(["inject", "-f", str(manifest), "--mesh-config", str(path)])
    if told:
        assert (result.status, result.out) == (2, "")
        assert result.errors[0].startswith(told)
    else:
        assert "- -p\n    - '15101'\n" in result.out


@pytest.mark.parametrize("values", ["global: {proxy: [1]}", "pilot: {cni: true}", "global: 7"])
def test_values_that_hide_what_is_in_them(tmp_path: Path, values: str) -> None:
    """What should be a mapping and is none is refused, and not taken for nothing."""
    path = tmp_path / "values.yaml"
    path.write_text(values, encoding="utf-8")
    manifest = tmp_path / "pod.yaml"
    manifest.write_text(yaml.safe_dump(pod()), encoding="utf-8")
    result = run(["inject", "-f", str(manifest), "--values", str(path)])
    assert (result.status, result.out) == (2, "")
    assert result.errors[0].endswith(": is no mapping")


def test_null_takes_a_value_away(tmp_path: Path) -> None:
    """As with Helm, of resources too; a later file may give it again."""
    limits = {"global": {"proxy": {"resources": {"limits": {"cpu": None}, "requests": None}}}}
    again = {"global": {"proxy": {"resources": {"limits": {"cpu": "3"}}}}}
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(yaml.safe_dump(limits), encoding="utf-8")
    second.write_text(yaml.safe_dump(again), encoding="utf-8")
    words = ["--values", str(first)]
    for more, wanted in (
        ([], {"memory": "1Gi"}),
        (["--values", str(second)], {"memory": "1Gi", "cpu": "3"}),
    ):
        (init,) = injected(tmp_path, pod(), *words, *more)["spec"]["initContainers"]
        assert init["resources"] == {"limits": wanted}
    words = ["--set", "global.proxy=null"]
    (init,) = injected(tmp_path, pod(), *words)["spec"]["initContainers"]
    assert init["resources"] == {}


def test_what_the_plugin_reads_is_all_there(tmp_path: Path) -> None:
    """An empty list of excluded ports too, which the plugin takes for another one than none."""
    words = ["--set", "pilot.cni.enabled=true,global.proxy.statusPort=0"]
    annotations = injected(tmp_path, pod(), *words)["metadata"]["annotations"]
    assert annotations[f"{TRAFFIC}excludeInboundPorts"] == ""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2000m", "2"),
        ("1024Mi", "1Gi"),
        ("0.5", "500m"),
        ("1.5Gi", "1536Mi"),
        ("100m", "100m"),
        ("1000", "1k"),
        ("0", "0"),
        ("1000e3", "1e6"),
        ("x", None),
    ],
)
def test_quantities(text: str, wanted: str | None) -> None:
    """In the one spelling of Kubernetes."""
    assert canonical(text) == wanted


def test_an_init_container_of_the_pods_own(tmp_path: Path) -> None:
    """What the pod says of istio-init stands over the template; variables are merged by name."""
    own = {
        "name": "istio-init",
        "image": "auto",
        "args": ["istio-iptables", "-u", "1"],
        "env": [{"name": "A", "value": "mine"}, {"name": "B", "value": "b"}],
        "securityContext": {"privileged": True},
    }
    config = 'proxyMetadata: {A: "theirs", C: "c"}'
    document = pod({"proxy.istio.io/config": config}, initContainers=[own])
    (init,) = injected(tmp_path, document)["spec"]["initContainers"]
    assert init["image"].endswith("/proxyv2:latest")
    assert init["args"] == ["istio-iptables", "-u", "1"]
    assert {each["name"]: each["value"] for each in init["env"]} == {
        "A": "mine",
        "B": "b",
        "C": "c",
    }
    assert (init["securityContext"]["privileged"], init["securityContext"]["runAsUser"]) == (
        True,
        0,
    )


@pytest.mark.parametrize(
    ("annotations", "values", "image"),
    [
        ({}, "global.tag=1.2", "registry.istio.io/testing/proxyv2:1.2"),
        ({"sidecar.istio.io/proxyImage": "r/p:1"}, "global.tag=x", "r/p:1"),
        (
            {"sidecar.istio.io/proxyImage": "p"},
            "global.tag=x",
            "registry.istio.io/testing/proxyv2:x",
        ),
        (
            {},
            "global.tag=x-debug,global.variant=distroless",
            "registry.istio.io/testing/proxyv2:x-distroless",
        ),
        (
            {"sidecar.istio.io/proxyImageType": "default"},
            "global.tag=x-debug,global.hub=h",
            "h/proxyv2:x",
        ),
    ],
)
def test_the_image(tmp_path: Path, annotations: dict[str, str], values: str, image: str) -> None:
    """Hub, name, tag and variant, or the annotation's."""
    (init,) = injected(tmp_path, pod(annotations), "--set", values)["spec"]["initContainers"]
    assert init["image"] == image


@pytest.mark.parametrize(
    ("annotations", "refused"),
    [
        ({"prometheus.io/port": "9090"}, False),
        ({"prometheus.io/port": "15020"}, False),
        ({"prometheus-io/port": "15090"}, True),
        ({"prometheus.io/port": "x"}, True),
        ({"prometheus.io/port": "x", "prometheus.io/scrape": "false"}, False),
        ({"prometheus.io/port": "x", "prometheus.istio.io/merge-metrics": "false"}, False),
        ({"prometheus.istio.io/scrape-targets": "80:/m, 15000"}, True),
    ],
)
def test_ports_of_metrics(tmp_path: Path, annotations: dict[str, str], *, refused: bool) -> None:
    """Ports that can't be merged with Envoy's metrics are refused, as the injector does."""
    path = tmp_path / "pod.yaml"
    path.write_text(yaml.safe_dump(pod(annotations)), encoding="utf-8")
    assert run(["inject", "-f", str(path)]).status == (2 if refused else 0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("TRUE", True),
        ("False", False),
        ("NULL", None),
        ("0", 0),
        ("-0", 0),
        ("+5", 5),
        ("-05", -5),
        ("007", "007"),
        ("1_0", "1_0"),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", "9223372036854775808"),
        ("yes", "yes"),
        ("", ""),
    ],
)
def test_values_are_typed_as_helm_does(text: str, value: object) -> None:
    """In every spelling that Go takes."""
    found = read_installation([], [f"global.mine={text}"], None).values["global"]
    assert found.get("mine") == value
    assert type(found.get("mine")) is type(value)


def test_names_of_variables_and_binary(tmp_path: Path) -> None:
    """What YAML reads otherwise than it looks is named, with its place."""
    result = run(["inject", "-f", _file(tmp_path, "env: [{name: A}, {name: N, value: x}]")])
    assert result.errors == ["Pod p: app: env, item 2: name: 'false' is no text: put it in quotes"]
    result = run(["inject", "-f", _file(tmp_path, "env: [{value: x}]")])
    assert result.errors == ["Pod p: app: env, item 1: has no name"]
    path = _file(tmp_path, 'env: [{name: A, value: !!binary "**"}]')
    line = "line 1: a value with the tag !!binary is no text in base64"
    assert run(["inject", "-f", path]).errors == [f"{path}: {line}"]


def _file(folder: Path, container: str) -> str:
    path = folder / "pod.yaml"
    spec = f"spec: {{containers: [{{name: app, {container}}}]}}"
    path.write_text(f"{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, {spec}}}")
    return str(path)


@pytest.mark.parametrize(("port", "asked"), [(" 123 ", 0), ("123", 123), ("0123", 123)])
def test_the_port_that_probes_ask(tmp_path: Path, port: str, asked: int) -> None:
    """Go's Atoi takes no blanks, and Istio goes on with 0."""
    app = {"name": "app", "readinessProbe": {"httpGet": {"port": 80}}}
    document = pod({"status.sidecar.istio.io/port": port}, containers=[app])
    (found, _) = injected(tmp_path, document)["spec"]["containers"]
    assert found["readinessProbe"]["httpGet"]["port"] == asked


NO_TEXT = "is no text: put it in quotes (--set-string)"
NO_TRUTH = "is not true or false, without quotes"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ("pilot: {cni: {enabled: 'false'}}", f"pilot.cni.enabled: 'false' {NO_TRUTH}"),
        ("global: {logAsJson: 'no'}", f"global.logAsJson: 'no' {NO_TRUTH}"),
        ("global: {proxy: {privileged: 1}}", f"global.proxy.privileged: '1' {NO_TRUTH}"),
        ("global: {imagePullSecrets: [{name: x}]}", "global.imagePullSecrets: is no list of texts"),
        ("global: {proxy: {excludeOutboundPorts: 22}}", f"global.proxy.excludeOutboundPorts: '22' {NO_TEXT}"),
        ("global: {proxy: {statusPort: x}}", "global.proxy.statusPort: 'x' is no number from 0 to 4294967295"),
        ("global: {proxy: {statusPort: -1}}", "global.proxy.statusPort: '-1' is no number from 0 to 4294967295"),
        ("global: {proxy: {tracer: jaeger}}", "global.proxy.tracer: 'jaeger' is none of zipkin, lightstep,"),
        ("global: {proxy: {resources: {limits: {cpu: 2}}}}", f"global.proxy.resources.limits.cpu: '2' {NO_TEXT}"),
        ("global: {proxy: {startupProbe: true}}", "global.proxy.startupProbe: is no mapping"),
        ("sidecarInjectorWebhook: {rewriteAppHTTPProbe: 'true'}", f"sidecarInjectorWebhook.rewriteAppHTTPProbe: 'true' {NO_TRUTH}"),
        # A number in quotes is one, and what Istio has no type for is anything.
        ("global: {proxy: {statusPort: '15030'}}", ""),
        ("global: {tag: 1.5, trustDomain: 7}", ""),
        ("global: {proxy_init: {forceApplyIptables: 'yes'}}", ""),
        ("global: {proxy: {privileged: null, resources: {limits: {cpu: null}}}}", ""),
        ("global: {proxy: {unknown: 7}}", ""),
    ],
)  # fmt: skip
def test_types_of_values(tmp_path: Path, values: str, line: str) -> None:
    """What Istio's injector can't read into the types of its own is refused, and nothing else."""
    path = tmp_path / "values.yaml"
    path.write_text(values, encoding="utf-8")
    manifest = tmp_path / "pod.yaml"
    manifest.write_text(yaml.safe_dump(pod()), encoding="utf-8")
    result = run(["inject", "-f", str(manifest), "--values", str(path)])
    if line:
        assert (result.status, result.out, len(result.errors)) == (2, "", 1)
        assert result.errors[0].startswith(f"value {line}")
    else:
        assert result.status == 0, result.err


def test_a_value_stands_between_quotes(tmp_path: Path) -> None:
    """As an annotation does; but not where the template does not write it."""
    words = ["--set", 'global.proxy.includeIPRanges=10.0.0.0/8"\\, "x']
    path = tmp_path / "pod.yaml"
    path.write_text(yaml.safe_dump(pod()), encoding="utf-8")
    result = run(["inject", "-f", str(path), *words])
    assert (result.status, result.out) == (2, "")
    assert result.errors == [
        (
            "Pod p: value global.proxy.includeIPRanges: '10.0.0.0/8\", \"x' can't stand between the"
            " double quotes of Istio's template"
        )
    ]
    injected(tmp_path, pod({f"{TRAFFIC}includeOutboundIPRanges": "*"}), *words)
    injected(tmp_path, pod({"sidecar.istio.io/interceptionMode": "NONE"}), *words)


def test_an_installation_from_its_config_maps(tmp_path: Path) -> None:
    """That of the injector has the values, that of the mesh the configuration; another object has none."""
    values, mesh, other = (tmp_path / f"{name}.yaml" for name in ("values", "mesh", "other"))
    text = '{"global": {"proxy": {"excludeOutboundPorts": "25"}}}'
    config = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"values": text, "config": "x"}}
    values.write_text(yaml.safe_dump(config), encoding="utf-8")
    mesh.write_text(yaml.safe_dump({**config, "data": {"mesh": "proxyListenPort: 15101"}}))
    other.write_text(yaml.safe_dump(pod()), encoding="utf-8")
    words = ("--values", str(values), "--mesh-config", str(mesh))
    (init,) = injected(tmp_path, pod(), *words)["spec"]["initContainers"]
    assert init["args"][1:3] == ["-p", "15101"]
    assert "-o 25" in " ".join(init["args"])
    for option, path, line in (
        ("--values", mesh, "the ConfigMap has no data.values"),
        ("--values", other, "is a Pod of Kubernetes, and no Helm values"),
        ("--mesh-config", values, "the ConfigMap has no data.mesh"),
        ("--mesh-config", other, "is a Pod of Kubernetes, and no mesh configuration"),
    ):
        result = run(["inject", "-f", str(other), option, str(path)])
        assert result.errors == [f"{path}: {line}"]
