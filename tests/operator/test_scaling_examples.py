"""The manifests of examples/autoscaling are ones that an API server takes, and name what can be scaled."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flexpert_operator.api import names
from flexpert_operator.crds import load_crds
from flexpert_operator.kube import POLICIES, SCALERS, Kube, Resource, api_client
from flexpert_operator.local.kubeapi import KubeApiServer
from flexpert_operator.local.up import install_crds

Object = dict[str, Any]
EXAMPLES = Path(__file__).parents[2] / "examples"
RESOURCES = {
    names.POLICY_KIND: POLICIES,
    names.SCALER_KIND: SCALERS,
    "HorizontalPodAutoscaler": Resource("autoscaling", "v2", "horizontalpodautoscalers"),
}
FILES = ("autoscaling/policy.yaml", "autoscaling/hpa.yaml", "autoscaling/keda.yaml", "tiny-moe-policy.yaml")


def objects(file: str) -> list[Object]:
    return [one for one in yaml.safe_load_all((EXAMPLES / file).read_text()) if one]


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    with KubeApiServer() as api:
        found = Kube(api_client(api.write_kubeconfig(tmp_path_factory.mktemp("examples") / "kubeconfig")))
        install_crds(found)
        yield found


@pytest.mark.parametrize("file", FILES)
def test_an_api_server_takes_them(kube: Kube, file: str) -> None:
    for body in objects(file):
        if body["kind"] in RESOURCES:
            path = RESOURCES[body["kind"]].path("default")
            kube.request("POST", path, body, {"fieldValidation": "Strict", "dryRun": "All"})


def targets() -> Iterator[tuple[str, Object]]:
    for file in FILES:
        yield from ((file, one["spec"]["scaleTargetRef"]) for one in objects(file) if "scaleTargetRef" in one["spec"])


def test_what_they_scale_has_a_scale_subresource() -> None:
    scalable = {
        crd["spec"]["names"]["kind"] for crd in load_crds() if "scale" in crd["spec"]["versions"][0]["subresources"]
    }
    found = list(targets())
    assert len(found) == 3
    for file, target in found:
        assert target["apiVersion"] == names.API_VERSION
        assert target["kind"] in scalable
        made = [one["metadata"]["name"] for one in objects(file) if one["kind"] == target["kind"]]
        assert target["kind"] == names.KIND or target["name"] in made


def test_metrics_are_averages_over_what_replicas_count() -> None:
    for file in FILES:
        for body in objects(file):
            for metric in body["spec"].get("metrics", ()):
                assert (metric["type"], metric["external"]["target"]["type"]) == ("External", "AverageValue")
            for trigger in body["spec"].get("triggers", ()):
                assert trigger["metricType"] == "AverageValue"
                assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes texts"
