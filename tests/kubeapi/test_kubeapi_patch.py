"""JSON patch, merge patch and strategic merge patch."""

import pytest

from flexpert_operator.local.kubeapi.builtin_models import structural
from flexpert_operator.local.kubeapi.errors import BadRequest, Invalid
from flexpert_operator.local.kubeapi.patch import json_patch, merge_patch, strategic_merge_patch

DEPLOYMENT = structural("V1Deployment")


def pod_spec(**spec):
    return {"spec": {"template": {"spec": spec}}}


def strategic(old, patch):
    return strategic_merge_patch(pod_spec(**old), pod_spec(**patch), DEPLOYMENT)["spec"]["template"]["spec"]


def test_merge_patch_sets_removes_and_replaces_lists():
    old = {"a": {"b": 1, "c": 2}, "l": [1, 2], "gone": 1}
    assert merge_patch(old, {"a": {"b": None, "d": {"e": 3}}, "l": [3], "gone": None}) == {
        "a": {"c": 2, "d": {"e": 3}},
        "l": [3],
    }
    assert old == {"a": {"b": 1, "c": 2}, "l": [1, 2], "gone": 1}


def test_merge_patch_drops_nulls_of_new_objects():
    assert merge_patch({}, {"a": {"b": None, "c": 1}}) == {"a": {"c": 1}}


def test_json_patch_and_its_failures():
    assert json_patch({"a": [1]}, [{"op": "add", "path": "/a/-", "value": 2}]) == {"a": [1, 2]}
    with pytest.raises(Invalid):
        json_patch({"a": 1}, [{"op": "test", "path": "/a", "value": 2}])
    with pytest.raises(Invalid):
        json_patch({}, [{"op": "remove", "path": "/a"}])
    with pytest.raises(BadRequest):
        json_patch({}, [{"op": "conquer", "path": "/a"}])
    with pytest.raises(BadRequest):
        json_patch({}, 7)


def test_strategic_merge_joins_lists_by_their_key():
    old = {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}
    patch = {"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}
    assert strategic(old, patch)["containers"] == [
        {"name": "a", "image": "1"},
        {"name": "b", "image": "2"},
        {"name": "c", "image": "3"},
    ]


def test_strategic_merge_directives():
    old = {
        "containers": [{"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}, {"name": "b"}]
    }
    patch = {
        "$setElementOrder/containers": [{"name": "a"}],
        "containers": [{"name": "b", "$patch": "delete"}, {"name": "a", "env": [{"name": "X", "$patch": "delete"}]}],
    }
    assert strategic(old, patch)["containers"] == [{"name": "a", "env": [{"name": "Y", "value": "2"}]}]
    replaced = strategic(old, {"containers": [{"$patch": "replace"}, {"name": "z"}]})
    assert replaced["containers"] == [{"name": "z"}]
    strategy = {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}
    recreate = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    assert strategic_merge_patch(strategy, recreate, DEPLOYMENT) == {"spec": {"strategy": {"type": "Recreate"}}}


def test_strategic_merge_of_primitive_lists():
    old = {"metadata": {"finalizers": ["a", "b"]}}
    assert strategic_merge_patch(old, {"metadata": {"finalizers": ["c"]}}, DEPLOYMENT)["metadata"]["finalizers"] == [
        "a",
        "b",
        "c",
    ]
    removed = strategic_merge_patch(old, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}, DEPLOYMENT)
    assert removed["metadata"]["finalizers"] == ["b"]
    atomic = strategic({"tolerations": [{"key": "a"}]}, {"tolerations": [{"key": "b"}]})
    assert atomic["tolerations"] == [{"key": "b"}]


def test_strategic_merge_needs_the_key():
    with pytest.raises(BadRequest, match="merge key"):
        strategic({"containers": []}, {"containers": [{"image": "x"}]})
