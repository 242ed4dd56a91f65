"""Fixtures of the laptop's tests: an embedded API, and a runtime process that plays the cluster behind it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from local_laptop import CRDS, RAY_CRD, Laptop

from flexpert_operator.errors import KubeNotFound
from flexpert_operator.kube import DEPLOYMENTS, PODS, RAY_CLUSTERS, SERVICES, Kube, api_client
from flexpert_operator.local import processes
from flexpert_operator.local.kubeapi import KubeApiServer
from flexpert_operator.local.layout import Layout


@pytest.fixture(scope="module")
def api() -> Iterator[KubeApiServer]:
    with KubeApiServer() as server:
        yield server


@pytest.fixture
def laptop(api: KubeApiServer, tmp_path: Path) -> Iterator[Laptop]:
    layout = Layout(tmp_path)
    api.write_kubeconfig(layout.kubeconfig)
    kube = Kube(api_client(layout.kubeconfig))
    crd = yaml.safe_load(RAY_CRD.read_text())
    try:
        kube.request("GET", f"{CRDS}/{crd['metadata']['name']}")
    except KubeNotFound:
        kube.request("POST", CRDS, crd)
    here = Laptop(layout, kube)
    here.start()
    yield here
    for resource in (RAY_CLUSTERS, DEPLOYMENTS, SERVICES):
        for obj in kube.list(resource, "default", ""):
            if obj["metadata"]["name"] != "kubernetes":
                kube.delete(resource, "default", obj["metadata"]["name"])
    assert here.runtime is not None
    processes.end_sessions([here.runtime], 20)
    processes.end_sessions(here.pids(), 0)
    for pod in here.all_pods():
        kube.request("DELETE", PODS.path("default", pod["metadata"]["name"]), {"gracePeriodSeconds": 0})
    shutil.rmtree(layout.scratch, ignore_errors=True)
