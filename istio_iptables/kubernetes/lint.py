"""What in a manifest is a likely mistake: annotations that Istio doesn't know or obey, users that pass for Envoy."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from istio_iptables.kubernetes import annotations as names
from istio_iptables.kubernetes.injection import INIT_NAMES, PROXY, PROXY_IMAGE, RunAs
from istio_iptables.kubernetes.manifest import as_text
from istio_iptables.kubernetes.proxyconfig import FIELDS
from istio_iptables.kubernetes.template import ARGUMENTS, CNI, MODE
from istio_iptables.kubernetes.values import CHART, MESH
from istio_iptables.settings.converters import FALSE
from istio_iptables.settings.declarations import DNS, FAMILIES, INBOUND, OUTBOUND, SETTINGS
from istio_iptables.settings.declarations import PROXY as PROXY_GROUP
from istio_iptables.settings.types import within
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from istio_iptables.kubernetes.injection import Injection
    from istio_iptables.kubernetes.manifest import Workload
    from istio_iptables.kubernetes.values import Installation
    from istio_iptables.settings.config import Config

__all__ = [
    "lint",
    "lint_image",
    "lint_injection",
    "lint_installation",
    "lint_owners",
    "owner_in",
]

_ISTIO = "istio.io"
#: Those that Istio reads of a pod.
_OF_PODS = frozenset(
    {
        *names.TRAFFIC,
        *names.RESOURCES,
        names.AGENT_LOG_LEVEL,
        names.IMAGE_TYPE,
        names.INJECT,
        names.MERGE_METRICS,
        names.MODE,
        names.NATIVE_SIDECAR,
        names.OVERRIDES,
        names.PROXY_CONFIG,
        names.PROXY_IMAGE,
        names.REWRITE_PROBES,
        names.STATUS,
        names.STATUS_PORT,
        names.TEMPLATES,
        *names.READINESS,
        names.APPLICATION_PORTS,
        "prometheus.istio.io/scrape-targets",
        "prometheus.istio.io/secure-port",
        "sidecar.istio.io/bootstrapOverride",
        "sidecar.istio.io/capNetBindService",
        "sidecar.istio.io/componentLogLevel",
        "sidecar.istio.io/controlPlaneAuthPolicy",
        "sidecar.istio.io/discoveryAddress",
        "sidecar.istio.io/enableCoreDump",
        "sidecar.istio.io/extraStatTags",
        "sidecar.istio.io/logLevel",
        "sidecar.istio.io/statsCompression",
        "sidecar.istio.io/statsEvictionInterval",
        "sidecar.istio.io/statsFlushInterval",
        "sidecar.istio.io/statsHistogramBins",
        "sidecar.istio.io/statsHistogramBuckets",
        "sidecar.istio.io/statsInclusionPrefixes",
        "sidecar.istio.io/statsInclusionRegexps",
        "sidecar.istio.io/statsInclusionSuffixes",
        "sidecar.istio.io/userVolume",
        "sidecar.istio.io/userVolumeMount",
    }
)
#: Other names of Istio's, of labels and of annotations elsewhere: no misspelling of a pod's.
_OTHERS = frozenset(
    {
        "ambient.istio.io/bypass-inbound-capture",
        "ambient.istio.io/dns-capture",
        "ambient.istio.io/redirection",
        "istio.io/connect-strategy",
        "istio.io/dataplane-mode",
        "istio.io/dry-run",
        "istio.io/gateway-name",
        "istio.io/ingress-use-waypoint",
        "istio.io/rev",
        "istio.io/tag",
        "istio.io/use-waypoint",
        "istio.io/use-waypoint-canary",
        "istio.io/use-waypoint-canary-namespace",
        "istio.io/use-waypoint-canary-weight",
        "istio.io/use-waypoint-namespace",
        "istio.io/waypoint-for",
        "istio.io/workloadController",
        "networking.istio.io/address-type",
        "networking.istio.io/exportTo",
        "networking.istio.io/gatewayPort",
        "networking.istio.io/service-type",
        "networking.istio.io/traffic-distribution",
        "networking.istio.io/tunnel",
        "security.istio.io/tlsMode",
        "service.istio.io/canonical-name",
        "service.istio.io/canonical-revision",
        "service.istio.io/workload-name",
        "sidecar.istio.io/inject",
        "topology.istio.io/cluster",
        "topology.istio.io/controlPlaneClusters",
        "topology.istio.io/network",
        "topology.istio.io/subzone",
        "traffic.istio.io/nodeSelector",
    }
)
_ABOUT_RULES = frozenset({PROXY_GROUP, INBOUND, OUTBOUND, DNS, FAMILIES})
#: How alike (0 to 1) the part behind the slash, and the domain, of a misspelled name are.
_LIKE, _LIKE_DOMAIN = 0.8, 0.5
#: Variables of proxyMetadata, and the argument that counts in their place if it is there.
_ARGUMENT_OF = {
    "INBOUND_CAPTURE_PORT": "-z",
    "PROXY_UID": "-u",
    "ISTIO_INBOUND_INTERCEPTION_MODE": "-m",
    "ISTIO_SERVICE_CIDR": "-i",
    "ISTIO_SERVICE_EXCLUDE_CIDR": "-x",
    "ISTIO_INBOUND_PORTS": "-b",
    "ISTIO_LOCAL_EXCLUDE_PORTS": "-d",
    "ISTIO_OUTBOUND_PORTS": "-q",
    "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE": "-o",
    "KUBE_VIRT_INTERFACES": "-k",
    "ISTIO_EXCLUDE_INTERFACES": "-c",
}
#: The variables about rules that Istio's CNI plugin reads, and those that it does not.
_NOT_OF_CNI = {
    variable for each in SETTINGS if each.group in _ABOUT_RULES for variable in each.environment
} - {"ISTIO_META_DNS_CAPTURE", "ISTIO_DUAL_STACK", "INVALID_DROP"}
_LISTS = ("containers", "initContainers")
#: Where what an installation gives is known.
_TREES = {"value": CHART, "mesh": MESH}
#: Of Istio's chart, and like one that decides about pods.
_REAL_VALUES = frozenset({"revisionTags"})
#: Istio had rules for it once.
_TRACE = "IPTABLES_TRACE_LOGGING"


def lint(workload: Workload) -> list[str]:
    """One line for each annotation or label of a manifest that Istio won't read as it is meant."""
    texts = (("annotation", workload.annotations), ("label", workload.labels))
    found = [*_misplaced(workload), *_of_no_text(workload), *_twice(workload)]
    for kind, given in texts:
        found += [f"{kind} {name}: {hint}" for name in given if (hint := _misspelled(name))]
    found += [
        f"label {name}: no effect: Istio reads it as an annotation"
        for name in workload.labels
        if name in _OF_PODS - _OTHERS
    ]
    asked = {workload.annotations.get(names.INJECT), workload.labels.get(names.INJECT)} - {None}
    if len(asked) > 1:
        found.append(f"annotation {names.INJECT}: no effect: the label of that name counts")
    return _titled(workload, found)


