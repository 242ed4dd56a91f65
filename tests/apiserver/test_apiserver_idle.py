"""A settled operator asks a real API server for nothing, however the spec writes what the server writes otherwise."""

import functools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chart_operator import await_kinds
from operator_process import OperatorProcess, moe_deployment
from real_api_server import RealApiServer

from flexpert_operator.api import names
from flexpert_operator.errors import KubeNotFound
from flexpert_operator.kube import (
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    MOE_DEPLOYMENTS,
    NETWORK_POLICIES,
    RAY_CLUSTERS,
    Kube,
    api_client,
)
from flexpert_operator.local.up import install_crds

pytestmark = pytest.mark.envtest
RESYNC_S = 0.5
QUIET_S = 6.0
ACCOUNT = "system:serviceaccount:default:operator"
POD = {
    "env": [{"name": "EMPTY", "value": ""}, {"name": "FULL", "value": "1000m"}],
    "tolerations": [{"key": "spot", "operator": "Exists", "value": "", "effect": "NoSchedule"}],
    "volumes": [
        {"name": "scratch", "emptyDir": {"sizeLimit": "1024Mi"}},
        {"name": "plain", "emptyDir": {}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "c", "readOnly": False}},
    ],
    "volumeMounts": [{"name": "scratch", "mountPath": "/scratch", "readOnly": False, "subPath": ""}],
    "resources": {
        "limits": {"cpu": "1000m", "memory": "2048Mi"},
        "requests": {"cpu": "0.5", "memory": "1024Mi"},
    },
}


@pytest.fixture
def kube(api: RealApiServer, tmp_path: Path) -> Kube:
    """An administrator's, with all kinds there."""
    kube = Kube(api_client(api.write_kubeconfig(tmp_path / "administrator")))
    install_crds(kube)
    await_kinds(kube)
    return kube


@pytest.fixture
def operator(api: RealApiServer, kube: Kube, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator as a user of its own, who looks at everything all the time."""
    kube.request("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "operator"}})
    kube.request(
        "POST",
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        {
            "metadata": {"name": "operator"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": "operator"}],
        },
    )
    kubeconfig = api.write_kubeconfig(tmp_path / "operator", api.token_of("default", "operator"))
    network = '{"operators": [{"podSelector": {}}]}'
    options = ("--no-leader-elect", "--resync-seconds", str(RESYNC_S), "--pool-network", network)
    with OperatorProcess(kubeconfig, tmp_path / "operator.log", *options) as operator:
        yield operator


def moe_deployments() -> Iterator[dict[str, Any]]:
    """One without anything special, and one that writes what it can otherwise than the API server."""
    yield moe_deployment("plain")
    body = moe_deployment("otherwise")
    for role in ("engines", "experts", "ingress"):
        body["spec"][role] = {**body["spec"].get(role, {}), **POD}
    yield body


def has_children(kube: Kube, name: str) -> bool:
    """Whether the last children to be made are there."""
    wanted = (
        (RAY_CLUSTERS, name),
        (DEPLOYMENTS, names.ingress(name)),
        (NETWORK_POLICIES, names.network_policy(name, names.INGRESS_ROLE)),
        (DISRUPTION_BUDGETS, names.disruption_budget(name, names.INGRESS_ROLE)),
    )
    try:
        return all(kube.get(resource, "default", child) for resource, child in wanted)
    except KubeNotFound:
        return False


def test_nothing_is_asked_while_nothing_changes(api: RealApiServer, kube: Kube, operator: OperatorProcess) -> None:
    bodies = list(moe_deployments())
    for body in bodies:
        kube.create(MOE_DEPLOYMENTS, "default", body)
    for body in bodies:
        operator.until("its children", functools.partial(has_children, kube, body["metadata"]["name"]))
    stored = kube.get(DEPLOYMENTS, "default", names.ingress("otherwise"))["spec"]["template"]["spec"]
    (container,) = stored["containers"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}, "the API server writes it otherwise"
    assert {"name": "EMPTY"} in container["env"]
    quiet = threading.Event()
    asked: list[str] = []
    for _ in range(10):
        before = len(api.requests_by(ACCOUNT))
        quiet.wait(QUIET_S)
        asked = api.requests_by(ACCOUNT)[before:]
        if not asked:
            break
    assert asked == [], json.dumps(asked)
    assert operator.process.poll() is None
