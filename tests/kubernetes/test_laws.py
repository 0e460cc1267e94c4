"""What holds for every manifest, values and mesh configuration, however they are drawn.

ISTIO_IPTABLES_EXAMPLES=N draws N of each in place of the number here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.program import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRAFFIC = "traffic.sidecar.istio.io/"
MODE = "sidecar.istio.io/interceptionMode"
DRY = ("--dry-run", "--ip-family=dual", "--resolv-conf=/dev/null")
TEXTS = st.text(st.sampled_from("*0123456789,./: abeth+\"'\\\n#-é"), max_size=8)


def examples(number: int) -> Callable[[Any], Any]:
    """So many of a law, or as many as the environment says."""
    asked = int(os.environ.get("ISTIO_IPTABLES_EXAMPLES", number))
    return settings(
        max_examples=asked,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def some(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with any of *members*."""
    return st.fixed_dictionaries({}, optional=members)


def lists(*items: str) -> st.SearchStrategy[str]:
    """Items with commas between them, now and then something else."""
    good = st.lists(st.sampled_from(items), max_size=3).map(",".join)
    return st.one_of(good, good, good, st.just("*"), TEXTS)


PORTS = lists("80", "443", "15020", "0", " 22", "65535", "15090")
RANGES = lists("10.0.0.0/8", "10.96.0.1/24", "fd00::/8", "0.0.0.0/0")
INTERFACES = lists("eth0", "net1", "k-0.1")
MODES = st.sampled_from(("REDIRECT", "TPROXY", "NONE"))
STATUS_PORTS = st.sampled_from((0, 123, 15020, 15021))
METADATA = some(
    ISTIO_META_DNS_CAPTURE=st.sampled_from(("true", "0", "yes")),
    ISTIO_DUAL_STACK=st.just("true"),
    INVALID_DROP=st.just("true"),
    CAPTURE_ALL_DNS=st.sampled_from(("true", "false")),
    PROXY_GID=st.sampled_from(("4321", "x")),
    PROXY_UID=st.just("99"),
    ISTIO_OUTBOUND_OWNER_GROUPS=st.sampled_from(("java", "*", "1-2")),
    ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=st.just("127.0.0.1/8"),
    INBOUND_TUNNEL_PORT=st.just("15108"),
    ISTIO_EXCLUDE_INTERFACES=INTERFACES,
    ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE=PORTS,
)
PROXY_CONFIG = some(
    proxyMetadata=METADATA,
    interceptionMode=MODES,
    statusPort=st.sampled_from((1234, "15020")),
    holdApplicationUntilProxyStarts=st.booleans(),
    concurrency=st.sampled_from((0, "2")),
)
MESH = some(
    proxyListenPort=st.sampled_from((15101, "15001")),
    proxyInboundListenPort=st.just(15106),
    defaultConfig=PROXY_CONFIG,
)
VALUES = some(
    includeIPRanges=RANGES,
    excludeIPRanges=RANGES,
    includeInboundPorts=PORTS,
    excludeInboundPorts=PORTS,
    includeOutboundPorts=PORTS,
    excludeOutboundPorts=PORTS,
    statusPort=STATUS_PORTS,
    privileged=st.booleans(),
)
INSTALLATION = some(
    **{"global": some(proxy=VALUES, nativeNftables=st.booleans(), logAsJson=st.booleans())},
    meshConfig=MESH,
)
ANNOTATIONS = some(
    **{
        f"{TRAFFIC}includeInboundPorts": PORTS,
        f"{TRAFFIC}excludeInboundPorts": PORTS,
        f"{TRAFFIC}includeOutboundPorts": PORTS,
        f"{TRAFFIC}excludeOutboundPorts": PORTS,
        f"{TRAFFIC}includeOutboundIPRanges": RANGES,
        f"{TRAFFIC}excludeOutboundIPRanges": RANGES,
        f"{TRAFFIC}excludeInterfaces": INTERFACES,
        f"{TRAFFIC}kubevirtInterfaces": INTERFACES,
        "istio.io/reroute-virtual-interfaces": INTERFACES,
        MODE: MODES,
        "status.sidecar.istio.io/port": STATUS_PORTS.map(str),
        "proxy.istio.io/config": PROXY_CONFIG.map(yaml.safe_dump),
        "sidecar.istio.io/agentLogLevel": st.just("all:debug"),
        "sidecar.istio.io/nativeSidecar": st.sampled_from(("true", "false")),
        "prometheus.io/port": st.sampled_from(("9090", "15020")),
    }
)
CONTEXTS = some(runAsUser=st.sampled_from((0, 1234)), runAsGroup=st.sampled_from((0, 4321)))
PROBE = {"httpGet": {"path": "/ready", "port": 80}}


