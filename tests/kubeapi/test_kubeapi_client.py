"""The embedded API as the Kubernetes Python client sees it, and a real one, which the embedded one has to be like."""

import threading
from pathlib import Path

import kubernetes
import pytest
import yaml
from either_server import KINDS, open_server
from kubernetes.client import ApiException

from flexpert_operator.local.kubeapi import KubeApiServer, ServerConfig

GROUP = ("example.dev", "v1")


def widget(name, **spec):
    return {
        "apiVersion": "example.dev/v1",
        "kind": "Widget",
        "metadata": {"name": name},
        "spec": {"model": {"source": "file:///x"}} | spec,
    }


@pytest.fixture(scope="module", params=KINDS)
def kubeconfig(request, tmp_path_factory):
    """Of a server that has the Widget definition."""
    folder = tmp_path_factory.mktemp("either")
    crd = yaml.safe_load(Path(__file__).with_name("widgets.yaml").read_text())
    with open_server(request.param, folder) as server:
        path = str(server.write_kubeconfig(folder / "kubeconfig"))
        with kubernetes.config.new_client_from_config(path) as client:
            kubernetes.client.ApiextensionsV1Api(client).create_custom_resource_definition(crd)
            await_widgets(kubernetes.client.CustomObjectsApi(client))
        yield path


def await_widgets(widgets):
    pause = threading.Event()
    for _ in range(300):
        try:
            return widgets.list_namespaced_custom_object(*GROUP, "default", "widgets")
        except ApiException as refusal:
            if refusal.status not in (404, 503):
                raise
        pause.wait(0.1)
    raise AssertionError("widgets are not served")


@pytest.fixture
def client(kubeconfig):
    with kubernetes.config.new_client_from_config(kubeconfig) as found:
        yield found


@pytest.fixture
def widgets(client):
    return kubernetes.client.CustomObjectsApi(client)


def test_custom_objects_have_generation_and_status_apart(widgets):
    made = widgets.create_namespaced_custom_object(*GROUP, "default", "widgets", widget("gen") | {"status": {"x": 1}})
    assert "status" not in made
    assert made["metadata"]["generation"] == 1
    made["status"] = {"experts": {"workers": 1}}
    made["spec"]["maxWorkers"] = 5
    after = widgets.replace_namespaced_custom_object_status(*GROUP, "default", "widgets", "gen", made)
    assert (after["status"], after["spec"].get("maxWorkers")) == ({"experts": {"workers": 1}}, None)
    assert after["metadata"]["generation"] == 1
    patch = {"spec": {"maxWorkers": 6}, "status": {"experts": {"workers": 9}}}
    after = widgets.patch_namespaced_custom_object(*GROUP, "default", "widgets", "gen", patch)
    assert (after["status"]["experts"]["workers"], after["metadata"]["generation"]) == (1, 2)


def test_a_stale_update_conflicts(widgets):
    first = widgets.create_namespaced_custom_object(*GROUP, "default", "widgets", widget("stale"))
    widgets.patch_namespaced_custom_object(*GROUP, "default", "widgets", "stale", {"spec": {"maxWorkers": 9}})
    with pytest.raises(ApiException) as refused:
        widgets.replace_namespaced_custom_object(*GROUP, "default", "widgets", "stale", first)
    assert refused.value.status == 409
    assert "the object has been modified" in refused.value.body


def test_scale_of_a_custom_object(widgets):
    widgets.create_namespaced_custom_object(*GROUP, "default", "widgets", widget("scale"))
    path = (*GROUP, "default", "widgets", "scale")
    assert widgets.get_namespaced_custom_object_scale(*path)["spec"]["replicas"] == 2
    scaled = widgets.patch_namespaced_custom_object_scale(*path, {"spec": {"replicas": 7}})
    assert scaled["spec"]["replicas"] == 7
    with pytest.raises(ApiException) as refused:
        widgets.patch_namespaced_custom_object_scale(*path, {"spec": {"replicas": -1}})
    assert refused.value.status == 422
    assert "Invalid value: -1" in refused.value.body


def test_typed_objects(client):
    core = kubernetes.client.CoreV1Api(client)
    pod = kubernetes.client.V1Pod(
        metadata=kubernetes.client.V1ObjectMeta(name="typed", labels={"a": "b"}),
        spec=kubernetes.client.V1PodSpec(containers=[kubernetes.client.V1Container(name="c", image="x:1")]),
    )
    made = core.create_namespaced_pod("default", pod)
    assert (made.status.phase, made.spec.restart_policy) == ("Pending", "Always")
    core.patch_namespaced_pod_status("typed", "default", {"status": {"phase": "Running"}})
    found = core.list_namespaced_pod("default", field_selector="status.phase=Running", label_selector="a in (b)")
    assert [item.metadata.name for item in found.items] == ["typed"]
    core.delete_namespaced_pod("typed", "default")
    with pytest.raises(ApiException) as missing:
        core.read_namespaced_pod("typed", "default")
    assert missing.value.status == 404


