"""CustomResourceDefinitions: what makes one bad, and the project's and KubeRay's own."""

import copy
import os
from pathlib import Path

import pytest
import yaml

from flexpert_operator.local.kubeapi.errors import Invalid

ROOT = Path(__file__).parents[2]
CRDS = "apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture
def crd():
    loaded = yaml.safe_load(Path(__file__).with_name("widgets.yaml").read_text())
    loaded["metadata"]["name"] = "gadgets.example.dev"
    loaded["spec"]["names"] = {"plural": "gadgets", "kind": "Gadget"}
    return loaded


def spec_schema(crd):
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


def refusals(bench, crd):
    with pytest.raises(Invalid) as refused:
        bench.create(CRDS, crd, None)
    return [str(cause["field"]) + ": " + cause["message"] for cause in refused.value.details["causes"]]


def test_a_definition_is_served_at_once(bench, crd):
    made = bench.create(CRDS, crd, None)
    assert {item["type"]: item["status"] for item in made["status"]["conditions"]} == {
        "NamesAccepted": "True",
        "Established": "True",
    }
    assert made["status"]["storedVersions"] == ["v1"]
    assert bench.resource("example.dev/v1/gadgets").list_kind == "GadgetList"


def test_versions_share_their_objects(bench, crd, widget):
    second = copy.deepcopy(crd["spec"]["versions"][0]) | {"name": "v1beta1", "storage": False}
    crd["spec"]["versions"].append(second)
    bench.create(CRDS, crd, None)
    gadget = widget("a") | {"kind": "Gadget"}
    bench.create("example.dev/v1/gadgets", gadget)
    assert bench.get("example.dev/v1beta1/gadgets", "a")["apiVersion"] == "example.dev/v1beta1"
    assert bench.api.registry.groups()["example.dev"] == ["v1", "v1beta1"]


def test_a_changed_schema_counts_at_once(bench, crd, widget):
    bench.create(CRDS, crd, None)
    spec_schema(crd)["properties"]["colour"] = {"type": "string"}
    bench.patch(CRDS, "gadgets.example.dev", {"spec": crd["spec"]}, namespace=None)
    made = bench.create("example.dev/v1/gadgets", widget("a", colour="red") | {"kind": "Gadget"})
    assert made["spec"]["colour"] == "red"


def test_names_scope_and_versions(bench, crd):
    crd["metadata"]["name"] = "other.example.dev"
    crd["spec"]["scope"] = "Everywhere"
    crd["spec"]["versions"][0]["storage"] = False
    assert [text.partition(":")[0] for text in refusals(bench, crd)] == ["metadata.name", "spec.scope", "spec.versions"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x-kubernetes-validations": [{"rule": "self.a =="}]}, "x-kubernetes-validations[0].rule: "),
        ({"properties": {"a": {"description": "no type"}}}, "properties[a].type: Required value: must not be empty"),
        ({"properties": {"a": {"type": "array"}}}, "properties[a].items: Required value: must be specified"),
        ({"properties": {"a": {"type": "string", "pattern": "("}}}, "properties[a].pattern: Invalid value"),
        ({"properties": {"a": {"type": "string", "pattern": "(?!x)"}}}, "properties[a].pattern: Invalid value"),
        ({"properties": {"a": {"type": "integer", "default": "x"}}}, "properties[a].default: Invalid value"),
        (
            {"properties": {"a": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                                  "items": {"type": "object", "properties": {"k": {"type": "string"}}}}}},
            "items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys",
        ),
        (
            {"properties": {"a": {"type": "object", "default": {},
                                  "properties": {"n": {"type": "integer", "default": 1}},
                                  "x-kubernetes-validations": [{"rule": "self.n > 0"}]}}},
            "properties[a].default: Invalid value: \"object\": no such member in mapping: 'n'",
        ),
    ],
)  # fmt: skip
def test_schemas_that_are_refused(bench, crd, change, text):
    spec_schema(crd).clear()
    spec_schema(crd).update({"type": "object"} | change)
    (refusal,) = refusals(bench, crd)
    assert text in refusal


def test_the_projects_own_definitions(bench):
    folder = ROOT / "charts" / "flexpert" / "crds"
    paths = sorted(folder.glob("*.yaml"))
    assert paths, f"{folder} holds no definitions"
    for path in paths:
        bench.create(CRDS, yaml.safe_load(path.read_text()), None)
    moed = {"apiVersion": "flexpert.io/v1alpha1", "kind": "MoEDeployment", "metadata": {"name": "x"}}
    made = bench.create("flexpert.io/v1alpha1/moedeployments", moed | {"spec": {"model": {"source": "file:///m"}}})
    assert made["spec"]["experts"]["workers"] >= 1
    negative = {"model": {"source": "file:///m"}, "experts": {"workers": -1}}
    with pytest.raises(
        Invalid, match=r'MoEDeployment\.flexpert\.io "x" is invalid: .*spec\.experts\.workers: Invalid.* -1'
    ):
        bench.create("flexpert.io/v1alpha1/moedeployments", moed | {"spec": negative})
    with pytest.raises(Invalid, match="at most 40 characters"):
        bench.create(
            "flexpert.io/v1alpha1/moedeployments",
            moed | {"metadata": {"name": "y" * 41}, "spec": {"model": {"source": "file:///m"}}},
        )


def test_kuberays_definitions(bench):
    folder = Path(os.environ.get("KUBERAY_CRDS", ROOT.parent / "shared" / "fixtures" / "kuberay"))
    if not folder.is_dir():
        pytest.skip(f"KubeRay's definitions are not at {folder}; KUBERAY_CRDS names their folder")
    with (folder / "ray.io_rayclusters.yaml").open() as file:
        bench.create(CRDS, yaml.load(file, yaml.CSafeLoader), None)
    template = {"spec": {"containers": [{"name": "ray-head", "image": "x", "resources": {"limits": {"cpu": 1}}}]}}
    head = {"rayStartParams": {}, "template": template}
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "c"}}
    made = bench.create("ray.io/v1/rayclusters", cluster | {"spec": {"headGroupSpec": head}}, field_validation="Strict")
    assert made["spec"]["headGroupSpec"] == head
