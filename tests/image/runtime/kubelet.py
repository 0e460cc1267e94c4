"""A small kubelet: it runs a pod's manifest on a container runtime, in the order of Kubernetes.

What it leaves out: limits of resources, probes other than those of istio-proxy, restarts that
nobody asks for, and whatever comes from a cluster: tokens and config maps are empty folders.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import time
import uuid
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["NAMESERVER", "Ended", "InitFailed", "Kubelet", "Pod", "get"]

#: Where a pod's resolv.conf says that DNS is; there is none.
NAMESERVER = "10.96.0.10"

_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.02
_EXITED = 2
_ONE_PID_NAMESPACE_EACH = {"pid": "CONTAINER"}

#: What Kubernetes hides of /proc, and what it makes read-only, unless procMount says otherwise.
_MASKED = (
    *("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_Json = dict[str, Any]


class Ended(NamedTuple):
    """A container that has ended."""

    status: int
    log: str


class InitFailed(Exception):
    """A container that comes before the application's has failed."""

    def __init__(self, name: str, ended: Ended) -> None:
        super().__init__(f"{name}: exit status {ended.status}\n{ended.log}")
        self.name, self.ended = name, ended


class Kubelet:
    """Runs pods by the runtime's socket; *folder* is for volumes and logs."""

    def __init__(self, socket: str, folder: Path, address: str) -> None:
        # Threads of grpc don't survive a fork: only the node's process may load it.
        import grpc

        messages, services = grpc.protos_and_services("tests/image/runtime/cri.proto")
        self._channel = grpc.insecure_channel(f"unix://{socket}")
        self._calls = services.RuntimeServiceStub(self._channel)
        self._messages = messages
        self.folder, self.address = folder, address
        self._pods: list[Pod] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each in self._pods:
            each.remove()
        self._channel.close()

    def ask(self, call: str, **fields: Any) -> Any:
        """What the runtime answers to a call of its interface."""
        request = getattr(self._messages, f"{call}Request")(**fields)
        # The first one is made while the runtime may still be starting.
        return getattr(self._calls, call)(request, wait_for_ready=True, timeout=_PATIENCE_SECONDS)

    def pod(self, manifest: _Json) -> Pod:
        """A new pod with its network; nothing runs in it yet."""
        made = Pod(self, manifest)
        self._pods.append(made)
        return made