def test_pages_are_read_at_one_revision(client):
    core = kubernetes.client.CoreV1Api(client)
    for name in ("p1", "p2", "p3"):
        core.create_namespaced_config_map("kube-public", {"metadata": {"name": name}})
    page = core.list_namespaced_config_map("kube-public", limit=2)
    assert [item.metadata.name for item in page.items] == ["p1", "p2"]
    assert page.metadata.remaining_item_count == 1
    core.delete_namespaced_config_map("p3", "kube-public")
    rest = core.list_namespaced_config_map("kube-public", limit=2, _continue=page.metadata._continue)
    assert [item.metadata.name for item in rest.items] == ["p3"]
    assert rest.metadata.resource_version == page.metadata.resource_version


def test_watch_from_a_list(client, widgets):
    widgets.create_namespaced_custom_object(*GROUP, "default", "widgets", widget("w1"))
    listed = widgets.list_namespaced_custom_object(*GROUP, "default", "widgets")
    version = listed["metadata"]["resourceVersion"]
    widgets.patch_namespaced_custom_object(*GROUP, "default", "widgets", "w1", {"spec": {"maxWorkers": 3}})
    seen = []
    stream = kubernetes.watch.Watch()
    later = threading.Timer(0.2, widgets.delete_namespaced_custom_object, (*GROUP, "default", "widgets", "w1"))
    later.start()
    try:
        for event in stream.stream(
            widgets.list_namespaced_custom_object, *GROUP, "default", "widgets",
            resource_version=version, field_selector="metadata.name=w1", timeout_seconds=20,
        ):  # fmt: skip
            seen.append(event["type"])
            if event["type"] == "DELETED":
                stream.stop()
    finally:
        later.join()
    assert seen == ["MODIFIED", "DELETED"]


def test_watch_from_lost_history_says_gone(tmp_path):
    with KubeApiServer(ServerConfig(history=3)) as api:
        api.write_kubeconfig(tmp_path / "kubeconfig")
        with kubernetes.config.new_client_from_config(str(tmp_path / "kubeconfig")) as client:
            core = kubernetes.client.CoreV1Api(client)
            first = core.create_namespaced_config_map("default", {"metadata": {"name": "c"}})
            for number in range(5):
                core.patch_namespaced_config_map("c", "default", {"data": {"n": str(number)}})
            stream = kubernetes.watch.Watch()
            events = stream.stream(
                core.list_namespaced_config_map,
                "default",
                resource_version=first.metadata.resource_version,
                timeout_seconds=5,
            )
            with pytest.raises(ApiException) as gone:
                list(events)
    assert gone.value.status == 410


def test_events_have_two_faces(client):
    core, events = kubernetes.client.CoreV1Api(client), kubernetes.client.EventsV1Api(client)
    body = {
        "metadata": {"name": "e1", "namespace": "default"},
        "involvedObject": {"kind": "Widget", "name": "x"},
        "reason": "Because",
        "message": "hello",
        "eventTime": "2026-01-02T03:04:05.000006Z",
        "reportingComponent": "example.dev/maker",
        "reportingInstance": "one",
        "action": "Make",
    }
    core.create_namespaced_event("default", body)
    seen = events.read_namespaced_event("e1", "default")
    assert (seen.note, seen.regarding.name) == ("hello", "x")
    found = core.list_namespaced_event("default", field_selector="involvedObject.name=x,reason=Because")
    assert [item.message for item in found.items] == ["hello"]


def test_eviction_and_binding(client):
    core = kubernetes.client.CoreV1Api(client)
    for name in ("free", "kept"):
        spec = {"containers": [{"name": "c", "image": "x"}]}
        core.create_namespaced_pod("default", {"metadata": {"name": name, "labels": {"app": name}}, "spec": spec})
    core.create_namespaced_pod_binding(
        "kept",
        "default",
        {"metadata": {"name": "kept"}, "target": {"kind": "Node", "name": "n1"}},
        _preload_content=False,
    )
    assert core.read_namespaced_pod("kept", "default").spec.node_name == "n1"
    running = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    core.patch_namespaced_pod_status("kept", "default", {"status": running})
    policy = kubernetes.client.PolicyV1Api(client)
    budget = {"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "kept"}}}}
    policy.create_namespaced_pod_disruption_budget("default", budget)
    policy.patch_namespaced_pod_disruption_budget_status("b", "default", {"status": {"disruptionsAllowed": 0}})
    core.create_namespaced_pod_eviction("free", "default", {"metadata": {"name": "free"}}, _preload_content=False)
    with pytest.raises(ApiException) as refused:
        core.create_namespaced_pod_eviction("kept", "default", {"metadata": {"name": "kept"}}, _preload_content=False)
    assert refused.value.status == 429
    assert [item.metadata.name for item in core.list_namespaced_pod("default").items] == ["kept"]
