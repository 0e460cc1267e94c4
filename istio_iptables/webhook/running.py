"""The webhook as a process: it listens, reads changed files again, and answers what it has taken before it ends."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_iptables.errors import KernelRefused, UsageProblems
from istio_iptables.interrupts import held, is_waiting, take
from istio_iptables.text import excerpt
from istio_iptables.webhook.certificate import server_context
from istio_iptables.webhook.files import Watched
from istio_iptables.webhook.log import Log, Metrics, Prometheus
from istio_iptables.webhook.requests import Health, Reviews
from istio_iptables.webhook.server import REQUEST_SECONDS, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from istio_iptables.webhook.review import Settings

__all__ = ["Options", "address_of", "serve"]

#: How often files are looked at; a change is used when it was seen twice.
_POLL_SECONDS = 0.5
#: Signals so near to the first are the same wish to end: timeout(1) sends it to the process and to its group.
_REPEATED_SECONDS = 0.1
_METRICS_CONNECTIONS = 8
_MAX_PORT = 65535


class Options(NamedTuple):
    """Where the webhook listens, and what it reads."""

    listen: tuple[str, int]
    metrics: tuple[str, int] | None
    certificate: str
    key: str
    connections: int
    #: The files of the configuration, and what makes it of them.
    files: Sequence[str]
    load: Callable[[], Settings]


def address_of(option: str, text: str) -> tuple[str, int]:
    """The address in ``ADDRESS:PORT`` or ``:PORT``; raises UsageProblems for another text."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not (port.isascii() and port.isdigit()) or int(port[:6]) > _MAX_PORT:
        message = (
            f"{option}: {excerpt(text)} is no ADDRESS:PORT ([ADDRESS]:PORT with IPv6, or :PORT)"
        )
        raise UsageProblems([message])
    return host, int(port)


def serve(
    options: Options,
    write: Callable[[str], object],
    tell: Callable[[str, list[str]], object],
) -> None:
    """Serve until one of the signals that end a program comes; *write* gets the lines of the log.

    Raises Interrupted for a second one, and then some clients have no answer.
    """
    # The counters ask the server, and the server has the counters.
    servers: list[Server] = []
    metrics: Metrics = Metrics()
    if options.metrics is not None:
        metrics = Prometheus(lambda: servers[0].connections)
    failed = metrics.reload_failed
    watched = (
        certificate := Watched(
            "certificate",
            (options.certificate, options.key),
            lambda: server_context(options.certificate, options.key),
            tell,
            failed,
        ),
        settings := Watched("configuration", options.files, options.load, tell, failed),
    )
    log = Log(write, tell, metrics)
    reviews = partial(Reviews, settings=lambda: settings.value, log=log)
    servers.append(
        _listening(
            "--listen",
            options.listen,
            reviews,
            limit=options.connections,
            context=lambda: certificate.value,
            failed=log.connection_failed,
        )
    )
    if isinstance(metrics, Prometheus) and options.metrics is not None:
        pages = partial(Health, pages={"/metrics": (metrics.content_type, metrics.text)})
        limit = _METRICS_CONNECTIONS
        servers.append(_listening("--metrics-listen", options.metrics, pages, limit=limit))
    # Held back, since a second one must be told from the first, wherever that was raised.
    with held():
        for each, what in zip(servers, ("reviews (HTTPS)", "metrics (HTTP)"), strict=False):
            host, port = each.server_address[:2]
            host = str(host)
            tell("info", [f"{what} at {f'[{host}]' if ':' in host else host}:{port}"])
            each.start()
        while not take(_POLL_SECONDS):
            for file in watched:
                file.refresh()
        while take(_REPEATED_SECONDS):
            pass
        tell("info", ["ends: takes no more connections, and answers what was asked"])
        if not servers[0].drain(REQUEST_SECONDS, or_when=is_waiting):
            tell("warning", ["ended before every client had its answer"])


def _listening(
    option: str,
    address: tuple[str, int],
    handler: Callable[..., Any],
    **more: Any,  # noqa: ANN401 - Server's
) -> Server:
    """A server at *address*; raises KernelRefused if there can be none."""
    host, port = address
    try:
        try:
            return Server((host or "::", port), handler, **more)
        except OSError:
            # A machine may have no IPv6.
            if host:
                raise
            return Server(("0.0.0.0", port), handler, **more)  # noqa: S104 - every address was asked for
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"{option}: can't listen at {host}:{port}: {reason}"
        raise KernelRefused(message) from error
