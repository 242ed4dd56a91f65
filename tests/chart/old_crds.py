"""An earlier CustomResourceDefinition, an object that was made under it, and how both are after an upgrade."""

import copy
from typing import Any

from flexpert_operator.crds import load_crds
from flexpert_operator.kube import MOE_DEPLOYMENTS, Kube

PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NAME = "moedeployments.flexpert.io"
Object = dict[str, Any]
OLD_OBJECT: Object = {
    "apiVersion": "flexpert.io/v1alpha1",
    "kind": "MoEDeployment",
    "metadata": {"name": "old"},
    "spec": {"model": {"source": "file:///models/tiny"}, "oldField": "kept until it is written"},
}


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


def check_upgraded(kube: Kube) -> None:
    """The CRD is this version's, and the old object is served and can be written."""
    properties = spec_properties(kube.request("GET", f"{PATH}/{NAME}"))
    assert "oldField" not in properties
    assert "standbyWorkers" in properties["experts"]["properties"]
    kube.patch(MOE_DEPLOYMENTS, "default", "old", {"spec": {"experts": {"standbyWorkers": 1}}})
    spec = kube.get(MOE_DEPLOYMENTS, "default", "old")["spec"]
    assert spec["experts"]["standbyWorkers"] == 1
    assert "oldField" not in spec
