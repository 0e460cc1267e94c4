"""The container image from the start of ``runc run`` to its end: a table of ``make bench``.

    python -m tests.bench.image [RUNS]

The image is built as in tests/image. Each container has a network namespace of its own and the
capabilities that Istio's template gives; cgroups are left out, and the machine's are not seen. Needs
root, buildah, debootstrap and runc.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.image.images import PROJECT, Store, make_base, why_not
from tests.namespaces import mount, read_only, sandbox

DOCUMENTED = (
    *("-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT"),
    *("-i", "*", "-b", "*", "-d", "15090,15021,15020", "--ip-family", "ipv4"),
)
ROWS = {
    "true": ("true",),
    "python3 -c pass": ("python3", "-c", "pass"),
    "dry run": ("istio-iptables", *DOCUMENTED, "--dry-run"),
    "install legacy": ("istio-iptables", *DOCUMENTED, "--force-iptables-binary", "legacy"),
    "install nft": ("istio-iptables", *DOCUMENTED, "--force-iptables-binary", "nft"),
}


def hide_cgroups() -> None:
    """Show runc cgroups that it can't write, which it then does without."""
    groups = [line.split(":")[1:] for line in Path("/proc/self/cgroup").read_text("utf-8").split()]
    mount("tmpfs", "/sys/fs/cgroup", "tmpfs")
    for kinds, path in groups:
        Path("/sys/fs/cgroup", kinds.removeprefix("name="), path.strip("/")).mkdir(
            parents=True, exist_ok=True
        )
    read_only("/sys/fs/cgroup")


def write_bundle(bundle: Path, root: Path, command: tuple[str, ...]) -> None:
    """What runc is to run: its own default, with the image, the command and a pod's capabilities."""
    bundle.mkdir()
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    file = bundle / "config.json"
    config = json.loads(file.read_text("utf-8"))
    config["root"] = {"path": str(root), "readonly": True}
    config["process"] |= {"terminal": False, "args": command, "rlimits": []}
    for each in config["process"]["capabilities"]:
        config["process"]["capabilities"][each] = ["CAP_NET_ADMIN", "CAP_NET_RAW"]
    config["mounts"] = [each for each in config["mounts"] if each["type"] != "cgroup"]
    del config["linux"]["resources"]
    spaces = config["linux"]["namespaces"]
    config["linux"]["namespaces"] = [each for each in spaces if each["type"] != "cgroup"]
    file.write_text(json.dumps(config), "utf-8")


def timed(bundle: Path) -> float:
    """The milliseconds from runc's start to its end."""
    command = ("runc", "--rootless", "true", "--root", "/run/runc", "run", "-b", str(bundle), "x")
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return (time.perf_counter() - started) * 1000


def main(runs: int) -> None:
    """Build the image, and print the table."""
    reason = why_not() or ("" if shutil.which("runc") else "not installed: runc")
    if reason:
        print(f"The image: not measured ({reason})")
        return
    cache = PROJECT / ".pytest_cache/d/image"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        store = Store(folder)
        store.load_base(make_base(cache, folder))
        root = store.unpack(store.build("istio-iptables:bench"))
        try:
            with sandbox():
                hide_cgroups()
                for number, command in enumerate(ROWS.values()):
                    write_bundle(folder / str(number), root, command)
                taken: list[list[float]] = [[] for _ in ROWS]
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
                for _ in range(runs):
                    for number, times in enumerate(taken):
                        times.append(timed(folder / str(number)))
        finally:
            store.buildah("umount", "--all")
            subprocess.run(["rm", "-rf", str(folder / "root"), str(folder / "run")], check=True)
    print(f"The image, `runc run` from start to end, {runs} runs each: milliseconds")
    print(f"{'':18}{'median':>8}{'min':>8}")
    for name, times in zip(ROWS, taken, strict=True):
        print(f"{name:18}{statistics.median(times):8.1f}{min(times):8.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
