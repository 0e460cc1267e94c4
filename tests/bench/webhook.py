"""The webhook under load: the table of ``make bench`` for reviews.

    python -m tests.bench.webhook [REVIEWS]

The webhook is a process of its own; its clients are threads of this one, each with a connection that
is kept, as an API server's are, and the next review after each answer. Memory is what the webhook has
of it (RSS) after a tenth of the reviews and after all of them, from 8 clients. The pods are those of
the tests that Istio injects.
"""

from __future__ import annotations

import json
import ssl
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.webhook.test_review import PODS
from tests.webhook.webhooks import review, running

if TYPE_CHECKING:
    from tests.webhook.webhooks import Running

BODIES = [json.dumps(review(document)).encode() for document, words in PODS.values() if not words]
HEAD = b"POST /inject?timeout=10s HTTP/1.1\r\nHost: w\r\nContent-Type: application/json\r\n"


def ask(webhook: Running, count: int, seconds: list[float], connected: threading.Barrier) -> None:
    """*count* reviews one after the other, and how long each took, once all are *connected*."""
    connection = webhook.connection()
    connection.connect()
    connected.wait()
    with connection.sock as sock:
        assert isinstance(sock, ssl.SSLSocket)
        for number in range(count):
            body = BODIES[number % len(BODIES)]
            started = time.perf_counter()
            sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            answer = sock.recv(1 << 16)
            head, _, content = answer.partition(b"\r\n\r\n")
            length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            while len(content) < length:
                content += sock.recv(1 << 16)
            seconds.append(time.perf_counter() - started)
            assert b'"allowed":true,"patchType":"JSONPatch"' in content, answer


def load(webhook: Running, clients: int, count: int) -> tuple[float, list[float]]:
    """*count* reviews by that many clients: how long all took, and each."""
    taken: list[list[float]] = [[] for _ in range(clients)]
    shares = [count // clients + (number < count % clients) for number in range(clients)]
    connected = threading.Barrier(clients + 1)
    threads = [
        threading.Thread(target=ask, args=(webhook, share, each, connected))
        for share, each in zip(shares, taken, strict=True)
    ]
    for each in threads:
        each.start()
    connected.wait()
    started = time.perf_counter()
    for each in threads:
        each.join()
    seconds = time.perf_counter() - started
    found = [one for each in taken for one in each]
    assert len(found) == count, f"{count - len(found)} reviews without an answer"
    return seconds, found


def resident(webhook: Running) -> float:
    """The memory that it has, in MB."""
    status = Path(f"/proc/{webhook.process.pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def main(count: int) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"webhook, {count // 5} reviews each")
        print(f"{'clients':<10}{'reviews/s':>10}{'median ms':>11}{'99 % ms':>9}")
        with running(Path(folder)) as webhook:
            load(webhook, 8, 100)
            for clients in (1, 8, 64):
                seconds, each = load(webhook, clients, count // 5)
                median, worst = statistics.median(each), statistics.quantiles(each, n=100)[98]
                rate = count // 5 / seconds
                print(f"{clients:<10}{rate:10.0f}{median * 1000:11.1f}{worst * 1000:9.1f}")
        with running(Path(folder)) as webhook:
            load(webhook, 8, count // 10)
            first = resident(webhook)
            load(webhook, 8, count - count // 10)
            last = resident(webhook)
        print(f"memory: {first:.1f} MB after {count // 10} reviews, {last:.1f} MB after {count}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
