"""Structural schemas: pruning, defaults, unknown fields, and the messages of validation."""

import pytest

from flexpert_operator.local.kubeapi.structural import fill_defaults, prune, unknown_fields
from flexpert_operator.local.kubeapi.validation import validate

SCHEMA = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "minLength": 2, "maxLength": 5, "pattern": "^[a-z]+$"},
                "count": {"type": "integer", "minimum": 0, "maximum": 9, "default": 3},
                "nested": {
                    "type": "object",
                    "default": {},
                    "properties": {
                        "deep": {"type": "string", "default": "x"},
                        "maybe": {"type": "string", "nullable": True},
                    },
                },
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "size": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "mode": {"type": "string", "enum": ["Fast", "Slow"]},
                "when": {"type": "string", "format": "date-time"},
                "rows": {
                    "type": "array",
                    "maxItems": 3,
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["key"],
                    "items": {
                        "type": "object",
                        "required": ["key"],
                        "properties": {"key": {"type": "string"}, "value": {"type": "number", "default": 1}},
                    },
                },
                "pod": {
                    "type": "object",
                    "x-kubernetes-embedded-resource": True,
                    "properties": {"spec": {"type": "object"}},
                },
            },
        }
    },
}


def obj(**spec):
    return {
        "apiVersion": "a/v1",
        "kind": "A",
        "metadata": {"name": "x", "labels": {"a": "b"}},
        "spec": {"name": "abc"} | spec,
    }


def messages(**spec):
    return [str(error) for error in validate(SCHEMA, obj(**spec))]


def test_pruning_removes_what_the_schema_does_not_know():
    value = obj(
        odd=1,
        nested={"deep": "a", "odd": 2},
        free={"any": {"thing": 1}},
        labels={"k": "v"},
        rows=[{"key": "a", "odd": 3}],
        pod={"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}, "odd": 4},
    )
    value["odd"] = 5
    assert unknown_fields(SCHEMA, value) == ["spec.odd", "spec.nested.odd", "spec.rows[0].odd", "spec.pod.odd", "odd"]
    pruned = prune(SCHEMA, value)
    assert unknown_fields(SCHEMA, pruned) == []
    assert pruned["metadata"] == value["metadata"]
    assert pruned["spec"]["free"] == {"any": {"thing": 1}}
    assert pruned["spec"]["rows"] == [{"key": "a"}]
    assert pruned["spec"]["pod"] == {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}}
    assert value["spec"]["odd"] == 1


def test_defaults_reach_into_defaulted_objects_and_lists():
    value = obj(rows=[{"key": "a"}, {"key": "b", "value": 2}])
    fill_defaults(SCHEMA, value)
    assert value["spec"]["count"] == 3
    assert value["spec"]["nested"] == {"deep": "x"}
    assert [row["value"] for row in value["spec"]["rows"]] == [1, 2]


def test_null_takes_the_default_unless_null_is_allowed():
    value = obj(count=None, nested={"deep": None, "maybe": None})
    fill_defaults(SCHEMA, value)
    assert value["spec"]["count"] == 3
    assert value["spec"]["nested"] == {"deep": "x", "maybe": None}
    assert validate(SCHEMA, value) == []


def test_defaults_do_not_share_state():
    first, second = obj(), obj()
    fill_defaults(SCHEMA, first)
    first["spec"]["nested"]["deep"] = "changed"
    fill_defaults(SCHEMA, second)
    assert second["spec"]["nested"] == {"deep": "x"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"count": -1}, "spec.count: Invalid value: -1: spec.count in body should be greater than or equal to 0"),
        ({"count": 10}, "spec.count: Invalid value: 10: spec.count in body should be less than or equal to 9"),
        ({"count": "1"}, 'spec.count: Invalid value: "string": spec.count in body must be of type integer: "string"'),
        ({"count": 1.5}, 'spec.count: Invalid value: "number": spec.count in body must be of type integer: "number"'),
        ({"name": "ABC"}, "spec.name: Invalid value: \"ABC\": spec.name in body should match '^[a-z]+$'"),
        ({"name": "a"}, 'spec.name: Invalid value: "a": spec.name in body should be at least 2 chars long'),
        ({"name": "abcdef"}, "spec.name: Too long: may not be more than 5 bytes"),
        ({"mode": "Odd"}, 'spec.mode: Unsupported value: "Odd": supported values: "Fast", "Slow"'),
        (
            {"size": []},
            'spec.size: Invalid value: "array": spec.size in body must be of type integer or string: "array"',
        ),
        (
            {"labels": {"a": 1}},
            'spec.labels.a: Invalid value: "integer": spec.labels.a in body must be of type string: "integer"',
        ),
        ({"rows": [{}]}, "spec.rows[0].key: Required value"),
        ({"rows": [{"key": "a"}, {"key": "a"}]}, 'spec.rows[1]: Duplicate value: {"key":"a"}'),
        ({"rows": [{"key": k} for k in "abcd"]}, "spec.rows: Too many: 4: must have at most 3 items"),
        ({"when": "noon"}, 'spec.when: Invalid value: "noon": spec.when in body must be of type date-time: "noon"'),
    ],
)  # fmt: skip
def test_messages_are_those_of_an_api_server(spec, message):
    assert messages(**spec) == [message]


@pytest.mark.parametrize("size", [1, "20Gi"])
def test_integers_and_strings_are_both_quantities(size):
    assert messages(size=size) == []


def test_missing_and_several():
    value = obj(count=-1)
    del value["spec"]["name"]
    assert [error.path for error in validate(SCHEMA, value)] == ["spec.name", "spec.count"]


def test_junctors():
    schema = {"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "not": {"required": ["c"]}}
    assert [error.reason for error in validate(schema, {"a": 1, "b": 2, "c": 3}, "x")] == ["FieldValueInvalid"] * 2
    assert validate(schema, {"a": 1}, "x") == []


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 1e300])
def test_a_number_beyond_64_bits_is_no_integer(number: float) -> None:
    (error,) = validate({"type": "object", "properties": {"count": {"type": "integer"}}}, {"count": number})
    assert (error.path, error.reason) == ("count", "FieldValueTypeInvalid")
