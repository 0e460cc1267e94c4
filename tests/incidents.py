"""The incidents of docs/troubleshooting.md, on one lab: broken, asked about and mended for real.

A section of that page is an incident. Its console blocks say by their prompt where a command is
typed: ``app$`` and ``client$`` are user 1000 in the application's pod and beside it, ``pod#`` is root
in the pod's network namespace. ``<!-- lab: ... -->`` is what the reader does not do: it breaks the pod,
or stands for what Kubernetes does; a word of ``Pod.ACTIONS``, or else a command of root's. The pod is
as new before each incident.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.commands.lab import lab_config
from istio_iptables.errors import KernelRefused
from istio_iptables.istio.ownership import OWNERSHIP
from istio_iptables.istio.plan import build
from istio_iptables.lab import envoy, scenarios
from istio_iptables.lab import syscalls as kernelcalls
from istio_iptables.lab.bootstrap import bootstrap
from istio_iptables.lab.messages import http_request, is_complete, read_http
from istio_iptables.lab.nodes import LabServer, ServerProtocol
from istio_iptables.lab.processes import ROOT, Identity, LabProcess, execute, start
from istio_iptables.lab.runner import run
from istio_iptables.lab.sandbox import FOLDER
from istio_iptables.lab.servers import serve
from tests.namespaces import why_not as no_namespaces
from tests.readme import agrees

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar

    from istio_iptables.lab.runner import Up

__all__ = ["Incident", "Step", "incidents", "outputs", "rewritten", "told", "why_not"]

#: What the pod is installed with; the page says so.
FLAGS = "-i '*' -b '*' -d 15090,15021,15020 --redirect-dns --dual-stack"

#: Removes what incidents leave behind that is not ours.
_FLUSH = r"""set -e
tables='*raw\nCOMMIT\n*mangle\nCOMMIT\n*nat\nCOMMIT\n*filter\nCOMMIT\n'
printf "$tables" | iptables-legacy-restore
printf "$tables" | ip6tables-legacy-restore
nft flush ruleset"""

_PROMPTS = {
    "app$ ": ("pod", Identity(1000, 1000)),
    "client$ ": ("client", Identity(1000, 1000)),
    "pod# ": ("pod", None),
}
_PROMPT = "|".join(map(re.escape, _PROMPTS))
_SECTION = re.compile(r"^## (.*?)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_PART = re.compile(
    r"^<!-- lab: (?P<hidden>.*?) -->$|(?<=^```console\n)(?P<block>.*?)(?=^```$)",
    re.DOTALL | re.MULTILINE,
)
_COMMAND = re.compile(
    rf"^(?P<prompt>{_PROMPT})(?P<command>.*\n(?:> .*\n)*)(?P<output>(?:(?!{_PROMPT}).*\n)*)",
    re.MULTILINE,
)

#: What differs from run to run, and the words of other programs' versions; what they tell stays.
_OTHERS_WORDS = (
    (re.compile(r"^curl: \((\d+)\).*", re.MULTILINE), r"curl: (\1)"),
    # How many rounds a loop makes is a matter of time.
    (re.compile(r"\[\d{2,} connections\]"), "[many connections]"),
    (re.compile(r"\(process \d+\)"), "(process N)"),
    (re.compile(r"^;; .*(timed out|refused).*", re.MULTILINE), r";; \1"),
)


_PROXY = Identity(1337, 1337)
_AGENT = (
    LabServer("agent", scenarios.AGENT_PORT, _PROXY),
    LabServer("agent", scenarios.DNS_PORT, _PROXY, ServerProtocol.DNS, on_loopback=True),
)
_UNTIL_READY = "until curl -fso /dev/null http://127.0.0.1:15021/; do sleep 0.01; done"


class Step(NamedTuple):
    """A command, where it is typed, and what the page shows of its output."""

    #: "" for what the reader does not see.
    prompt: str
    command: str
    output: str = ""


class Incident(NamedTuple):
    """A section of the page."""

    title: str
    steps: tuple[Step, ...]


def why_not() -> str:
    """The reason why there can be no such lab here; "" if there can."""
    if reason := no_namespaces():
        return reason
    missing = [each for each in ("curl", "dig", "nsenter", "setpriv") if shutil.which(each) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    try:
        envoy.find()
    except KernelRefused as error:
        return error.lines[0]
    return ""


def incidents(text: str) -> list[Incident]:
    """The incidents of a page: its sections that have something to type."""
    found = []
    for title, section in _SECTION.findall(text):
        steps: list[Step] = []
        for part in _PART.finditer(section):
            if part["block"] is None:
                steps.append(Step("", part["hidden"]))
            else:
                steps += (
                    Step(each["prompt"], each["command"].replace("\n> ", "\n"), each["output"])
                    for each in _COMMAND.finditer(part["block"])
                )
        if steps:
            found.append(Incident(title, tuple(steps)))
    return found


class Pod:
    """The pod of all incidents, and those beside it; only in a world of its own."""

    def __init__(self, binary: str) -> None:
        self._binary = envoy.show(binary)
        self._network = os.open("/run/netns/pod", os.O_RDONLY)
        self._processes: dict[str, LabProcess] = {}
        resolv_conf = Path(FOLDER, "resolv.conf")
        resolv_conf.write_text(f"nameserver {scenarios.NAMESERVERS[0]}\n", encoding="ascii")
        kernelcalls.bind_mount(str(resolv_conf), str(Path("/etc/resolv.conf").resolve()))
        program = Path(sys.executable).parent
        self._environment = {"PATH": f"{program}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

    def renew(self) -> None:
        """Have the pod as it was made: its rules, a proxy and an agent."""
        self.do("istio-iptables clean")
        self.do(_FLUSH)
        self.do(f"istio-iptables {FLAGS}")
        for each in [*self._processes]:
            self.stop(each)
        self.start_envoy()
        self.start_agent()

    def stop(self, name: str) -> None:
        """End a process that was started, if it runs."""
        if process := self._processes.pop(name, None):
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)

    def start_envoy(self, *words: str) -> None:
        """Start the proxy; TPROXY: in that mode, ipv4: with listeners for IPv4 alone."""
        mode = "TPROXY" if "TPROXY" in words else "REDIRECT"
        config, _ = lab_config({"istio_inbound_interception_mode": mode}, {})
        proxy = scenarios.make("ingress", config).nodes[0].proxy
        assert proxy is not None
        made = bootstrap(proxy, "@admin")
        for listener in made["static_resources"]["listeners"] if "ipv4" in words else ():
            del listener["additional_addresses"]
        file = Path(FOLDER, "bootstrap.json")
        file.write_text(json.dumps(made), encoding="utf-8")
        command = [self._binary, "-c", str(file), "--disable-hot-restart", "--concurrency", "1"]
        self._processes["envoy"] = execute("Envoy", self._network, proxy.identity, command)
        self.do(_UNTIL_READY)

    def start_agent(self) -> None:
        """Start the agent's servers."""
        self._start("pilot-agent", _PROXY, partial(serve, _AGENT))

    def start_app(self, uid: str) -> None:
        """Start one more application, as this user and group."""
        servers = (LabServer("reports", 8081, ROOT),)
        self._start("reports", Identity(int(uid), int(uid)), partial(serve, servers))

    def start_server(self, port: str) -> None:
        """Start one more server, outside of the pod."""
        network = os.open("/run/netns/server", os.O_RDONLY)
        servers = (LabServer("server", int(port), ROOT),)
        self._start("server", ROOT, partial(serve, servers), network)

    def start_job(self, port: str) -> None:
        """Start an application that opens a connection from this port, and asks when it is told to."""

        def work(ready: Callable[[], None]) -> None:
            server = (scenarios.NAMESERVERS[0], scenarios.SERVER_PORT)
            with socket.create_connection(server, source_address=("", int(port))) as ours:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
                ready()
                signal.sigwait({signal.SIGUSR1})
                ours.sendall(http_request("/", server[0]))
                text = b""
                while not is_complete(text) and (chunk := ours.recv(1 << 16)):
                    text += chunk
                os.write(1, read_http(text).body)

        self._start(f"job-{port}", Identity(1000, 1000), work)

    def ask_job(self, port: str) -> None:
        """Have it ask; the answer is in its log."""
        process = self._processes.pop(f"job-{port}")
        os.kill(process.pid, signal.SIGUSR1)
        os.waitpid(process.pid, 0)

    def _start(
        self,
        name: str,
        identity: Identity,
        work: Callable[[Callable[[], None]], object],
        network: int = 0,
    ) -> None:
        def named(ready: Callable[[], None]) -> None:
            # A process that has become somebody else may not do that.
            Path("/proc/self/comm").write_text(name, encoding="ascii")
            kernelcalls.become(*identity)
            work(ready)

        process = self._processes[name] = start(name, network or self._network, ROOT, named)
        process.wait_ready()

    ACTIONS: ClassVar[dict[str, Callable[..., None]]] = {
        "stop": stop,
        "start-envoy": start_envoy,
        "start-agent": start_agent,
        "start-app": start_app,
        "start-server": start_server,
        "start-job": start_job,
        "ask-job": ask_job,
    }

    def do(self, text: str) -> None:
        """Do what the reader does not; it has to succeed."""
        name, *words = text.split()
        if name in self.ACTIONS:
            self.ACTIONS[name](self, *words)
            return
        done = self._run("pod# ", text)
        assert done.returncode == 0, f"{text}\n{done.stdout}"

    def type(self, step: Step) -> str:
        """What a command prints, stdout and stderr."""
        return self._run(step.prompt, step.command).stdout

    def _run(self, prompt: str, command: str) -> subprocess.CompletedProcess[str]:
        node, identity = _PROMPTS[prompt]
        words = ["nsenter", f"--net=/run/netns/{node}"]
        if identity is not None:
            words += ["setpriv", f"--reuid={identity.uid}", f"--regid={identity.gid}"]
            words += ["--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
        return subprocess.run(
            [*words, "bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment,
            cwd="/",
            check=False,
            timeout=60,
        )


def outputs(found: list[Incident]) -> list[list[str]]:
    """What each step of each incident prints, on one lab; "" for those that the reader does not see."""
    config, _ = lab_config({}, {})
    scenario = scenarios.make("sidecar", config)
    # The proxy and the agent are started and ended here.
    nodes = tuple(
        node._replace(
            proxy=None, servers=tuple(each for each in node.servers if each.name != "agent")
        )
        for node in scenario.nodes
    )
    binary = envoy.find()
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as answer:

        def work(_up: Up) -> None:
            pod = Pod(binary)
            printed = []
            for incident in found:
                pod.renew()
                texts = []
                for step in incident.steps:
                    if step.prompt:
                        texts.append(pod.type(step))
                    else:
                        pod.do(step.command)
                        texts.append("")
                printed.append(texts)
            Path(answer.name).write_text(json.dumps(printed), encoding="utf-8")

        run(
            scenario._replace(nodes=nodes, paths=()),
            build(config),
            OWNERSHIP,
            mode=config.mode.value,
            installer=lambda _plan, _backend: None,
            keep=work,
        )
        printed: list[list[str]] = json.load(answer)
    return printed


def told(text: str) -> str:
    """A text without the words of other programs' versions."""
    for pattern, words in _OTHERS_WORDS:
        text = pattern.sub(words, text)
    return text


def rewritten(text: str) -> str:
    """The page as the lab has it; what a block leaves out stays out where it agrees."""
    found = incidents(text)
    printed = iter(
        output
        for incident, texts in zip(found, outputs(found), strict=True)
        for step, output in zip(incident.steps, texts, strict=True)
        if step.prompt
    )

    def rewrite(match: re.Match[str]) -> str:
        output = next(printed)
        kept = agrees(told(match["output"]), told(output))
        return f"{match['prompt']}{match['command']}{match['output'] if kept else output}"

    def block(match: re.Match[str]) -> str:
        return match[0] if match["block"] is None else _COMMAND.sub(rewrite, match[0])

    return _PART.sub(block, text)
