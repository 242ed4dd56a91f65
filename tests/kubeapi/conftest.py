"""A running embedded API, kubectl against it, and an API without a server for tests of single verbs."""

import copy
import json
import os
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flexpert_operator.local.kubeapi import KubeApiServer, ServerConfig
from flexpert_operator.local.kubeapi.api import Api
from flexpert_operator.local.kubeapi.gc import collect
from flexpert_operator.local.kubeapi.kubeconfig import shown_certificate
from flexpert_operator.local.kubeapi.operations import WriteOptions, Written
from flexpert_operator.local.kubeapi.resources import ResourceType

WIDGETS = Path(__file__).with_name("widgets.yaml")


def _widget(name: str = "a", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "example.dev/v1",
        "kind": "Widget",
        "metadata": {"name": name},
        "spec": {"model": {"source": "file:///x"}} | spec,
    }


@dataclass
class Server:
    """A running server, with one request at a time over HTTP."""

    api: KubeApiServer
    folder: Path

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        token: str | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, parsed body and headers of the answer."""
        context = ssl.create_default_context(cadata=shown_certificate(self.api.url))
        sent = {"Authorization": f"Bearer {self.api.token if token is None else token}"}
        data = json.dumps(body).encode() if body is not None else None
        if data is not None:
            sent["Content-Type"] = "application/json"
        request = urllib.request.Request(self.api.url + path, data, sent | (headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, context=context, timeout=20) as response:
                return response.status, _parsed(response.read()), dict(response.headers)
        except urllib.error.HTTPError as error:
            return error.code, _parsed(error.read()), dict(error.headers)


def _parsed(raw: bytes) -> Any:
    lines = [json.loads(line) for line in raw.splitlines() if line.startswith(b"{")]
    return lines[0] if len(lines) == 1 else lines or raw.decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has the Widget definition; one for a module's tests."""
    folder = tmp_path_factory.mktemp("kubeapi")
    with KubeApiServer(ServerConfig(bookmark_interval_s=0.2)) as api:
        api.write_kubeconfig(folder / "kubeconfig")
        found = Server(api, folder)
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        status, body, _ = found.request("POST", path, yaml.safe_load(WIDGETS.read_text()))
        assert status == 201, body
        yield found


Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def kubectl(server: Server) -> Kubectl:
    """Run kubectl against the server; fails the test on another exit status than `code`."""
    binary = shutil.which("kubectl")
    if binary is None:
        pytest.skip("kubectl is not on PATH")

    def run(*arguments: str, stdin: str | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"KUBECONFIG": str(server.kubeconfig), "KUBECACHEDIR": str(server.folder / "cache")}
        done = subprocess.run(
            [binary, *arguments], input=stdin, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


class Bench:
    """An API without a server: verbs on widgets and built-in kinds, garbage collection when asked."""

    def __init__(self, history: int = 2048) -> None:
        self.api = Api(history=history)
        self.create("apiextensions.k8s.io/v1/customresourcedefinitions", yaml.safe_load(WIDGETS.read_text()), None)

    def resource(self, path: str) -> ResourceType:
        """A type by `plural` (core v1), or by `group/version/plural`."""
        group, version, plural = path.split("/") if "/" in path else ("", "v1", path)
        return self.api.registry.find(group, version, plural)

    def create(
        self, path: str, obj: dict[str, Any], namespace: str | None = "default", **options: Any
    ) -> dict[str, Any]:
        return copy.deepcopy(self.written(path, obj, namespace, **options).object)

    def written(self, path: str, obj: dict[str, Any], namespace: str | None = "default", **options: Any) -> Written:
        chosen = WriteOptions(**{"manager": "test"} | options)
        return self.api.operations.create(self.resource(path), namespace, obj, chosen)

    def get(self, path: str, name: str, namespace: str | None = "default") -> dict[str, Any]:
        resource = self.resource(path)
        return copy.deepcopy(self.api.operations.live(resource, resource.key(namespace, name)))

    def patch(
        self,
        path: str,
        name: str,
        body: Any,
        *,
        kind: str = "application/merge-patch+json",
        subresource: str = "",
        namespace: str | None = "default",
        **options: Any,
    ) -> dict[str, Any]:
        resource, chosen = self.resource(path), WriteOptions(**{"manager": "test"} | options)
        key = resource.key(namespace, name)
        return copy.deepcopy(self.api.operations.patch(resource, key, kind, body, subresource, chosen).object)

    def apply(self, path: str, obj: dict[str, Any], manager: str, *, force: bool = False) -> dict[str, Any]:
        name, kind = obj["metadata"]["name"], "application/apply-patch+yaml"
        return self.patch(path, name, obj, kind=kind, manager=manager, force=force)

    def names(self, path: str) -> list[str]:
        return [key.name for key, _ in self.api.store.items(self.resource(path).where)]

    def collect(self) -> None:
        collect(self.api.store, self.api.registry, self.api.operations)


@pytest.fixture
def widget() -> Callable[..., dict[str, Any]]:
    """A valid Widget of a name; keywords are laid over its spec."""
    return _widget


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    return Bench
