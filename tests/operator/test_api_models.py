"""The models, and the CustomResourceDefinitions that are made of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flexpert_operator.api import InvalidObject, parse_deployment
from flexpert_operator.api.core_schema import core_schema
from flexpert_operator.api.crd import moe_deployment
from flexpert_operator.api.fields import FieldError, read
from flexpert_operator.api.generate import ROOT, documents
from flexpert_operator.api.quantities import to_bytes
from flexpert_operator.api.schema import quantity
from flexpert_operator.api.spec import Experts, Spec
from flexpert_operator.local.kubeapi import structural
from flexpert_operator.local.kubeapi.cel import CelRules
from flexpert_operator.local.kubeapi.crds import definition_errors

Object = dict[str, Any]
METADATA = {"name": "x", "namespace": "n", "uid": "u", "resourceVersion": "9"}


@pytest.fixture(scope="module")
def schema() -> Object:
    found: Object = moe_deployment(core_schema)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


@pytest.mark.parametrize("path", documents())
def test_what_is_generated_is_not_stale(path: str) -> None:
    assert Path(ROOT, path).read_text() == documents()[path], "run `make generate`"


def test_the_definition_is_one_that_an_api_server_takes() -> None:
    assert definition_errors(moe_deployment(core_schema), CelRules()) == []


def own_fields(schema: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    for name, below in schema.get("properties", {}).items():
        if name not in schema.get("required", ()):
            yield f"{path}{name}", below
        if name != "affinity":  # below it stands what is Kubernetes' own
            yield from own_fields(below, f"{path}{name}.")


def test_every_field_of_the_spec_has_a_default_or_says_what_leaving_it_out_means(schema: Object) -> None:
    spec = schema["properties"]["spec"]
    silent = [
        path
        for path, below in own_fields(spec)
        if "default" not in below and "Left out:" not in below.get("description", "")
    ]
    assert silent == []


def test_the_defaults_of_the_schema_are_those_of_the_models(schema: Object) -> None:
    body: Object = {"model": {"source": "file:///m"}}
    bare = read(Spec, body)
    structural.fill_defaults(schema["properties"]["spec"], body)
    assert body["experts"]["memoryPerWorker"] == "4Gi"
    assert read(Spec, body) == bare


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({}, "spec.model: is missing"),
        ({"model": {}}, "spec.model.source: is missing"),
        ({"model": []}, "spec.model: must be an object"),
        ({"model": {"source": 3}}, "spec.model.source: must be str"),
        ({"model": {"source": "file:///m"}, "experts": {"workers": "two"}}, "spec.experts.workers: must be int"),
        ({"model": {"source": "file:///m"}, "experts": {"workers": True}}, "spec.experts.workers: must be a number"),
        ({"model": {"source": "file:///m"}, "experts": {"memoryPerWorker": "4Q"}}, "spec.experts.memoryPerWorker"),
        ({"model": {"source": "file:///m"}, "placement": {"solver": {"name": "X"}}}, "spec.placement.solver.name"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_path(spec: Object, path: str) -> None:
    with pytest.raises(InvalidObject, match=rf"cannot read x: {path.replace('.', chr(92) + '.')}"):
        parse_deployment({"metadata": METADATA, "spec": spec})


def test_null_is_absent() -> None:
    assert read(Experts, {"workers": None, "copyBytesPerSecond": None}) == Experts()


def test_an_error_knows_its_path() -> None:
    with pytest.raises(FieldError) as found:
        read(Experts, {"resources": {"limits": 3}}, "spec.experts")
    assert found.value.path == "spec.experts.resources.limits"


@pytest.mark.parametrize("num_bytes", [0, 1, 1000, 1024, 1536, 4 * 2**30, 3 * 2**40 + 1, 2**60])
def test_a_quantity_stands_for_its_bytes(num_bytes: int) -> None:
    assert to_bytes(quantity(num_bytes)) == num_bytes
