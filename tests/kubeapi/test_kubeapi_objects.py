"""The verbs on objects: names, metadata, finalizers, graceful deletion, built-in defaults and rules."""

import pytest

from flexpert_operator.local.kubeapi.builtin_defaults import pod_spec
from flexpert_operator.local.kubeapi.deletion import DeleteOptions
from flexpert_operator.local.kubeapi.errors import (
    AlreadyExists,
    BadRequest,
    Conflict,
    InternalError,
    Invalid,
    NotFound,
    UnsupportedMediaType,
)
from flexpert_operator.local.kubeapi.objects import parse_quantity
from flexpert_operator.local.kubeapi.operations import WriteOptions

WD = "example.dev/v1/widgets"
DEPLOYMENTS = "apps/v1/deployments"


def pod(name="p", node=None, **spec):
    spec = {"containers": [{"name": "c", "image": "x:1"}]} | ({"nodeName": node} if node else {}) | spec
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def deployment(**spec):
    template = {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    spec = {"selector": {"matchLabels": {"app": "a"}}, "template": template} | spec
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec}


def delete(bench, path, name, **options):
    resource = bench.resource(path)
    return bench.api.operations.delete(resource, resource.key("default", name), DeleteOptions(**options))


def update(bench, path, name, obj, subresource=""):
    resource = bench.resource(path)
    key = resource.key("default", name)
    return bench.api.operations.update(resource, key, obj, subresource, WriteOptions("test")).object


def test_create_fills_in_the_systems_metadata(bench, widget):
    asked = widget("a")
    asked["metadata"] |= {"uid": "mine", "resourceVersion": "1", "generation": 9, "creationTimestamp": None}
    asked["status"] = {"selector": "x"}
    made = bench.create(WD, asked)
    meta = made["metadata"]
    assert (meta["namespace"], meta["generation"]) == ("default", 1)
    assert meta["uid"] != "mine"
    assert meta["resourceVersion"] == str(bench.api.store.revision)
    assert "status" not in made
    with pytest.raises(AlreadyExists, match=r'widgets\.example\.dev "a" already exists'):
        bench.create(WD, widget("a"))


def test_generated_names(bench, widget):
    asked = widget("a")
    asked["metadata"] = {"generateName": "gen-"}
    names = {bench.create(WD, asked)["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("gen-") for name in names)


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        ({"name": "Bad_Name"}, "metadata.name"),
        ({"name": "x" * 254}, "metadata.name"),
        ({}, "metadata.name"),
        ({"name": "a", "labels": {"-x": "y"}}, "metadata.labels"),
        ({"name": "a", "labels": {"x": "not a value"}}, "metadata.labels"),
        ({"name": "a", "annotations": {"a b": ""}}, "metadata.annotations"),
        ({"name": "a", "annotations": {"big": "x" * 300_000}}, "metadata.annotations"),
        (
            {"name": "a", "ownerReferences": [{"kind": "X", "name": "x", "uid": "1"}]},
            "metadata.ownerReferences[0].apiVersion",
        ),
    ],
)  # fmt: skip
def test_bad_metadata_is_named(bench, widget, metadata, path):
    with pytest.raises(Invalid) as refused:
        bench.create(WD, widget() | {"metadata": metadata})
    assert [cause["field"] for cause in refused.value.details["causes"]] == [path]


def test_names_follow_the_kind(bench):
    bench.create("rbac.authorization.k8s.io/v1/roles", {"metadata": {"name": "system:x"}})
    with pytest.raises(Invalid, match="DNS-1035"):
        bench.create("services", {"metadata": {"name": "1up"}})


def test_an_invalid_object_has_a_cause_for_each_error(bench, widget):
    with pytest.raises(Invalid) as refused:
        bench.create(WD, widget("x", experts={"workers": -1}, maxWorkers="many"))
    assert refused.value.message.startswith('Widget.example.dev "x" is invalid: [spec.experts.workers: ')
    causes = {cause["field"]: cause["reason"] for cause in refused.value.details["causes"]}
    assert causes["spec.experts.workers"] == "FieldValueInvalid"
    assert causes["spec.maxWorkers"] == "FieldValueTypeInvalid"
    assert refused.value.status()["details"]["kind"] == "Widget"


def test_field_validation(bench, widget):
    odd = widget("a", colour="red")
    with pytest.raises(BadRequest, match=r'strict decoding error: unknown field "spec\.colour"'):
        bench.create(WD, odd, field_validation="Strict")
    warned = bench.written(WD, odd, field_validation="Warn", dry_run=True)
    assert warned.warnings == ('unknown field "spec.colour"',)
    assert bench.written(WD, odd, field_validation="Ignore").warnings == ()
    assert "colour" not in bench.get(WD, "a")["spec"]
    with pytest.raises(Invalid, match="strict decoding error"):
        bench.patch(WD, "a", {"spec": {"colour": "red"}}, field_validation="Strict")


