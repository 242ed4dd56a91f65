"""MoEAutoscalingPolicy and MoEScaler as the API server takes them: what is refused is refused with its field."""

from collections.abc import Iterator
from typing import Any

import pytest

from flexpert_operator.api.autoscaling import PolicySpec, parse_policy
from flexpert_operator.api.core_schema import core_schema
from flexpert_operator.api.crd import POLICY, SCALER, Kind, definition
from flexpert_operator.api.fields import read
from flexpert_operator.api.scaler import ScaledPool, ScalerSpec, parse_scaler
from flexpert_operator.local.kubeapi import structural
from flexpert_operator.local.kubeapi.cel import CelRules
from flexpert_operator.local.kubeapi.crds import definition_errors, resource_types
from flexpert_operator.local.kubeapi.errors import Invalid
from flexpert_operator.local.kubeapi.strategy import decode, for_create, for_update

Object = dict[str, Any]
NOW = "2026-01-01T00:00:00Z"
RULES = CelRules()
TARGET = {"targetRef": {"name": "tiny-moe"}}
NIGHT = {"start": "0 22 * * *", "durationSeconds": 3600}
POLICY_VALUE = "spec.experts.behavior.scaleUp.policies[0].value"
ENGINES_DOWN = "spec.engines.behavior.scaleDown"


def admit(kind: Kind, spec: Object, old: Object | None = None) -> tuple[Object | None, list[str]]:
    """What the API server stores, or the fields that it names in its refusal."""
    (resource,) = resource_types(definition(kind, core_schema))
    body = {"apiVersion": "flexpert.io/v1alpha1", "kind": kind.name, "metadata": {"name": "x"}, "spec": spec}
    decoded = decode(resource, body)
    if decoded.unknown:
        return None, list(decoded.unknown)
    try:
        if old is None:
            stored = for_create(resource, decoded.object, "default", NOW, RULES)
            stored["metadata"]["resourceVersion"] = "1"
            return stored, []
        return for_update(resource, decoded.object, old, "", RULES), []
    except Invalid as refusal:
        return None, [cause["field"] for cause in refusal.status()["details"]["causes"]]


@pytest.mark.parametrize("kind", [POLICY, SCALER], ids=lambda kind: kind.plural)
def test_the_definitions_are_ones_that_an_api_server_takes(kind: Kind) -> None:
    found = definition(kind, core_schema)
    assert definition_errors(found, CelRules()) == []
    assert "'type': 'number'" not in str(found), "no floats"
    assert found["spec"]["versions"][0]["additionalPrinterColumns"]


@pytest.mark.parametrize(("kind", "model"), [(POLICY, PolicySpec), (SCALER, ScalerSpec)])
def test_the_defaults_of_the_schema_are_those_of_the_models(kind: Kind, model: type) -> None:
    body: Object = {"targetRef": {"name": "tiny-moe"}}
    bare = read(model, body)
    schema = definition(kind, core_schema)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    structural.fill_defaults(schema["properties"]["spec"], body)
    assert read(model, body) == bare


