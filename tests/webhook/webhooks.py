"""Webhooks for tests: the program as a process with a certificate, and reviews for it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import trustme

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "AUTHORITY",
    "JSON",
    "Reply",
    "Running",
    "certificate",
    "patch_of",
    "pod",
    "review",
    "running",
]

CLI = str(Path(sys.executable).with_name("istio-iptables"))
AUTHORITY = trustme.CA()
JSON = {"Content-Type": "application/json"}
_AT = re.compile(r"(\S+) \(HTTPS?\) at \S+:(\d+)$")


def certificate(folder: Path, name: str = "localhost") -> tuple[Path, Path]:
    """The files of a certificate for *name*, and of its key."""
    made = AUTHORITY.issue_cert(name, "127.0.0.1")
    folder.mkdir(exist_ok=True)
    key, cert = folder / "tls.key", folder / "tls.crt"
    made.private_key_pem.write_to_path(str(key))
    cert.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
    return cert, key


def pod(annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A Pod as an API server has it."""
    metadata: dict[str, Any] = {"name": "web", "namespace": "shop", "labels": {"app": "web"}}
    if annotations:
        metadata["annotations"] = annotations
    containers = [{"name": "app", "image": "app", "resources": {}}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": containers, **spec},
    }


def review(document: Any, version: str = "v1", **request: Any) -> dict[str, Any]:
    """The review of a new *document*; *request* is over what is asked by default."""
    asked = {
        "uid": "0f3c4d6e-705d-4a3b-8d5f-1234567890ab",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "shop",
        "operation": "CREATE",
        "userInfo": {"username": "system:admin"},
        "object": document,
        "oldObject": None,
        "dryRun": False,
        **request,
    }
    return {
        "apiVersion": f"admission.k8s.io/{version}",
        "kind": "AdmissionReview",
        "request": asked,
    }


def patch_of(response: dict[str, Any]) -> list[dict[str, Any]]:
    """The operations of a response."""
    assert response["patchType"] == "JSONPatch"
    found: list[dict[str, Any]] = json.loads(base64.b64decode(response["patch"], validate=True))
    return found


class Reply(NamedTuple):
    """What came back over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def response(self) -> dict[str, Any]:
        """The response of an AdmissionReview."""
        assert self.status == 200, self.body
        document: dict[str, Any] = json.loads(self.body)
        assert document["kind"] == "AdmissionReview"
        response: dict[str, Any] = document["response"]
        return response


class Running:
    """A webhook that runs as a process."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        self.told: list[str] = []
        self.ports: dict[str, int] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr
        with self.process.stderr as lines:
            for line in lines:
                with self._changed:
                    self.told.append(line.rstrip("\n"))
                    if found := _AT.search(line.rstrip("\n")):
                        self.ports[found[1]] = int(found[2])
                    self._changed.notify_all()
        with self._changed:
            self.told.append("")
            self._changed.notify_all()

    def wait_for(self, text: str, count: int = 1) -> str:
        """The *count*-th line on stderr with *text* in it, as soon as there is one."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: sum(text in each for each in self.told) >= count or "" in self.told, 60
            ), self.told
            lines = [each for each in self.told if text in each]
            assert len(lines) >= count, self.told
            return lines[count - 1]

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines on stdout."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    @property
    def port(self) -> int:
        """Where reviews are answered."""
        return self.ports["reviews"]

    def connection(self) -> http.client.HTTPSConnection:
        """A connection that trusts it."""
        context = ssl.create_default_context()
        AUTHORITY.configure_trust(context)
        return http.client.HTTPSConnection("localhost", self.port, context=context, timeout=60)

    def ask(
        self,
        body: bytes | str | dict[str, Any] | None,
        path: str = "/inject?timeout=10s",
        headers: dict[str, str] | None = None,
        method: str = "POST",
    ) -> Reply:
        """One request by a connection of its own."""
        content = json.dumps(body) if isinstance(body, dict) else body
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, path, content, JSON if headers is None else headers)
            found = connection.getresponse()
            return Reply(found.status, dict(found.getheaders()), found.read())


@contextlib.contextmanager
def running(folder: Path, *words: str, files: tuple[Path, Path] | None = None) -> Iterator[Running]:
    """A webhook with *words* on its command line, which ends with the block."""
    cert, key = files or certificate(folder)
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [
                *(CLI, "webhook", "--listen", "127.0.0.1:0", "--tls-cert", str(cert)),
                *("--tls-key", str(key), *words),
            ],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin:/bin"},
        )
    found = Running(process, log)
    try:
        found.wait_for("reviews (HTTPS) at ")
        if "--metrics-listen" in words:
            found.wait_for("metrics (HTTP) at ")
        yield found
    finally:
        process.terminate()
        assert process.wait(60) == 0, found.told
