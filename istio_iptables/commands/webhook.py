"""``istio-iptables webhook``: Istio's injection as the admission webhook of a cluster."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from istio_iptables.commands.inject import INJECTION_OPTIONS
from istio_iptables.commands.load import tell
from istio_iptables.commands.options import Example, SettingsCommand, split_extra
from istio_iptables.commands.pod import INSTALLATION_OPTIONS, installation, require_yaml
from istio_iptables.errors import ExitStatus, UsageProblems
from istio_iptables.text import excerpt

__all__ = ["command"]


@click.pass_context
def _run(ctx: click.Context, /, **options: Any) -> ExitStatus:  # noqa: ANN401 - click's values
    problems = split_extra(ctx)
    files = [each for each in (*options["values"], options["mesh_config"]) if each is not None]
    problems += [
        f"{flag}: is missing: the webhook is asked over HTTPS only"
        for name, flag in (("tls_cert", "--tls-cert"), ("tls_key", "--tls-key"))
        if options[name] is None
    ]
    # A pipe would be empty the second time, and what is not there gets a line of its own.
    problems += [
        f"{excerpt(each)}: can't be read again when it changes: give a file"
        for each in (*files, options["tls_cert"], options["tls_key"])
        if each is not None and _is_no_file(each)
    ]
    if problems:
        raise UsageProblems(problems)
    require_yaml("webhook")
    from istio_iptables.commands.started import mistakes_in
    from istio_iptables.webhook.review import Settings, require_injection
    from istio_iptables.webhook.running import Options, address_of, serve

    def load() -> Settings:
        image = options["init_image"] or ""
        found = Settings(
            installation(options), options["native"], options["revision"], image, mistakes_in
        )
        tell("warning", require_injection(found))
        return found

    metrics = options["metrics_listen"]

    def write(line: str) -> None:
        sys.stdout.write(line)
        sys.stdout.flush()

    serve(
        Options(
            address_of("--listen", options["listen"]),
            None if metrics is None else address_of("--metrics-listen", metrics),
            options["tls_cert"],
            options["tls_key"],
            options["max_connections"],
            files,
            load,
        ),
        write,
        tell,
    )
    return ExitStatus.DONE


def _is_no_file(path: str) -> bool:
    # Not pathlib, which fails at a name that is too long.
    there = os.path.exists(path)  # noqa: PTH110
    return path == "-" or (there and not os.path.isfile(path))  # noqa: PTH113


command = SettingsCommand(
    (),
    name="webhook",
    callback=_run,
    help="Answer the admission reviews of a cluster's pods with the patch that injects them, as"
    " istiod does at /inject. It runs until SIGTERM, and reads its files again when they change."
    " stdout gets a line of JSON for each review.",
    examples=(
        Example(
            "with the values and the mesh configuration that istiod has",
            "istio-iptables webhook --tls-cert C --tls-key K --values values.yaml --mesh-config mesh.yaml",
        ),
        Example(
            "at another port, with metrics",
            "istio-iptables webhook --tls-cert C --tls-key K --listen :443 --metrics-listen :9090",
        ),
        Example(
            "with another image for istio-init, and native sidecars",
            "istio-iptables webhook --tls-cert C --tls-key K --native-sidecars --init-image IMAGE",
        ),
    ),
    more=(
        click.Option(
            ["--listen"],
            metavar="ADDRESS:PORT",
            default=":9443",
            help="Where it is asked, over HTTPS; without an address at every one.  [default: :9443]",
        ),
        click.Option(["--tls-cert"], metavar="FILE", help="Its certificate, and those above it."),
        click.Option(["--tls-key"], metavar="FILE", help="The key of the certificate."),
        click.Option(
            ["--metrics-listen"],
            metavar="ADDRESS:PORT",
            help="Where Prometheus gets /metrics, over HTTP.  [default: nowhere]",
        ),
        click.Option(
            ["--max-connections"],
            type=click.IntRange(1, 10_000),
            default=128,
            metavar="N",
            help="The connections at a time; of more, the one that has waited longest for its"
            " client is closed.  [default: 128]",
        ),
        *INSTALLATION_OPTIONS,
        *INJECTION_OPTIONS,
    ),
)
