"""What is told of reviews: a line of JSON for each, and counters for Prometheus."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Any

from istio_iptables.errors import IstioIptablesError, UsageProblems
from istio_iptables.text import clip

if TYPE_CHECKING:
    from collections.abc import Callable
    from http import HTTPStatus

    from istio_iptables.webhook.review import ReviewAnswer

__all__ = ["Log", "Metrics", "Prometheus"]

_LONGEST_REASON = 2000


class Metrics:
    """Counters that nobody reads."""

    def review(self, verdict: str, seconds: float) -> None:
        """Count an answer, or with the verdict ``error`` a request that is no review."""

    def connection_failed(self) -> None:
        """Count a connection that ended by an error, most often of TLS."""

    def reload_failed(self) -> None:
        """Count changed files that can't be used."""


class Prometheus(Metrics):
    """Counters in Prometheus' format; those of reviews have the names that they have in istiod."""

    def __init__(self, connections: Callable[[], float]) -> None:
        try:
            import prometheus_client as library
        except ImportError as error:
            message = "--metrics-listen: needs prometheus_client: pip install prometheus_client"
            raise UsageProblems([message]) from error
        library.disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's
        self._registry = registry = library.CollectorRegistry()
        library.ProcessCollector(registry=registry)

        def counter(name: str, about: str) -> Any:  # noqa: ANN401 - the library is imported late
            return library.Counter(name, about, registry=registry)

        self._requests = counter("sidecar_injection_requests", "Requests for an injection.")
        self._of_verdicts = {
            "injected": counter("sidecar_injection_success", "Pods that were injected."),
            "skipped": counter("sidecar_injection_skip", "Pods that were left as they are."),
            "refused": counter("sidecar_injection_failure", "Pods and requests that were refused."),
        }
        self._seconds = library.Histogram(
            "sidecar_injection_time_seconds",
            "Time for an answer.",
            registry=registry,
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
        )
        self._failures = counter(
            "istio_iptables_webhook_connection_failures",
            "Connections that ended by an error, most often of TLS.",
        )
        self._reloads = counter(
            "istio_iptables_webhook_reload_failures", "Changed files that could not be used."
        )
        library.Gauge(
            "istio_iptables_webhook_connections", "Open connections.", registry=registry
        ).set_function(connections)
        self.content_type: str = library.CONTENT_TYPE_LATEST

    def review(self, verdict: str, seconds: float) -> None:
        """Count an answer; what was not refused for the pod's sake is a failure too."""
        self._requests.inc()
        self._of_verdicts.get(verdict, self._of_verdicts["refused"]).inc()
        self._seconds.observe(seconds)

    def connection_failed(self) -> None:
        """Count it."""
        self._failures.inc()

    def reload_failed(self) -> None:
        """Count it."""
        self._reloads.inc()

    def text(self) -> bytes:
        """All of them."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)


class Log:
    """The log of reviews, from many threads."""

    def __init__(
        self,
        write: Callable[[str], object],
        tell: Callable[[str, list[str]], object],
        metrics: Metrics,
    ) -> None:
        self._write = write
        self._tell = tell
        self._lock = Lock()
        self._metrics = metrics
        self._last_failure = -1.0
        self._untold = 0

    def review(self, answer: ReviewAnswer, seconds: float) -> None:
        """A line about an answered review."""
        self._metrics.review(answer.verdict, seconds)
        self._line(
            uid=answer.uid,
            namespace=clip(answer.namespace),
            name=clip(answer.name),
            kind=clip(answer.kind),
            verdict=answer.verdict,
            reason=answer.reason[:_LONGEST_REASON],
            warnings=list(answer.warnings),
            ms=round(seconds * 1000, 2),
        )

    def no_review(self, path: str, status: HTTPStatus, reason: str) -> None:
        """A line about a request that was answered with an error of HTTP."""
        if path.startswith("/inject"):
            self._metrics.review("error", 0)
        self._line(verdict="error", path=clip(path), status=int(status), reason=clip(reason))

    def _line(self, **fields: object) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        # That nobody can read the log is no reason to keep pods out.
        with self._lock, suppress(IstioIptablesError):
            self._write(json.dumps({"time": now, **fields}) + "\n")

    def connection_failed(self, address: str, reason: str) -> None:
        """Tell of a connection that ended by an error, once a second at most."""
        self._metrics.connection_failed()
        with self._lock:
            now = time.monotonic()
            if now - self._last_failure < 1:
                self._untold += 1
                return
            more = f" (and {self._untold} more)" if self._untold else ""
            self._last_failure, self._untold = now, 0
        self._tell("warning", [f"connection from {address}{more} failed: {reason}"])
