"""A small API server for kubectl: discovery, create and get, and admission by webhooks over TLS.

It is no kube-apiserver: no authentication, no defaults, no watches, and of admission only the mutating
webhooks, in the way that the API server asks them: selectors, rules, a review over HTTPS with the
configuration's CA, the uid of the answer, the JSON patch, failurePolicy. What comes out is held
against Kubernetes' schemas, strictly.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import http.client
import json
import ssl
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NoReturn

import jsonpatch
import kubernetes_validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Api", "serving"]

#: What it knows: the plural of each kind, and its group and version.
_KINDS = {
    "Pod": ("pods", "v1"),
    "Service": ("services", "v1"),
    "Deployment": ("deployments", "apps/v1"),
    "PodDisruptionBudget": ("poddisruptionbudgets", "policy/v1"),
    "MutatingWebhookConfiguration": (
        "mutatingwebhookconfigurations",
        "admissionregistration.k8s.io/v1",
    ),
    "Issuer": ("issuers", "cert-manager.io/v1"),
    "Certificate": ("certificates", "cert-manager.io/v1"),
}
#: Without a schema here: cert-manager's own.
_OWN = {"Issuer", "Certificate"}


class Refused(Exception):
    """An error of the API: its code, its reason, its message."""


def _refuse(code: int, reason: str, message: str) -> NoReturn:
    raise Refused(code, reason, message)


class Api:
    """Objects by their paths, the labels of namespaces, and where a Service's requests go."""

    def __init__(self, namespaces: Mapping[str, dict[str, str]], ports: Mapping[str, int]) -> None:
        self.namespaces = namespaces
        self.ports = ports
        self.objects: dict[str, dict[str, Any]] = {}
        self.reviews: list[dict[str, Any]] = []

    def configurations(self) -> list[dict[str, Any]]:
        """The webhooks that there are."""
        kind = "MutatingWebhookConfiguration"
        found = [each for each in self.objects.values() if each["kind"] == kind]
        return [webhook for each in found for webhook in each["webhooks"]]

    def create(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        """Store *document* below *path*, as admission leaves it; raises Refused."""
        metadata = document["metadata"]
        parts = path.split("/")
        if "namespaces" in parts:
            metadata["namespace"] = parts[parts.index("namespaces") + 1]
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
        if document["kind"] == "Pod":
            document = self._admitted(document)
        if document["kind"] not in _OWN:
            version = kubernetes_validate.latest_version()
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                _refuse(422, "Invalid", error.message)
        self.objects[f"{path}/{metadata['name']}"] = document
        return document

    def _admitted(self, document: dict[str, Any]) -> dict[str, Any]:
        for webhook in self.configurations():
            if _concerns(webhook, self.namespaces, document):
                try:
                    document = self._reviewed(webhook, document)
                except (OSError, ValueError, AssertionError, http.client.HTTPException) as error:
                    if webhook["failurePolicy"] != "Ignore":
                        reason = f"failed calling webhook {json.dumps(webhook['name'])}: {error!r}"
                        _refuse(500, "InternalError", reason)
        return document

    def _reviewed(self, webhook: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
        """*document* as *webhook* has it."""
        pods = {"group": "", "version": "v1"}
        request = {
            "uid": str(uuid.uuid4()),
            "kind": {**pods, "kind": "Pod"},
            "resource": {**pods, "resource": "pods"},
            "requestKind": {**pods, "kind": "Pod"},
            "requestResource": {**pods, "resource": "pods"},
            "name": document["metadata"]["name"],
            "namespace": document["metadata"]["namespace"],
            "operation": "CREATE",
            "userInfo": {"username": "kubernetes-admin", "groups": ["system:masters"]},
            "object": document,
            "oldObject": None,
            "dryRun": False,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        }
        version = webhook["admissionReviewVersions"][0]
        asked = {
            "kind": "AdmissionReview",
            "apiVersion": f"admission.k8s.io/{version}",
            "request": request,
        }
        answer = self._post(webhook, asked)
        self.reviews.append({"review": asked, "answer": answer})
        assert (answer["kind"], answer["apiVersion"]) == ("AdmissionReview", asked["apiVersion"])
        response = answer["response"]
        assert response["uid"] == request["uid"]
        if not response["allowed"]:
            status = response["status"]
            denied = f'admission webhook "{webhook["name"]}" denied the request: '
            _refuse(status["code"], status["reason"], denied + status["message"])
        if "patch" not in response:
            return document
        assert response["patchType"] == "JSONPatch"
        patch = json.loads(base64.b64decode(response["patch"], validate=True))
        found: dict[str, Any] = jsonpatch.apply_patch(copy.deepcopy(document), patch)
        return found

    def _post(self, webhook: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        service = webhook["clientConfig"]["service"]
        authority = base64.b64decode(webhook["clientConfig"]["caBundle"]).decode()
        context = ssl.create_default_context(cadata=authority)
        host = f"{service['name']}.{service['namespace']}.svc"
        connection = _ToService(host, self.ports[f"{host}:{service.get('port', 443)}"], context)
        timeout = webhook["timeoutSeconds"]
        headers = {"Content-Type": "application/json", "Accept": "application/json, */*"}
        with contextlib.closing(connection):
            path = f"{service['path']}?timeout={timeout}s"
            connection.request("POST", path, json.dumps(asked), headers)
            answer = connection.getresponse()
            body = answer.read()
        if answer.status != 200:
            message = f"status {answer.status}: {body!r}"
            raise ValueError(message)
        found: dict[str, Any] = json.loads(body)
        return found


class _ToService(http.client.HTTPSConnection):
    """A connection that asks for a Service by its name, and goes where its endpoint is."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__("127.0.0.1", port, timeout=60, context=context)
        self._tls, self._name = context, host

    def connect(self) -> None:
        """Connect, and have the certificate say the Service's name."""
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)


def _concerns(
    webhook: dict[str, Any], namespaces: Mapping[str, dict[str, str]], document: dict[str, Any]
) -> bool:
    """Whether *webhook* is asked about a new pod."""
    rule = {"operations": "CREATE", "apiGroups": "", "apiVersions": "v1", "resources": "pods"}
    if not any(
        all(each[key] == [value] for key, value in rule.items()) for each in webhook["rules"]
    ):
        return False
    metadata = document["metadata"]
    return _selects(webhook["namespaceSelector"], namespaces[metadata["namespace"]]) and _selects(
        webhook["objectSelector"], metadata.get("labels", {})
    )


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether all expressions of *selector* hold for *labels*."""
    holds: dict[str, Callable[[str | None, list[str]], bool]] = {
        "In": lambda label, values: label in values,
        "NotIn": lambda label, values: label not in values,
        "Exists": lambda label, _: label is not None,
        "DoesNotExist": lambda label, _: label is None,
    }
    return all(
        holds[each["operator"]](labels.get(each["key"]), each.get("values", []))
        for each in selector["matchExpressions"]
    )


def _discovery(path: str) -> dict[str, Any] | None:
    """What kubectl asks before it does anything."""
    groups = sorted({version for _, version in _KINDS.values() if "/" in version})
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        listed = [
            {
                "name": each.partition("/")[0],
                "versions": [{"groupVersion": each, "version": "v1"}],
                "preferredVersion": {"groupVersion": each, "version": "v1"},
            }
            for each in groups
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    version = path.removeprefix("/apis/").removeprefix("/api/")
    resources = [
        {
            "name": plural,
            "singularName": kind.lower(),
            "namespaced": kind != "MutatingWebhookConfiguration",
            "kind": kind,
            "verbs": ["create", "get"],
        }
        for kind, (plural, of) in _KINDS.items()
        if of == version
    ]
    if not resources:
        return None
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}


@contextlib.contextmanager
def serving(api: Api) -> Iterator[str]:
    """The address at which kubectl finds *api*."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """An object, or discovery."""
            path = self.path.partition("?")[0]
            found = api.objects.get(path) or _discovery(path)
            if found is None:
                self._fail(404, "NotFound", f"{path} not found")
            else:
                self._send(200, found)

        def do_POST(self) -> None:
            """A new object."""
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                self._send(201, api.create(self.path.partition("?")[0], document))
            except Refused as error:
                self._fail(*error.args)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _fail(self, code: int, reason: str, message: str) -> None:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
            self._send(code, {**status, "code": code, "reason": reason, "message": message})

        def _send(self, code: int, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