@st.composite
def workloads(draw: st.DrawFn, *, own_proxy: bool = True) -> dict[str, Any]:
    """A Pod, or what makes one."""
    containers: list[dict[str, Any]] = [{"name": "app", "image": "app"}]
    if draw(st.booleans()):
        containers[0] |= {"readinessProbe": PROBE, "ports": [{"containerPort": 80}]}
    if own_proxy and draw(st.booleans()):
        containers.append({"name": "istio-proxy", "securityContext": draw(CONTEXTS)})
    spec: dict[str, Any] = {"containers": containers}
    if draw(st.booleans()):
        spec["initContainers"] = [{"name": "before", "image": "b"}]
    if draw(st.booleans()):
        spec["volumes"] = [{"name": "data", "emptyDir": {}}]
    metadata = {"annotations": draw(ANNOTATIONS), "labels": {"app": "a"}}
    kind, version = draw(
        st.sampled_from((("Pod", "v1"), ("Deployment", "apps/v1"), ("Job", "batch/v1")))
    )
    name = {"name": "p", "namespace": "shop"}
    if kind == "Pod":
        return {"apiVersion": version, "kind": kind, "metadata": {**name, **metadata}, "spec": spec}
    template = {"metadata": metadata, "spec": spec}
    return {"apiVersion": version, "kind": kind, "metadata": name, "spec": {"template": template}}


def write(folder: Path, name: str, document: Any) -> str:
    """A file of YAML in *folder*."""
    path = folder / name
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    return str(path)


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    """The spec of its pod."""
    spec: dict[str, Any] = document["spec"]
    return spec if document["kind"] == "Pod" else dict(spec["template"]["spec"])


@given(workloads(), INSTALLATION, MESH | st.none(), st.sampled_from(((), ("--native-sidecars",))))
@examples(80)
def test_rules_of_the_raw_pod_the_injected_one_and_the_arguments(
    tmp_path: Path,
    raw: dict[str, Any],
    values: dict[str, Any],
    mesh: dict[str, Any] | None,
    words: tuple[str, ...],
) -> None:
    """They are one, and what is refused of one is refused of all."""
    path = write(tmp_path, "pod.yaml", raw)
    installation = ["--values", write(tmp_path, "values.yaml", values)]
    if mesh is not None:
        installation += ["--mesh-config", write(tmp_path, "mesh.yaml", mesh)]
    injected = run(["inject", "-f", path, *installation, *words])
    direct = run(["--pod", path, *installation, *DRY])
    if injected.status:
        assert (injected.status, injected.out) == (2, "")
        assert (direct.status, direct.out) == (2, "")
        return
    inits = pod_of(yaml.safe_load(injected.out)).get("initContainers", [])
    init = next((each for each in inits if each["name"] == "istio-init"), None)
    if init is None:
        assert (direct.status, direct.out) == (2, "")
        assert "the mode is NONE" in direct.err
        return
    environment = {each["name"]: each.get("value", "") for each in init.get("env", ())}
    by_words = run([*init["args"], *DRY], environment)
    assert by_words.status in (0, 2)
    assert direct[:2] == by_words[:2], direct.err
    again = tmp_path / "injected.yaml"
    again.write_text(injected.out, encoding="utf-8")
    found = run(["--pod", str(again), *DRY])
    assert found[:2] == by_words[:2], found.err


_FROM_VALUES = tuple(
    f"{kind} shop/p: annotation {TRAFFIC}" for kind in ("Pod", "Deployment", "Job")
)


@given(
    workloads(own_proxy=False),
    INSTALLATION,
    st.sampled_from(((), ("--native-sidecars",), ("--set", "pilot.cni.enabled=true"))),
)
@examples(60)
def test_a_second_injection_changes_nothing(
    tmp_path: Path, raw: dict[str, Any], values: dict[str, Any], words: tuple[str, ...]
) -> None:
    """Not a byte of the first one's text.

    But with Istio's CNI plugin values become annotations, which alone are checked: then it is refused.
    And a mesh under TPROXY makes istio-proxy root the second time, whatever mode the pod asks for.
    """
    line = ["inject", "--values", write(tmp_path, "values.yaml", values), *words, "-f"]
    once = run([*line, write(tmp_path, "pod.yaml", raw)])
    asked = yaml.safe_dump(raw) + yaml.safe_dump(values)
    if once.status or ("interceptionMode: TPROXY" in asked and f"{MODE}: " in asked):
        return
    path = tmp_path / "once.yaml"
    path.write_text(once.out, encoding="utf-8")
    again = run([*line, str(path)])
    if again.status and "pilot.cni.enabled=true" in words:
        assert again.errors
        assert not [each for each in again.errors if not each.startswith(_FROM_VALUES)]
        assert run([*line, str(path), "--set", "global.proxy=null"]).errors == again.errors
        return
    assert (again.status, again.out) == (0, once.out), again.err