def _titled(workload: Workload, lines: Iterable[str]) -> list[str]:
    return [f"{workload.title}: {line}" for line in lines]


def _misspelled(name: str) -> str:
    domain, slash, rest = name.partition("/")
    if not slash or "istio" not in domain or name in _OF_PODS or name in _OTHERS:
        return ""
    if domain != _ISTIO and not domain.endswith(f".{_ISTIO}") and domain.endswith(".io"):
        return ""  # somebody else's
    best, likeness = "", 0.0
    for known in sorted(_OF_PODS | _OTHERS):
        known_domain, _, known_rest = known.partition("/")
        alike = _likeness(rest.lower(), known_rest.lower())
        alike_domain = _likeness(domain, known_domain, _LIKE_DOMAIN) if alike else 0
        if alike >= _LIKE and alike_domain >= _LIKE_DOMAIN and alike + alike_domain > likeness:
            best, likeness = known, alike + alike_domain
    if not best:
        return ""
    word = best.rpartition("/")[2] if best.startswith(f"{domain}/") else best
    return f"Istio has no such name: did you mean {word}?"


def _likeness(one: str, other: str, least: float = _LIKE) -> float:
    """How alike two names are, from 0 to 1; 0 for less than *least*, which often takes no comparing."""
    if one == other:
        return 1.0
    found = SequenceMatcher(None, one, other, autojunk=False)
    if found.real_quick_ratio() < least or found.quick_ratio() < least:
        return 0.0
    return found.ratio()


def _misplaced(workload: Workload) -> Iterator[str]:
    """Annotations on what makes the pod, which Istio reads on the pod."""
    for path, metadata in workload.around:
        given = metadata.get("annotations")
        for name in given if isinstance(given, dict) else ():
            if name in _OF_PODS and name not in workload.annotations:
                yield f"annotation {name}: no effect at {path}: it is read at {workload.place}"


def _of_no_text(workload: Workload) -> Iterator[str]:
    for key in ("annotations", "labels"):
        for name, value in (workload.metadata.get(key) or {}).items():
            if not isinstance(value, str):
                yield (
                    f"{key[:-1]} {as_text(name)}: {excerpt(as_text(value))} is no text, which"
                    " Kubernetes refuses: put it in quotes"
                )


def _twice(workload: Workload) -> Iterator[str]:
    listed = [each["name"] for key in _LISTS for each in workload.containers(key)]
    for name in dict.fromkeys(listed):
        if listed.count(name) > 1:
            yield f"container {name} is there twice, which Kubernetes refuses"


