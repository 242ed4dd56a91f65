"""Server-side apply: ownership, conflicts, force, removal, and what other writes do to ownership."""

import pytest

from flexpert_operator.local.kubeapi import fieldsets
from flexpert_operator.local.kubeapi.errors import BadRequest, Conflict

WD = "example.dev/v1/widgets"


def owners(obj):
    """Fields by manager and operation."""
    return {
        (entry["manager"], entry["operation"], entry.get("subresource", "")): {
            fieldsets.shown(path) for path in fieldsets.from_fields_v1(entry["fieldsV1"])
        }
        for entry in obj["metadata"]["managedFields"]
    }


def test_create_by_apply_owns_what_it_says_and_not_defaults(bench, widget):
    made = bench.apply(WD, widget("a", items=[{"name": "p", "value": 1}]), "me")
    assert made["spec"]["experts"]["workers"] == 2
    item = '.spec.items[name="p"]'
    assert owners(made) == {("me", "Apply", ""): {".spec.model.source", item, f"{item}.name", f"{item}.value"}}


def test_another_value_conflicts_and_the_same_value_is_shared(bench, widget):
    bench.apply(WD, widget("a", maxWorkers=8), "me")
    shared = bench.apply(WD, widget("a", maxWorkers=8), "you")
    assert ".spec.maxWorkers" in owners(shared)["me", "Apply", ""] & owners(shared)["you", "Apply", ""]
    with pytest.raises(Conflict) as refused:
        bench.apply(WD, widget("a", maxWorkers=9), "third")
    assert refused.value.message.startswith("Apply failed with 2 conflicts: ")
    assert {cause["field"] for cause in refused.value.details["causes"]} == {".spec.maxWorkers"}
    assert {cause["reason"] for cause in refused.value.details["causes"]} == {"FieldManagerConflict"}


def test_force_takes_the_field(bench, widget):
    bench.apply(WD, widget("a", maxWorkers=8), "me")
    taken = bench.apply(WD, widget("a", maxWorkers=9), "you", force=True)
    assert taken["spec"]["maxWorkers"] == 9
    assert ".spec.maxWorkers" not in owners(taken)["me", "Apply", ""]
    with pytest.raises(Conflict, match=r'conflict with "you" using example.dev/v1: \.spec\.maxWorkers'):
        bench.apply(WD, widget("a", maxWorkers=8), "me")


def test_a_field_left_out_is_removed_unless_another_owns_it(bench, widget):
    bench.apply(WD, widget("a", maxWorkers=8, items=[{"name": "p"}, {"name": "q", "value": 1}]), "me")
    bench.apply(WD, widget("a", items=[{"name": "q", "value": 1}]), "you")
    after = bench.apply(WD, widget("a"), "me")
    assert "maxWorkers" not in after["spec"]
    assert after["spec"]["items"] == [{"name": "q", "value": 1}]


def test_items_of_different_managers_live_in_one_list(bench, widget):
    bench.apply(WD, widget("a", items=[{"name": "p", "value": 1}]), "me")
    both = bench.apply(WD, widget("a", items=[{"name": "q", "value": 2}]), "you")
    assert both["spec"]["items"] == [{"name": "p", "value": 1}, {"name": "q", "value": 2}]


def test_applying_the_same_again_changes_nothing(bench, widget):
    first = bench.apply(WD, widget("a", maxWorkers=8), "me")
    assert bench.apply(WD, widget("a", maxWorkers=8), "me") == first


def test_an_update_takes_ownership_and_apply_then_conflicts(bench, widget):
    bench.apply(WD, widget("a", maxWorkers=8), "me")
    bench.patch(WD, "a", {"spec": {"replicas": 5}}, subresource="scale", manager="kubectl")
    scaled = bench.get(WD, "a")
    assert owners(scaled)["kubectl", "Update", "scale"] == {".spec.experts.workers"}
    with pytest.raises(Conflict, match=r'conflict with "kubectl" with subresource "scale" using example.dev/v1'):
        bench.apply(WD, widget("a", experts={"workers": 3}), "me")


def test_status_is_owned_through_its_own_endpoint(bench, widget):
    bench.create(WD, widget("a"), manager="creator")
    after = bench.patch(WD, "a", {"status": {"selector": "a=b"}}, subresource="status", manager="controller")
    assert owners(after)["controller", "Update", "status"] == {".status.selector"}
    assert not any(".status" in field for field in owners(after)["creator", "Update", ""])


def test_managed_fields_can_be_reset_but_not_applied(bench, widget):
    made = bench.apply(WD, widget("a"), "me")
    with pytest.raises(BadRequest, match="managedFields must be nil"):
        bench.apply(WD, made, "me")
    after = bench.patch(WD, "a", {"metadata": {"managedFields": [{}]}})
    assert "managedFields" not in after["metadata"]


def test_apply_to_status(bench, widget):
    bench.create(WD, widget("a"))
    body = {"apiVersion": "example.dev/v1", "kind": "Widget", "metadata": {"name": "a"}, "status": {"selector": "x=y"}}
    kind = "application/apply-patch+yaml"
    after = bench.patch(WD, "a", body, kind=kind, subresource="status", manager="controller")
    assert after["status"] == {"selector": "x=y"}
    assert after["metadata"]["generation"] == 1


def test_field_sets_survive_their_encoding():
    paths = frozenset(
        {
            ("f:spec", "f:a"),
            ("f:spec", 'k:{"name":"x"}'),
            ("f:spec", 'k:{"name":"x"}', "f:v"),
            ("f:metadata", "f:finalizers", 'v:"f"'),
        }
    )
    assert fieldsets.from_fields_v1(fieldsets.to_fields_v1(paths)) == paths
    assert fieldsets.to_fields_v1(paths)["f:spec"]['k:{"name":"x"}'] == {".": {}, "f:v": {}}


def test_built_in_lists_with_defaulted_keys(bench):
    ports = [{"containerPort": 80}]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
    pod["spec"] = {"containers": [{"name": "c", "image": "x", "ports": ports}]}
    made = bench.apply("pods", pod, "me")
    assert '.spec.containers[name="c"].ports[containerPort=80,protocol="TCP"]' in owners(made)["me", "Apply", ""]
    assert bench.apply("pods", pod, "me") == made
