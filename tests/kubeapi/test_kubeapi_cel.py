"""Rules in CEL: guards, transitions, list-maps, messages, Kubernetes' own functions."""

import pytest

from flexpert_operator.local.kubeapi.cel import CelRules, RuleSyntaxError


def schema(rule, properties=None, **more):
    properties = properties or {"a": {"type": "integer"}, "b": {"type": "integer"}, "s": {"type": "string"}}
    return {"type": "object", "properties": properties, "x-kubernetes-validations": [{"rule": rule} | more]}


def broken(rule, value, old=None, **more):
    return [str(error) for error in CelRules().check(schema(rule, **more), value, old, "spec")]


@pytest.mark.parametrize(
    ("rule", "value", "holds"),
    [
        ("self.a <= self.b", {"a": 1, "b": 2}, True),
        ("self.a <= self.b", {"a": 3, "b": 2}, False),
        ("!has(self.a) || self.a > 1", {}, True),
        ("!has(self.a) || self.a > 1", {"a": 1}, False),
        ("self.s in ['x', 'y']", {"s": "y"}, True),
        ("self.s.matches('^x')", {"s": "y"}, False),
        ("size(self.s) <= 3 && self.s.size() > 0", {"s": "abc"}, True),
        ("quantity(self.s).isGreaterThan(quantity('1Gi'))", {"s": "2048Mi"}, True),
        ("isQuantity(self.s)", {"s": "two"}, False),
        ("quantity(self.s) == quantity('1000m')", {"s": "1"}, True),
        ("self.s.lowerAscii() == 'abc' && self.s.split('B')[0] == 'A'", {"s": "ABC"}, True),
        ("self.s.find('[0-9]+') == '42' && self.s.indexOf('4') == 1", {"s": "a42"}, True),
        ("self.s.substring(1).trim().replace('b', 'c') == 'c'", {"s": "ab "}, True),
        ("['a', self.s].join('-') == 'a-x' && [1, 2].sum() == 3 && [1, 2].isSorted()", {"s": "x"}, True),
        ("isURL(self.s)", {"s": "https://example.dev/x"}, True),
        ("self.s.startsWith('hf://') ? has(self.a) : true", {"s": "hf://x"}, False),
    ],
)
def test_rules(rule, value, holds):
    assert (broken(rule, value) == []) == holds


def test_the_message_names_the_field_and_the_rule():
    assert broken("self.a == 1", {"a": 2}) == ['spec: Invalid value: "object": failed rule: self.a == 1']
    assert broken("self.a == 1", {"a": 2}, message="a must be 1") == ['spec: Invalid value: "object": a must be 1']


def test_message_expression_field_path_and_reason():
    rule = {"fieldPath": ".a", "reason": "FieldValueForbidden", "messageExpression": "'a is ' + string(self.a)"}
    assert broken("self.a == 1", {"a": 2}, **rule) == ["spec.a: Forbidden: a is 2"]


def test_a_rule_that_cannot_be_evaluated_fails():
    assert broken("self.missing == 1", {"a": 2}) == [
        "spec: Invalid value: \"object\": no such member in mapping: 'missing' evaluating rule: self.missing == 1"
    ]


def test_transition_rules_wait_for_an_old_value():
    assert broken("self.a >= oldSelf.a", {"a": 1}) == []
    assert broken("self.a >= oldSelf.a", {"a": 2}, {"a": 1}) == []
    assert len(broken("self.a >= oldSelf.a", {"a": 1}, {"a": 2})) == 1


def test_what_an_update_leaves_as_it_was_is_not_judged_again():
    rule = "self.a <= self.b"
    assert broken(rule, {"a": 3, "b": 2}, {"a": 3, "b": 2}) == []
    assert len(broken(rule, {"a": 4, "b": 2}, {"a": 3, "b": 2})) == 1
    assert len(broken("self.a > oldSelf.a", {"a": 3}, {"a": 3})) == 1


def test_items_of_list_maps_keep_their_identity_and_others_do_not():
    items = {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}
    items["x-kubernetes-validations"] = [{"rule": "self.v >= oldSelf.v", "message": "only up"}]
    of_map = {"type": "array", "items": items, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]}
    before, after = [{"k": "a", "v": 5}, {"k": "b", "v": 1}], [{"k": "b", "v": 2}, {"k": "a", "v": 4}]
    rules = CelRules()
    assert [error.path for error in rules.check(of_map, after, before, "rows")] == ["rows[1]"]
    assert rules.check({"type": "array", "items": items}, after, before, "rows") == []


def test_values_have_the_types_of_their_schema():
    properties = {"n": {"type": "number"}, "t": {"type": "string", "format": "date-time"}, "x-y": {"type": "string"}}
    properties["namespace"] = {"type": "string"}
    rule = "self.n > 0.5 && self.t < timestamp('2030-01-01T00:00:00Z')"
    rule += " && self.x__dash__y == 'z' && self.__namespace__ == 'n'"
    value = {"n": 1, "t": "2026-01-01T00:00:00Z", "x-y": "z", "namespace": "n"}
    assert CelRules().check(schema(rule, properties), value, None, "spec") == []


def test_a_syntax_error_is_found_when_compiling():
    with pytest.raises(RuleSyntaxError):
        CelRules().compile("self.a ==")
