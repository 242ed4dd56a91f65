"""The server over HTTP: authentication, discovery, OpenAPI, bodies, watches, the state file, the command."""

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest
import yaml

from flexpert_operator.local.kubeapi import KubeApiServer, ServerConfig
from flexpert_operator.local.kubeapi.__main__ import main
from flexpert_operator.local.kubeapi.bodies import parse
from flexpert_operator.local.kubeapi.errors import BadRequest, NotFound, UnsupportedMediaType
from flexpert_operator.local.kubeapi.kubeconfig import shown_certificate
from flexpert_operator.local.kubeapi.urls import Target
from flexpert_operator.local.kubeapi.urls import parse as parse_url

WIDGETS = "/apis/example.dev/v1/namespaces/default/widgets"


def test_only_the_token_opens_the_api(server):
    for token in ("", "wrong", server.api.token[:-1]):
        status, body, headers = server.request("GET", "/api/v1/namespaces", token=token)
        assert (status, body["reason"], headers["WWW-Authenticate"]) == (401, "Unauthorized", "Bearer")
    assert server.request("GET", "/api/v1/namespaces")[0] == 200
    for path in ("/healthz", "/livez", "/readyz"):
        assert server.request("GET", path, token="")[:2] == (200, "ok")
    assert server.request("GET", "/version", token="")[1]["minor"] == "32"


def test_discovery_in_both_forms(server):
    groups = {group["name"] for group in server.request("GET", "/apis")[1]["groups"]}
    assert {"apps", "example.dev", "events.k8s.io", "apiextensions.k8s.io"} <= groups
    assert server.request("GET", "/apis/apps")[1]["preferredVersion"]["groupVersion"] == "apps/v1"
    listed = {item["name"]: item for item in server.request("GET", "/apis/example.dev/v1")[1]["resources"]}
    assert listed["widgets"]["shortNames"] == ["wd"]
    assert listed["widgets/scale"]["kind"] == "Scale"
    accept = {"Accept": "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"}
    _, body, headers = server.request("GET", "/apis", headers=accept)
    assert "as=APIGroupDiscoveryList" in headers["Content-Type"]
    found = {item["metadata"]["name"]: item["versions"][0]["resources"] for item in body["items"]}
    assert {sub["subresource"] for sub in found["example.dev"][0]["subresources"]} == {"status", "scale"}
    core = server.request("GET", "/api", headers=accept)[1]["items"]
    assert "pods" in {item["resource"] for item in core[0]["versions"][0]["resources"]}


def test_openapi_describes_custom_and_built_in_kinds(server):
    index = server.request("GET", "/openapi/v3")[1]["paths"]
    document = server.request("GET", index["apis/example.dev/v1"]["serverRelativeURL"])[1]
    schema = document["components"]["schemas"]["dev.example.v1.Widget"]
    assert schema["x-kubernetes-group-version-kind"] == [{"group": "example.dev", "version": "v1", "kind": "Widget"}]
    assert schema["properties"]["spec"]["properties"]["model"]["required"] == ["source"]
    path = document["paths"]["/apis/example.dev/v1/namespaces/{namespace}/widgets/{name}"]
    assert "fieldValidation" in {parameter["name"] for parameter in path["patch"]["parameters"]}
    core = server.request("GET", index["api/v1"]["serverRelativeURL"])[1]["components"]["schemas"]
    references = json.dumps(core).count("$ref")
    assert references > 100
    assert all(text.partition('"')[0] in core for text in json.dumps(core).split("#/components/schemas/")[1:])
    assert server.request("GET", "/openapi/v3/apis/none/v1")[0] == 404


def test_errors_are_statuses(server):
    status, body, _ = server.request("GET", f"{WIDGETS}/none")
    assert (status, body["message"]) == (404, 'widgets.example.dev "none" not found')
    assert body["details"] == {"name": "none", "kind": "widgets", "group": "example.dev"}
    assert server.request("GET", "/apis/none/v1/things")[0] == 404
    assert server.request("POST", f"{WIDGETS}/none", {})[0] == 405
    assert server.request("GET", f"{WIDGETS}/none/log")[0] == 404
    assert server.request("GET", f"{WIDGETS}?fieldSelector=spec.x=1")[0] == 400
    assert server.request("GET", f"{WIDGETS}?limit=many")[0] == 400
    assert server.request("POST", f"{WIDGETS}?dryRun=Some", {})[0] == 422
    assert server.request("POST", WIDGETS, {}, headers={"Content-Type": "application/cbor"})[0] == 415
    assert server.request("POST", WIDGETS, [1])[0] == 400