def test_wrong_kinds_names_and_namespaces(bench, widget):
    with pytest.raises(BadRequest, match="does not match the expected one"):
        bench.create(WD, widget() | {"kind": "Gadget"})
    with pytest.raises(NotFound, match='namespaces "nowhere" not found'):
        bench.create(WD, widget(), "nowhere")
    elsewhere = widget()
    elsewhere["metadata"]["namespace"] = "kube-system"
    with pytest.raises(BadRequest, match="namespace of the provided object"):
        bench.create(WD, elsewhere)
    made = bench.create(WD, widget("a"))
    made["metadata"] = made["metadata"] | {"name": "b"}
    with pytest.raises(BadRequest, match="does not match the name on the URL"):
        update(bench, WD, "a", made)


def test_updates_need_a_fresh_version(bench, widget):
    made = bench.create(WD, widget("a"))
    bench.patch(WD, "a", {"metadata": {"labels": {"x": "y"}}})
    with pytest.raises(Conflict, match="the object has been modified"):
        update(bench, WD, "a", made)
    with pytest.raises(Invalid, match="must be specified for an update"):
        update(bench, WD, "a", widget("a"))
    with pytest.raises(Conflict):
        bench.patch(WD, "a", {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}})
    with pytest.raises(Conflict, match="UID in precondition"):
        bench.patch(WD, "a", {"metadata": {"uid": "another"}})


def test_an_update_that_changes_nothing_keeps_the_version(bench, widget):
    made = bench.create(WD, widget("a"))
    assert update(bench, WD, "a", made)["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


def test_only_the_spec_counts_generations(bench, widget):
    bench.create(WD, widget("a"))
    assert bench.patch(WD, "a", {"metadata": {"labels": {"x": "y"}}})["metadata"]["generation"] == 1
    assert bench.patch(WD, "a", {"status": {"selector": "x"}}, subresource="status")["metadata"]["generation"] == 1
    assert bench.patch(WD, "a", {"spec": {"maxWorkers": 9}})["metadata"]["generation"] == 2
    bench.patch(WD, "a", {"metadata": {"finalizers": ["example.dev/x"]}})
    going, _ = delete(bench, WD, "a")
    assert going["metadata"]["generation"] == 3


def test_finalizers_hold_an_object_that_is_deleted(bench, widget):
    held = widget("a")
    held["metadata"]["finalizers"] = ["example.dev/x"]
    bench.create(WD, held)
    assert delete(bench, WD, "a")[1] is False
    version = bench.get(WD, "a")["metadata"]["resourceVersion"]
    assert delete(bench, WD, "a")[1] is False
    assert bench.get(WD, "a")["metadata"]["resourceVersion"] == version
    with pytest.raises(Invalid, match="no new finalizers can be added"):
        bench.patch(WD, "a", {"metadata": {"finalizers": ["example.dev/x", "example.dev/y"]}})
    bench.patch(WD, "a", {"status": {"selector": "x"}}, subresource="status")
    bench.patch(WD, "a", {"metadata": {"finalizers": None}})
    assert bench.names(WD) == []


def test_a_pod_on_a_node_ends_gracefully(bench):
    bench.create("pods", pod("free"))
    assert delete(bench, "pods", "free")[1] is True
    bench.create("pods", pod("placed", "n1", terminationGracePeriodSeconds=5))
    going, gone = delete(bench, "pods", "placed")
    assert (gone, going["metadata"]["deletionGracePeriodSeconds"]) == (False, 5)
    assert delete(bench, "pods", "placed", grace_period_s=0)[1] is True
    bench.create("pods", pod("done", "n1"))
    bench.patch("pods", "done", {"status": {"phase": "Succeeded"}}, subresource="status")
    assert delete(bench, "pods", "done")[1] is True


def test_dry_runs_store_nothing(bench, widget):
    bench.create(WD, widget("a"), dry_run=True)
    assert bench.names(WD) == []
    bench.create(WD, widget("a"))
    revision = bench.api.store.revision
    assert bench.patch(WD, "a", {"spec": {"maxWorkers": 9}}, dry_run=True)["spec"]["maxWorkers"] == 9
    assert delete(bench, WD, "a", dry_run=True)[1] is True
    assert bench.api.store.revision == revision


def test_scale(bench, widget):
    bench.create(WD, widget("a"))
    resource = bench.resource(WD)
    key = resource.key("default", "a")
    scale = bench.api.operations.scale_of(resource, key)
    assert (scale["spec"], scale["status"]) == ({"replicas": 2}, {"replicas": 0})
    with pytest.raises(Conflict):
        update(bench, WD, "a", scale | {"metadata": {"name": "a", "resourceVersion": "1"}}, "scale")
    with pytest.raises(BadRequest):
        update(bench, WD, "a", scale | {"kind": "Widget"}, "scale")
    scaled = update(bench, WD, "a", scale | {"spec": {"replicas": 5}}, "scale")
    assert scaled["spec"] == {"replicas": 5}
    assert bench.get(WD, "a")["metadata"]["generation"] == 2


def test_a_custom_resource_without_replicas_has_no_scale(bench, widget):
    bench.create(WD, widget("a"))
    resource = bench.resource(WD)
    key = resource.key("default", "a")
    stored = bench.get(WD, "a")
    bench.api.store.put(key, stored | {"spec": {"model": stored["spec"]["model"]}})
    with pytest.raises(InternalError, match=r'"\.spec\.experts\.workers" does not exist'):
        bench.api.operations.scale_of(resource, key)


def test_strategic_merge_is_for_built_in_kinds(bench, widget):
    bench.create(WD, widget("a"))
    with pytest.raises(UnsupportedMediaType, match=r"merge-patch\+json"):
        bench.patch(WD, "a", {}, kind="application/strategic-merge-patch+json")


def test_built_in_defaults(bench):
    made = bench.create(DEPLOYMENTS, deployment())
    assert made["spec"]["replicas"] == 1
    assert made["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": "25%", "maxSurge": "25%"}
    assert made["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] == "Always"
    service = bench.create("services", {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}})
    assert service["spec"]["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    secret = bench.create("secrets", {"metadata": {"name": "s"}, "stringData": {"a": "b"}})
    assert (secret["data"], secret["type"], "stringData" in secret) == ({"a": "Yg=="}, "Opaque", False)


def test_limits_are_requests_where_there_are_none():
    spec = {"containers": [{"name": "c", "image": "x:1", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]}
    pod_spec(spec)
    assert spec["containers"][0]["resources"]["requests"] == {"cpu": "1", "memory": "1Gi"}
    assert spec["containers"][0]["imagePullPolicy"] == "IfNotPresent"


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"selector": {"matchLabels": {"app": "b"}}}, "spec.template.metadata.labels"),
        ({"replicas": -1}, "spec.replicas"),
        (
            {"template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": []}}},
            "spec.template.spec.containers",
        ),
    ],
)  # fmt: skip
def test_rules_of_workloads(bench, spec, path):
    with pytest.raises(Invalid) as refused:
        bench.create(DEPLOYMENTS, deployment(**spec))
    assert [cause["field"] for cause in refused.value.details["causes"]] == [path]


