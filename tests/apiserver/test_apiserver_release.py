"""The chart through Helm's own actions on a real API server: install, upgrade the CRDs, upgrade, uninstall."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chart_operator import await_kinds
from chart_release import CHART
from old_crds import NAME, OLD_OBJECT, PATH, check_upgraded, old_crd, spec_properties
from real_api_server import RealApiServer

from flexpert_operator.cli.main import main
from flexpert_operator.kube import DEPLOYMENTS, MOE_DEPLOYMENTS, SERVICES, Kube, Resource, api_client

pytestmark = [
    pytest.mark.envtest,
    pytest.mark.skipif(importlib.util.find_spec("helm_python") is None, reason="helm-python-sdk has no wheel here"),
]
NAMESPACE = "flexpert-system"
CONFIG_MAPS = Resource("", "v1", "configmaps")
Helm = Callable[..., dict[str, Any]]


@pytest.fixture
def helm(api: RealApiServer, tmp_path: Path) -> Helm:
    """Helm's actions on a copy of the chart with a stand-in for KubeRay's chart, which no test fetches."""
    copy = tmp_path / "flexpert"
    shutil.copytree(CHART, copy)
    stand_in = copy / "charts" / "kuberay-operator"
    (stand_in / "templates").mkdir(parents=True)
    (stand_in / "Chart.yaml").write_text("{apiVersion: v2, name: kuberay-operator, version: 1.7.0}\n")
    (stand_in / "templates" / "one.yaml").write_text("{apiVersion: v1, kind: ConfigMap, metadata: {name: kuberay}}\n")
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")

    def act(verb: str, **values: Any) -> dict[str, Any]:
        script = Path(__file__).with_name("helm_action.py")
        command = [sys.executable, str(script), str(kubeconfig), str(copy), verb, json.dumps(values)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return act


def test_install_upgrade_uninstall(api: RealApiServer, helm: Helm, tmp_path: Path) -> None:
    kubeconfig = api.write_kubeconfig(tmp_path / "administrator")
    kube = Kube(api_client(kubeconfig))
    kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    assert helm("install")["status"] == "deployed"
    await_kinds(kube, MOE_DEPLOYMENTS)
    as_helm_did = {"fieldManager": "helm", "force": "true"}
    kube.request("PATCH", f"{PATH}/{NAME}", old_crd(), as_helm_did, "application/apply-patch+yaml")
    await_kinds(kube, MOE_DEPLOYMENTS)
    kube.create(MOE_DEPLOYMENTS, "default", OLD_OBJECT)
    assert kube.get(DEPLOYMENTS, NAMESPACE, "flexpert")["spec"]["replicas"] == 2
    assert kube.find(CONFIG_MAPS, NAMESPACE, "kuberay") is None

    helm("upgrade")
    assert "oldField" in spec_properties(kube.request("GET", f"{PATH}/{NAME}")), "Helm does not upgrade them"
    assert main(["crds", "apply", "--kubeconfig", str(kubeconfig)]) == 0
    check_upgraded(kube)
    assert "notes" in helm("upgrade", kuberay={"enabled": True}, operator={"replicas": 3})
    assert kube.get(DEPLOYMENTS, NAMESPACE, "flexpert")["spec"]["replicas"] == 3
    assert kube.find(CONFIG_MAPS, NAMESPACE, "kuberay") is not None

    helm("uninstall")
    assert kube.find(DEPLOYMENTS, NAMESPACE, "flexpert") is None
    assert kube.find(SERVICES, NAMESPACE, "flexpert-metrics") is None
    assert kube.get(MOE_DEPLOYMENTS, "default", "old"), "pools outlive the chart"