def test_warnings_are_headers(server, widget):
    body = widget("warned", colour="red")
    status, _, headers = server.request("POST", f"{WIDGETS}?fieldValidation=Warn&dryRun=All", body)
    assert (status, headers["Warning"]) == (201, '299 - "unknown field \\"spec.colour\\""')


def test_delete_collection_by_label(server, widget):
    for name, label in (("c1", "go"), ("c2", "go"), ("c3", "stay")):
        body = widget(name)
        body["metadata"]["labels"] = {"fate": label}
        assert server.request("POST", WIDGETS, body)[0] == 201
    assert server.request("DELETE", f"{WIDGETS}?labelSelector=fate%3Dgo")[0] == 200
    found = server.request("GET", f"{WIDGETS}?labelSelector=fate")[1]["items"]
    assert [item["metadata"]["name"] for item in found] == ["c3"]


def stream(server, path):
    """An open watch: its connection and an iterator over its events."""
    url = urllib.parse.urlsplit(server.api.url)
    context = ssl.create_default_context(cadata=shown_certificate(server.api.url))
    connection = http.client.HTTPSConnection(url.hostname, url.port, context=context, timeout=20)
    connection.request("GET", path, headers={"Authorization": f"Bearer {server.api.token}"})
    response = connection.getresponse()
    assert response.status == 200
    return connection, (json.loads(line) for line in response)


def test_a_watch_ends_in_time_with_bookmarks_before(server):
    connection, events = stream(
        server, f"{WIDGETS}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion=0"
    )
    kinds = [event["type"] for event in events]
    connection.close()
    assert kinds[-1] == "BOOKMARK"


def test_a_watch_in_tables_has_one_header(server, widget):
    server.request("POST", WIDGETS, widget("tabled"))
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    path = f"{WIDGETS}?watch=1&timeoutSeconds=1&fieldSelector=metadata.name=tabled"
    later = threading.Timer(0.1, server.request, ("DELETE", f"{WIDGETS}/tabled"))
    later.start()
    _, events, _ = server.request("GET", path, headers=accept)
    later.join()
    assert [event["type"] for event in events] == ["ADDED", "DELETED"]
    assert events[0]["object"]["columnDefinitions"]
    assert events[1]["object"]["columnDefinitions"] is None


def test_objects_survive_a_restart_and_old_revisions_do_not(tmp_path, widget):
    config = ServerConfig(state_file=tmp_path / "state" / "objects.json", tls_folder=tmp_path / "tls")
    crd = yaml.safe_load(Path(__file__).with_name("widgets.yaml").read_text())

    def request(api, method, path, body=None):
        url = urllib.parse.urlsplit(api.url)
        context = ssl.create_default_context(cadata=(tmp_path / "tls" / "kubeapi.crt").read_text())
        connection = http.client.HTTPSConnection(url.hostname, url.port, context=context, timeout=20)
        connection.request(method, path, json.dumps(body), {"Authorization": f"Bearer {api.token}"})
        answer = json.loads(connection.getresponse().read().splitlines()[0])
        connection.close()
        return answer

    with KubeApiServer(config) as api:
        request(api, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        made = request(api, "POST", WIDGETS, widget("kept"))
    assert oct((tmp_path / "state" / "objects.json").stat().st_mode)[-3:] == "600"
    with KubeApiServer(config) as api:
        assert request(api, "GET", f"{WIDGETS}/kept") == made
        version = made["metadata"]["resourceVersion"]
        event = request(api, "GET", f"{WIDGETS}?watch=1&resourceVersion={version}&timeoutSeconds=5")
        assert event["object"]["code"] == 410
        changed = request(api, "POST", WIDGETS, widget("new"))
        assert int(changed["metadata"]["resourceVersion"]) > int(version)


def test_a_damaged_state_file_is_named(tmp_path):
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"state\.json is not a state file"):
        KubeApiServer(ServerConfig(state_file=tmp_path / "state.json")).start()


