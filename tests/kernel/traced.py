"""Runs inside a network namespace: loads rules, sends packets, and says which way the kernel took.

Started as a program by tests.kernel.tracing, which talks with it in lines of JSON. It needs the
standard library only, so that it can run as any interpreter in any namespace.

The namespace is a pod with eth0 and net1, each a veth whose other end is here too: a frame put
on the other end arrives as from outside.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

#: The addresses of eth0 and of net1, in the order in which they are added.
POD = {
    "ipv4": (("10.244.0.2", "10.244.0.3"), ("10.245.0.2",)),
    "ipv6": (("fd00:10:244::2", "fd00:10:244::3", "fe80::2"), ("fd00:10:245::2",)),
}
NAMES = ("eth0", "net1")
AF = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
SYN, ACK, FIN = 2, 16, 1
NETLINK_NETFILTER = 12
QUIET_SECONDS = 0.004
HEADER = struct.Struct("=IHHII")


def sh(*commands: str) -> None:
    """Run commands of ip, a process for each family; what can't be done is passed over."""
    for family in ("-4", "-6"):
        lines = [line.removeprefix(family) for line in commands if line.startswith(family)]
        if lines:
            subprocess.run(
                ["ip", family, "-force", "-batch", "-"],
                input="\n".join(lines) + "\n",
                encoding="utf-8",
                check=False,
                capture_output=True,
            )


def setting(path: str, value: str) -> None:
    """Set a sysctl, where there is one."""
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/{path}").write_text(value, encoding="ascii")


def make_pod() -> None:
    """Links, addresses and routes."""
    for each in ("all", "default"):
        setting(f"ipv4/conf/{each}/rp_filter", "0")
        setting(f"ipv6/conf/{each}/accept_dad", "0")
        setting(f"ipv6/conf/{each}/accept_ra", "0")
        setting(f"ipv6/conf/{each}/router_solicitations", "0")
        # No link-local addresses but those below.
        setting(f"ipv6/conf/{each}/addr_gen_mode", "1")
    # As many errors as there are packets to tell of.
    for each in ("ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"):
        setting(each, "0")
    setting("ipv4/ip_forward", "1")
    setting("ipv6/conf/all/forwarding", "1")
    lines = [
        "-4 link set lo up",
        "-6 addr add ::6/128 dev lo nodad",
        "-4 addr add 169.254.20.10/32 dev lo",
    ]
    for number, name in enumerate(NAMES):
        lines += [
            f"-4 link add {name} type veth peer name peer{number}",
            f"-4 link set {name} arp off up",
            f"-4 link set peer{number} arp off up",
            *(f"-4 addr add {each}/24 dev {name}" for each in POD["ipv4"][number]),
            *(f"-6 addr add {each}/64 dev {name} nodad" for each in POD["ipv6"][number]),
        ]
    lines += ["-4 route add default dev eth0", "-6 route add default dev eth0 metric 1"]
    sh(*lines)
    for name in (*NAMES, "lo", "peer0", "peer1"):
        setting(f"ipv4/conf/{name}/rp_filter", "0")


def addresses() -> dict[str, list[str]]:
    """The addresses of each interface as ip shows them, in the kernel's order."""
    shown = subprocess.run(["ip", "-json", "addr", "show"], capture_output=True, check=True).stdout
    return {
        link["ifname"]: [each["local"] for each in link["addr_info"]] for link in json.loads(shown)
    }


# netlink.


