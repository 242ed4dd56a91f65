"""An old CustomResourceDefinition, made as Helm makes it, becomes this version's; Helm itself never upgrades one."""

import copy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flexpert_operator.cli.main import main
from flexpert_operator.crds import crd_folder, load_crds
from flexpert_operator.kube import MOE_DEPLOYMENTS, Kube, api_client
from flexpert_operator.local.kubeapi import KubeApiServer

PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NAME = "moedeployments.flexpert.io"
Object = dict[str, Any]


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    with KubeApiServer() as api:
        yield api.write_kubeconfig(tmp_path / "kubeconfig")


@pytest.fixture
def kube(kubeconfig: Path) -> Kube:
    return Kube(api_client(kubeconfig))


def spec_properties(crd: Object) -> Object:
    """The properties of a MoEDeployment's spec."""
    found: Object = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    return found


def old_crd() -> Object:
    """An earlier version: it has a field that is gone now, lacks one that there is now, and has no printer columns."""
    (crd,) = [copy.deepcopy(one) for one in load_crds() if one["metadata"]["name"] == NAME]
    properties = spec_properties(crd)
    properties["oldField"] = {"type": "string"}
    del properties["experts"]["properties"]["standbyWorkers"]
    del crd["spec"]["versions"][0]["additionalPrinterColumns"]
    return crd


@pytest.fixture
def installed(kube: Kube) -> Object:
    """An object that was made under the old version."""
    kube.request("POST", PATH, old_crd(), query={"fieldManager": "helm"})
    body = {
        "apiVersion": "flexpert.io/v1alpha1",
        "kind": "MoEDeployment",
        "metadata": {"name": "old"},
        "spec": {"model": {"source": "file:///models/tiny"}, "oldField": "kept until it is written"},
    }
    kube.create(MOE_DEPLOYMENTS, "default", body)
    return body


def check_upgraded(kube: Kube) -> None:
    """The CRD is this version's, and the old object is served and can be written."""
    properties = spec_properties(kube.request("GET", f"{PATH}/{NAME}"))
    assert "oldField" not in properties
    assert "standbyWorkers" in properties["experts"]["properties"]
    kube.patch(MOE_DEPLOYMENTS, "default", "old", {"spec": {"experts": {"standbyWorkers": 1}}})
    spec = kube.get(MOE_DEPLOYMENTS, "default", "old")["spec"]
    assert spec["experts"]["standbyWorkers"] == 1
    assert "oldField" not in spec


def test_flexpert_crds_apply_upgrades(
    kubeconfig: Path, kube: Kube, installed: Object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["crds", "apply", "--dry-run", "--kubeconfig", str(kubeconfig)]) == 0
    assert f"customresourcedefinition/{NAME} would be upgraded" in capsys.readouterr().out
    assert "oldField" in spec_properties(kube.request("GET", f"{PATH}/{NAME}"))
    assert main(["crds", "apply", "--kubeconfig", str(kubeconfig)]) == 0
    assert f"customresourcedefinition/{NAME} upgraded" in capsys.readouterr().out
    check_upgraded(kube)
    assert main(["crds", "apply", "--kubeconfig", str(kubeconfig)]) == 0
    assert f"customresourcedefinition/{NAME} unchanged" in capsys.readouterr().out


@pytest.mark.kubectl
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_apply_upgrades(kubeconfig: Path, kube: Kube, installed: Object) -> None:
    command = ["kubectl", "--kubeconfig", str(kubeconfig), "apply", "--server-side", "--force-conflicts"]
    done = subprocess.run([*command, "-f", str(crd_folder())], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    check_upgraded(kube)


def test_a_first_installation(kubeconfig: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crds", "apply", "--kubeconfig", str(kubeconfig)]) == 0
    assert f"{NAME} created" in capsys.readouterr().out


def test_objects_in_a_version_that_goes_are_in_the_way(
    kubeconfig: Path, kube: Kube, capsys: pytest.CaptureFixture[str]
) -> None:
    crd = old_crd()
    crd["spec"]["versions"][0]["name"] = "v1alpha0"
    kube.request("POST", PATH, crd)
    assert main(["crds", "apply", "--kubeconfig", str(kubeconfig)]) == 1
    assert "objects are stored as v1alpha0" in capsys.readouterr().err
    assert kube.request("GET", f"{PATH}/{NAME}")["spec"]["versions"][0]["name"] == "v1alpha0"


def test_show_prints_what_apply_applies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crds", "show"]) == 0
    shown = list(yaml.load_all(capsys.readouterr().out, yaml.CSafeLoader))
    assert shown == load_crds()