def test_a_full_policy_is_taken_and_read() -> None:
    spec = {
        **TARGET,
        "engines": {"min": 1, "max": 4},
        "experts": {
            "min": 0,
            "max": 12,
            "behavior": {
                "scaleUp": {"policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]},
                "scaleDown": {"stabilizationWindowSeconds": 300, "tolerancePercent": 10},
            },
        },
        "budget": {"devices": 16},
        "objectives": {"ttftMilliseconds": 500, "tpotMilliseconds": 50, "percentile": 99},
        "schedule": [{"start": "0 8 * * 1-5", "durationSeconds": 36000, "timeZone": "Europe/Zurich", "experts": 4}],
        "forecast": {"mode": "Seasonal"},
        "idle": {"afterSeconds": 600},
        "dryRun": True,
    }
    stored, refused = admit(POLICY, spec)
    assert refused == []
    assert stored is not None
    found = parse_policy(stored).spec
    assert (found.experts.maximum, found.objectives.ttft_ms, found.engines.behavior.scale_down.tolerance_percent) == (
        12,
        500,
        0,
    )
    assert found.experts.behavior.scale_down.stabilization_window_s == 300
    assert found.engines.behavior.scale_down.stabilization_window_s is None


CONTRADICTIONS: tuple[tuple[Object, str], ...] = (
    ({"engines": {"min": 5, "max": 4}}, "spec.engines.max"),
    ({"experts": {"min": 20}}, "spec.experts.max"),
    ({"engines": {"min": 0}}, "spec.engines.min"),
    ({"experts": {"min": 0}}, "spec.experts.min"),
    ({"idle": {}}, "spec.idle"),
    ({"schedule": [NIGHT, NIGHT | {"engines": 99}]}, "spec.schedule"),
    ({"schedule": [NIGHT | {"experts": 7}], "experts": {"max": 6}}, "spec.schedule"),
    ({"stale": {"afterSeconds": 60, "safeAfterSeconds": 30}}, "spec.stale.safeAfterSeconds"),
    ({"stale": {"engines": 3}, "engines": {"max": 2}}, "spec.stale.engines"),
    ({"stale": {"experts": 17}}, "spec.stale.experts"),
)
"""What a policy may not say together with something else, and the field that is named."""


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        *CONTRADICTIONS,
        ({"schedule": [NIGHT | {"start": "at night"}]}, "spec.schedule[0].start"),
        ({"schedule": [{"start": "0 22 * * *"}]}, "spec.schedule[0].durationSeconds"),
        ({"objectives": {"percentile": 100}}, "spec.objectives.percentile"),
        ({"budget": {"devices": 0}}, "spec.budget.devices"),
        ({"experts": {"behavior": {"scaleUp": {"policies": [{"value": 0, "periodSeconds": 60}]}}}}, POLICY_VALUE),
        ({"engines": {"behavior": {"scaleDown": {"selectPolicy": "Most"}}}}, f"{ENGINES_DOWN}.selectPolicy"),
        ({"targetRef": {"name": "x", "kind": "Deployment"}}, "spec.targetRef.kind"),
        ({"targetRef": {"name": "x", "apiVersion": "v1"}}, "spec.targetRef.apiVersion"),
        ({"forecast": {"mode": "Sometimes"}}, "spec.forecast.mode"),
        ({"expertz": {}}, "spec.expertz"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused_with_the_field(changes: Object, path: str) -> None:
    stored, refused = admit(POLICY, TARGET | changes)
    assert stored is None
    assert path in refused


def rules(schema: Object, path: str = "spec") -> Iterator[str]:
    """Fields to which the rules of a schema point, one for each rule."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield path + rule.get("fieldPath", "")
    for name, inner in schema.get("properties", {}).items():
        yield from rules(inner.get("items", inner), f"{path}.{name}")


def test_each_rule_is_met_above() -> None:
    spec = definition(POLICY, core_schema)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert sorted(rules(spec)) == sorted([*(path for _, path in CONTRADICTIONS), "spec.targetRef"])


def test_a_target_stays() -> None:
    stored, _ = admit(POLICY, TARGET)
    assert admit(POLICY, {"targetRef": {"name": "other"}}, stored) == (None, ["spec.targetRef"])
    scaler, _ = admit(SCALER, TARGET)
    assert admit(SCALER, {"targetRef": {"name": "other"}}, scaler) == (None, ["spec.targetRef"])
    assert admit(SCALER, TARGET | {"pool": "Experts"}, scaler) == (None, ["spec.pool"])


def test_a_scaler_scales_engines_unless_told() -> None:
    stored, _ = admit(SCALER, TARGET)
    assert stored is not None
    assert parse_scaler(stored).spec.pool is ScaledPool.ENGINES
    scale = definition(SCALER, core_schema)["spec"]["versions"][0]["subresources"]["scale"]
    assert scale["specReplicasPath"] == ".spec.replicas"
    assert stored["spec"]["replicas"] == 1, "GET of the scale subresource fails without"