def attributes(data: bytes, position: int = 0) -> dict[int, bytes]:
    """The attributes of a netlink message by their number."""
    found = {}
    while position + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, position)
        found[kind & 0x3FFF] = data[position + 4 : position + length]
        position += (max(length, 4) + 3) & ~3
    return found


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute as bytes."""
    length = 4 + len(data)
    return struct.pack("=HH", length, kind) + data + bytes(-length % 4)


class Netlink:
    """A netlink socket of netfilter."""

    def __init__(self, groups: int = 0) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        self.socket.bind((0, groups))

    def ask(self, kind: int, flags: int, family: int, resource: int, data: bytes) -> list[bytes]:
        """The answers to one request."""
        body = struct.pack("=BBH", family, 0, socket.htons(resource)) + data
        self.socket.send(HEADER.pack(HEADER.size + len(body), kind, 1 | flags, 7, 0) + body)
        answers: list[bytes] = []
        while True:
            for answer, content in self.messages():
                if answer == 2:
                    (error,) = struct.unpack_from("=i", content)
                    if error:
                        raise OSError(-error, os.strerror(-error))
                    return answers
                if answer == 3:
                    return answers
                answers.append(content)

    def messages(self) -> list[tuple[int, bytes]]:
        """The messages of one datagram: their type and what is behind the header."""
        data = self.socket.recv(1 << 20)
        found, position = [], 0
        while position + HEADER.size <= len(data):
            length, kind, *_ = HEADER.unpack_from(data, position)
            found.append((kind, data[position + HEADER.size : position + length]))
            position += (max(length, HEADER.size) + 3) & ~3
        return found

    def waiting(self) -> list[tuple[int, bytes]]:
        """All messages that have come, and those that come right behind them.

        On a busy machine the kernel may put off what arrives, and with it the end of its way.
        """
        found: list[tuple[int, bytes]] = []
        while select.select([self.socket], [], [], QUIET_SECONDS)[0]:
            found += self.messages()
        return found

    def drain(self) -> None:
        """Forget the messages that have come."""
        while select.select([self.socket], [], [], 0)[0]:
            self.socket.recv(1 << 20)


Step = list[Any]


class LegacyTrace:
    """The TRACE target of the legacy backend, which logs to group 0 of nfnetlink_log."""

    def __init__(self) -> None:
        self.link = Netlink()
        for family in AF.values():
            setting(f"netfilter/nf_log/{int(family)}", "nfnetlink_log")
            self.link.ask(0x401, 4, family, 0, attribute(1, bytes([3])))  # PF_BIND
        self.link.ask(0x401, 4, 0, 0, attribute(1, bytes([1])))  # BIND to group 0
        # Copy the packet, and each one at once.
        mode = struct.pack(">IBx", 256, 2)
        self.link.ask(0x401, 4, 0, 0, attribute(2, mode) + attribute(5, struct.pack(">I", 1)))

    def learn(self) -> None:
        """Nothing to know about the rules: the log has their numbers."""

    def steps(self) -> list[tuple[bytes, Step]]:
        """Each step with the packet that took it, from the network header on."""
        found = []
        for kind, content in self.link.waiting():
            if kind != 0x400:
                continue
            parts = attributes(content, 4)
            prefix = parts[10].rstrip(b"\0").decode()
            table, chain, what, number = prefix.removeprefix("TRACE: ").strip().split(":")
            found.append((parts[9], [table, chain, what, int(number)]))
        return found


class NftTrace:
    """nftables' own trace; rules are named by their handles there."""

    def __init__(self, *, with_families: bool) -> None:
        self.with_families = with_families
        self.link = Netlink()
        self.link.socket.setsockopt(270, 1, 9)  # NETLINK_ADD_MEMBERSHIP: NFNLGRP_NFTRACE
        self.rules: dict[tuple[int, bytes, bytes, bytes], int] = {}

    def learn(self) -> None:
        """The number of each rule's handle."""
        link = Netlink()
        self.rules = {}
        counts: dict[tuple[int, bytes, bytes], int] = {}
        for content in link.ask(0xA07, 0x300, 0, 0, b""):
            parts = attributes(content, 4)
            chain = (content[0], parts[1], parts[2])
            counts[chain] = counts.get(chain, 0) + 1
            self.rules[*chain, parts[3]] = counts[chain]
        link.socket.close()

    def steps(self) -> list[tuple[bytes, Step]]:
        """Each step with the packet that took it, from the network header on."""
        found = []
        packets: dict[bytes, bytes] = {}
        for kind, content in self.link.waiting():
            if kind != 0xA11:
                continue
            parts = attributes(content, 4)
            if 8 in parts:
                packets[parts[6]] = parts[8] + parts.get(9, b"")
            names = [parts[key].rstrip(b"\0").decode() for key in (1, 2)]
            if self.with_families:
                names[0] = f"{ {1: 'inet', 2: 'ip', 10: 'ip6'}[content[0]] } {names[0]}"
            what = {1: "policy", 2: "return", 3: "rule"}[int.from_bytes(parts[4], "big")]
            number = 0
            if 3 in parts:
                number = self.rules[content[0], parts[1], parts[2], parts[3]]
            found.append((packets[parts[6]], [*names, what, number]))
        return found


