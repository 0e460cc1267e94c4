"""What a new connection costs behind long lists, in each backend: a table of ``make bench``.

    python -m tests.bench.connections [--rounds N]

Every connection is captured by the rule behind the whole list: the one that goes out is to none of the
excluded networks, the one that comes in is to the last of the captured ports. Client and server are this one
process, so that nobody has to be woken up, and all pods are measured in turns, so that a busy moment
hits all of them alike. Needs root.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from istio_iptables.kernel.namespace import entered
from tests.namespaces import new_network, sandbox, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator

CLI = str(Path(sys.executable).with_name("istio-iptables"))
BACKENDS = {
    "legacy": ("--force-iptables-binary", "legacy"),
    "iptables-nft": ("--force-iptables-binary", "nft"),
    "native": ("--native-nftables", "--nft-like-iptables"),
    "native, sets": ("--native-nftables", "--nft-like-iptables", "--nft-sets"),
}
SIZES = (20, 1000, 5000)
INSIDE, OUTSIDE = "10.20.0.1", "10.20.0.2"
OUTBOUND, INBOUND, PORT, FIRST_PORT = 15001, 15006, 8080, 20000
#: Connections in one turn of one pod, in each direction.
TURN = 100
_NO_LINGER = struct.pack("ii", 1, 0)


class Way(NamedTuple):
    """Connections of one direction: where they start, where they go and who has to take them."""

    namespace: int
    address: tuple[str, int]
    listener: socket.socket


class Pod(NamedTuple):
    """A row of the table, and the nanoseconds of each connection so far."""

    title: str
    ways: tuple[Way, Way]
    #: From the call of connect to its return; and until both ends are closed again.
    connected: tuple[list[int], list[int]] = ([], [])
    closed: tuple[list[int], list[int]] = ([], [])


def command(*words: str) -> None:
    """Run a program that has to succeed."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)


def network() -> int:
    """Make a network namespace, stay in it, and return it."""
    new_network()
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def listening(port: int) -> socket.socket:
    """A listener in this namespace."""
    listener = socket.socket()
    listener.bind(("0.0.0.0", port))  # noqa: S104 - nobody else is in this namespace
    listener.listen(16)
    # Handshakes are the kernel's: who is connected waits here already, or went elsewhere.
    listener.settimeout(0)
    return listener


def pod(title: str, items: int, flags: tuple[str, ...] | None) -> Pod:
    """A pod beside a host outside; with no flags there are no rules in it."""
    outside = network()
    taken_outside = listening(PORT)
    inside = network()
    there = f"/proc/{os.getpid()}/fd/{outside}"
    command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1", "netns", there)
    command("ip", "address", "add", f"{INSIDE}/24", "dev", "eth0")
    command("ip", "link", "set", "eth0", "up")
    with entered(there):
        command("ip", "address", "add", f"{OUTSIDE}/24", "dev", "eth1")
        command("ip", "link", "set", "eth1", "up")
    last = FIRST_PORT + items - 1
    if flags is None:
        taken = (taken_outside, listening(last))
    else:
        ports = ",".join(str(FIRST_PORT + number) for number in range(items))
        # Not beside each other: as a set they are as many.
        networks = ",".join(f"172.{16 + n // 128}.{n % 128 * 2}.0/24" for n in range(items))
        command(CLI, "-i", "*", "-x", networks, "-b", ports, "--ip-family", "ipv4", *flags)
        taken = (listening(OUTBOUND), listening(INBOUND))
    return Pod(
        title,
        (Way(inside, (OUTSIDE, PORT), taken[0]), Way(outside, (INSIDE, last), taken[1])),
        ([], []),
        ([], []),
    )


def measure(way: Way, times: int) -> Iterator[tuple[int, int]]:
    """Connections one after the other: the nanoseconds of each."""
    with entered(f"/proc/self/fd/{way.namespace}"):
        for _ in range(times):
            started = time.perf_counter_ns()
            with socket.socket() as client:
                # Ports come free at once: otherwise they would be used up.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                before = time.perf_counter_ns()
                client.connect(way.address)
                after = time.perf_counter_ns()
                # Raises an error where the connection was not captured.
                way.listener.accept()[0].close()
            yield after - before, time.perf_counter_ns() - started


def measure_all(pods: list[Pod], rounds: int) -> None:
    """All connections of all pods in turns; those of the first round are not counted."""
    for number in range(rounds + 1):
        for each in pods:
            for way, connected, closed in zip(each.ways, each.connected, each.closed, strict=True):
                for one, other in measure(way, TURN):
                    if number:
                        connected.append(one)
                        closed.append(other)


def show(pods: list[Pod]) -> None:
    """Print the table."""
    print(f"{'':<24}{'out, not to N networks':>26}{'in, to the last of N ports':>30}")
    print(f"{'N':<8}{'rules':<16}" + f"{'connect us':>14}{'a second':>12}" * 2)
    for each in pods:
        row = f"{each.title:<24}"
        for connected, closed in zip(each.connected, each.closed, strict=True):
            row += f"{statistics.median(connected) / 1000:14.1f}"
            row += f"{1e9 / statistics.median(closed):12,.0f}"
        print(row)


def said(*words: str) -> str:
    """What a program says of its version."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help=f"turns of {TURN} connections (20)")
    rounds = parser.parse_args().rounds
    if problem := why_not():
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    print(
        f"Linux {platform.release()}, {said('iptables-legacy', '--version')},"
        f" {said('nft', '--version')}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f};"
        f" new connections over IPv4, medians of {rounds * TURN:,} each"
    )
    with sandbox():
        pods = [pod("no rules", 1, None)]
        pods += [
            pod(f"{items:<8,}{name}", items, flags)
            for items in SIZES
            for name, flags in BACKENDS.items()
        ]
        measure_all(pods, rounds)
    show(pods)
    return 0


if __name__ == "__main__":
    sys.exit(main())
