"""The lab from beginning to end: a world, nodes, rules, Envoy, and then each path."""

from __future__ import annotations

# Whatever processes of other users need is loaded before they are forked: they can't read it.
import encodings.idna  # noqa: F401
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.errors import KernelRefused
from istio_iptables.kernel.detect import detect
from istio_iptables.kernel.install import InstallOptions, install
from istio_iptables.kernel.usernamespace import require_mapped
from istio_iptables.lab import clients, envoy
from istio_iptables.lab.compare import PathResult, compare
from istio_iptables.lab.counters import NATIVE, Watch
from istio_iptables.lab.envoy import Envoy
from istio_iptables.lab.network import connect
from istio_iptables.lab.predict import predict
from istio_iptables.lab.processes import ROOT, call, start
from istio_iptables.lab.sandbox import in_sandbox, make_network, on_network
from istio_iptables.lab.servers import serve
from istio_iptables.lab.without import without, without_natively
from istio_iptables.netfilter.plan import DesiredState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from istio_iptables.lab.clients import Seen
    from istio_iptables.lab.processes import Identity, LabProcess
    from istio_iptables.lab.scenarios import Scenario, TrafficPath
    from istio_iptables.lab.without import Left
    from istio_iptables.netfilter.native import NativePlan
    from istio_iptables.netfilter.ownership import Ownership

__all__ = ["Installer", "LabOutcome", "Up", "run"]


#: Puts a plan's rules in place, in the backend of that name.
Installer = Callable[[DesiredState, str], None]


def _install(
    ownership: Ownership, native: NativePlan | None, plan: DesiredState, backend: str
) -> None:
    where = InstallOptions(backend="" if native else backend)
    install(plan, ownership, lambda _line: None, where, native=native)


class LabOutcome(NamedTuple):
    """What a run of the lab has found."""

    scenario: str
    mode: str
    backend: str
    results: tuple[PathResult, ...]
    seconds: float

    @property
    def as_predicted(self) -> bool:
        """Whether every path went as predicted."""
        return all(not result.differences for result in self.results)


class Up(NamedTuple):
    """A lab that is still up, for those who want to look around."""

    outcome: LabOutcome
    #: The number of its first process, by which its namespaces are entered.
    process: int
    #: The socket that each Envoy is asked on, by node.
    sockets: Mapping[str, str]


def run(  # noqa: PLR0913 - the lab's parts
    scenario: Scenario,
    plan: DesiredState,
    ownership: Ownership,
    *,
    mode: str,
    backend: str = "",
    native: NativePlan | None = None,
    left: Left = frozenset(),
    only: Sequence[str] = (),
    installer: Installer | None = None,
    keep: Callable[[Up], None] | None = None,
) -> LabOutcome:
    """Run *scenario* with the rules of *plan*, and hold what happens to what *plan* says.

    With *native* these are native ones, which *plan* has in the place of its rules (``natively``).
    The rules *left* out are not installed, to show what they are there for. With *only*, paths
    of other names are not taken. *installer* puts the rules in place instead of our own, called
    in the network namespace that they are for. *keep* is called while everything is still up. Raises
    KernelRefused when the lab can't be built; nothing of it is left in any case.
    """
    begun = time.monotonic()
    binary = envoy.find()
    people = [path.identity for path in scenario.paths]
    people += [node.proxy.identity for node in scenario.nodes if node.proxy]
    require_mapped((each.uid for each in people), (each.gid for each in people))

    def work(process: int) -> LabOutcome:
        rules = None if native is None else without_natively(native, left)
        lab = _Lab(scenario, binary, ownership, installer or partial(_install, ownership, rules))
        name = lab.build(without(plan, left), NATIVE if native else backend, left)
        results = [lab.walk(path, plan) for path in scenario.paths if not only or path.name in only]
        seconds = time.monotonic() - begun
        outcome = LabOutcome(scenario.name, mode, name, tuple(results), seconds)
        if keep:
            keep(Up(outcome, process, lab.sockets))
        return outcome

    return in_sandbox(work, interrupts_end_it=keep is None)


class _Lab:
    """The processes and networks of a scenario; only in a world of its own."""

    def __init__(
        self, scenario: Scenario, binary: str, ownership: Ownership, installer: Installer
    ) -> None:
        self._nodes = {node.name: node for node in scenario.nodes}
        self._switch = make_network("switch")
        self._networks = {name: make_network(name) for name in self._nodes}
        self._binary = binary
        self._ownership = ownership
        self._installer = installer
        self._watch: Watch | None = None
        self.sockets: dict[str, str] = {}

    def build(self, plan: DesiredState, backend: str, left: Left) -> str:
        """Start and connect everything; returns the name of the backend that has the rules."""
        binary = envoy.show(self._binary)
        # Envoy takes longest to start; the rest is built meanwhile.
        envoys = {
            name: Envoy(node.proxy, self._networks[name], binary)
            for name, node in self._nodes.items()
            if node.proxy
        }
        servers = [process for name in self._nodes for process in self._serve(name)]
        captured = {
            name: self._networks[name] for name, node in self._nodes.items() if node.captured
        }
        name: str = call(
            self._switch, ROOT, lambda: self._wire_and_install(plan, backend, captured)
        ).result()
        for process in servers:
            process.wait_ready()
        for each in envoys.values():
            each.wait_ready()
        self._watch = Watch(captured, envoys, name, left)
        self.sockets = {node: each.socket for node, each in envoys.items()}
        return name

    def _serve(self, name: str) -> list[LabProcess]:
        """Start a node's servers: one process for each user."""
        servers = self._nodes[name].servers
        return [
            start(
                f"{name} {identity.uid}",
                self._networks[name],
                identity,
                lambda ready, own=tuple(each for each in servers if each.identity == identity): (  # type: ignore[misc]  # its default
                    serve(own, ready)
                ),
            )
            for identity in dict.fromkeys(each.identity for each in servers)
        ]

    def _wire_and_install(
        self, plan: DesiredState, backend: str, captured: Mapping[str, int]
    ) -> str:
        connect(tuple(self._nodes.values()), self._networks, self._switch)
        name = backend
        for network in captured.values():
            with on_network(network):
                if backend != NATIVE:
                    name = detect(backend, self._ownership).backend.name
                self._installer(plan, backend)
        return name

    def walk(self, path: TrafficPath, plan: DesiredState) -> PathResult:
        """Send what *path* says, and compare what happens with what was to be expected."""
        if self._watch is None:
            message = "the lab is not built yet"
            raise KernelRefused(message)
        expected = predict(self._nodes, plan, path.node, path.identity, path.request)
        before = self._watch.counts(path.family)
        seen = self._send(path.node, path.identity, path)
        counts = self._watch.counts(path.family).since(before)
        return compare(path, expected, seen, counts)

    def _send(self, node: str, identity: Identity, path: TrafficPath) -> list[Seen]:
        seen: list[Seen] = call(
            self._networks[node], identity, lambda: clients.send(path.request)
        ).result()
        return seen