@pytest.mark.parametrize(
    ("container", "path"),
    [
        ({"name": "C_1"}, "name"),
        ({"image": None}, "image"),
        ({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}, "volumeMounts[0].name"),
        ({"ports": [{"containerPort": 0}]}, "ports[0].containerPort"),
        ({"ports": [{"containerPort": 1, "name": "much-too-long-name"}]}, "ports[0].name"),
        ({"resources": {"limits": {"cpu": 1}, "requests": {"cpu": "1500m"}}}, "resources.requests"),
        ({"resources": {"limits": {"memory": "lots"}}}, "resources.limits[memory]"),
    ],
)
def test_rules_of_containers(bench, container, path):
    with pytest.raises(Invalid) as refused:
        bench.create("pods", pod(containers=[{"name": "c", "image": "x"} | container]))
    assert refused.value.details["causes"][0]["field"] == f"spec.containers[0].{path}"


@pytest.mark.parametrize(
    ("kind", "fields", "path"),
    [
        ("secrets", {"data": {"a": "not base64!"}}, "data[a]"),
        ("configmaps", {"binaryData": {"a": "YQ"}}, "binaryData[a]"),
        ("secrets", {"type": "kubernetes.io/tls", "stringData": {"tls.crt": "c"}}, "data[tls.key]"),
    ],
)
def test_rules_of_secrets_and_config_maps(bench, kind, fields, path):
    with pytest.raises(Invalid) as refused:
        bench.create(kind, {"metadata": {"name": "s"}} | fields)
    assert [cause["field"] for cause in refused.value.details["causes"]] == [path]
    assert "not base64!" not in str(refused.value)


def test_what_an_update_may_not_change(bench):
    bench.create(DEPLOYMENTS, deployment())
    bench.create("pods", pod())
    bench.patch(
        "pods",
        "p",
        {"spec": {"containers": [{"name": "c", "image": "x:2"}]}},
        kind="application/strategic-merge-patch+json",
    )
    with pytest.raises(Invalid, match="pod updates may not change fields other than"):
        bench.patch("pods", "p", {"spec": {"restartPolicy": "Never"}})
    template = {"metadata": {"labels": {"app": "b"}}}
    with pytest.raises(Invalid, match="field is immutable"):
        bench.patch(DEPLOYMENTS, "d", {"spec": {"selector": {"matchLabels": {"app": "b"}}, "template": template}})


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("500m", 0.5), ("2Ki", 2048), ("1e3", 1000), ("1.5Gi", 1.5 * 2**30), (3, 3), ("0", 0)]
)
def test_quantities(text, value):
    assert float(parse_quantity(text)) == value


@pytest.mark.parametrize("text", ["", "Gi", "1x", "one", "1KiB"])
def test_bad_quantities(text):
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(text)
