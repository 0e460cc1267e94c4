"""The webhook as a process: TLS, HTTP, slow clients, changed files, its end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from istio_iptables.errors import UsageProblems
from istio_iptables.webhook import server as server_module
from istio_iptables.webhook.files import Watched
from istio_iptables.webhook.log import Log, Metrics
from istio_iptables.webhook.requests import Reviews
from istio_iptables.webhook.server import Client, Server
from tests.program import run
from tests.webhook.test_review import SETTINGS
from tests.webhook.webhooks import (
    AUTHORITY,
    CLI,
    JSON,
    Running,
    certificate,
    patch_of,
    pod,
    review,
    running,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def webhook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One that all tests may ask."""
    folder = tmp_path_factory.mktemp("webhook")
    with running(folder, "--metrics-listen", "127.0.0.1:0") as found:
        yield found


def metrics(webhook: Running) -> dict[str, float]:
    """What Prometheus gets, by the names of the samples."""
    port = webhook.ports["metrics"]
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    lines = (line.rpartition(" ") for line in body.decode().splitlines() if line[:1] != "#")
    return {name: float(value) for name, _, value in lines}


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            found += part
    return found


def tls(webhook: Running) -> ssl.SSLSocket:
    """A connection for bytes of one's own."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    plain = socket.create_connection(("127.0.0.1", webhook.port), 60)
    return context.wrap_socket(plain, server_hostname="localhost")


def request(asked: dict[str, Any], *headers: str) -> bytes:
    """A request in the bytes that it is sent with."""
    body = json.dumps(asked).encode()
    lines = ["POST /inject HTTP/1.1", "Host: webhook", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def test_a_review(webhook: Running) -> None:
    """It is answered, logged and counted."""
    before = metrics(webhook)
    found = webhook.ask(review(pod()))
    assert patch_of(found.response)
    assert found.headers["Content-Type"] == "application/json"
    refused = webhook.ask(review(pod({"sidecar.istio.io/interceptionMode": "x"})))
    assert not refused.response["allowed"]
    assert webhook.ask(review(pod(hostNetwork=True))).response["allowed"]
    first, second, third = webhook.log[-3:]
    assert set(first) == {
        "time",
        "uid",
        "namespace",
        "name",
        "kind",
        "verdict",
        "reason",
        "warnings",
        "ms",
    }
    assert first["uid"] == review(None)["request"]["uid"]
    assert (first["namespace"], first["name"], first["kind"]) == ("shop", "web", "Pod")
    assert [each["verdict"] for each in (first, second, third)] == [
        "injected",
        "refused",
        "skipped",
    ]
    assert "is not REDIRECT, TPROXY or NONE" in second["reason"]
    after = metrics(webhook)
    counted = {name: after[name] - before[name] for name in before if "injection" in name}
    assert counted["sidecar_injection_requests_total"] == 3
    assert counted["sidecar_injection_success_total"] == 1
    assert counted["sidecar_injection_failure_total"] == 1
    assert counted["sidecar_injection_skip_total"] == 1
    assert counted["sidecar_injection_time_seconds_count"] == 3


def test_health(webhook: Running) -> None:
    """On both ports, for a kubelet, which does not look at the certificate."""
    for path in ("/healthz", "/ready", "/healthz?verbose"):
        assert webhook.ask(None, path, {}, "GET").body == b"ok\n"
        assert webhook.ask(None, path, {}, "HEAD").body == b""
    assert webhook.ask(None, "/metrics", {}, "GET").status == 404


def test_many_on_one_connection(webhook: Running) -> None:
    """Keep-alive, also after a refusal; an error closes it."""
    with contextlib.closing(webhook.connection()) as connection:
        for document in (pod(), {}, pod()):
            connection.request("POST", "/inject", json.dumps(review(document)), JSON)
            found = connection.getresponse()
            assert (found.status, found.will_close) == (200, False)
            found.read()
        connection.request("POST", "/inject", b"{", JSON)
        found = connection.getresponse()
        assert (found.status, found.will_close) == (400, True)


GOOD = json.dumps(review(pod())).encode()
BAD_REQUESTS: list[tuple[bytes, str]] = [
    (b"GET /inject HTTP/1.1\r\n\r\n", "405"),
    (b"HEAD /inject HTTP/1.1\r\n\r\n", "405"),
    (b"PUT /inject HTTP/1.1\r\n\r\n", "501"),
    (b"GET / HTTP/1.1\r\n\r\n", "404"),
    (request(review(pod())).replace(b"/inject", b"/other"), "404"),
    (request(review(pod())).replace(b"/inject", b"/injected"), "404"),
    (request(review(pod())).replace(b"application/json", b"text/plain"), "415"),
    (request(review(pod())).replace(b"Content-Type", b"X"), "415"),
    (request(review(pod()), "Content-Encoding: gzip"), "415"),
    (request(review(pod())).replace(b"Content-Length", b"X"), "411"),
    (request(review(pod()), "Transfer-Encoding: chunked"), "411"),
    (request(review(pod()), "Content-Length: 5"), "400"),
    (request(review(pod())).replace(b"Content-Length: ", b"Content-Length: -"), "400"),
    (request(review(pod())).replace(b"Content-Length: ", b"Content-Length: 0x"), "400"),
    (request(review(pod())).replace(b"Content-Length: ", b"Content-Length: 9999999"), "413"),
    (request(review(pod())).replace(b"Content-Length: ", b"Content-Length: " + b"9" * 5000), "413"),
    (request({"no": "review"}), "400"),
    (b"POST /inject HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", "431"),
    (b"POST /inject HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "431"),
    (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", "4"),
    (b"POST /inject HTTP/2.0\r\n\r\n", "505"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"),
    (b"\x00\x01\x02\r\n\r\n", "400"),
    (b"POST\r\n\r\n", "400"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "status"), BAD_REQUESTS, ids=range(len(BAD_REQUESTS)))
def test_bad_requests(webhook: Running, sent: bytes, status: str) -> None:
    """An error of HTTP, never 200, and the connection is closed."""
    with tls(webhook) as connection:
        connection.sendall(sent)
        found = read_all(connection)
    assert found.startswith(b"HTTP/1.1 " + status.encode()), found
    assert b"\r\nConnection: close\r\n" in found
    assert webhook.ask(GOOD).response["allowed"]


def test_a_body_that_is_too_large_hears_of_it(webhook: Running) -> None:
    """Although not all of it is read."""
    found = webhook.ask(b" " * (20 << 20))
    assert (found.status, found.body) == (413, b"the body is larger than 6291456 bytes\n")


def test_expect_100_continue(webhook: Running) -> None:
    """The body is asked for, unless the head is enough for a refusal."""
    sent = request(review(pod()), "Expect: 100-continue")
    head, _, body = sent.partition(b"\r\n\r\n")
    with tls(webhook) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    with tls(webhook) as connection:
        connection.sendall(head.replace(b"/inject", b"/other") + b"\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 404 ")


def test_no_tls(webhook: Running) -> None:
    """Plain HTTP and a client that trusts somebody else get nothing; the latter is told of."""
    before = metrics(webhook)["istio_iptables_webhook_connection_failures_total"]
    with socket.create_connection(("127.0.0.1", webhook.port), 60) as connection:
        connection.sendall(request(review(pod())))
        assert b"HTTP/1.1 200" not in read_all(connection)
    with pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(
            socket.create_connection(("127.0.0.1", webhook.port), 60), server_hostname="localhost"
        )
    webhook.wait_for("warning: connection from 127.0.0.1 failed: TLS: HTTP_REQUEST")
    while metrics(webhook)["istio_iptables_webhook_connection_failures_total"] < before + 2:
        time.sleep(0.01)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", webhook.port), 60) as connection,
        pytest.raises((ssl.SSLError, OSError)),
    ):
        old.wrap_socket(connection, server_hostname="localhost")


def test_who_waits_makes_room(tmp_path: Path) -> None:
    """More connections than there are threads, silent before, in and after TLS: others are answered."""
    with running(tmp_path, "--max-connections", "4") as webhook, contextlib.ExitStack() as stack:
        for number in range(12):
            if number % 3:
                silent: socket.socket = stack.enter_context(tls(webhook))
                silent.sendall(request(review(pod()))[: 40 * number])
            else:
                address = ("127.0.0.1", webhook.port)
                silent = stack.enter_context(socket.create_connection(address, 60))
            assert webhook.ask(GOOD).response["allowed"]


def address_of(server: Server) -> tuple[str, int]:
    """Where it listens."""
    host, port = server.server_address[:2]
    return str(host), port


@contextlib.contextmanager
def served(limit: int = 4) -> Iterator[Server]:
    """A server in this process, without TLS."""
    log = Log(lambda _: None, lambda *_: None, Metrics())

    handler = partial(Reviews, settings=lambda: SETTINGS, log=log)
    server = Server(("127.0.0.1", 0), handler, limit=limit)
    server.start()
    try:
        yield server
    finally:
        server.drain(60)


def test_nobody_has_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that goes on byte by byte, and one that is not begun, are ended; so is silence after one."""
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(server_module, "_IDLE_SECONDS", 0.3)
    with served() as server:
        address = address_of(server)
        for first in (b"", b"POST /inject HTTP/1.1\r\n", request(review(pod()))):
            with socket.create_connection(address, 60) as connection:
                connection.sendall(first)
                if first and not first.endswith(b"}"):
                    with contextlib.suppress(OSError):
                        while True:
                            connection.sendall(b"X")
                            time.sleep(0.01)
                read_all(connection)
        while server.connections:
            time.sleep(0.01)


