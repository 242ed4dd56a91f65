"""Printer columns, JSONPath, ages, and the forms a client can ask for."""

import pytest

from flexpert_operator.local.kubeapi.builtin_columns import age, human_duration
from flexpert_operator.local.kubeapi.errors import NotAcceptable
from flexpert_operator.local.kubeapi.jsonpath import find
from flexpert_operator.local.kubeapi.tables import View, negotiate

WD = "example.dev/v1/widgets"
OBJECT = {
    "metadata": {"labels": {"a.b/c": "d"}},
    "list": [{"type": "A", "status": "True", "n": 1}, {"type": "B", "status": "False", "n": 2}],
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".list[0].type", ["A"]),
        (".list[-1].n", [2]),
        (".list[*].n", [1, 2]),
        ('.list[?(@.type=="B")].status', ["False"]),
        (".list[?(@.type!='B')].status", ["True"]),
        (".metadata.labels['a.b/c']", ["d"]),
        (r".metadata.labels.a\.b/c", ["d"]),
        ("{.list[5].n}", []),
        (".missing.n", []),
        ("$.list[0].n", [1]),
    ],
)
def test_jsonpath(path, found):
    assert find(path, OBJECT) == found


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0s"),
        (119, "119s"),
        (125, "2m5s"),
        (600, "10m"),
        (10_000, "166m"),
        (3 * 3600 + 60, "3h1m"),
        (30 * 3600, "30h"),
        (3 * 86400 + 7200, "3d2h"),
        (40 * 86400, "40d"),
        (800 * 86400, "2y70d"),
    ],
)
def test_durations_read_as_kubectl_writes_them(seconds, text):
    assert human_duration(seconds) == text


def test_ages():
    assert age("1970-01-01T00:00:00Z", 45) == "45s"
    assert age("1970-01-01T00:00:00.500000Z", 45) == "44s"
    assert age(None, 45) == "<unknown>"
    assert age("soon", 45) == "<invalid>"


def test_a_table_has_a_row_for_each_object(bench, widget):
    made = bench.create(WD, widget("a"))
    resource = bench.resource(WD)
    table = View("Table", "Object").many(resource, [made], {"resourceVersion": "5"})
    assert [column["name"] for column in table["columnDefinitions"]] == ["Name", "Workers", "Ready", "Age", "Source"]
    assert table["rows"][0]["cells"][:3] == ["a", 2, None]
    assert table["rows"][0]["object"] == made
    later = View("Table").one(resource, made, header=False)
    assert later["columnDefinitions"] is None
    assert later["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    assert "object" not in View("Table", "None").one(resource, made)["rows"][0]


def test_partial_metadata(bench, widget):
    made = bench.create(WD, widget("a"))
    resource = bench.resource(WD)
    assert set(View("PartialObjectMetadata").one(resource, made)) == {"kind", "apiVersion", "metadata"}
    partial = View("PartialObjectMetadataList").many(resource, [made], {})
    assert partial["items"][0]["kind"] == "PartialObjectMetadata"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", ""),
        ("*/*", ""),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "Table"),
        ("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", ""),
        ("application/vnd.kubernetes.protobuf,application/json", ""),
        ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", "APIGroupDiscoveryList"),
    ],
)  # fmt: skip
def test_negotiation(accept, form):
    assert negotiate(accept).form == form


def test_only_json_is_spoken():
    with pytest.raises(NotAcceptable):
        negotiate("application/com.github.proto-openapi.spec.v2@v1.0+protobuf")


def test_a_pods_row(bench):
    spec = {"containers": [{"name": "c", "image": "x"}, {"name": "d", "image": "x"}], "nodeName": "n1"}
    made = bench.create("pods", {"metadata": {"name": "p"}, "spec": spec})
    resource = bench.resource("pods")
    assert View("Table").one(resource, made)["rows"][0]["cells"][:4] == ["p", "0/2", "Pending", "0"]
    statuses = [
        {"name": "c", "ready": True, "restartCount": 2, "state": {}},
        {"name": "d", "ready": False, "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
    ]
    status = {"status": {"phase": "Running", "containerStatuses": statuses, "podIP": "10.0.0.1"}}
    running = bench.patch("pods", "p", status, subresource="status")
    cells = View("Table").one(resource, running)["rows"][0]["cells"]
    assert cells[:4] == ["p", "1/2", "CrashLoopBackOff", "3"]
    assert cells[5:7] == ["10.0.0.1", "n1"]
