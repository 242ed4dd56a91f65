"""Label and field selectors of list, watch and delete-collection requests.

A selector is parsed once into a list of requirements; `server` keeps the parsed form for the life of a watch.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flexpert_operator.local.kubeapi.errors import BadRequest
from flexpert_operator.local.kubeapi.objects import JsonObject, dig, labels_of, split_path

_SET_BASED = re.compile(r"^(?P<key>[^\s!=(),]+)\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)$")
_EQUALITY = re.compile(r"^(?P<key>[^\s!=(),<>]+)\s*(?P<op>==|!=|=)\s*(?P<value>[^\s!=(),]*)$")
_COMPARISON = re.compile(r"^(?P<key>[^\s!=(),<>]+)\s*(?P<op>[<>])\s*(?P<value>-?\d+)$")
_EXISTS = re.compile(r"^(?P<not>!?)\s*(?P<key>[^\s!=(),<>]+)$")
_NOT_IN_PARENTHESES = re.compile(r",(?![^()]*\))")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one key: `operator` is in, notin, exists, absent, gt or lt."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def accepts(self, value: str | None) -> bool:
        """Whether a key with this value, None when it is missing, meets the condition."""
        match self.operator:
            case "in":
                return value is not None and value in self.values
            case "notin":
                return value is None or value not in self.values
            case "exists":
                return value is not None
            case "absent":
                return value is None
            case _:
                return _compares(self.operator, value, next(iter(self.values)))


@dataclass(frozen=True, slots=True)
class Selector:
    """What a list or watch is restricted to. An empty one selects everything."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()
    namespace: str | None = None

    def matches(self, obj: JsonObject) -> bool:
        """Whether `obj` is selected."""
        if self.namespace is not None and obj["metadata"].get("namespace") != self.namespace:
            return False
        labels = labels_of(obj)
        return all(item.accepts(labels.get(item.key)) for item in self.labels) and all(
            item.accepts(_field(obj, item.key)) for item in self.fields
        )


EVERYTHING = Selector()


def parse_labels(text: str) -> tuple[Requirement, ...]:
    """Requirements of a label selector such as `app=x,tier in (a,b),!old`.

    Raises:
        BadRequest: the text is not a label selector.
    """
    parts = [part.strip() for part in _NOT_IN_PARENTHESES.split(text)]
    return tuple(_label_requirement(part) for part in parts if part)


def parse_fields(text: str, supported: Callable[[str], bool] = lambda _: True) -> tuple[Requirement, ...]:
    """Requirements of a field selector such as `metadata.name=x,status.phase!=Running`.

    Raises:
        BadRequest: the text is not a field selector, or `supported` refuses its field.
    """
    requirements = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = _EQUALITY.match(part)
        if not found:
            raise BadRequest(f"invalid field selector {text!r}: {part!r} is not field=value or field!=value")
        if not supported(found["key"]):
            raise BadRequest(f"field label not supported: {found['key']}")
        requirements.append(_equality(found))
    return tuple(requirements)


def parse_label_selector_object(selector: Mapping[str, Any] | None) -> tuple[Requirement, ...]:
    """Requirements of a LabelSelector object (`matchLabels`, `matchExpressions`)."""
    if not selector:
        return ()
    wanted = [Requirement(key, "in", frozenset([value])) for key, value in (selector.get("matchLabels") or {}).items()]
    names = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "absent"}
    for item in selector.get("matchExpressions") or []:
        wanted.append(Requirement(item["key"], names[item["operator"]], frozenset(item.get("values") or [])))
    return tuple(wanted)


def _label_requirement(part: str) -> Requirement:
    if found := _SET_BASED.match(part):
        values = frozenset(value.strip() for value in found["values"].split(","))
        return Requirement(found["key"], found["op"], values)
    if found := _EQUALITY.match(part):
        return _equality(found)
    if found := _COMPARISON.match(part):
        return Requirement(found["key"], "gt" if found["op"] == ">" else "lt", frozenset([found["value"]]))
    if found := _EXISTS.match(part):
        return Requirement(found["key"], "absent" if found["not"] else "exists")
    raise BadRequest(f"unable to parse requirement: {part!r} is not a label selector")


def _equality(found: re.Match[str]) -> Requirement:
    return Requirement(found["key"], "notin" if found["op"] == "!=" else "in", frozenset([found["value"]]))


def _compares(operator: str, value: str | None, limit: str) -> bool:
    try:
        number = int(value or "")
    except ValueError:
        return False
    return number > int(limit) if operator == "gt" else number < int(limit)


def _field(obj: JsonObject, path: str) -> str:
    value = dig(obj, split_path(path))
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
