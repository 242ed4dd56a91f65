"""Garbage collection: dependents, foreground and orphan, namespaces, definitions, old events."""

import datetime as dt

import pytest

from flexpert_operator.local.kubeapi import gc
from flexpert_operator.local.kubeapi.deletion import DeleteOptions
from flexpert_operator.local.kubeapi.errors import Conflict, Forbidden, NotFound

WD = "example.dev/v1/widgets"
NS = "namespaces"
CRD = "apiextensions.k8s.io/v1/customresourcedefinitions"


def owned(widget, name, *owners, block=True, **metadata):
    obj = widget(name)
    obj["metadata"] |= metadata
    obj["metadata"]["ownerReferences"] = [
        {
            "apiVersion": "example.dev/v1",
            "kind": "Widget",
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": block,
        }
        for owner in owners
    ]
    return obj


def delete(bench, path, name, namespace="default", **options):
    resource = bench.resource(path)
    return bench.api.operations.delete(resource, resource.key(namespace, name), DeleteOptions(**options))


def test_dependents_go_after_their_owner_through_generations(bench, widget):
    owner = bench.create(WD, widget("owner"))
    child = bench.create(WD, owned(widget, "child", owner))
    bench.create(WD, owned(widget, "grandchild", child))
    bench.create(WD, widget("other"))
    delete(bench, WD, "owner")
    bench.collect()
    assert bench.names(WD) == ["other"]


def test_one_of_two_owners_is_enough_to_live(bench, widget):
    first, second = bench.create(WD, widget("first")), bench.create(WD, widget("second"))
    bench.create(WD, owned(widget, "child", first, second))
    delete(bench, WD, "first")
    bench.collect()
    references = bench.get(WD, "child")["metadata"]["ownerReferences"]
    assert [reference["name"] for reference in references] == ["second"]
    delete(bench, WD, "second")
    bench.collect()
    assert bench.names(WD) == []


def test_an_owner_of_another_namespace_or_a_missing_one_does_not_count(bench, widget):
    bench.create(NS, {"metadata": {"name": "far"}}, None)
    far = bench.create(WD, widget("owner"), "far")
    bench.create(WD, owned(widget, "child", far))
    bench.collect()
    assert [key for key in bench.names(WD) if key == "child"] == []


def test_an_owner_of_a_kind_that_is_not_served_is_left_alone(bench, widget):
    child = widget("child")
    child["metadata"]["ownerReferences"] = [{"apiVersion": "x/v1", "kind": "X", "name": "x", "uid": "1"}]
    bench.create(WD, child)
    bench.collect()
    assert bench.names(WD) == ["child"]


def test_foreground_waits_for_dependents_that_block(bench, widget):
    owner = bench.create(WD, widget("owner"))
    bench.create(WD, owned(widget, "child", owner, finalizers=["example.dev/hold"]))
    obj, gone = delete(bench, WD, "owner", propagation="Foreground")
    assert not gone
    assert obj["metadata"]["finalizers"] == ["foregroundDeletion"]
    bench.collect()
    assert bench.names(WD) == ["child", "owner"]
    assert "deletionTimestamp" in bench.get(WD, "child")["metadata"]
    bench.patch(WD, "child", {"metadata": {"finalizers": None}})
    bench.collect()
    assert bench.names(WD) == []


def test_foreground_does_not_wait_for_dependents_that_do_not_block(bench, widget):
    owner = bench.create(WD, widget("owner"))
    bench.create(WD, owned(widget, "child", owner, block=False, finalizers=["example.dev/hold"]))
    delete(bench, WD, "owner", propagation="Foreground")
    bench.collect()
    assert bench.names(WD) == ["child"]


def test_orphans_live_on(bench, widget):
    owner = bench.create(WD, widget("owner"))
    bench.create(WD, owned(widget, "child", owner))
    delete(bench, WD, "owner", propagation="Orphan")
    bench.collect()
    assert bench.names(WD) == ["child"]
    assert "ownerReferences" not in bench.get(WD, "child")["metadata"]


def test_a_namespace_goes_after_its_contents(bench, widget):
    bench.create(NS, {"metadata": {"name": "n"}}, None)
    held = widget("held")
    held["metadata"]["finalizers"] = ["example.dev/hold"]
    bench.create(WD, held, "n")
    bench.create("configmaps", {"metadata": {"name": "c"}}, "n")
    obj, gone = delete(bench, NS, "n", None)
    assert (gone, obj["status"]["phase"]) == (False, "Terminating")
    bench.collect()
    assert bench.names(WD) == ["held"]
    with pytest.raises(Forbidden, match="because it is being terminated"):
        bench.create("configmaps", {"metadata": {"name": "late"}}, "n")
    bench.patch(WD, "held", {"metadata": {"finalizers": []}}, namespace="n")
    bench.collect()
    assert "n" not in bench.names(NS)
    with pytest.raises(NotFound, match='namespaces "n" not found'):
        bench.create("configmaps", {"metadata": {"name": "late"}}, "n")


def test_a_definition_goes_after_its_objects(bench, widget):
    bench.create(WD, widget("a"))
    _, gone = delete(bench, CRD, "widgets.example.dev", None)
    assert not gone
    bench.collect()
    assert bench.names(CRD) == []
    with pytest.raises(NotFound):
        bench.resource(WD)


def test_preconditions(bench, widget):
    made = bench.create(WD, widget("a"))
    with pytest.raises(Conflict, match="UID in the precondition"):
        delete(bench, WD, "a", uid="another")
    with pytest.raises(Conflict, match="ResourceVersion in the precondition"):
        delete(bench, WD, "a", resource_version="1")
    assert delete(bench, WD, "a", uid=made["metadata"]["uid"])[1]


def test_events_last_an_hour(bench):
    body = {"involvedObject": {"kind": "Widget", "name": "x"}}
    made = bench.create("events", body | {"metadata": {"name": "old", "namespace": "default"}})
    written = dt.datetime.fromisoformat(made["metadata"]["creationTimestamp"])
    gc.expire_events(bench.api.store, written + dt.timedelta(minutes=59))
    assert bench.names("events") == ["old"]
    gc.expire_events(bench.api.store, written + dt.timedelta(minutes=61))
    assert bench.names("events") == []