# Packets.


def checksum(data: bytes) -> int:
    """The internet checksum."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(asked: dict[str, Any], flags: int, sequence: int = 1000, answer: int = 0) -> bytes:
    """A packet from the network header on."""
    family = AF[asked["family"]]
    source = socket.inet_pton(family, asked["source"])
    destination = socket.inet_pton(family, asked["destination"])
    ports = struct.pack(">HH", asked["source_port"], asked["destination_port"])
    protocol = asked["protocol"]
    if protocol == TCP:
        body = ports + struct.pack(">IIBBHHH", sequence, answer, 0x50, flags, 65535, 0, 0)
        place = 16
    else:
        body = ports + struct.pack(">HH", 12, 0) + b"test"
        place = 6
    pseudo = source + destination + struct.pack(">IHBB", len(body), 0, 0, protocol)
    if family == socket.AF_INET:
        pseudo = source + destination + struct.pack(">BBH", 0, protocol, len(body))
    body = body[:place] + struct.pack(">H", checksum(pseudo + body) or 0xFFFF) + body[place + 2 :]
    if family == socket.AF_INET:
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0)
        head += source + destination
        head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    else:
        head = struct.pack(">IHBB", 6 << 28, len(body), protocol, 64) + source + destination
    return head + body


def described(packet: bytes) -> tuple[int, int, int]:
    """Protocol, source port and TCP flags of a packet."""
    size = (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40
    protocol = packet[9] if packet[0] >> 4 == 4 else packet[6]
    transport = packet[size:]
    if len(transport) < 2 or protocol in {ICMP, ICMPV6}:
        return protocol, 0, 0
    flags = transport[13] & 0x17 if protocol == TCP and len(transport) > 13 else 0
    return protocol, int.from_bytes(transport[:2], "big"), flags


def unreachable(asked: dict[str, Any], about: bytes) -> bytes:
    """The packet that says that the port of another packet can't be reached."""
    family = AF[asked["family"]]
    source = socket.inet_pton(family, asked["source"])
    destination = socket.inet_pton(family, asked["destination"])
    if family == socket.AF_INET:
        body = bytes([3, 3, 0, 0, 0, 0, 0, 0]) + about
        body = body[:2] + struct.pack(">H", checksum(body)) + body[4:]
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, ICMP, 0)
        head += source + destination
        return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + body
    body = bytes([1, 4, 0, 0, 0, 0, 0, 0]) + about
    pseudo = source + destination + struct.pack(">IHBB", len(body), 0, 0, ICMPV6)
    body = body[:2] + struct.pack(">H", checksum(pseudo + body)) + body[4:]
    return struct.pack(">IHBB", 6 << 28, len(body), ICMPV6, 64) + source + destination + body