def lint_injection(injection: Injection) -> list[str]:
    """One line for each wish of a pod that its injection does not fulfil, or that Istio's CNI plugin won't."""
    return _titled(
        injection.pod,
        [
            *_no_effect(injection),
            *_fields(injection),
            *_status_port(injection),
            *_metadata(injection),
            *_in_both(injection),
            *(_by_cni(injection) if injection.installation.value(CNI).value else ()),
        ],
    )


def _no_effect(injection: Injection) -> Iterator[str]:
    given, why = injection.annotations, ""
    if reason := injection.reason_for_none:
        why = f"there are no rules: {reason}"
    for name in names.TRAFFIC if why else ():
        if name in given:
            yield f"annotation {name}: no effect: {why}"
    if names.KUBEVIRT_INTERFACES in given and names.REROUTE_INTERFACES in given and not why:
        yield f"annotation {names.KUBEVIRT_INTERFACES}: no effect: {names.REROUTE_INTERFACES} counts"
    if names.APPLICATION_PORTS in given:
        yield f"annotation {names.APPLICATION_PORTS}: no effect: Istio's template reads it no more"
    if injection.status_port in {"", "0"}:
        for name in names.READINESS:
            if name in given:
                yield f"annotation {name}: no effect: the status port is 0, so there is no probe"
    image = given.get(names.PROXY_IMAGE, "")
    if "/" in image and names.IMAGE_TYPE in given:
        yield f"annotation {names.IMAGE_TYPE}: no effect: {names.PROXY_IMAGE} is a whole image"


def _fields(injection: Injection) -> Iterator[str]:
    """Fields of the pod's ProxyConfig that there are not; Istio's injector passes over them."""
    for path in injection.installation.places.values():
        place, _, field = path.partition(", ")
        if place != f"annotation {names.PROXY_CONFIG}" or "." in field or field in FIELDS:
            continue
        best = max(FIELDS, key=lambda each: _likeness(each.lower(), field.lower()))
        alike = _likeness(best.lower(), field.lower()) >= _LIKE
        hint = f": did you mean {best}?" if alike else ""
        yield f"{place}: ProxyConfig has no field {excerpt(field)}{hint}"


def lint_installation(installation: Installation) -> list[str]:
    """One line for each Helm value and field of the mesh that there is not, and that is like one there is."""
    found = []
    for place in installation.places:
        what, _, path = place.partition(" ")
        if place != installation.places[place] or what not in _TREES:
            continue
        tree: Any = _TREES[what]
        *above, last = path.split(".")
        for key in above:
            tree = tree.get(key) if isinstance(tree, dict) else None
        if what == "mesh" and above == ["defaultConfig"]:
            tree = FIELDS
        if isinstance(tree, dict) and last not in tree and last not in _REAL_VALUES:
            best = max(tree, key=lambda each: _likeness(each.lower(), last.lower()), default="")
            if _likeness(best.lower(), last.lower()) >= _LIKE:
                found.append(f"{place}: Istio has no such one: did you mean {best}?")
    return found


def lint_image(injection: Injection) -> list[str]:
    """A line if the image of istio-proxy is one that nobody chose: that of Istio's development."""
    installation = injection.installation
    named = injection.annotations.get(names.PROXY_IMAGE, installation.value(PROXY_IMAGE).text)
    missing = [
        each
        for each in ("global.hub", "global.tag")
        if installation.value(each).place.startswith("default ")
        and installation.value(each).value == CHART["global"][each.rpartition(".")[2]]
    ]
    if "/" in named or not missing:
        return []
    given = " ".join(f"--set {each}=..." for each in missing)
    image = f"image {injection.image(PROXY_IMAGE)}: the default of {' and '.join(missing)}"
    return [f"{image} is Istio's development: give {given}"]


def _status_port(injection: Injection) -> Iterator[str]:
    """The agent's port, which inbound capture does not leave out if the ProxyConfig alone has it."""
    asked = injection.annotations.get(names.STATUS_PORT, "")
    if asked != asked.strip():
        yield (
            f"annotation {names.STATUS_PORT}: {excerpt(asked)} has blanks, which Istio can't read for"
            " the application's probes: they ask port 0"
        )
    agent = injection.installation.setting("defaultConfig.statusPort")
    port = agent.text
    excluded = injection.excluded_inbound_ports.text.split(",")
    if agent.place.startswith("annotation ") and port not in (injection.status_port, *excluded):
        yield f"{agent.place}: {port} is captured: annotation {names.STATUS_PORT} would leave it out"


