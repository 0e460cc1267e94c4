"""The images of a pod's other containers, which no registry brings here.

nginx is a small server of ours. proxyv2 has a real Envoy, but neither istiod nor the agent that
asks it: its pilot-agent starts Envoy with the configuration of the lab.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from istio_iptables.commands.lab import lab_config
from istio_iptables.lab import envoy, scenarios
from istio_iptables.lab.bootstrap import bootstrap
from tests.image.images import BASE
from tests.image.runtime.node import PAUSE

if TYPE_CHECKING:
    from tests.image.images import Store

__all__ = ["ALSO", "INIT_IMAGE", "write_images"]

#: Ours, as the README names it.
INIT_IMAGE = "registry.example/istio-iptables:0.1.0"

#: Other names of images.
ALSO = {
    "registry.example/application:1.0.0": "docker.io/library/nginx:latest",
    "registry.example/envoy:1.40.0": "registry.istio.io/testing/proxyv2:latest",
}

_PAUSE = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"

_AGENT = """#!/bin/sh
exec envoy -c "/bootstrap/${ISTIO_META_INTERCEPTION_MODE:-REDIRECT}.json" --concurrency 1 \\
    --disable-hot-restart --log-level warning --log-format '%l %n %v'
"""


def write_images(store: Store, ours: str, folder: Path) -> list[Path]:
    """Archives of all images of a pod, in *folder*: *ours*, the stand-ins, and the pause image."""
    program = folder / "pause"
    compiler = ["gcc", "-static", "-O1", "-x", "c", "-", "-o", str(program)]
    subprocess.run(compiler, input=_PAUSE, text=True, check=True)
    pause = _image(store, "scratch", [(program, "/pause")], ["/pause"])
    app = Path(__file__).with_name("app.py")
    nginx = _image(store, ours, [(app, "/app.py")], ["python3", "/app.py"])
    agent = folder / "pilot-agent"
    agent.write_text(_AGENT, encoding="utf-8")
    agent.chmod(0o755)
    files = [
        (agent, "/usr/local/bin/pilot-agent"),
        (Path(envoy.find()), "/usr/local/bin/envoy"),
    ]
    for mode in ("REDIRECT", "TPROXY"):
        path = folder / f"{mode}.json"
        path.write_text(json.dumps(_bootstrap(mode)), encoding="utf-8")
        files.append((path, f"/bootstrap/{mode}.json"))
    names = {
        PAUSE: pause,
        INIT_IMAGE: ours,
        "docker.io/library/nginx:latest": nginx,
        "registry.istio.io/testing/proxyv2:latest": _image(store, BASE, files, ["pilot-agent"]),
    }
    archives = []
    for number, (name, image) in enumerate(names.items()):
        archives.append(folder / f"{number}.tar")
        # Layers stay as they are in this kind of archive: packing them takes seconds.
        store.buildah("push", "--quiet", image, f"docker-archive:{archives[-1]}:{name}")
    return archives


def _image(store: Store, base: str, files: list[tuple[Path, str]], entry_point: list[str]) -> str:
    container = store.buildah("from", "--pull-never", base)
    for source, target in files:
        store.buildah("add", "--quiet", container, str(source), target)
    store.buildah("config", "--entrypoint", json.dumps(entry_point), "--cmd", "", container)
    return store.buildah("commit", "--quiet", "--rm", container)


def _bootstrap(mode: str) -> dict[str, object]:
    """The lab's sidecar: Istio's two listeners, the health port and the statistics."""
    config, _ = lab_config({"istio_inbound_interception_mode": mode}, {})
    pod = scenarios.make("ingress", config).nodes[0]
    assert pod.proxy is not None
    # Its administration has a name in the pod's network namespace, and no file: nothing is written.
    return bootstrap(pod.proxy, "@admin")
