"""A node for pods: containerd with runc and CNI plugins, in namespaces of its own.

Its processes, mounts and networks end with ``on_node`` (see the lab's sandbox). The machine's
control groups are read-only there, and runc goes on without: none is made. Images stay in the
folder *store* from node to node.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from istio_iptables.errors import KernelRefused
from istio_iptables.lab import syscalls as kernelcalls
from istio_iptables.lab.sandbox import in_sandbox
from tests.image.runtime.kubelet import Kubelet
from tests.namespaces import set_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["ADDRESSES", "PAUSE", "load_images", "on_node", "why_not"]

#: The node's own addresses on the pods' bridge.
ADDRESSES = ("10.88.0.1", "fd88::1")
_SUBNETS = ("10.88.0.0/16", "fd88::/64")
_ANYWHERE = ("0.0.0.0/0", "::/0")

#: The image of the container that holds a pod's namespaces.
PAUSE = "registry.k8s.io/pause:test"

_RUN = "/run/node"
_SOCKET = f"{_RUN}/containerd.sock"
_PLUGINS = "/usr/lib/cni"
_PATIENCE_SECONDS = 30.0
_NEW_HOSTNAME = 0x04000000

_CONFIG = """
version = 2
root = "{store}"
state = "{run}/containerd"
# They look for file systems and services that are not here.
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_cgroup = true
  disable_tcp_service = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{run}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{run}/runc"
"""

# "rootless" is about control groups alone: those that can't be made are done without.
_RUNC = """#!/bin/sh
exec runc --rootless=true "$@"
"""

_Result = TypeVar("_Result")


def why_not() -> str:
    """The reason why there can be no node here; "" if there can."""
    if os.geteuid() != 0:
        return "needs root, to run containerd"
    missing = [each for each in ("containerd", "ctr", "runc") if shutil.which(each) is None]
    missing += [f"{_PLUGINS}/{each}" for each in ("bridge", "host-local", "loopback")
                if not Path(_PLUGINS, each).exists()]  # fmt: skip
    return f"not installed: {', '.join(missing)}" if missing else ""


def on_node(
    store: Path, work: Callable[[Kubelet], _Result], *, dual_stack: bool = False
) -> _Result:
    """What *work* returns, given the kubelet of a new node, whose pods have IPv6 too if asked for.

    It runs in the node's namespaces. What it raises comes out as AssertionError.
    """

    def furnished(_number: int) -> _Result:
        containerd = _start(store, families=2 if dual_stack else 1)
        try:
            with Kubelet(_SOCKET, Path(_RUN), ADDRESSES[0]) as kubelet:
                return work(kubelet)
        except Exception as error:
            for line in Path(_RUN, "log").read_text(encoding="utf-8").splitlines():
                # Without control groups nobody can be told that memory ran out.
                if ("level=error" in line or "level=fatal" in line) and "OOM" not in line:
                    error.add_note(f"containerd: {line}")
            raise
        finally:
            # It has to let go of its database, which stays.
            containerd.terminate()
            containerd.wait()

    try:
        return in_sandbox(furnished)
    except KernelRefused as error:
        raise AssertionError("\n".join(error.lines)) from None


def load_images(store: Path, archives: Iterable[Path], also: Mapping[str, str]) -> None:
    """Have containerd read *archives*, and give images more names, for all later nodes of *store*."""

    def load(_kubelet: Kubelet) -> None:
        images = ["ctr", "--address", _SOCKET, "--namespace", "k8s.io", "images"]
        commands = [[*images, "import", str(each)] for each in archives]
        commands += [[*images, "tag", old, new] for new, old in also.items()]
        for each in commands:
            subprocess.run(each, check=True, stdout=subprocess.DEVNULL)

    on_node(store, load)


def _network(families: int) -> dict[str, object]:
    """What the CNI plugins are to do for a pod."""
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "dataDir": f"{_RUN}/addresses",
            "ranges": [[{"subnet": each}] for each in _SUBNETS[:families]],
            "routes": [{"dst": each} for each in _ANYWHERE[:families]],
        },
    }
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}


def _start(store: Path, families: int) -> subprocess.Popen[bytes]:
    """Furnish the node, and start containerd on it."""
    kernelcalls.unshare(_NEW_HOSTNAME)
    set_loopback(up=True)
    # An IPv6 address that is still being looked for on the link, for a second or two, is no source:
    # connections would come from the bridge's link-local address.
    Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0", encoding="ascii")
    for each in Path("/sys/fs/cgroup").iterdir():
        if each.is_mount():
            kernelcalls.make_read_only(str(each))
    if Path("/sys/fs/cgroup").is_mount():
        kernelcalls.make_read_only("/sys/fs/cgroup")
    run = Path(_RUN)
    (run / "cni").mkdir(parents=True)
    (run / "cni/pods.conflist").write_text(json.dumps(_network(families)), encoding="utf-8")
    (run / "runc").write_text(_RUNC, encoding="utf-8")
    (run / "runc").chmod(0o755)
    config = _CONFIG.format(store=store, run=_RUN, socket=_SOCKET, pause=PAUSE, plugins=_PLUGINS)
    (run / "config.toml").write_text(config, encoding="utf-8")
    with (run / "log").open("wb") as log:
        words = ["containerd", "--config", str(run / "config.toml")]
        started = subprocess.Popen(words, stdout=log, stderr=log)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not Path(_SOCKET).exists():
        if started.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError((run / "log").read_text(encoding="utf-8"))
        time.sleep(0.01)
    return started
