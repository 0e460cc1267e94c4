"""Admission reviews that are odd at one place or more: what a mutation of their bytes seldom makes."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from istio_iptables.kubernetes import annotations as names
from tests.webhook.test_review import PODS, REFUSED, SKIPPED
from tests.webhook.webhooks import review

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

__all__ = ["SEEDS", "mutated", "sent"]

SEEDS = [
    *(json.dumps(review(document)).encode() for document, _ in PODS.values()),
    *(json.dumps(asked).encode() for asked, _ in (*SKIPPED, *REFUSED)),
]
SEEDS = [each for each in SEEDS if len(each) < 20_000]

_ANNOTATIONS = [
    *(text for text in vars(names).values() if isinstance(text, str) and "istio.io/" in text),
    *names.RESOURCES,
    "sidecar.istio.io/userVolume",
    "sidecar.istio.io/userVolumeMount",
    "sidecar.istio.io/capNetBindService",
    "sidecar.istio.io/bootstrapOverride",
    "traffic.sidecar.istio.io/excludeOutboundPort",
]
_TEXTS = (
    *("", " ", "x", "*", "-1", "0", "1", "65536", "1,2", "1,,2", "80,*", "9" * 5000, "\u0661", "1e309"),
    *("true", "TPROXY", "REDIRECT", "NONE", "on", "null", "~", "10.0.0.0/8", "fd00::/8", "300m", "1e-9"),
    *("[]", "{}", "[", "{", '{"a": {"name": 5}}', '[{"name": "v"}]', '{"v": {"mountPath": "/v"}}'),
    *("a: b", "a: [*b]", "&a [*a]", "- a", "--- a\n--- b", "proxyMetadata: {A: b}", "proxyMetadata: 5"),
    *("statusPort: 1", "statusPort: x", "tracing: []", "image: {imageType: debug}", "interceptionMode: NONE"),
    *("sidecar", "gateway", "istio-proxy", "istio-init", "auto", "/a b", "$(A)", "\ud800", "\x00", "é"),
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    80,
    65536,
    10**400,
    1.5,
    [],
    {},
    [[]],
    {"": {}},
)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container in *value*, with each of its keys or places."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def mutated(data: bytes, random: Random) -> bytes:
    """The document in *data* with some of it replaced, lost, said twice, or annotated."""
    try:
        document = json.loads(data)
        for _ in range(random.randint(1, 4)):
            _mutate(document, random)
        return json.dumps(document).encode()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return random.choice(SEEDS)


def _mutate(document: Any, random: Random) -> None:
    places = list(_places(document))
    holder, key = random.choice(places)
    way = random.randrange(6)
    if way == 0:
        holder[key] = copy.deepcopy(random.choice(_VALUES))
    elif way == 1:
        holder[key] = random.choice(_TEXTS)
    elif way == 2:
        other, name = random.choice(places)
        holder[key] = copy.deepcopy(other[name])
    elif way == 3:
        del holder[key]
    elif way == 4 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        metadata = document["request"]["object"]["metadata"]
        kind = random.choice(("annotations", "annotations", "annotations", "labels"))
        metadata.setdefault(kind, {})[random.choice(_ANNOTATIONS)] = random.choice(_TEXTS)


_HEADS = (
    b"POST /inject HTTP/1.1",
    b"POST /inject/cluster/c/net/n?timeout=10s HTTP/1.1",
    b"GET /healthz HTTP/1.1",
    b"HEAD /ready HTTP/1.0",
    b"POST /inject HTTP/1.0",
    b"Content-Type: application/json",
    b"Content-Type: text/plain",
    b"Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b"Content-Encoding: gzip",
    b"Expect: 100-continue",
    b"Connection: keep-alive",
    b"Connection: close",
    b" folded",
)


def sent(head: bytes, body: bytes, random: Random) -> bytes:
    """A request with *body*: the lines of *head* with another among them, or the usual ones."""
    lines = [each for each in head.split(b"\r\n") if not each.startswith(b"Content-Length")]
    if head:
        lines.insert(random.randint(0, len(lines)), random.choice(_HEADS))
    else:
        lines = [_HEADS[0], _HEADS[5]]
    lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join((*lines, b"", body))