def scoped(address: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """What a socket takes for an address: a link-local one needs its interface too."""
    if address.startswith("fe80:"):
        return address, port, 0, socket.if_nametoindex("eth0")
    return address, port


class Wire:
    """The outer ends of the pod's links."""

    def __init__(self) -> None:
        self.ends = {}
        self.addresses = {}
        for number, name in enumerate(NAMES):
            end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            end.bind((f"peer{number}", 0))
            self.ends[name] = end
            # SIOCGIFHWADDR: /sys shows the links of the namespace that it was mounted in.
            answer = fcntl.ioctl(end, 0x8927, struct.pack("=16s24x", name.encode()))
            self.addresses[name] = answer[18:24]

    def put(self, name: str, family: str, packet: bytes) -> None:
        """Let a packet arrive at an interface of the pod."""
        kind = b"\x08\x00" if family == "ipv4" else b"\x86\xdd"
        self.ends[name].send(self.addresses[name] + b"\x02\0\0\0\0\x01" + kind + packet)

    def drain(self) -> None:
        """Forget what has been sent out so far."""
        for end in self.ends.values():
            while select.select([end], [], [], 0)[0]:
                end.recv(65536)

    def sent(self, port: int) -> tuple[str, bytes] | None:
        """The interface by which a UDP packet from *port* has gone out, and the packet."""
        limit = time.monotonic() + 0.1
        names = {end: name for name, end in self.ends.items()}
        while (rest := limit - time.monotonic()) > 0:
            for end in select.select(list(names), [], [], rest)[0]:
                packet = end.recv(65536)[14:]
                if described(packet)[:2] == (UDP, port):
                    return names[end], packet
        return None

    def syn_ack(self, name: str, port: int) -> int | None:
        """The sequence number in the answer to a SYN from *port*, or None without an answer."""
        limit = time.monotonic() + 0.2
        end = self.ends[name]
        while (rest := limit - time.monotonic()) > 0 and select.select([end], [], [], rest)[0]:
            packet = end.recv(65536)[14:]
            size = 20 if packet[0] >> 4 == 4 else 40
            transport = packet[size:]
            found = len(transport) >= 14 and int.from_bytes(transport[2:4], "big") == port
            if found and transport[13] & 0x12 == 0x12:
                return int.from_bytes(transport[4:8], "big")
        return None


def transparent(made: socket.socket) -> None:
    """Let a socket have any address."""
    if made.family == socket.AF_INET:
        made.setsockopt(socket.SOL_IP, 19, 1)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, 75, 1)


def listeners(ports: list[int]) -> list[socket.socket]:
    """Transparent TCP listeners, as Envoy has for TPROXY."""
    found = []
    for family in AF.values():
        for port in ports:
            made = socket.socket(family, socket.SOCK_STREAM)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            transparent(made)
            made.settimeout(0)
            made.bind(("", port))
            made.listen(1024)
            found.append(made)
    return found


