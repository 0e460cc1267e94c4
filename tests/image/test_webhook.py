"""The image as the webhook of docs/kubernetes.md: the arguments, files, user and file system of its Deployment."""

from __future__ import annotations

import base64
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.image.images import Container
from tests.image.test_image import in_a_pod
from tests.webhook.test_cluster import CONTAINER, POD
from tests.webhook.webhooks import certificate, review

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kernel, pytest.mark.image]

#: Starts the webhook, asks it as an API server, a kubelet and Prometheus do, and ends it.
_ASK = """
import json, ssl, subprocess, sys, urllib.request
words, review = json.loads(sys.argv[1]), sys.argv[2].encode()
webhook = subprocess.Popen(["istio-iptables", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
told = [webhook.stderr.readline(), webhook.stderr.readline()]
assert "metrics" in told[1], told
tls = ssl._create_unverified_context()
def get(url, data=None):
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    return urllib.request.urlopen(asked, context=tls if url[4] == "s" else None).read().decode()
answers = [get("https://10.0.0.1:9443/inject", review), get("https://10.0.0.1:9443/ready")]
answers.append(get("http://10.0.0.1:9090/metrics"))
webhook.terminate()
log, err = webhook.communicate()
print(json.dumps([webhook.returncode, log, "".join(told) + err, *answers]))
"""


@pytest.fixture
def mounted(root: Path) -> Any:
    """The image with what the Deployment mounts."""
    tops = [root / "etc" / "webhook", root / "etc" / "istio"]
    for folder in (tops[0] / "tls", tops[1] / "inject", tops[1] / "config"):
        folder.mkdir(parents=True)
    for each in certificate(tops[0] / "tls", "webhook"):
        each.chmod(0o644)
    (tops[1] / "inject" / "values").write_text('{"global": {"hub": "h", "tag": "1.25.2"}}')
    (tops[1] / "config" / "mesh").write_text("accessLogFile: /dev/stdout\n")
    yield root
    for each in tops:
        shutil.rmtree(each)


def test_the_webhook(mounted: Path) -> None:
    """As an unprivileged user on a read-only file system, it answers reviews and gives metrics."""
    security = CONTAINER["securityContext"]
    assert security["readOnlyRootFilesystem"]
    container = Container(mounted, security["runAsUser"], security["runAsGroup"], read_only=True)
    words = json.dumps(CONTAINER["args"]), json.dumps(review(POD))
    (done,) = in_a_pod(container, (["python3", "-c", _ASK, *words], {}))
    assert done.status == 0, done.err
    status, log, told, answer, ready, metrics = json.loads(done.out)
    assert (status, ready) == (0, "ok\n"), told
    response = json.loads(answer)["response"]
    assert response["allowed"], response
    patch = json.loads(base64.b64decode(response["patch"]))
    (init,) = next(each["value"] for each in patch if each["path"] == "/spec/initContainers")
    assert init["image"] == CONTAINER["image"]
    assert json.loads(log)["verdict"] == "injected"
    assert "sidecar_injection_success_total 1.0\n" in metrics
    assert all(line.startswith("istio-iptables: info: ") for line in told.splitlines()), told
