"""What goes into a pod and out of it, and what counted it on the way."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_iptables.kernel.programs import run as run_tool
from istio_iptables.lab.nodes import LabServer
from istio_iptables.lab.processes import ROOT, start
from istio_iptables.lab.sandbox import on_network
from istio_iptables.lab.servers import serve
from tests.image.runtime.kubelet import get
from tests.image.runtime.node import ADDRESSES

if TYPE_CHECKING:
    from tests.image.runtime.kubelet import Pod

__all__ = ["APP_PORT", "OUTSIDE_PORT", "Traffic", "ask", "rules", "serve_outside", "traffic"]

APP_PORT = 8080
OUTSIDE_PORT = 9000
_STATISTICS_PORT = 15090
_TAKEN = 'envoy_listener_downstream_cx_total{envoy_listener_address="'

#: Asks a server outside, in the application's own container.
_CLIENT = (
    "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=20).read().decode())"
)


class Traffic(NamedTuple):
    """What one connection to the application and one from it did."""

    #: The peer that the application saw, and the proxies that the request went through.
    inbound: tuple[str, list[str]]
    #: The same of the server outside.
    outbound: tuple[str, list[str]]
    #: How often each rule matched, and how many connections each of Envoy's listeners took.
    rules: Counter[str]
    listeners: Counter[str]

    @property
    def captured(self) -> bool:
        """Whether Envoy took both connections, each once."""
        return (self.listeners["inbound"], self.listeners["outbound"]) == (1, 1)


def serve_outside() -> None:
    """Have a server on the node that pods may ask; it ends with the node."""
    network = os.open("/proc/self/ns/net", os.O_RDONLY)
    servers = (LabServer("outside", OUTSIDE_PORT, ROOT),)
    start("outside", network, ROOT, lambda ready: serve(servers, ready)).wait_ready()


def traffic(pod: Pod, backend: str = "legacy", number: int = 0) -> Traffic:
    """Connect to the application and from it, by the pod's address of this number."""
    pod.wait_for_word(pod.application, "listening")
    address = pod.addresses[number]
    before = _counts(pod, address, backend)
    inbound = json.loads(get(address, APP_PORT).text)
    outbound = ask(pod, ADDRESSES[number], OUTSIDE_PORT)
    after = _counts(pod, address, backend)
    return Traffic(
        (inbound["peer"], inbound["hops"]),
        (outbound["peer"], outbound["hops"]),
        after[0] - before[0],
        after[1] - before[1],
    )


def ask(pod: Pod, address: str, port: int) -> dict[str, Any]:
    """What a server answers to the application of a pod."""
    host = f"[{address}]" if ":" in address else address
    answer = pod.execute(pod.application, "python3", "-c", _CLIENT, f"http://{host}:{port}/")
    told: dict[str, Any] = json.loads(answer)
    return told


def rules(pod: Pod, backend: str = "legacy", family: str = "") -> list[str]:
    """The pod's rules now, with their counters in front; *family* is "6" for IPv6."""
    network = os.open(pod.network, os.O_RDONLY)
    with on_network(network):
        text = run_tool([f"ip{family}tables-{backend}-save", "-c"])
    os.close(network)
    return [line for line in text.splitlines() if line.startswith("[")]


def _counts(pod: Pod, address: str, backend: str) -> tuple[Counter[str], Counter[str]]:
    matched: Counter[str] = Counter()
    for line in rules(pod, backend, "6" if ":" in address else ""):
        counters, _, rule = line.partition(" ")
        matched[rule] = int(counters[1:].partition(":")[0])
    taken: Counter[str] = Counter()
    for line in get(address, _STATISTICS_PORT, "/stats/prometheus").text.splitlines():
        if line.startswith(_TAKEN):
            name, _, value = line.removeprefix(_TAKEN).partition('"} ')
            taken[name] = int(value)
    return matched, taken