class Pod:
    """A pod: its containers are started by name, or all in order by ``run``."""

    def __init__(self, kubelet: Kubelet, manifest: _Json) -> None:
        self._kubelet, self._manifest, self._uid = kubelet, manifest, str(uuid.uuid4())
        self._spec, self._metadata = manifest["spec"], manifest["metadata"]
        self._folder = kubelet.folder / "pods" / self._uid
        #: The runtime's names of the containers that were started.
        self.containers: dict[str, str] = {}
        self._attempts: dict[str, int] = {}
        self._sandboxes = 0
        self._make_volumes()
        self._make_sandbox()

    def _make_sandbox(self) -> None:
        metadata = {"name": self._metadata["name"], "uid": self._uid, "namespace": "default"}
        self._config = {
            "metadata": {**metadata, "attempt": self._sandboxes},
            "hostname": self._metadata["name"],
            "log_directory": str(self._folder / "logs"),
            "dns_config": {"servers": [NAMESERVER]},
            "labels": self._metadata.get("labels", {}),
            "annotations": self._metadata.get("annotations", {}),
            "linux": {"security_context": {"namespace_options": _ONE_PID_NAMESPACE_EACH}},
        }
        self._sandboxes += 1
        self.id: str = self._kubelet.ask("RunPodSandbox", config=self._config).pod_sandbox_id
        answer = self._kubelet.ask("PodSandboxStatus", pod_sandbox_id=self.id, verbose=True)
        network = answer.status.network
        self.addresses: list[str] = [network.ip, *(each.ip for each in network.additional_ips)]
        namespaces = json.loads(answer.info["info"])["runtimeSpec"]["linux"]["namespaces"]
        (self.network,) = (each["path"] for each in namespaces if each["type"] == "network")

    @property
    def address(self) -> str:
        """The first of the pod's addresses."""
        return self.addresses[0]

    @property
    def application(self) -> str:
        """The first of the pod's containers that is not a proxy's."""
        names: list[str] = [each["name"] for each in self._spec["containers"]]
        return next(name for name in names if "proxy" not in name)

    def new_sandbox(self) -> None:
        """Let the pod's sandbox go, with all that runs in it, and make another."""
        self.remove()
        self._make_sandbox()

    def remove(self) -> None:
        """End everything that runs in the pod, and give its network back."""
        self._kubelet.ask("StopPodSandbox", pod_sandbox_id=self.id)
        self._kubelet.ask("RemovePodSandbox", pod_sandbox_id=self.id)

    @cached_property
    def _specified(self) -> dict[str, _Json]:
        both = [*self._spec.get("initContainers", []), *self._spec["containers"]]
        return {each["name"]: each for each in both}

    def run(self) -> list[str]:
        """Start all containers as Kubernetes orders them; returns their names in that order.

        Raises InitFailed when an init container fails, and starts nothing after it.
        """
        order = []
        for each in self._spec.get("initContainers", []):
            name = each["name"]
            order.append(name)
            self.start(name)
            if each.get("restartPolicy") == "Always":
                self._wait_for_probe(each, "startupProbe")
            elif (ended := self.wait(name)).status:
                raise InitFailed(name, ended)
        for each in self._spec["containers"]:
            order.append(each["name"])
            self.start(each["name"])
        self.wait_ready()
        return order

    def wait_ready(self) -> None:
        """Return when every container that says when it is ready is so."""
        for each in self._specified.values():
            self._wait_for_probe(each, "readinessProbe")

    def _wait_for_probe(self, container: _Json, kind: str) -> None:
        """Ask as the probe says until it succeeds; a container without one is ready."""
        if kind in container:
            probe = container[kind]["httpGet"]
            self.wait_for_answer(container["name"], probe["port"], probe["path"])

    def wait_for_answer(self, name: str, port: int, path: str) -> None:
        """Return when a container answers on a port of the pod."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            with contextlib.suppress(OSError):  # not there yet
                if get(self.address, port, path).status == HTTPStatus.OK:
                    return
            if self._status(name).state == _EXITED or time.monotonic() > deadline:
                message = f"{name} is not ready:\n{self.log(name)}"
                raise RuntimeError(message)
            time.sleep(_POLL_SECONDS)

    def start(self, name: str) -> None:
        """Create a container as the manifest says, and start it."""
        container = self._specified[name]
        attempt = self._attempts[name] = self._attempts.get(name, -1) + 1
        known = {
            *("name", "image", "command", "args", "env", "volumeMounts", "securityContext"),
            # Not the runtime's.
            *("ports", "resources", "restartPolicy", "startupProbe", "readinessProbe", "lifecycle"),
            *("imagePullPolicy",),
        }
        assert not set(container) - known, f"{name}: {set(container) - known} is not carried out"
        environment = {
            each["name"]: self._value(container, each) for each in container.get("env", [])
        }

        def expand(text: str) -> str:
            return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), text)

        config = {
            "metadata": {"name": name, "attempt": attempt},
            "image": {"image": _full_name(container["image"])},
            "command": [expand(each) for each in container.get("command", [])],
            "args": [expand(each) for each in container.get("args", [])],
            "envs": [{"key": key, "value": value} for key, value in environment.items()],
            "mounts": [self._mount(each) for each in container.get("volumeMounts", [])],
            "log_path": self._log_name(name),
            "linux": {"security_context": _security(container.get("securityContext", {}))},
        }
        self.containers[name] = self._kubelet.ask(
            "CreateContainer", pod_sandbox_id=self.id, config=config, sandbox_config=self._config
        ).container_id
        self._kubelet.ask("StartContainer", container_id=self.containers[name])

    def _status(self, name: str) -> Any:
        return self._kubelet.ask("ContainerStatus", container_id=self.containers[name]).status

    def process(self, name: str) -> int:
        """The process of a container, as the node numbers it."""
        answer = self._kubelet.ask(
            "ContainerStatus", container_id=self.containers[name], verbose=True
        )
        number: int = json.loads(answer.info["info"])["pid"]
        return number

    def wait(self, name: str) -> Ended:
        """What became of a container, once it has ended."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (status := self._status(name)).state != _EXITED:
            assert time.monotonic() < deadline, f"{name} does not end:\n{self.log(name)}"
            time.sleep(_POLL_SECONDS)
        return Ended(status.exit_code, self.log(name))

    def stop(self, name: str) -> None:
        """Kill a container."""
        self._kubelet.ask("StopContainer", container_id=self.containers[name], timeout=0)

    def execute(self, name: str, *words: str) -> str:
        """What a command prints that runs in a container; it has to succeed."""
        answer = self._kubelet.ask(
            "ExecSync", container_id=self.containers[name], cmd=words, timeout=30
        )
        assert answer.exit_code == 0, answer.stderr.decode()
        text: str = answer.stdout.decode()
        return text

    def _log_name(self, name: str) -> str:
        return f"{name}-{self._sandboxes}-{self._attempts[name]}.log"

    def log(self, name: str) -> str:
        """What the container has written, since its last start."""
        path = self._folder / "logs" / self._log_name(name)
        # Each line has the time, the stream, and whether it is a whole one before it.
        lines = path.read_text(encoding="utf-8").splitlines()
        return "".join(f"{each.split(' ', 3)[3]}\n" for each in lines)

    def wait_for_word(self, name: str, word: str) -> None:
        """Return when the container has written *word*."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while word not in self.log(name):
            assert time.monotonic() < deadline, f"{name} does not say {word}:\n{self.log(name)}"
            time.sleep(_POLL_SECONDS)

    def _value(self, container: _Json, variable: _Json) -> str:
        source = variable.get("valueFrom")
        if source is None:
            text: str = variable.get("value", "")
        elif "fieldRef" in source:
            text = {
                "metadata.name": self._metadata["name"],
                "metadata.namespace": "default",
                "spec.nodeName": "node",
                "spec.serviceAccountName": "default",
                "status.hostIP": self._kubelet.address,
                "status.podIP": self.address,
            }[source["fieldRef"]["fieldPath"]]
        else:
            kind, _, resource = source["resourceFieldRef"]["resource"].partition(".")
            text = str(container["resources"][kind][resource])
        return text

    def _make_volumes(self) -> None:
        nested = [
            (each["name"], Path(each["mountPath"]))
            for container in self._specified.values()
            for each in container.get("volumeMounts", [])
        ]
        for volume in self._spec.get("volumes", []):
            place = self._volume(volume["name"])
            place.mkdir(parents=True)
            place.chmod(0o777)
            for item in volume.get("downwardAPI", {}).get("items", []):
                values = self._metadata[item["fieldRef"]["fieldPath"].removeprefix("metadata.")]
                lines = [f"{key}={json.dumps(value)}\n" for key, value in values.items()]
                (place / item["path"]).write_text("".join(lines), encoding="utf-8")
            # As the kubelet does: where one volume is mounted inside of another, it has a folder.
            for _, outer in (each for each in nested if each[0] == volume["name"]):
                for _, inner in nested:
                    if outer in inner.parents:
                        (place / inner.relative_to(outer)).mkdir(parents=True, exist_ok=True)

    def _volume(self, name: str) -> Path:
        return self._folder / "volumes" / name

    def _mount(self, mount: _Json) -> _Json:
        (volume,) = (each for each in self._spec["volumes"] if each["name"] == mount["name"])
        # What Kubernetes itself writes can't be written by containers.
        written = volume.keys() & {"configMap", "downwardAPI", "projected", "secret"}
        return {
            "container_path": mount["mountPath"],
            "host_path": str(self._volume(mount["name"])),
            "readonly": mount.get("readOnly", False) or bool(written),
        }


def _full_name(image: str) -> str:
    """The name of an image as the runtime knows it."""
    name = image if "/" in image else f"docker.io/library/{image}"
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _security(context: _Json) -> _Json:
    """A container's security context in the runtime's words; all of it, or an error."""
    left = dict(context)
    capabilities = left.pop("capabilities", {})
    user, group = left.pop("runAsUser", None), left.pop("runAsGroup", None)
    if left.pop("runAsNonRoot", False):
        assert user, "runAsNonRoot, and the user is root"
    privileged = left.pop("privileged", False)
    words = {
        "privileged": privileged,
        "namespace_options": _ONE_PID_NAMESPACE_EACH,
        "readonly_rootfs": left.pop("readOnlyRootFilesystem", False),
        "no_new_privs": not left.pop("allowPrivilegeEscalation", True),
        "capabilities": {
            "add_capabilities": capabilities.get("add", []),
            "drop_capabilities": capabilities.get("drop", []),
        },
        "masked_paths": () if privileged else _MASKED,
        "readonly_paths": () if privileged else _READ_ONLY,
        "seccomp": {"profile_type": left.pop("seccompProfile", {"type": "Unconfined"})["type"]},
    }
    if user is not None:
        words["run_as_user"] = {"value": user}
    if group is not None:
        words["run_as_group"] = {"value": group}
    assert not left, f"{left} is not carried out"
    return words


class Answer(NamedTuple):
    """What came back over HTTP."""

    status: int
    text: str


def get(address: str, port: int, path: str = "/") -> Answer:
    """What a server answers to a request from where this process is."""
    connection = http.client.HTTPConnection(address, port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read().decode())
    finally:
        connection.close()