def test_a_body_that_ends_early() -> None:
    """What is missing of it is not made up."""
    with served() as server, socket.create_connection(address_of(server), 60) as connection:
        connection.sendall(request(review(pod()))[:-10])
        connection.shutdown(socket.SHUT_WR)
        found = read_all(connection)
    assert found.startswith(b"HTTP/1.1 400 ")
    assert found.endswith(b"\r\n\r\nthe body is shorter than its Content-Length\n")


def test_many_large_bodies_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nine one is refused, and small ones are answered; large ones again when there is room."""
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 600)
    large = request(review(pod(odd="x" * 300_000)))
    small = request(review(pod()), "Connection: close")
    with served(limit=16) as server:
        address = address_of(server)
        with contextlib.ExitStack() as stack:
            sent = []
            for _ in range(9):
                sent.append(stack.enter_context(socket.create_connection(address, 60)))
                sent[-1].sendall(large[:-1])
            (answered,), _, _ = select.select(sent, [], [], 60)
            assert read_all(answered).startswith(b"HTTP/1.1 503 ")
            with socket.create_connection(address, 60) as connection:
                connection.sendall(small)
                assert read_all(connection).startswith(b"HTTP/1.1 200 ")
        while server.connections:
            time.sleep(0.01)
        with socket.create_connection(address, 60) as connection:
            connection.sendall(large)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers fill the kernel's buffers; then its time runs out."""
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.3)
    with served() as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address_of(server))
        with contextlib.suppress(OSError):
            for _ in range(100_000):
                connection.sendall(request(review(pod())))
        while server.connections:
            time.sleep(0.01)


