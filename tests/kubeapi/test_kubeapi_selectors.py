"""Label and field selectors."""

import pytest

from flexpert_operator.local.kubeapi.errors import BadRequest
from flexpert_operator.local.kubeapi.selectors import (
    Selector,
    parse_fields,
    parse_label_selector_object,
    parse_labels,
)

OBJECT = {
    "metadata": {"name": "n", "namespace": "s", "labels": {"app": "x", "tier": "gold", "n": "5"}},
    "spec": {"unschedulable": True},
}


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("", True),
        ("app=x", True),
        ("app==x,tier!=silver", True),
        ("app = x, tier", True),
        ("!gone", True),
        ("!app", False),
        ("tier in (gold, silver)", True),
        ("tier notin (gold,silver),app=x", False),
        ("gone notin (a)", True),
        ("gone in (a)", False),
        ("n>4", True),
        ("n<5", False),
        ("app=", False),
    ],
)
def test_labels(text, selected):
    assert Selector(labels=parse_labels(text)).matches(OBJECT) == selected


@pytest.mark.parametrize("text", ["a b", "in (x)", "a in x", "=", "a=b=c"])
def test_bad_label_selectors(text):
    with pytest.raises(BadRequest):
        parse_labels(text)


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("metadata.name=n", True),
        ("metadata.name!=n", False),
        ("metadata.namespace=s,metadata.name=n", True),
        ("spec.unschedulable=true", True),
        ("status.phase=", True),
    ],
)
def test_fields(text, selected):
    assert Selector(fields=parse_fields(text)).matches(OBJECT) == selected


def test_a_field_that_is_not_indexed_is_refused():
    with pytest.raises(BadRequest, match=r"field label not supported: spec\.x"):
        parse_fields("spec.x=1", lambda name: name == "metadata.name")


def test_namespace():
    assert Selector(namespace="s").matches(OBJECT)
    assert not Selector(namespace="t").matches(OBJECT)


def test_selector_objects():
    expressions = [{"key": "tier", "operator": "In", "values": ["gold"]}, {"key": "gone", "operator": "DoesNotExist"}]
    wanted = parse_label_selector_object({"matchLabels": {"app": "x"}, "matchExpressions": expressions})
    assert Selector(labels=wanted).matches(OBJECT)
