"""``--pod``: a Kubernetes manifest where the flags of its istio-init would be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from istio_iptables.commands.flags import read_flags
from istio_iptables.commands.inputs import read_text
from istio_iptables.commands.load import Given
from istio_iptables.errors import UsageProblems
from istio_iptables.settings.declarations import SETTINGS
from istio_iptables.settings.sources import Origin, gather
from istio_iptables.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from istio_iptables.kubernetes.pod import Start
    from istio_iptables.kubernetes.values import Installation

__all__ = [
    "INSTALLATION_OPTIONS",
    "POD_OPTIONS",
    "installation",
    "read_pod",
    "read_ways",
    "require_yaml",
]


#: The variables that say where this process works, and nothing of the pod's rules.
_OWN = ("NETWORK_NAMESPACE",)

INSTALLATION_OPTIONS = (
    click.Option(
        ["--values"],
        metavar="FILE",
        multiple=True,
        help="Helm values of Istio's installation, as `helm get values istiod -n istio-system"
        " -o yaml` prints them; again for more, the last one wins.",
    ),
    click.Option(
        ["--set", "sets"],
        metavar="KEY=VALUE",
        multiple=True,
        help="One Helm value (global.proxy.includeIPRanges=10.0.0.0/8), over those of --values.",
    ),
    click.Option(
        ["--mesh-config"],
        metavar="FILE",
        help="The mesh configuration, or the ConfigMap istio that holds it.  [default: the value"
        " meshConfig]",
    ),
)
POD_OPTIONS = (
    click.Option(
        ["--pod"],
        metavar="FILE",
        help="A Kubernetes manifest with the pod whose istio-init has the flags: those that it has,"
        " or those that injection would give it. Flags beside it win; - is stdin.",
    ),
    click.Option(["--pod-name"], metavar="NAME", help="Which of several pods in that file."),
    click.Option(
        ["--cni"],
        is_flag=True,
        help="What Istio's CNI plugin makes of the pod, in place of its istio-init.",
    ),
    *INSTALLATION_OPTIONS,
)


def require_yaml(option: str) -> None:
    """Raise UsageProblems if there is nothing that reads YAML."""
    try:
        import yaml  # noqa: F401 - whether it is there
    except ImportError as error:
        message = f"{option}: needs PyYAML: pip install 'istio-iptables[kubernetes]'"
        raise UsageProblems([message]) from error


def installation(options: Mapping[str, Any]) -> Installation:
    """What the options about Istio's installation say."""
    from istio_iptables.kubernetes.values import read_installation

    path = options["mesh_config"]
    return read_installation(
        [(_name(each), read_text(each, "manifest")) for each in options["values"]],
        options["sets"],
        None if path is None else (_name(path), read_text(path, "manifest")),
    )


def read_pod(options: Mapping[str, Any]) -> Given | None:
    """What ``--pod`` says; None without it. Raises UsageProblems for what can't be used."""
    if options["pod"] is None:
        others = {"pod_name": "--pod-name", "cni": "--cni", "values": "--values", "sets": "--set"}
        others["mesh_config"] = "--mesh-config"
        given = [flag for name, flag in others.items() if options[name]]
        if given:
            raise UsageProblems([f"{flag}: is for a manifest: give --pod" for flag in given])
        return None
    return read_ways(options, (options["cni"],))[0]


def read_ways(options: Mapping[str, Any], cni: Iterable[bool]) -> list[Given]:
    """What the pod of ``--pod`` says for each of *cni*: to Istio's CNI plugin, or to its istio-init."""
    path = options["pod"]
    require_yaml("--pod")
    if [path, options["mesh_config"], *options["values"]].count("-") > 1:
        raise UsageProblems(["--pod: stdin holds one file: give - once"])
    from istio_iptables.kubernetes.pod import start_of

    found, text = installation(options), read_text(path, "manifest")
    name = options["pod_name"]
    return [_given(start_of(text, _name(path), name, found, cni=each)) for each in cni]


def _given(start: Start) -> Given:
    texts: dict[str, str] = {}
    places: dict[str, str] = {}
    for words, place in start.arguments:
        read = _read(words, place)
        texts |= read
        places |= dict.fromkeys(read, place)
    environ = {name: text for name, (text, _) in start.environment.items()}
    values, warnings = gather(texts, environ)
    own = {
        name: value._replace(
            origin=Origin.MANIFEST,
            place=places.get(name) or start.environment[value.variable][1],
        )
        for name, value in values.items()
        if value.given
    }
    environ |= {name: os.environ[name] for name in _OWN if name in os.environ}
    left = {name: environ[name] for name in ("ENVOY_USER", *_OWN) if name in environ}
    return Given(left, own, (*start.warnings, *warnings))


def _read(words: tuple[str, ...], place: str) -> dict[str, str]:
    """The settings that the words of a container give; raises UsageProblems for other words."""
    try:
        flags = read_flags(words)
    except UsageProblems as error:
        raise UsageProblems([f"{place}: {line}" for line in error.lines]) from None
    left = iter(flags.arguments)
    known = {each.flag for each in SETTINGS}
    for word in left if not flags.complete else ():
        if word not in known or next(left, None) is None:
            message = f"{place}: {excerpt(word)} is no option of istio-iptables, or has no value"
            raise UsageProblems([message])
    return flags.texts


def _name(path: str) -> str:
    return "stdin" if path == "-" else path