def test_the_command(tmp_path):
    (tmp_path / "token").write_text("secret\n")
    command = [sys.executable, "-m", "flexpert_operator.local.kubeapi", "--token-file", str(tmp_path / "token")]
    command += ["--ready-file", str(tmp_path / "ready"), "--state-file", str(tmp_path / "state.json")]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        assert (tmp_path / "ready").read_text() == url
        assert "BEGIN CERTIFICATE" in shown_certificate(url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert json.loads((tmp_path / "state.json").read_text())["objects"]


def test_an_empty_token_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("\n")
    monkeypatch.setattr(sys, "argv", ["kubeapi", "--token-file", str(tmp_path / "token")])
    with pytest.raises(SystemExit, match="must hold the bearer token"):
        main()


def test_a_port_that_is_taken_is_an_error(server):
    port = urllib.parse.urlsplit(server.api.url).port
    with pytest.raises(OSError, match="address already in use"):
        KubeApiServer(ServerConfig(port=port)).start()


def test_kubeconfigs_are_private(server):
    assert oct(server.kubeconfig.stat().st_mode)[-3:] == "600"
    user = json.loads(server.kubeconfig.read_text())["users"][0]["user"]
    assert user == {"token": server.api.token}


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/api/v1", Target("", "v1")),
        ("/api/v1/pods", Target("", "v1", "pods")),
        ("/api/v1/namespaces/n", Target("", "v1", "namespaces", None, "n")),
        ("/api/v1/namespaces/n/status", Target("", "v1", "namespaces", None, "n", "status")),
        ("/api/v1/namespaces/n/pods", Target("", "v1", "pods", "n")),
        ("/apis/g/v1/namespaces/n/things/t/scale", Target("g", "v1", "things", "n", "t", "scale")),
        ("/apis/g/v1/things/t", Target("g", "v1", "things", None, "t")),
    ],
)
def test_urls(path, target):
    assert parse_url(path) == target


@pytest.mark.parametrize("path", ["/", "/metrics", "/apis/g", "/api/v1/namespaces/n/pods/p/a/b"])
def test_urls_of_nothing(path):
    with pytest.raises(NotFound):
        parse_url(path)


def test_bodies():
    assert parse(b"", "application/json").value == {}
    assert parse(b"a: 2026-01-01T00:00:00Z\nb: [1]", "application/yaml").value == {
        "a": "2026-01-01T00:00:00Z",
        "b": [1],
    }
    twice = parse(b'{"a": {"b": 1, "b": 2}, "l": [{"c": 1, "c": 2}]}', "application/json")
    assert (twice.value["a"], twice.duplicates) == ({"b": 2}, ("a.b", "l[0].c"))
    for raw, media in (
        (b"{", "application/json"),
        (b"a: [", "application/apply-patch+yaml"),
        (b"xx", "application/vnd.kubernetes.protobuf"),
    ):
        with pytest.raises(BadRequest):
            parse(raw, media)
    with pytest.raises(UnsupportedMediaType):
        parse(b"x", "text/html")


def test_protobuf_bodies_of_generators():
    def field(number, raw):
        return bytes([number << 3 | 2, len(raw)]) + raw

    metadata = field(1, b"cm") + field(11, field(1, b"app") + field(2, b"x"))
    obj = field(1, metadata) + field(2, field(1, b"key") + field(2, b"value")) + bytes([4 << 3, 1])
    kind = field(1, b"v1") + field(2, b"ConfigMap")
    body = parse(b"k8s\0" + field(1, kind) + field(2, obj), "application/vnd.kubernetes.protobuf").value
    assert body == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "cm", "labels": {"app": "x"}},
        "data": {"key": "value"},
        "immutable": True,
    }
    for kind, obj in ((b"ConfigMap", field(9, b"")), (b"Node", b"")):
        envelope = field(1, field(1, b"v1") + field(2, kind)) + field(2, obj)
        with pytest.raises(UnsupportedMediaType, match="is not read from protobuf"):
            parse(b"k8s\0" + envelope, "application/vnd.kubernetes.protobuf")
