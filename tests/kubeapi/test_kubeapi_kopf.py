"""A kopf operator against the embedded API: handlers, progress and diff in annotations, a finalizer, events."""

import asyncio
import contextlib
import threading

import kopf
import kubernetes
import pytest

from flexpert_operator.local.kubeapi import KubeApiServer, ServerConfig

GROUP = ("example.dev", "v1", "default", "widgets")


class Operator:
    """kopf in a thread of its own, with its own registry and connection."""

    def __init__(self, kubeconfig):
        self.calls = []
        self.registry = kopf.OperatorRegistry()
        self._kubeconfig = str(kubeconfig)
        self._ready, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._handlers()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self):
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            loop.run_until_complete(
                kopf.operator(
                    registry=self.registry,
                    namespaces=["default"],
                    standalone=True,
                    ready_flag=self._ready,
                    stop_flag=self._stop,
                )
            )

    def _handlers(self):
        on = {"registry": self.registry}

        @kopf.on.login(**on)
        def login(**kwargs):
            return kopf.login_with_kubeconfig(**kwargs)

        @kopf.on.startup(**on)
        def configure(settings, **_):
            settings.persistence.finalizer = "example.dev/test"
            settings.watching.server_timeout = 2

        @kopf.on.create("widgets", **on)
        def created(spec, patch, body, **_):
            self.calls.append(("create", body["metadata"]["name"]))
            kopf.info(body, reason="Made", message="made it")
            patch.status["experts"] = {"workers": spec["experts"]["workers"]}

        @kopf.on.update("widgets", field="spec.experts.workers", **on)
        def resized(old, new, patch, **_):
            self.calls.append(("resize", old, new))
            patch.status["experts"] = {"workers": new}

        @kopf.on.delete("widgets", **on)
        def deleted(name, **_):
            self.calls.append(("delete", name))


@pytest.fixture
def kubeconfig(server, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    return server.kubeconfig


def until(check, timeout_s=60.0):
    """Wait until `check()` is true; its last value."""
    woken, end = threading.Event(), timeout_s
    while not (found := check()) and end > 0:
        woken.wait(0.05)
        end -= 0.05
    return found


def test_life_of_an_object_under_kopf(kubeconfig):
    with kubernetes.config.new_client_from_config(str(kubeconfig)) as client, Operator(kubeconfig) as operator:
        widgets, core = kubernetes.client.CustomObjectsApi(client), kubernetes.client.CoreV1Api(client)
        body = {"apiVersion": "example.dev/v1", "kind": "Widget", "metadata": {"name": "k"}}
        widgets.create_namespaced_custom_object(*GROUP, body | {"spec": {"model": {"source": "file:///x"}}})

        def workers():
            return widgets.get_namespaced_custom_object(*GROUP, "k").get("status", {}).get("experts", {}).get("workers")

        assert until(lambda: workers() == 2)
        found = widgets.get_namespaced_custom_object(*GROUP, "k")
        assert found["metadata"]["finalizers"] == ["example.dev/test"]
        assert found["metadata"]["generation"] == 1
        widgets.patch_namespaced_custom_object_scale(*GROUP, "k", {"spec": {"replicas": 5}})
        assert until(lambda: workers() == 5)
        assert until(lambda: any(item.reason == "Made" for item in core.list_namespaced_event("default").items))
        widgets.delete_namespaced_custom_object(*GROUP, "k")
        assert until(lambda: not widgets.list_namespaced_custom_object(*GROUP)["items"])
        assert operator.calls == [("create", "k"), ("resize", 2, 5), ("delete", "k")]


def test_kopf_goes_on_after_the_server_was_restarted(tmp_path, monkeypatch, server):
    """With its state file and certificate the server comes back on its port; kopf's watches reconnect."""
    token, definition = server.api.token, "apiextensions.k8s.io/v1/customresourcedefinitions"
    crd = server.request("GET", f"/apis/{definition}/widgets.example.dev")[1]
    state = {"token": token, "state_file": tmp_path / "state.json", "tls_folder": tmp_path / "tls"}
    kubeconfig = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    with KubeApiServer(ServerConfig(**state)) as first:
        first.write_kubeconfig(kubeconfig)
        port = int(first.url.rpartition(":")[2])
        with kubernetes.config.new_client_from_config(str(kubeconfig)) as client:
            crd["metadata"] = {"name": crd["metadata"]["name"]}
            kubernetes.client.ApiextensionsV1Api(client).create_custom_resource_definition(crd)
        operator = Operator(kubeconfig).__enter__()
    try:
        with KubeApiServer(ServerConfig(port=port, **state)):
            with kubernetes.config.new_client_from_config(str(kubeconfig)) as client:
                widgets = kubernetes.client.CustomObjectsApi(client)
                body = {"apiVersion": "example.dev/v1", "kind": "Widget", "metadata": {"name": "k"}}
                widgets.create_namespaced_custom_object(*GROUP, body | {"spec": {"model": {"source": "file:///x"}}})
                assert until(lambda: ("create", "k") in operator.calls, 40)
            operator.__exit__()
    finally:
        operator._stop.set()
