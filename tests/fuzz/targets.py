"""What is true of the program whatever it is given: of its reader, its commands and its flags.

Each function takes bytes, and fails when the program does anything but answer or refuse. They
are called with bytes that hypothesis makes (tests/test_fuzz.py) and that atheris makes (fuzz.py).
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import jsonpatch
import kubernetes_validate

from istio_iptables.commands import apply
from istio_iptables.differences.rulesets import diff_rulesets
from istio_iptables.errors import SaveFileError
from istio_iptables.istio.ownership import find_owned
from istio_iptables.netfilter import savefile
from istio_iptables.netfilter.canonical import canonical
from istio_iptables.netfilter.documents import decode_lines, read
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.packet import Packet, Surroundings
from istio_iptables.trace.hooks import trace
from istio_iptables.webhook.log import Log, Metrics
from istio_iptables.webhook.requests import Reviews
from istio_iptables.webhook.review import NoReview, answer
from istio_iptables.webhook.server import Client
from tests.program import run
from tests.webhook.test_review import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_iptables.netfilter.model import Ruleset
    from tests.program import Result

__all__ = ["TARGETS", "flags", "packet", "reader", "requests", "review", "rules"]

_PACKETS = (
    Packet(Family.IPV4, 6, "10.0.0.2", "1.2.3.4", 4000, 80, out_interface="eth0", uid=0, gid=0),
    Packet(Family.IPV4, 17, "1.2.3.4", "10.0.0.2", 4000, 53, in_interface="eth0"),
    Packet(Family.IPV6, 6, "fd00::2", "::1", 4000, 80, out_interface="lo", uid=0, gid=0),
)


def reader(data: bytes) -> None:
    """A ruleset whose text is the one that was read, or the line that is wrong.

    What was read has a canonical form, no difference from itself, and takes packets.
    """
    try:
        found = read(decode_lines(io.BytesIO(data).readline))
    except SaveFileError as error:
        line = error.line
        found = ()
    else:
        line = 1
    assert 1 <= line <= data.count(b"\n") + 1
    for ruleset in found:
        _ruleset(ruleset)


def _ruleset(ruleset: Ruleset) -> None:
    text = savefile.render(ruleset)
    again = savefile.parse(text, ruleset.family)
    assert savefile.render(again) == text
    assert not diff_rulesets((again,), (ruleset,))
    diff_rulesets((ruleset,), (), find_owned)
    for table in ruleset.tables:
        for chain in table.chains:
            for rule in chain.rules:
                once = canonical(rule, ruleset.family)
                assert canonical(once, ruleset.family).text == once.text, rule.text
    for each in _PACKETS:
        if each.family is ruleset.family:
            trace(ruleset, each, Surroundings(), misses=True)


def rules(data: bytes) -> None:
    """A file of these bytes is explained and compared, in words and as JSON, or refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rules")
        path.write_bytes(data)
        _answered(["explain", "-i", "*", "-b", "*", "--rules", str(path), "-v"])
        _answered(["explain", "-m", "TPROXY", "-b", "*", "--rules", str(path), "--in", "--json"])
        _answered(["diff", "-i", "*", "-b", "*", "--against", str(path)])
        _answered(["diff", "-i", "*", "--against", str(path), "--json"])
        _answered(["diff", "--golden", str(path)])


def flags(data: bytes) -> None:
    """A dry run with these arguments (NUL between them) prints rules, or says what is wrong."""
    _answered(["-n", *_words(data)])


def packet(data: bytes) -> None:
    """A packet with these options is followed, or what is wrong with them is said."""
    _answered(["explain", "-i", "*", "--ip-family", "dual", *_words(data)])


#: Log flags take the next word, whatever it is, and a namespace is looked up on the machine.
_NOT_HERE = ("--log", "--live", "--network", "--dry", "-n=", "--rules", "--run-validation")


def _words(data: bytes) -> list[str]:
    """The arguments in *data*, without those that lead out of this process."""
    words = data.decode(errors="surrogateescape").split("\0")
    return [word for word in words if not word.startswith(_NOT_HERE)]


def _answered(arguments: Sequence[str]) -> Result:
    """What the program says; nothing but lines, and a status that it promises."""
    with mock.patch.object(apply, "_apply", side_effect=AssertionError("not a dry run")):
        result = run(arguments, {"DRY_RUN": "true"})
    assert result.status in {0, 1, 2}, result
    told = result.err.split("\n")
    assert told.pop() == "", result
    for line in told:
        assert line.startswith("istio-iptables: "), result
        assert line.isprintable(), result
    if result.status == 2:
        assert result.errors, result
        assert not result.out, result
    elif arguments[0] in {"explain", "diff"}:
        if "--json" in arguments:
            json.loads(result.out)
        elif not {"-h", "--help"} & {*arguments}:
            assert all(line.isprintable() for line in result.out.split("\n")), result
    return result


