"""Pods of a pool as a real API server admits them into a namespace that enforces *restricted*."""

from pathlib import Path

import pytest
from pool_pods import templates, with_kuberays_container
from real_api_server import RealApiServer

from flexpert_operator.api import Engines, Experts, Model, MoEDeployment, PlacementSpec, Resources, Serving
from flexpert_operator.api.model import ModelAccess, ModelCache
from flexpert_operator.errors import KubeRefused
from flexpert_operator.kube import PODS, Kube, api_client

pytestmark = pytest.mark.envtest
NAMESPACE = "restricted-pools"


@pytest.fixture
def kube(api: RealApiServer, tmp_path: Path) -> Kube:
    kube = Kube(api_client(api.write_kubeconfig(tmp_path / "administrator")))
    labels = {
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/enforce-version": "latest",
    }
    kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": labels}})
    return kube


def pool(model: Model) -> MoEDeployment:
    """A pool with GPUs."""
    gpu = Resources(limits={"nvidia.com/gpu": 1})
    experts = Experts(workers=2, memory_per_worker_bytes=10_000, resources=gpu)
    return MoEDeployment(
        name="tiny",
        namespace=NAMESPACE,
        uid="uid-1",
        generation=1,
        resource_version="1",
        model=model,
        engines=Engines(resources=gpu),
        experts=experts,
        placement=PlacementSpec(),
        serving=Serving(),
    )


def test_a_namespace_that_enforces_restricted_takes_every_pod_of_a_pool(kube: Kube) -> None:
    for role, template in templates(pool(Model("hf://a/b"))):
        for suffix, one in (("plain", template), ("waiting", with_kuberays_container(template))):
            metadata = {**one["metadata"], "name": f"{role}-{suffix}"}
            kube.create(PODS, NAMESPACE, {"metadata": metadata, "spec": one["spec"]})
    on_node = Model("hf://a/b", access=ModelAccess(cache=ModelCache(host_path="/var/lib/models")))
    for role, template in templates(pool(on_node)):
        with pytest.raises(KubeRefused, match="hostPath"):
            kube.create(PODS, NAMESPACE, {"metadata": {"name": f"{role}-cache"}, "spec": template["spec"]})