@st.composite
def commented(draw: st.DrawFn) -> tuple[str, list[str], dict[str, Any]]:
    """A manifest with comments at the ends of its lines and between them, those, and its value."""
    document = draw(workloads())
    flow = draw(st.sampled_from((False, None)))
    lines = yaml.safe_dump(document, default_flow_style=flow, width=10**6).splitlines()
    for number, line in enumerate(lines):
        comment = f"# comment {number}."
        form = draw(st.sampled_from(("{line}", "{line}", "{line}  {comment}", "{comment}\n{line}")))
        indent = " " * draw(st.integers(0, 8))
        lines[number] = form.format(line=line, comment=indent + comment)
    text = "\n".join([*lines, ""])
    # Within a block of text it is none.
    if yaml.safe_load(text) != document:
        return yaml.safe_dump(document), [], document
    comments = [
        line[line.index("# comment") :] for line in text.splitlines() if "# comment" in line
    ]
    return text, comments, document


@given(commented(), st.sampled_from(((), ("--native-sidecars",))))
@examples(60)
def test_every_comment_stays_or_is_told_of(
    tmp_path: Path, drawn: tuple[str, list[str], dict[str, Any]], words: tuple[str, ...]
) -> None:
    """And the values are those of the manifest without comments."""
    text, comments, document = drawn
    path = tmp_path / "commented.yaml"
    path.write_text(text, encoding="utf-8")
    plain = run(["inject", "-f", write(tmp_path, "pod.yaml", document), *words])
    result = run(["inject", "-f", str(path), *words])
    assert result.status == plain.status
    assert yaml.safe_load(result.out or "null") == yaml.safe_load(plain.out or "null")
    if not result.status and "written anew, without its comments" not in result.err:
        assert [each for each in comments if each not in result.out] == []


SNIPPETS = st.sampled_from(
    (
        *("apiVersion: v1\n", "kind: Pod\n", "kind: List\n", "items:\n", "- ", "  ", "metadata:\n"),
        *(
            "spec:\n",
            "containers:\n",
            "name: a\n",
            "{",
            "}",
            "[",
            "]",
            ": ",
            "&a ",
            "*a",
            "<<: ",
            "---\n",
        ),
        *(
            "...\n",
            "%YAML 1.1\n",
            "!!str ",
            "!x ",
            "| \n",
            ">-\n",
            '"',
            "'",
            "\\",
            "\t",
            "\r\n",
            "\ufeff",
        ),
        *(
            "\x85",
            "\u2028",
            "# c\n",
            "010",
            "on",
            "~",
            "1e999",
            "? ",
            ",",
            "\x00",
            "\x07",
            "é",
            "\U0001f600",
        ),
    )
)
BASE = yaml.safe_dump(
    {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "annotations": {f"{TRAFFIC}excludeOutboundPorts": "1"}},
        "spec": {"containers": [{"name": "app", "image": "a"}]},
    }
)


@st.composite
def spoilt(draw: st.DrawFn) -> str:
    """A good manifest with something else in it somewhere."""
    text = BASE
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 12))
        text = text[:place] + draw(SNIPPETS) + text[place + cut :]
    return text


@given(
    st.one_of(
        spoilt().map(str.encode),
        st.lists(SNIPPETS, max_size=30).map(lambda found: "".join(found).encode()),
        st.binary(max_size=60),
    )
)
@examples(300)
def test_whatever_stands_in_the_file(tmp_path: Path, content: bytes) -> None:
    """It is used, or refused in lines, with nothing on stdout; what is not injected keeps its bytes."""
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    result = run(["inject", "-f", str(path)])
    refused = result.status == 2 and not result.out and result.errors
    assert result.status == 0 or refused, (content, result)
    assert "internal error" not in result.err
    if result.status == 0 and "istio-proxy" not in result.out:
        assert result.out.encode(errors="surrogateescape") == content
    result = run(["--pod", str(path), *DRY])
    assert result.status == 0 or (result.status == 2 and not result.out and result.errors), result
    assert "internal error" not in result.err