def test_a_large_answer_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the client to acknowledge its first part, which takes 40 ms."""
    seen: list[int] = []

    def asked(client: Client, *_: object) -> Any:
        seen.append(client.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        raise ConnectionError

    with served() as server:
        monkeypatch.setattr(server, "_handler", asked)
        with socket.create_connection(address_of(server), 60) as connection:
            read_all(connection)
    assert seen == [1]


def test_the_threads_are_counted() -> None:
    """Never more than the limit, however many connect at once."""
    seen: list[int] = []
    with served(limit=3) as server, contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(address_of(server), 60))
            seen.append(server.connections)
    assert max(seen) <= 3
    assert not server.connections


def swap(folder: Path, name: str, **files: bytes) -> None:
    """Put *files* into a folder as a kubelet does: another folder, and a link to it that is replaced."""
    (folder / name).mkdir()
    for file, content in files.items():
        (folder / name / file.replace("_", ".")).write_bytes(content)
    (folder / "..new").symlink_to(name)
    (folder / "..new").rename(folder / "..data")
    for file in files:
        with contextlib.suppress(FileExistsError):
            (folder / file.replace("_", ".")).symlink_to(f"..data/{file.replace('_', '.')}")


def shown(webhook: Running) -> bytes:
    """The certificate that it shows."""
    with tls(webhook) as connection:
        found = connection.getpeercert(binary_form=True)
    assert found
    return found


def test_changed_files(tmp_path: Path) -> None:
    """They are read again; broken ones are told of, and what was read before stays."""
    volume = tmp_path / "volume"
    volume.mkdir()

    def swap_certificate(name: str, *, broken: bool = False) -> None:
        cert, key = (each.read_bytes() for each in certificate(tmp_path / f"made-{name}"))
        other = certificate(tmp_path / "other")[1].read_bytes()
        swap(volume, name, tls_crt=cert, tls_key=other if broken else key)

    def image(webhook: Running) -> str:
        patch = patch_of(webhook.ask(GOOD).response)
        (containers,) = (o["value"] for o in patch if o["path"] == "/spec/initContainers")
        found: str = containers[0]["image"].rpartition(":")[2]
        return found

    values = tmp_path / "values.yaml"
    values.write_text("global: {tag: one}\n")
    swap_certificate("first")
    files = volume / "tls.crt", volume / "tls.key"
    with running(tmp_path, "--values", str(values), files=files) as webhook:
        first = shown(webhook)
        with contextlib.closing(webhook.connection()) as connection:
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            swap_certificate("second", broken=True)
            values.write_text("global: {tag: two\n")
            webhook.wait_for("error: certificate changed and can't be used: --tls-key: ")
            webhook.wait_for("error: certificate: what was read before stays")
            webhook.wait_for("error: configuration changed and can't be used: ")
            assert (shown(webhook), image(webhook)) == (first, "one")
            swap_certificate("third")
            values.write_text("global: {tag: two}\n")
            webhook.wait_for("info: certificate changed: read again")
            webhook.wait_for("info: configuration changed: read again")
            # A connection that there was goes on.
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b"ok\n"
        assert shown(webhook) != first
        assert image(webhook) == "two"


def test_files_are_used_when_they_rest(tmp_path: Path) -> None:
    """A file that is being written is not read, one that says the same again is no news."""
    path = tmp_path / "file"
    path.write_text("one")
    told: list[str] = []
    failures: list[int] = []

    def load() -> str:
        if path.read_text() == "bad":
            raise UsageProblems(["first", "second"])
        if path.read_text() == "worse":
            raise KeyError("x")  # noqa: EM101 - a mistake of our own
        return path.read_text()

    def tell(kind: str, lines: list[str]) -> None:
        told.extend(f"{kind}: {line}" for line in lines)

    watched = Watched("thing", [str(path)], load, tell, lambda: failures.append(1))
    for text, values in (
        ("one", ["one", "one", "one"]),
        ("t", ["one"]),
        ("two", ["one", "two", "two"]),
        ("bad", ["two", "two", "two"]),
        ("worse", ["two", "two", "two"]),
        ("two", ["two", "two"]),
        ("three", ["two", "three"]),
    ):
        path.write_text(text)
        for value in values:
            watched.refresh()
            assert watched.value == value
    assert told == [
        "info: thing changed: read again",
        "error: thing changed and can't be used: first",
        "error: thing changed and can't be used: second",
        "error: thing: what was read before stays",
        "error: thing changed and can't be used: internal error: KeyError: 'x'",
        "error: thing: what was read before stays",
        "info: thing changed: read again",
        "info: thing changed: read again",
    ]
    assert failures == [1, 1]
    path.unlink()
    watched.refresh()
    assert watched.value == "three"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_its_end(tmp_path: Path, number: signal.Signals) -> None:
    """What has begun is answered, an idle connection is closed, a new one is refused; status 0."""
    sent = request(review(pod()))
    with running(tmp_path) as webhook, tls(webhook) as begun, tls(webhook) as idle:
        idle.sendall(sent)
        assert idle.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        begun.sendall(sent[:-10])
        time.sleep(0.2)
        webhook.process.send_signal(number)
        webhook.wait_for("info: ends")
        read_all(idle)
        with contextlib.suppress(ConnectionError):
            while True:
                socket.create_connection(("127.0.0.1", webhook.port), 60).close()
        begun.sendall(sent[-10:])
        answered = read_all(begun)
        assert answered.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in answered
        assert webhook.process.wait(60) == 0


def test_a_signal_may_come_twice(tmp_path: Path) -> None:
    """As timeout(1) sends it, to the process and to its group: that is one wish to end."""
    sent = request(review(pod()))
    with running(tmp_path) as webhook, tls(webhook) as begun:
        begun.sendall(sent[:-10])
        time.sleep(0.1)
        # While it is stopped, so that they all wait for it at once.
        for number in (
            signal.SIGSTOP,
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGHUP,
            signal.SIGCONT,
        ):
            webhook.process.send_signal(number)
        webhook.wait_for("info: ends")
        begun.sendall(sent[-10:])
        assert read_all(begun).startswith(b"HTTP/1.1 200 ")
        assert webhook.process.wait(60) == 0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """While it waits for a client that does not come to an end."""
    cert, key = certificate(tmp_path)
    process = subprocess.Popen(
        [CLI, "webhook", "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    webhook = Running(process, tmp_path / "none")
    webhook.wait_for("reviews (HTTPS) at ")
    with tls(webhook) as begun:
        begun.sendall(request(review(pod()))[:-10])
        time.sleep(0.2)
        process.terminate()
        webhook.wait_for("info: ends")
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    webhook.wait_for("error: interrupted")


def test_the_log_is_lost_but_not_the_pod(tmp_path: Path) -> None:
    """A stdout that takes nothing more keeps nobody out."""
    cert, key = certificate(tmp_path)
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [CLI, "webhook", "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key],
            stderr=subprocess.PIPE,
            stdout=full,
            text=True,
        )
    webhook = Running(process, tmp_path / "none")
    webhook.wait_for("reviews (HTTPS) at ")
    assert webhook.ask(GOOD).response["allowed"]
    assert webhook.ask(GOOD).response["allowed"]
    process.terminate()
    process.wait(60)


def test_mistakes_on_the_command_line(tmp_path: Path) -> None:
    """Each is a line, and nothing listens."""
    cert, key = certificate(tmp_path)
    (tmp_path / "b").mkdir()
    other = certificate(tmp_path / "b")[1]
    encrypted = tmp_path / "encrypted"
    subprocess.run(
        ["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", key, "-out", encrypted],
        check=True,
        capture_output=True,
    )
    text, pipe = tmp_path / "text", tmp_path / "pipe"
    text.write_text("x")
    os.mkfifo(pipe)
    good = ["webhook", "--tls-cert", str(cert), "--tls-key", str(key), "--listen", "127.0.0.1:0"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for status, words, line in (
            (2, ["webhook"], "--tls-cert: is missing: the webhook is asked over HTTPS only"),
            (2, [*good, "--tls-cert", "/nowhere"], "--tls-cert: can't read /nowhere: No such file"),
            (2, [*good, "--tls-cert", str(text)], f"--tls-cert: {text} holds no CERTIFICATE"),
            (2, [*good, "--tls-key", str(other)], f"--tls-key: {other} is not the key of {cert}"),
            (
                2,
                [*good, "--tls-key", str(encrypted)],
                "is encrypted: give a key without a passphrase",
            ),
            (2, [*good, "--tls-key", str(cert)], f"--tls-key: {cert} holds no PRIVATE KEY in PEM"),
            (2, [*good, "--listen", "9443"], "--listen: '9443' is no ADDRESS:PORT"),
            (2, [*good, "--listen", "::1:9443"], "--listen: '::1:9443' is no ADDRESS:PORT"),
            (2, [*good, "--listen", ":70000"], "--listen: ':70000' is no ADDRESS:PORT"),
            (2, [*good, "--metrics-listen", "x"], "--metrics-listen: 'x' is no ADDRESS:PORT"),
            (1, [*good, "--listen", f"127.0.0.1:{port}"], "Address already in use"),
            (1, [*good, "--listen", "no.such.host.invalid:1"], "--listen: can't listen at no.such"),
            (2, [*good, "--max-connections", "0"], "--max-connections"),
            (2, [*good, "--values", "-"], "'-': can't be read again when it changes: give a file"),
            (2, [*good, "--mesh-config", str(pipe)], f"{pipe}': can't be read again when it"),
            (2, [*good, "--tls-key", str(tmp_path)], f"{tmp_path}': can't be read again when it"),
            (2, [*good, "--values", "/nowhere"], "can't read /nowhere"),
            (2, [*good, "--set", "global.proxy.resources=5"], "value global.proxy.resources"),
            (2, [*good, "--tls-certs", "x"], "--tls-certs: "),
        ):
            result = run(words)
            assert result.status == status, (words, result)
            assert line in result.err, (words, result.err)
            assert "Traceback" not in result.err
            assert result.out == ""


def test_without_the_library_of_prometheus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics are refused with what is to be installed."""
    cert, key = certificate(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    words = ["--tls-cert", str(cert), "--tls-key", str(key), "--metrics-listen", ":0"]
    result = run(["webhook", "--listen", "127.0.0.1:0", *words])
    assert result.status == 2
    assert result.errors == [
        "--metrics-listen: needs prometheus_client: pip install prometheus_client"
    ]


def test_many_at_once(webhook: Running) -> None:
    """Each thread of clients gets the answers to its own questions."""
    failures: list[object] = []

    def ask(number: int) -> None:
        with contextlib.closing(webhook.connection()) as connection:
            for turn in range(10):
                uid = f"{number}-{turn}"
                connection.request("POST", "/inject", json.dumps(review(pod(), uid=uid)), JSON)
                found = json.loads(connection.getresponse().read())
                if found["response"]["uid"] != uid or not found["response"]["allowed"]:
                    failures.append(found)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failures
    assert os.path.exists(f"/proc/{webhook.process.pid}")  # noqa: PTH110 - it runs