class Sender:
    """Sends packets of every kind."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.opened: list[socket.socket] = []

    def send(self, asked: dict[str, Any], before: Any) -> bool:
        """Send one; *before* is called when what comes next is the packet in question."""
        if asked["state"] == "RELATED":
            return self.error(asked, before)
        if asked["in_interface"]:
            return self.arrive(asked, before)
        kind = socket.SOCK_STREAM if asked["protocol"] == TCP else socket.SOCK_DGRAM
        os.setegid(asked["gid"])
        os.seteuid(asked["uid"])
        try:
            made = socket.socket(AF[asked["family"]], kind)
        finally:
            os.seteuid(0)
            os.setegid(0)
        with made:
            made.settimeout(0)
            # Closed at once and without a trace, so that its port is free again.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            if asked["mark"]:
                made.setsockopt(socket.SOL_SOCKET, 36, asked["mark"])
            transparent(made)
            made.bind(scoped(asked["source"], asked["source_port"]))
            target = scoped(asked["destination"], asked["destination_port"])
            before()
            try:
                if asked["protocol"] == TCP:
                    made.connect(target)
                else:
                    made.sendto(b"test", target)
            except BlockingIOError:
                pass
            except PermissionError:
                # What a rule drops on its way out is told to the sender.
                pass
            except ConnectionRefusedError:
                pass
        return True

    def error(self, asked: dict[str, Any], before: Any) -> bool:
        """Let an ICMP error arrive, about a packet sent before, or have the kernel send one.

        It is about a UDP packet that went the other way.
        """
        name = asked["in_interface"]
        about = {
            **asked,
            "protocol": UDP,
            "state": "NEW",
            "source": asked["destination"],
            "destination": asked["source"],
            "in_interface": "" if name else asked["out_interface"],
        }
        if not name:
            before()
            return self.arrive(about, list)
        self.wire.drain()
        self.send(about, list)
        found = self.wire.sent(asked["source_port"])
        if found is None or found[0] != name:
            return False
        before()
        self.wire.put(name, asked["family"], unreachable(asked, found[1]))
        return True

    def arrive(self, asked: dict[str, Any], before: Any) -> bool:
        """Let a packet arrive, behind the first ones of its connection if it has to have one."""
        name, family = asked["in_interface"], asked["family"]
        if asked["state"] == "INVALID":
            before()
            self.wire.put(name, family, frame(asked, SYN | FIN))
            return True
        if asked["state"] == "ESTABLISHED":
            self.wire.drain()
            self.wire.put(name, family, frame(asked, SYN))
            sequence = self.wire.syn_ack(name, asked["source_port"])
            if sequence is None:
                return False
            before()
            self.wire.put(name, family, frame(asked, ACK, 1001, sequence + 1))
            return True
        before()
        self.wire.put(name, family, frame(asked, SYN))
        return True


#: Behind a rule that nft need not take.
DRAWN = "# drawn"

FLAGS = {"NEW": SYN, "ESTABLISHED": ACK, "INVALID": SYN | FIN}


def load_native(text: str) -> tuple[dict[str, str], str]:
    """Put native tables in place of all others, without the drawn rules that nft does not take."""
    lines = text.splitlines()
    while True:
        done = subprocess.run(
            ["nft", "-f", "-"],
            input="\n".join(lines) + "\n",
            encoding="utf-8",
            capture_output=True,
            check=False,
        )
        refused = {int(number) - 1 for number in re.findall(r"(?m)^\S+:(\d+):.*Error", done.stderr)}
        if not any(lines[number].endswith(DRAWN) for number in refused):
            break
        lines = ["" if number in refused else line for number, line in enumerate(lines)]
    listed = subprocess.run(
        ["nft", "list", "ruleset"], encoding="utf-8", capture_output=True, check=True
    )
    return {"native": listed.stdout}, done.stderr if done.returncode else ""


def load(backend: str, rules: dict[str, str]) -> tuple[dict[str, str], str]:
    """Put rules in place of all others; what is saved then, and what was complained of."""
    saved, complaints = {}, ""
    if backend == "native":
        return load_native(rules["native"])
    for family, text in rules.items():
        program = f"{'iptables' if family == 'ipv4' else 'ip6tables'}-{backend}"
        done = subprocess.run(
            [f"{program}-restore"], input=text, encoding="utf-8", capture_output=True, check=False
        )
        complaints += done.stderr if done.returncode else ""
        saved[family] = subprocess.run(
            [f"{program}-save"], encoding="utf-8", capture_output=True, check=True
        ).stdout
    return saved, complaints


def hang_up(listening: list[socket.socket]) -> None:
    """Take and close the connections that have come."""
    for each in listening:
        with contextlib.suppress(BlockingIOError):
            while True:
                each.accept()[0].close()


def main(backend: str) -> None:
    """Answer requests until there are no more."""
    make_pod()
    native = backend == "native"
    trace = LegacyTrace() if backend == "legacy" else NftTrace(with_families=native)
    sender = Sender(Wire())
    listening = listeners([80, 15001, 15006])
    routes: list[str] = []
    print(json.dumps(addresses()), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        saved, complaints = load(backend, request["rules"])
        if routes != request["routes"]:
            sh(*(route.replace(" add ", " del ") for route in reversed(routes)))
            routes = request["routes"]
            sh(*routes)
        trace.learn()
        paths: list[Any] = []
        for asked in request["packets"]:
            hang_up(listening)
            try:
                sent = sender.send(asked, trace.link.drain)
            except OSError as error:
                paths.append(f"{error}")
                continue
            flags = FLAGS[asked["state"]] if asked["protocol"] == TCP else 0
            is_error = asked["state"] == "RELATED"
            wanted = (asked["protocol"], 0 if is_error else asked["source_port"], flags)
            steps = [step for packet, step in trace.steps() if described(packet) == wanted]
            # An error that nobody had to send has no way.
            paths.append(steps if sent and (steps or not is_error) else None)
        print(json.dumps({"saved": saved, "error": complaints, "paths": paths}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
