"""What the spec says about pods, from the API server to the manifests."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from pool_pods import templates

from flexpert_operator import manifests
from flexpert_operator.api import Engines, Experts, MoEDeployment, Resources, names
from flexpert_operator.api.core_schema import core_schema
from flexpert_operator.api.crd import moe_deployment
from flexpert_operator.api.fields import members, read
from flexpert_operator.api.pods import PodSettings
from flexpert_operator.api.schema import field_schema
from flexpert_operator.api.spec import Head, Ingress
from flexpert_operator.children import correction, with_digest
from flexpert_operator.decide.difference import covers
from flexpert_operator.decide.sizing import GroupSize, Size
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_operator.local.kubeapi.cel import CelRules
from flexpert_operator.local.kubeapi.structural import unknown_fields
from flexpert_operator.local.kubeapi.validation import validate
from flexpert_operator.manifests import containers
from flexpert_proto import names as pool_names

Object = dict[str, Any]
SETTINGS: Object = {
    "image": "registry.example/moe:2",
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "pull"}],
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}
            ]
        }
    },
    "topologySpreadConstraints": [
        {"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"},
    ],
    "env": [
        {"name": "OMP_WAIT_POLICY", "value": "ACTIVE"},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
    ],
    "envFrom": [{"configMapRef": {"name": "tuning"}}],
    "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}],
    "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
    "priorityClassName": "serving",
    "serviceAccountName": "moe",
    "runtimeClassName": "nvidia",
    "labels": {"team": "search"},
    "annotations": {"prometheus.io/scrape": "true"},
}


@pytest.fixture(scope="module")
def spec_schema() -> Object:
    root: Object = moe_deployment(core_schema)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    found: Object = root["properties"]["spec"]
    return found


@pytest.fixture(scope="module")
def rules() -> CelRules:
    return CelRules()


@pytest.fixture
def settled(deployment: MoEDeployment) -> MoEDeployment:
    """With these settings for the pods of every role."""
    pod = read(PodSettings, SETTINGS)
    return replace(
        deployment,
        engines=Engines(pod=pod),
        experts=replace(deployment.experts, pod=pod),
        head=Head(pod),
        ingress=Ingress(pod=pod),
    )


def refusals(schema: Object, rules: CelRules, spec: Object) -> list[str]:
    """Fields that the API server would name."""
    found = validate(schema, spec, "spec") or rules.check(schema, spec, None, "spec")
    return [*unknown_fields(schema, spec, "spec"), *(error.path for error in found)]


def test_the_settings_are_accepted_in_every_role(spec_schema: Object, rules: CelRules) -> None:
    spec: Object = {"model": {"source": "file:///m"}}
    spec |= dict.fromkeys(("head", "engines", "experts", "ingress"), SETTINGS)
    assert refusals(spec_schema, rules, spec) == []


def test_they_stand_in_every_pod_template(settled: MoEDeployment) -> None:
    for role, template in templates(settled):
        pod, metadata = template["spec"], template["metadata"]
        for field in ("imagePullSecrets", "nodeSelector", "affinity", "priorityClassName", "runtimeClassName"):
            assert pod[field] == SETTINGS[field], role
        assert pod["serviceAccountName"] == "moe"
        assert SETTINGS["tolerations"][0] in pod["tolerations"]
        assert SETTINGS["volumes"][0] in pod["volumes"]
        assert metadata["annotations"] == SETTINGS["annotations"]
        assert metadata["labels"]["team"] == "search"
        assert metadata["labels"][names.ROLE_LABEL] == role
        (constraint,) = pod["topologySpreadConstraints"]
        assert constraint["labelSelector"]["matchLabels"][names.ROLE_LABEL] == role
        for container in pod["containers"]:
            assert (container["image"], container["imagePullPolicy"]) == ("registry.example/moe:2", "Always")
            assert container["envFrom"] == SETTINGS["envFrom"]
            assert SETTINGS["volumeMounts"][0] in container["volumeMounts"]
            variables = [one["name"] for one in container["env"]]
            assert len(variables) == len(set(variables))
            values = {one["name"]: one for one in container["env"]}
            assert values["OMP_WAIT_POLICY"]["value"] == "ACTIVE"
            assert values["TOKEN"] == SETTINGS["env"][1]


def test_the_ray_cluster_stays_valid(settled: MoEDeployment, kuberay_schema: Object) -> None:
    body = manifests.ray_cluster(settled, "operator:1", GroupSize(1), GroupSize(2), Sizing(), None)
    jsonschema.Draft4Validator(loose(kuberay_schema["properties"]["spec"])).validate(body["spec"])


def loose(schema: Any) -> Any:
    """The schema without what JSON Schema does not know."""
    if isinstance(schema, list):
        return [loose(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: loose(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        kept.pop("type", None)
    return kept


def test_pods_are_spread_softly_where_nothing_is_said(deployment: MoEDeployment) -> None:
    for role, template in templates(deployment):
        keys = [one["topologyKey"] for one in template["spec"].get("topologySpreadConstraints", ())]
        expected = [] if role == names.HEAD_ROLE else ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
        assert keys == expected, role
        assert "nodeSelector" not in template["spec"]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"env": [{"name": pool_names.ENV_POOL, "value": "{}"}]}, "spec.engines.env[0].name"),
        ({"env": [{"name": "1x"}]}, "spec.engines.env[0].name"),
        ({"env": [{"name": "A"}, {"name": "A"}]}, "spec.engines.env[1]"),
        ({"env": [{"value": "a"}]}, "spec.engines.env[0].name"),
        ({"env": [{"name": "A", "valu": "a"}]}, "spec.engines.env[0].valu"),
        ({"volumes": [{"name": "shm", "emptyDir": {}}]}, "spec.engines.volumes[0].name"),
        ({"volumes": [{"name": "a", "emptyDirectory": {}}]}, "spec.engines.volumes[0].emptyDirectory"),
        ({"volumeMounts": [{"name": "a", "mountPath": "/a"}]}, "spec.engines.volumeMounts"),
        ({"volumeMounts": [{"name": "a", "mountPath": "/dev/shm"}]}, "spec.engines.volumeMounts[0].mountPath"),
        ({"tolerations": [{"operator": "Exist"}]}, "spec.engines.tolerations[0].operator"),
        ({"tolerations": [{"effect": "Never"}]}, "spec.engines.tolerations[0].effect"),
        ({"labels": {"flexpert.io/role": "head"}}, "spec.engines.labels"),
        ({"labels": {"a b": "c"}}, "spec.engines.labels"),
        ({"labels": {"a": "c d"}}, "spec.engines.labels.a"),
        ({"nodeSelector": {"a": "-"}}, "spec.engines.nodeSelector.a"),
        ({"affinity": {"nodeAffinty": {}}}, "spec.engines.affinity.nodeAffinty"),
        ({"imagePullPolicy": "Sometimes"}, "spec.engines.imagePullPolicy"),
        ({"imagePullSecrets": [{}]}, "spec.engines.imagePullSecrets[0].name"),
        ({"priorityClassName": "Not A Name"}, "spec.engines.priorityClassName"),
        (
            {"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "a", "whenUnsatisfiable": "ScheduleAnyway"}]},
            "spec.engines.topologySpreadConstraints[0].maxSkew",
        ),
        ({"disruptionBudget": {"maxUnavailable": -1}}, "spec.engines.disruptionBudget.maxUnavailable"),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(
    spec_schema: Object, rules: CelRules, change: Object, path: str
) -> None:
    assert path in refusals(spec_schema, rules, {"model": {"source": "file:///m"}, "engines": change})


def test_a_container_is_never_limited_below_what_is_requested() -> None:
    found = containers.resources(Resources(requests={"cpu": "2500m", "memory": "1Mi"}), 1, 2**30)
    assert found["limits"] == {"cpu": "2500m", "memory": "1Gi"}
    assert found["requests"] == {"cpu": "2500m", "memory": "1Mi"}


def test_budgets_say_how_many_pods_must_be_left(deployment: MoEDeployment) -> None:
    asked = replace(deployment, experts=Experts(workers=4, workers_per_pod=2, standby_workers=1))
    size = Size(GroupSize(1), GroupSize(3), pods=2, sizing=Sizing(settled=2, aim=2))
    budgets = {one["metadata"]["name"]: one["spec"] for one in manifests.disruption_budgets(asked, size, 3)}
    assert {name: spec["minAvailable"] for name, spec in budgets.items()} == {
        "tiny-engines": 0,
        "tiny-experts": 2,
        "tiny-ingress": 2,
    }
    assert budgets["tiny-experts"]["selector"]["matchLabels"][names.ROLE_LABEL] == "experts"


def test_growth_does_not_hold_back_the_nodes_of_those_that_serve(deployment: MoEDeployment) -> None:
    growing = Size(GroupSize(1), GroupSize(8), pods=8, sizing=Sizing(settled=2, aim=8))
    _, experts, _ = manifests.disruption_budgets(replace(deployment, experts=Experts(workers=8)), growing, 2)
    assert experts["spec"]["minAvailable"] == 1


@pytest.mark.parametrize(
    ("mebibytes", "written"),
    [(0, "0"), (1, "1Mi"), (1023, "1023Mi"), (1024, "1Gi"), (1536, "1536Mi"), (2**20, "1Ti"), (2048, "2Gi")],
)
def test_memory_is_written_as_the_api_server_writes_it(mebibytes: int, written: str) -> None:
    assert containers.memory_quantity(mebibytes * 2**20) == written


STORED = (
    ({"limits": {"cpu": "1000m", "memory": "2048Mi"}}, {"limits": {"cpu": "1", "memory": "2Gi"}}),
    ({"requests": {"cpu": "0.5", "nvidia.com/gpu": 1}}, {"requests": {"cpu": "500m", "nvidia.com/gpu": "1"}}),
    ({"emptyDir": {"sizeLimit": "1024Mi"}}, {"emptyDir": {"sizeLimit": "1Gi"}}),
    ({"resourceFieldRef": {"divisor": "1024Ki"}}, {"resourceFieldRef": {"divisor": "1Mi"}}),
    ({"name": "A", "value": ""}, {"name": "A"}),
    ({"key": "spot", "operator": "Exists", "value": ""}, {"key": "spot", "operator": "Exists"}),
    ({"volumes": [], "containers": [{"volumeMounts": []}]}, {"containers": [{"image": "i"}]}),
    ({"labelSelector": {"matchLabels": {}}}, {"labelSelector": {}}),
    ({"mountPath": "/m", "readOnly": False}, {"mountPath": "/m"}),
)
"""What was written, and what the API server (1.36) has of it."""


@pytest.mark.parametrize(("wanted", "live"), STORED)
def test_what_the_api_server_writes_otherwise_is_the_same(wanted: Object, live: Object) -> None:
    assert covers(live, wanted)


@pytest.mark.parametrize(
    ("wanted", "live"),
    [
        ({"limits": {"memory": "2048Mi"}}, {"limits": {"memory": "2G"}}),
        ({"limits": {"memory": "2048Mi"}}, {"limits": {}}),
        ({"limits": {"memory": "2048Mi"}}, {}),
        ({"emptyDir": {"sizeLimit": "1Gi"}}, {"emptyDir": {}}),
        ({"emptyDir": {}}, {"hostPath": {"path": "/"}}),
        ({"name": "A", "value": ""}, {"name": "A", "value": "1"}),
        ({"name": "A", "value": "1000m"}, {"name": "A", "value": "1"}),
        ({"labels": {"limits": "1000m"}}, {"labels": {"limits": "1"}}),
        ({"labels": {"a": ""}}, {"labels": {}}),
        ({"allowPrivilegeEscalation": False}, {}),
    ],
)
def test_what_somebody_changed_is_not_the_same(wanted: Object, live: Object) -> None:
    assert not covers(live, wanted)


def test_what_is_taken_out_of_the_spec_goes(deployment: MoEDeployment, settled: MoEDeployment) -> None:
    live = with_digest(manifests.ingress_deployment(settled, "operator:1", 2))
    live["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    assert covers(live, with_digest(manifests.ingress_deployment(settled, "operator:1", 2)))
    wanted = with_digest(manifests.ingress_deployment(deployment, "operator:1", 2))
    assert not covers(live, wanted)
    template = correction(live, wanted)["spec"]["template"]
    assert template["spec"]["nodeSelector"] is None
    assert template["metadata"]["annotations"] is None
    json.dumps(template)


def unknown_to(schema: Object, other: Object, path: str) -> Iterator[str]:
    """Fields of a schema that another one does not have, or has in another size."""
    for name, below in schema.get("properties", {}).items():
        there = other.get("properties", {}).get(name)
        if there is None or there.get("format") != below.get("format"):
            yield f"{path}.{name}"
        else:
            yield from unknown_to(below, there, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from unknown_to(schema["items"], other.get("items", {}), f"{path}[]")


def test_kuberay_knows_every_field_that_is_passed_through(kuberay_schema: Object) -> None:
    head = kuberay_schema["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]
    pod = head["template"]["properties"]["spec"]["properties"]
    container = pod["containers"]["items"]["properties"]
    there = {member.name: {**pod, **container}.get(member.name) for member in members(PodSettings) if member.field.core}
    for member in members(PodSettings):
        if member.field.core:
            schema = field_schema(member, core_schema)
            assert list(unknown_to(schema, there[member.name], member.name)) == []