def _metadata(injection: Injection) -> Iterator[str]:
    init = injection.init_container()
    # The plugin reads no arguments, and what it does not read is told of there.
    by_cni = injection.installation.value(CNI).value
    options = {words[0] for words, _ in init.arguments} if init and not by_cni else set()
    for name, each in injection.environment():
        if _ARGUMENT_OF.get(name) in options:
            yield f"{each.place}: no effect: the argument {_ARGUMENT_OF[name]} counts"
        if name == _TRACE and each.text == "true":
            yield f"{each.place}: makes {PROXY} privileged, and no rule: Istio has none that trace"


def _in_both(injection: Injection) -> Iterator[str]:
    """Ports that a pod wants captured and left out; leaving out comes first."""
    including, excluding = names.INCLUDE_OUTBOUND_PORTS, names.EXCLUDE_OUTBOUND_PORTS
    wanted, left = (
        [item.strip() for item in injection.annotations.get(name, "").split(",")]
        for name in (including, excluding)
    )
    if both := [port for port in wanted if port and port in left]:
        yield f"annotation {including}: no effect for {', '.join(both)}: {excluding} has it too"


def _by_cni(injection: Injection) -> Iterator[str]:
    """What is asked for, and Istio's CNI plugin does not do."""
    mode = injection.look_up(MODE)
    if mode.text == "NONE":
        yield f"{mode.place}: Istio's CNI plugin refuses NONE, so that the pod does not start"
    yield from _refused_by_cni(injection)
    ranges = injection.installation.value("global.proxy.includeIPRanges")
    if not ranges.text and names.INCLUDE_OUTBOUND_RANGES not in injection.annotations:
        yield f"{ranges.place}: Istio's CNI plugin does not see that it is empty, and captures all"
    for name, each in injection.environment():
        if name in _NOT_OF_CNI:
            yield f"{each.place}: no effect: Istio's CNI plugin does not read it"
    for argument in ARGUMENTS:
        if argument.mesh in {"proxyListenPort", "proxyInboundListenPort"}:
            port = injection.look_up(argument)
            if not port.place.startswith("default "):
                yield f"{port.place}: Istio's CNI plugin does not read it"


def _refused_by_cni(injection: Injection) -> Iterator[str]:
    """What keeps a pod from starting that the injector takes."""
    labels = injection.pod.labels
    kind = "label" if names.INJECT in labels else "annotation"
    asked = labels.get(names.INJECT, injection.annotations.get(names.INJECT))
    if asked in FALSE:
        yield (
            f"{kind} {names.INJECT}: {excerpt(asked)} is no for Istio's CNI plugin and not for the"
            " injector: there are no rules, and the pod does not start"
        )
    for argument in ARGUMENTS:
        listed = injection.look_up(argument)
        if argument.option == "-d":
            listed = injection.excluded_inbound_ports
        for name in argument.annotations[:1] if argument is not MODE else ():
            if reason := names.refused_by_cni(name, listed.text):
                yield f"{listed.place}: Istio's CNI plugin refuses the pod, which does not start: {reason}"


def owner_in(spec: Mapping[str, Any], container: Mapping[str, Any]) -> RunAs:
    """Whom *container* of the pod *spec* runs as."""
    contexts = [container.get("securityContext"), spec.get("securityContext")]
    found = []
    for key in ("runAsUser", "runAsGroup"):
        given = (each.get(key) for each in contexts if isinstance(each, dict))
        found.append(next((each for each in given if isinstance(each, int)), None))
    return RunAs(*found)


def lint_owners(workload: Workload, proxy: RunAs, config: Config) -> list[str]:
    """One line for each container that passes for Envoy, and one if Envoy (*proxy*) passes for none."""
    found = []
    # An init container is often given Envoy's user, for its traffic not to be captured.
    running = [
        *workload.containers("containers"),
        *(
            each
            for each in workload.containers("initContainers")
            if each.get("restartPolicy") == "Always"
        ),
    ]
    for each in running:
        if each["name"] in {PROXY, *INIT_NAMES}:
            continue
        owner = owner_in(workload.spec, each)
        for word, number, ids in (
            ("uid", owner.uid, config.proxy_uids),
            ("gid", owner.gid, config.proxy_gids),
        ):
            if number is not None and within(number, ids):
                found.append(
                    f"container {each['name']} runs as {word} {number}, which the rules take for"
                    " Envoy's: nothing that it sends is captured"
                )
                break
    uid, gid = proxy
    if uid is None or gid is None:
        return _titled(workload, found)
    if not (within(uid, config.proxy_uids) or within(gid, config.proxy_gids)):
        uids, gids = (",".join(map(str, ids)) for ids in (config.proxy_uids, config.proxy_gids))
        found.append(
            f"{PROXY} runs as uid {uid} and gid {gid}, and the rules are for uid {uids}"
            f" and gid {gids}: what Envoy sends is captured, and comes back to it"
        )
    return _titled(workload, found)
