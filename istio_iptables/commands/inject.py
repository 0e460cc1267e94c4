"""``istio-iptables inject``: a manifest with what Istio's injector adds to its pods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from istio_iptables.commands.inputs import read_text
from istio_iptables.commands.load import tell, warn
from istio_iptables.commands.options import Example, SettingsCommand, split_extra
from istio_iptables.commands.pod import (
    INSTALLATION_OPTIONS,
    installation,
    manifest_option,
    require_one_stdin,
    require_yaml,
)
from istio_iptables.errors import ExitStatus, UsageProblems
from istio_iptables.text import write_exactly

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_iptables.kubernetes.manifest import Workload
    from istio_iptables.kubernetes.values import Installation

__all__ = ["INJECTION_OPTIONS", "command"]


#: What decides about a pod beside Istio's installation.
INJECTION_OPTIONS = (
    click.Option(
        ["--native-sidecars", "native"],
        is_flag=True,
        help="istio-proxy is an init container that goes on running.",
    ),
    click.Option(
        ["--revision"],
        metavar="NAME",
        default="default",
        help="The revision of Istio that the pod is marked with.  [default: default]",
    ),
    click.Option(
        ["--init-image"],
        metavar="IMAGE",
        help="The image of istio-init.  [default: Istio's]",
    ),
)


@click.pass_context
def _run(ctx: click.Context, /, **options: Any) -> ExitStatus:  # noqa: ANN401 - click's values
    problems = split_extra(ctx)
    path = options["file"]
    if path is None:
        problems.append("-f: the manifest is missing")
    if problems:
        raise UsageProblems(problems)
    require_yaml("inject")
    require_one_stdin(path, options)
    from istio_iptables.kubernetes.lint import lint_installation
    from istio_iptables.kubernetes.manifest import NO_POD, workloads
    from istio_iptables.kubernetes.yamledit import rewritten
    from istio_iptables.kubernetes.yamlnodes import plain_value, read_nodes

    name = "stdin" if path == "-" else path
    told: dict[str, list[str]] = {"info": [], "warning": []}
    text = read_text(path, "manifest")
    nodes = read_nodes(text, name, told["warning"])
    documents = [plain_value(each) for each in nodes]
    found = installation(options)
    told["warning"] += lint_installation(found)
    pods = 0
    for document in documents:
        try:
            for each in workloads([document], name, istioctl=True):
                pods += 1
                problems += _problems(each, found, options, told)
        except UsageProblems as error:
            problems += error.lines
    if problems:
        raise UsageProblems(problems)
    if not pods:
        told["info"].append(f"{name}: {NO_POD}: nothing is injected")
    warn(told["warning"], strict=options["strict"])
    tell("info", told["info"])
    text, lost = rewritten(text, nodes, documents)
    tell(
        "info",
        [
            f"{name}: line {line}: what stands here is written anew, without its comments"
            for line in lost
        ],
    )
    write_exactly(text)
    return ExitStatus.DONE


def _problems(
    workload: Workload, found: Installation, options: Mapping[str, Any], told: dict[str, list[str]]
) -> tuple[str, ...]:
    """Inject *workload*; why Istio refuses it."""
    try:
        _inject(workload, found, options, told)
    except UsageProblems as error:
        return error.lines
    return ()


def _inject(
    workload: Workload, found: Installation, options: Mapping[str, Any], told: dict[str, list[str]]
) -> None:
    """Inject *workload* unless Istio leaves it as it is; what is to be said goes to *told*."""
    from istio_iptables.commands.started import mistakes_in
    from istio_iptables.kubernetes.injection import Injection, reason_to_skip
    from istio_iptables.kubernetes.lint import lint, lint_image
    from istio_iptables.kubernetes.sidecar import inject
    from istio_iptables.kubernetes.typed import require_types

    require_types(workload)
    told["warning"] += lint(workload)
    if reason := reason_to_skip(workload):
        # Host networking is a wish for something else, which keeps the pod out of the mesh.
        kind = "warning" if workload.spec.get("hostNetwork") else "info"
        told[kind].append(f"{workload.title}: is left as it is: {reason}")
        return
    injection = Injection(
        workload, found, native=options["native"], init_image=options["init_image"] or ""
    )
    told["warning"] += mistakes_in(injection)
    # One for all pods of an installation.
    told["warning"] += [each for each in lint_image(injection) if each not in told["warning"]]
    inject(injection, options["revision"])


command = SettingsCommand(
    (),
    name="inject",
    callback=_run,
    help="Print a manifest with what Istio's injector adds to its pods, as `istioctl kube-inject`"
    " does: istio-init, the sidecar, and the rest of Istio's default templates.",
    examples=(
        Example(
            "the manifest as Istio's injector would change it",
            "istio-iptables inject -f web.yaml",
        ),
        Example(
            "with the values and the mesh configuration of an installation",
            "istio-iptables inject -f web.yaml --values values.yaml --mesh-config mesh.yaml",
        ),
        Example(
            "with TPROXY in place of REDIRECT",
            "istio-iptables inject -f web.yaml --set meshConfig.defaultConfig.interceptionMode=TPROXY",
        ),
    ),
    more=(
        manifest_option(["-f", "--filename", "file"], "The manifest; - is stdin."),
        *INSTALLATION_OPTIONS,
        *INJECTION_OPTIONS,
        click.Option(["--strict"], is_flag=True, help="Fail on warnings."),
    ),
)
