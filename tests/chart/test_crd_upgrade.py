"""An old CustomResourceDefinition, made as Helm makes it, becomes this version's; Helm itself never upgrades one."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from old_crds import NAME, OLD_OBJECT, PATH, Object, check_upgraded, old_crd, spec_properties

from flexpert_operator.cli.main import main
from flexpert_operator.crds import crd_folder, load_crds
from flexpert_operator.kube import MOE_DEPLOYMENTS, Kube, api_client
from flexpert_operator.local.kubeapi import KubeApiServer


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    with KubeApiServer() as api:
        yield api.write_kubeconfig(tmp_path / "kubeconfig")


@pytest.fixture
def kube(kubeconfig: Path) -> Kube:
    return Kube(api_client(kubeconfig))


@pytest.fixture
def installed(kube: Kube) -> Object:
    """An object that was made under the old version."""
    kube.request("POST", PATH, old_crd(), query={"fieldManager": "helm"})
    kube.create(MOE_DEPLOYMENTS, "default", OLD_OBJECT)
    return OLD_OBJECT


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