def review(data: bytes) -> None:
    """A body of these bytes has an answer that the API server takes, or none.

    What is let in without a patch is left alone by Istio, or is injected already; the patch of
    another pod keeps its containers, and makes nothing invalid of a valid pod.
    """
    try:
        found = answer(data, "/inject", SETTINGS)
    except NoReview:
        return
    asked = json.loads(data)["request"]
    _review(found.document, asked)
    assert found.verdict in {"injected", "skipped", "refused"}, found
    response = found.document["response"]
    assert response["allowed"] is (found.verdict != "refused")
    assert "patch" not in response or found.verdict == "injected"
    if found.verdict == "injected":
        before = asked["object"]
        patch = json.loads(base64.b64decode(response.get("patch", "W10="), validate=True))
        after = jsonpatch.apply_patch(before, patch)
        # An istio-proxy of one's own may become an init container.
        names = [
            {each["name"] for key in keys for each in pod["spec"].get(key) or ()}
            for pod, *keys in ((before, "containers"), (after, "containers", "initContainers"))
        ]
        assert names[0] <= names[1]
        # A user's own volumes are taken word for word, as in Istio. The rest takes longer than all before.
        own = "userVolume" in json.dumps(before.get("metadata"))
        if not own and zlib.crc32(data) % 16 == 0 and _is_valid(before):
            assert _is_valid(after), after


def _is_valid(pod: dict[str, Any]) -> bool:
    try:
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError:
        return False
    return True


def _review(document: dict[str, Any], asked: dict[str, Any]) -> None:
    """Fail if *document* is no answer to what was *asked*."""
    assert document.keys() == {"apiVersion", "kind", "response"}
    assert document["kind"] == "AdmissionReview"
    response = document["response"]
    assert response["uid"] == asked["uid"]
    needed, allowed = {"uid", "allowed"}, {"patchType", "patch", "status", "warnings"}
    assert needed <= response.keys() <= needed | allowed
    assert all(each.isprintable() for each in response.get("warnings", ()))
    assert ("patch" in response) is ("patchType" in response)
    if response["allowed"]:
        assert "status" not in response
    else:
        assert "patch" not in response
        status = response["status"]
        assert status.keys() == {"status", "message", "reason", "code"}
        assert 400 <= status["code"] < 600
        assert status["message"]


class _Connection:
    """The other side has sent *data* and no more."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.sent = io.BytesIO()
        self.sent.close = lambda: None  # type: ignore[method-assign]  # it is read afterwards

    def makefile(self, mode: str) -> Any:
        """What is read from it or written to it."""
        return self.sent if mode == "wb" else io.BufferedReader(io.BytesIO(self._data))


def requests(data: bytes) -> None:
    """These bytes after a handshake have answers of HTTP; one of 200 is health, or answers a review."""
    connection: Any = _Connection(data)
    server: Any = mock.Mock(draining=False)
    log = Log(lambda line: json.loads(line), lambda *_: None, Metrics())  # noqa: PLW0108 - a log line is JSON
    Reviews(Client(connection), ("::1", 1), server, lambda: SETTINGS, log).handle()
    left = connection.sent.getvalue()
    for _ in range(data.count(b"\n") + 1):
        if not left:
            break
        head, _, rest = left.partition(b"\r\n\r\n")
        status, _, lines = head.partition(b"\r\n")
        assert status.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")), left
        code = int(status.split()[1])
        if code == 100:
            left = rest
            continue
        headers = http.client.parse_headers(io.BytesIO(lines + b"\r\n\r\n"))
        length = int(headers["Content-Length"])
        is_review = headers["Content-Type"] == "application/json"
        body, left = rest[:length], rest[length:]
        if is_review:
            assert code == 200
            document = json.loads(body)
            _review(document, document["response"])
        elif code == 200:
            # Of an answer to HEAD there is no body.
            if not body.startswith(b"ok\n"):
                left = body + left
        else:
            assert 400 <= code < 600
            assert headers["Connection"] == "close"
            break


TARGETS = {each.__name__: each for each in (reader, rules, flags, packet, review, requests)}
