"""Rules in the Common Expression Language: `x-kubernetes-validations` of a structural schema.

`strategy` evaluates them after an object's values have been validated; `crds` compiles them when a
CustomResourceDefinition is written, so that a rule with a syntax error is refused there. Of a value that an update left
as it was only the rules that look at `oldSelf` are asked. Source of the semantics: Kubernetes documentation,
"Validation rules" and "Validation ratcheting" of CustomResourceDefinitions.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import celpy
from celpy import celtypes

from flexpert_operator.local.kubeapi.cel_library import FUNCTIONS
from flexpert_operator.local.kubeapi.errors import (
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    required,
)
from flexpert_operator.local.kubeapi.objects import JsonObject, parse_time
from flexpert_operator.local.kubeapi.structural import INT_OR_STRING, LIST_KEYS, LIST_TYPE, RULES, child_schema
from flexpert_operator.local.kubeapi.structural import item_schema as schema_of_items
from flexpert_operator.local.kubeapi.validation import join

_OLD_SELF = re.compile(r"\boldSelf\b")
_RESERVED = frozenset(
    [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ]
)
_SYMBOLS = {"__": "__underscores__", ".": "__dot__", "-": "__dash__", "/": "__slash__"}


class RuleSyntaxError(ValueError):
    """A rule that does not parse."""


class CelRules:
    """Compiles and evaluates rules; compiled rules are kept by their text."""

    def __init__(self) -> None:
        self._environment = celpy.Environment()
        self._programs: dict[str, Any] = {}
        self._transitions: dict[int, tuple[JsonObject, bool]] = {}

    def compile(self, rule: str) -> Any:
        """The program of `rule`.

        Raises:
            RuleSyntaxError: the text is not an expression.
        """
        if rule not in self._programs:
            try:
                tree = self._environment.compile(rule)
            except celpy.CELParseError as error:
                raise RuleSyntaxError(str(error).strip()) from error
            self._programs[rule] = self._environment.program(tree, functions=FUNCTIONS)
        return self._programs[rule]

    def check(self, schema: JsonObject, value: Any, old: Any, path: str = "") -> list[FieldError]:
        """Errors of every rule in `schema` that `value` breaks; `old` is the value before an update, else None."""
        return list(self._walk(schema, value, old, path, ratchets=True))

    def check_default(self, schema: JsonObject, value: Any, path: str) -> list[FieldError]:
        """Errors of every rule in `schema` that a default breaks, which is taken for the value before as well."""
        return list(self._walk(schema, value, value, path, ratchets=False))

    def _walk(self, schema: JsonObject, value: Any, old: Any, path: str, *, ratchets: bool) -> Iterator[FieldError]:
        unchanged = ratchets and old is not None and value == old
        if value is None or (unchanged and not self._has_transitions(schema)):
            return
        rules = [rule for rule in schema.get(RULES) or () if not unchanged or _is_transition(rule)]
        if rules:
            scope = {"self": to_cel(schema, value)} | ({} if old is None else {"oldSelf": to_cel(schema, old)})
            for rule in rules:
                yield from self._one(rule, scope, schema, path)
        if isinstance(value, dict):
            for name, item in value.items():
                below = child_schema(schema, name)
                if below is not None:
                    before = old.get(name) if isinstance(old, dict) else None
                    yield from self._walk(below, item, before, _below(schema, path, name), ratchets=ratchets)
        elif isinstance(value, list):
            yield from self._items(schema, value, old, path, ratchets=ratchets)

    def _has_transitions(self, schema: JsonObject) -> bool:
        """Whether a rule of the schema, or of what is below, compares with what was before."""
        known = self._transitions.get(id(schema))
        if known is None or known[0] is not schema:
            found = any(_is_transition(rule) for _, rule in all_rules(schema, ""))
            known = self._transitions[id(schema)] = (schema, found)
        return known[1]

    def _items(
        self, schema: JsonObject, value: list[Any], old: Any, path: str, *, ratchets: bool
    ) -> Iterator[FieldError]:
        below = schema_of_items(schema)
        if below is None:
            return
        before = _by_key(schema, old)
        for index, item in enumerate(value):
            known = before.get(_identity(schema, item))
            yield from self._walk(below, item, known, f"{path}[{index}]", ratchets=ratchets)

    def _one(self, rule: JsonObject, scope: dict[str, Any], schema: JsonObject, path: str) -> Iterator[FieldError]:
        if _is_transition(rule) and "oldSelf" not in scope:
            return
        try:
            if self.compile(rule["rule"]).evaluate(scope):
                return
            failure = self._message(rule, scope)
        except (celpy.CELEvalError, RuleSyntaxError) as error:
            failure = f"{_reason(error)} evaluating rule: {rule.get('message') or rule['rule']}"
        yield _error(rule, path + _field_path(rule), schema.get("type", "object"), failure)

    def _message(self, rule: JsonObject, scope: dict[str, Any]) -> str:
        fallback = rule.get("message") or f"failed rule: {rule['rule'].strip()}"
        expression = rule.get("messageExpression")
        if not expression:
            return fallback
        try:
            return str(self.compile(expression).evaluate(scope)).strip() or fallback
        except (celpy.CELEvalError, RuleSyntaxError):
            return fallback


def _is_transition(rule: JsonObject) -> bool:
    return bool(_OLD_SELF.search(rule["rule"]))


def to_cel(schema: JsonObject | None, value: Any) -> Any:
    """`value` as CEL sees it: typed by its schema, its field names escaped."""
    match value:
        case dict():
            return celtypes.MapType(
                {
                    celtypes.StringType(_escape(schema, name)): to_cel(child_schema(schema, name), item)
                    for name, item in value.items()
                }
            )
        case list():
            return celtypes.ListType([to_cel(schema_of_items(schema), item) for item in value])
        case int() | float() if not isinstance(value, bool) and (schema or {}).get("type") == "number":
            return celtypes.DoubleType(value)
        case float() if (schema or {}).get("type") == "integer":
            return celtypes.IntType(int(value))
        case str() if (schema or {}).get("format") == "date-time" and not (schema or {}).get(INT_OR_STRING):
            return celtypes.TimestampType(parse_time(value))
        case _:
            return celpy.json_to_cel(value)


def uses_rules(schema: JsonObject) -> bool:
    """Whether the schema has a rule anywhere."""
    below = [*(schema.get("properties") or {}).values(), schema.get("items"), schema.get("additionalProperties")]
    return bool(schema.get(RULES)) or any(uses_rules(item) for item in below if isinstance(item, dict))


def all_rules(schema: JsonObject, path: str) -> Iterator[tuple[str, JsonObject]]:
    """Every rule of the schema with its own path in the CustomResourceDefinition."""
    for index, rule in enumerate(schema.get(RULES) or ()):
        yield f"{path}.{RULES}[{index}]", rule
    for name, below in (schema.get("properties") or {}).items():
        yield from all_rules(below, f"{path}.properties[{name}]")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from all_rules(schema[name], f"{path}.{name}")


def _escape(schema: JsonObject | None, name: str) -> str:
    """A property's name as an identifier; names of map keys stay as they are."""
    if name not in ((schema or {}).get("properties") or {}):
        return name
    if name in _RESERVED:
        return f"__{name}__"
    for symbol, replacement in _SYMBOLS.items():
        name = name.replace(symbol, replacement)
    return name


