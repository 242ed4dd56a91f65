"""The laptop's API is sent what is no request, and objects whose fields hold anything."""

import copy
import http.client
import json
import logging
import random
import ssl
from typing import Any

import pytest
from malformed import HTTP, NUM_FRAMES, anything, bodies, broken, either, flat, send_all, send_over_tls

from flexpert_operator.local.kubeapi.kubeconfig import shown_certificate

pytestmark = pytest.mark.timeout(max(300, NUM_FRAMES))
SECRETS = "/api/v1/namespaces/default/secrets"
SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "YQ=="}, "type": "Opaque"}
WIDGET = {
    "apiVersion": "example.dev/v1",
    "kind": "Widget",
    "metadata": {"name": "a", "labels": {"a": "b"}, "annotations": {}},
    "spec": {"model": {"source": "file:///x"}},
}
TRIES = {
    f"{SECRETS}?dryRun=All": SECRET,
    "/apis/example.dev/v1/namespaces/default/widgets?dryRun=All": WIDGET,
}


def deep(rng: random.Random) -> bytes:
    """A widget one of whose inner fields holds anything."""
    body = copy.deepcopy(WIDGET)
    part = rng.choice(("metadata", "spec"))
    field = rng.choice([*body[part], "finalizers", "ownerReferences", "resourceVersion", "other"])
    body[part][field] = anything(rng)
    return json.dumps(body, default=repr).encode()


def test_any_bytes_and_objects_are_answered_or_cut_off(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "aiohttp.server")  # what pytest keeps of its tracebacks is memory too
    port = int(server.api.url.rpartition(":")[2])
    context = ssl.create_default_context(cadata=shown_certificate(server.api.url))
    bearer = f"authorization: Bearer {server.api.token}\r\n".encode()
    raw = HTTP.replace(b"/v1/completions", SECRETS.encode()).replace(b"host: x\r\n", b"host: x\r\n" + bearer)
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
    headers = {"authorization": f"Bearer {server.api.token}", "content-type": "application/json"}

    def post(path: str, body: bytes) -> None:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status in (201, 400, 404, 409, 415, 422), said
        if answer.status != 201:
            assert json.loads(said)["kind"] == "Status"

    def attack(number: int) -> None:
        send_all(broken(raw), lambda frame: send_over_tls(port, frame, context), number)
        for path, valid in TRIES.items():
            frames = either(broken(json.dumps(valid).encode()), bodies(valid, "spec", "stringData", "immutable"), deep)
            send_all(frames, lambda body, path=path: post(path, body), number)

    flat(attack)
    connection.close()
    assert server.request("GET", SECRETS)[1]["items"] == []
