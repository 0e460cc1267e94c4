"""Runs inside a network namespace: loads rules, sends packets, and says what became of each.

Started as a program by tests.kernel.treating, which talks with it in lines of JSON. It needs the
standard library only. The namespace is the pod of ``traced``.

What became of a packet is what a table of our own sees of it behind all other rules: where it is
bound for, its marks and its zone, on the way out and on the way in. A packet that is not seen was
dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from typing import Any

from traced import (  # type: ignore[import-not-found]  # it lies beside this file
    ACK,
    AF,
    FIN,
    FLAGS,
    ICMP,
    ICMPV6,
    POD,
    SYN,
    TCP,
    UDP,
    Netlink,
    Sender,
    Wire,
    addresses,
    attribute,
    attributes,
    frame,
    hang_up,
    listeners,
    make_pod,
    sh,
)

GROUP = 5
#: Listening ports from here on are those of connections that no process has taken.
FIRST_UNOWNED = 60000
#: The packets that come last have these ports.
FIRST_LAST = 19000
FIRST_PORT = 20000
MOST_SECONDS = 20

_SEEN = """
		log prefix "{hook}" group 5
		ct zone 1 log prefix "{hook} in zone 1" group 5
		ct zone 2 log prefix "{hook} in zone 2" group 5
		ct mark != 0 log prefix "{hook} of a marked connection" group 5
