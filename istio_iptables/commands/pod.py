"""``--pod``: a Kubernetes manifest where the flags of its istio-init would be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from istio_iptables.commands.inputs import read_text
from istio_iptables.errors import UsageProblems

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from istio_iptables.commands.load import Given
    from istio_iptables.kubernetes.values import Installation

__all__ = [
    "INSTALLATION_OPTIONS",
    "POD_OPTIONS",
    "installation",
    "manifest_option",
    "read_pod",
    "read_ways",
    "require_one_stdin",
    "require_yaml",
]


INSTALLATION_OPTIONS = (
    click.Option(
        ["--values"],
        metavar="FILE",
        multiple=True,
        help="Helm values of Istio's installation, as `helm get values istiod -n istio-system"
        " -o yaml` prints them, or the ConfigMap istio-sidecar-injector that holds them; again for"
        " more, the last one wins.",
    ),
    click.Option(
        ["--set", "sets"],
        metavar="KEY=VALUE",
        multiple=True,
        help="One Helm value (global.proxy.includeIPRanges=10.0.0.0/8), over those of --values.",
    ),
    click.Option(
        ["--set-string", "texts"],
        metavar="KEY=VALUE",
        multiple=True,
        help="The same, and the value is a text (global.proxy.excludeOutboundPorts=25).",
    ),
    click.Option(
        ["--mesh-config"],
        metavar="FILE",
        help="The mesh configuration, or the ConfigMap istio that holds it.  [default: the value"
        " meshConfig]",
    ),
)


def _once(_: click.Context, option: click.Parameter, given: tuple[str, ...]) -> str | None:
    """The one value of an option; raises UsageProblems for several, of which one would be forgotten."""
    if len(given) > 1:
        message = f"{option.opts[0]}: is there {len(given)} times: one manifest is read"
        raise UsageProblems([message])
    if given == ("",):
        raise UsageProblems([f"{option.opts[0]}: the name of the file is empty"])
    return given[0] if given else None


def manifest_option(names: list[str], text: str) -> click.Option:
    """The option for a manifest, which can be there once."""
    return click.Option(names, metavar="FILE", multiple=True, callback=_once, help=text)


POD_OPTIONS = (
    manifest_option(
        ["--pod"],
        "A Kubernetes manifest with the pod whose istio-init has the flags: those that it has,"
        " or those that injection would give it. Flags beside it win; - is stdin.",
    ),
    click.Option(
        ["--pod-name"],
        metavar="NAME",
        help="Which of several pods in that file: NAME, NAMESPACE/NAME, or KIND NAMESPACE/NAME.",
    ),
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
        message = f"{option}: needs PyYAML: pip install PyYAML"
        raise UsageProblems([message]) from error


def require_one_stdin(path: str, options: Mapping[str, Any]) -> None:
    """Raise UsageProblems if more than one of a manifest's *path* and the options is ``-``."""
    if [path, options["mesh_config"], *options["values"]].count("-") > 1:
        raise UsageProblems(["stdin holds one file: give - once"])


def installation(options: Mapping[str, Any]) -> Installation:
    """What the options about Istio's installation say."""
    from istio_iptables.kubernetes.values import read_installation

    path = options["mesh_config"]
    return read_installation(
        [(_name(each), read_text(each, "manifest")) for each in options["values"]],
        options["sets"],
        None if path is None else (_name(path), read_text(path, "manifest")),
        options["texts"],
    )


def read_pod(options: Mapping[str, Any]) -> Given | None:
    """What ``--pod`` says; None without it. Raises UsageProblems for what can't be used."""
    if options["pod"] is None:
        others = {"pod_name": "--pod-name", "cni": "--cni", "values": "--values", "sets": "--set"}
        others |= {"texts": "--set-string", "mesh_config": "--mesh-config"}
        given = [flag for name, flag in others.items() if options[name]]
        if given:
            raise UsageProblems([f"{flag}: is for a manifest: give --pod" for flag in given])
        return None
    return read_ways(options, (options["cni"],))[0]


def read_ways(options: Mapping[str, Any], cni: Iterable[bool]) -> list[Given]:
    """What the pod of ``--pod`` says for each of *cni*: to Istio's CNI plugin, or to its istio-init."""
    path = options["pod"]
    require_yaml("--pod")
    require_one_stdin(path, options)
    from istio_iptables.commands.mistakes import looks_like_rules
    from istio_iptables.commands.started import given_of
    from istio_iptables.kubernetes.lint import lint_installation
    from istio_iptables.kubernetes.pod import start_of

    found, text = installation(options), read_text(path, "manifest")
    name = options["pod_name"]
    if looks_like_rules(text):
        message = f"--pod: {_name(path)}: these are rules, not a manifest (--rules reads rules)"
        raise UsageProblems([message])
    ways = [given_of(start_of(text, _name(path), name, found, cni=each)) for each in cni]
    ways[0] = ways[0]._replace(warnings=(*lint_installation(found), *ways[0].warnings))
    # What is wrong with the manifest is told once.
    told: dict[str, None] = {}
    for number, way in enumerate(ways):
        ways[number] = way._replace(
            warnings=tuple(each for each in way.warnings if each not in told)
        )
        told |= dict.fromkeys(way.warnings)
    return ways


def _name(path: str) -> str:
    return "stdin" if path == "-" else path