def _below(schema: JsonObject, path: str, name: str) -> str:
    if name in (schema.get("properties") or {}):
        return join(path, name)
    return f"{path}[{name}]"


def _identity(schema: JsonObject, item: Any) -> str:
    if schema.get(LIST_TYPE) != "map" or not isinstance(item, dict):
        return ""
    return json.dumps({key: item.get(key) for key in schema.get(LIST_KEYS, [])}, sort_keys=True)


def _by_key(schema: JsonObject, old: Any) -> dict[str, Any]:
    """Items of the old list by key; items of a list that is not a map cannot be matched with new ones."""
    if schema.get(LIST_TYPE) != "map" or not isinstance(old, list):
        return {}
    return {_identity(schema, item): item for item in old}


def _field_path(rule: JsonObject) -> str:
    return str(rule.get("fieldPath") or "")


def _reason(error: Exception) -> str:
    return str(error.args[0]).splitlines()[0] if error.args else str(error)


def _error(rule: JsonObject, path: str, type_name: str, message: str) -> FieldError:
    path = path.lstrip(".") or "<nil>"
    match rule.get("reason"):
        case "FieldValueRequired":
            return required(path, message)
        case "FieldValueForbidden":
            return forbidden_field(path, message)
        case "FieldValueDuplicate":
            return duplicate(path, type_name)
        case _:
            return invalid_value(path, type_name, message)