"""
#: What goes to a connection that nobody has taken is not tracked, so that the kernel's answer is
#: the first packet of a connection, and is of no socket.
OBSERVER = f"""
table inet observer {{
	chain input {{
		type filter hook input priority 300; policy accept;
{_SEEN.format(hook="in")}
	}}
	chain postrouting {{
		type filter hook postrouting priority 300; policy accept;
{_SEEN.format(hook="out")}
	}}
	chain prerouting {{
		type filter hook prerouting priority -390; policy accept;
		tcp dport >= {FIRST_UNOWNED} notrack
	}}
	chain output {{
		type filter hook output priority -390; policy accept;
		tcp dport >= {FIRST_UNOWNED} notrack
	}}
}}
"""

#: Protocol, port, and for TCP the flags: which of the packets that were asked for it is.
Key = tuple[int, int, int]


class Observer:
    """The log of the table of our own."""

    def __init__(self) -> None:
        subprocess.run(["nft", "-f", "-"], input=OBSERVER, encoding="utf-8", check=True)
        self.link = Netlink()
        self.link.ask(0x401, 4, 0, GROUP, attribute(1, bytes([1])))  # BIND to the group
        # Copy the packet, and each one at once.
        mode = struct.pack(">IBx", 256, 2)
        self.link.ask(0x401, 4, 0, GROUP, attribute(2, mode) + attribute(5, struct.pack(">I", 1)))

    def seen(self, until: set[Key]) -> dict[Key, list[list[Any]]]:
        """What was seen of each packet, as soon as those of *until* have come, one way or another."""
        found: dict[Key, list[list[Any]]] = {}
        limit = time.monotonic() + MOST_SECONDS
        while until - found.keys():
            if time.monotonic() > limit:
                message = f"not seen: {until - found.keys()}"
                raise TimeoutError(message)
            for kind, content in self.link.waiting():
                if kind != 0x400:
                    continue
                parts = attributes(content, 4)
                about = parts[10].rstrip(b"\0").decode()
                interface = int.from_bytes(
                    parts.get(4 if about.startswith("in") else 5, b""), "big"
                )
                mark = int.from_bytes(parts.get(2, b""), "big")
                key, ends = described(parts[9])
                found.setdefault(key, []).append([about, interface, mark, *ends])
        return found


def described(packet: bytes) -> tuple[Key, list[Any]]:
    """Which packet it is, and its addresses and ports."""
    if packet[0] >> 4 == 4:
        size, protocol, family, at = (packet[0] & 15) * 4, packet[9], socket.AF_INET, 12
    else:
        size, protocol, family, at = 40, packet[6], socket.AF_INET6, 8
    length = 4 if family == socket.AF_INET else 16
    ends = [socket.inet_ntop(family, packet[at + n : at + n + length]) for n in (0, length)]
    transport = packet[size:]
    ports = [int.from_bytes(transport[n : n + 2], "big") for n in (0, 2)]
    if protocol in {ICMP, ICMPV6}:
        # An error, about a packet of ours.
        about = described(transport[8:])[1] if len(transport) > 28 else [0]
        ours = [each for each in about if isinstance(each, int) and each >= FIRST_PORT]
        return (protocol, ours[0] if ours else 0, 0), [*ends, *ports[:1]]
    flags = transport[13] & 0x17 if protocol == TCP and len(transport) > 13 else 0
    return (protocol, ports[0], flags), [*ends, *ports]


def is_unowned(asked: dict[str, Any]) -> bool:
    """Whether the packet is to be of no socket."""
    return asked["uid"] is None and not asked["in_interface"] and asked["state"] == "NEW"


def wanted(asked: dict[str, Any]) -> Key:
    """Which packet is meant."""
    flags = FLAGS[asked["state"]] if asked["protocol"] == TCP and asked["state"] in FLAGS else 0
    return asked["protocol"], asked["source_port"], ACK if is_unowned(asked) else flags


class Treated(Sender):  # type: ignore[misc]  # see above
    """Sends packets of some more kinds."""

    def send(self, asked: dict[str, Any], before: Any) -> bool:
        """Send one."""
        if is_unowned(asked):
            return self.unowned(asked)
        if asked["state"] == "INVALID" and asked["protocol"] == UDP:
            packet = frame(asked, 0)
            # Its checksum is wrong.
            self.wire.put(asked["in_interface"], asked["family"], packet[:-1] + b"\xff")
            return True
        return bool(super().send(asked, before))

    def unowned(self, asked: dict[str, Any]) -> bool:
        """Have the kernel confirm what came for a connection that no process has taken."""
        with socket.socket(AF[asked["family"]], socket.SOCK_STREAM) as server:
            server.bind((asked["source"], asked["source_port"]))
            server.listen(1)
            if asked["out_interface"] == "lo":
                return self._from_here(asked, server)
            back = {
                **asked,
                "source": asked["destination"],
                "destination": asked["source"],
                "source_port": asked["destination_port"],
                "destination_port": asked["source_port"],
            }
            name, family = asked["out_interface"], asked["family"]
            self.wire.drain()
            self.wire.put(name, family, frame(back, SYN))
            sequence = self.wire.syn_ack(name, back["source_port"])
            if sequence is None:
                return False
            self.wire.put(name, family, frame(back, ACK, 1001, sequence + 1))
            # Something is missing before this one: that is told at once.
            self.wire.put(name, family, frame(back, ACK | FIN, 1101, sequence + 1))
        return True

    def _from_here(self, asked: dict[str, Any], server: socket.socket) -> bool:
        with socket.socket(server.family, socket.SOCK_STREAM) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            client.settimeout(0.2)
            client.bind((asked["destination"], asked["destination_port"]))
            try:
                client.connect(server.getsockname())
            except OSError:
                return False
            # The first that comes is confirmed at once.
            client.send(b"x")
        return True


def load(request: dict[str, Any]) -> str:
    """Put rules in place of all others; what was complained of."""
    complaints = ""
    for words, text in request["load"]:
        done = subprocess.run(words, input=text, encoding="utf-8", capture_output=True, check=False)
        complaints += done.stderr if done.returncode else ""
    return complaints


def send_last(sender: Treated) -> set[Key]:
    """Send packets that nothing becomes of, behind all others; which they are."""
    keys = set()
    for number, (name, family) in enumerate(
        (name, family) for name in ("eth0", "net1") for family in AF
    ):
        asked = {
            "family": family,
            "protocol": UDP,
            "source": "9.9.9.9" if family == "ipv4" else "2001:db8::99",
            "destination": POD[family][name == "net1"][0],
            "source_port": FIRST_LAST + number,
            "destination_port": 9,
        }
        sender.wire.put(name, family, frame(asked, 0))
        keys.add((UDP, FIRST_LAST + number, 0))
    return keys


def main() -> None:
    """Answer requests until there are no more."""
    # What is put on a link is then taken from it in this order.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    make_pod()
    observer, sender = Observer(), Treated(Wire())
    print(json.dumps(addresses()), flush=True)
    routes: list[str] = []
    for line in sys.stdin:
        request = json.loads(line)
        complaints = load(request)
        if routes != request["routes"]:
            sh(*(route.replace(" add ", " del ") for route in reversed(routes)))
            routes = request["routes"]
            sh(*routes)
        listening = listeners(request["listening"])
        answers: list[str] = []
        for asked in request["packets"]:
            try:
                answers.append("sent" if sender.send(asked, list) else "not sent")
            except OSError as error:
                answers.append(str(error))
            hang_up(listening)
        seen = observer.seen(send_last(sender))
        for each in listening:
            each.close()
        with contextlib.suppress(OSError):
            Netlink().ask(0x102, 4, 0, 0, b"")  # all connections are forgotten
        print(
            json.dumps(
                {
                    "error": complaints,
                    "seen": [
                        [answer, *sorted(seen.get(wanted(asked), []))]
                        for answer, asked in zip(answers, request["packets"], strict=True)
                    ],
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
