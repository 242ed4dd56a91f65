"""CustomResourceDefinitions: which types one makes, what is wrong with it, and its status.

`operations` calls these when a definition is written, and when a saved state is loaded.
"""

import re
from collections.abc import Iterator
from typing import Any

from flexpert_operator.local.kubeapi import jsonpath
from flexpert_operator.local.kubeapi.builtin_columns import age, age_cell
from flexpert_operator.local.kubeapi.cel import CelRules, RuleSyntaxError, all_rules, uses_rules
from flexpert_operator.local.kubeapi.errors import FieldError, invalid_value, required, unsupported
from flexpert_operator.local.kubeapi.objects import JsonObject, name_of, split_path
from flexpert_operator.local.kubeapi.resources import Column, ResourceType, ScalePaths
from flexpert_operator.local.kubeapi.store import Storage
from flexpert_operator.local.kubeapi.structural import INT_OR_STRING, LIST_KEYS, LIST_TYPE, PRESERVE, unknown_fields
from flexpert_operator.local.kubeapi.validation import validate

# What Python's regular expressions have and the API server's do not.
_NOT_RE2 = re.compile(r"\(\?(=|!|<=|<!)|\\[1-9]")

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"


def storage_of(crd: JsonObject) -> Storage:
    """Where the objects of this definition are kept."""
    return Storage(crd["spec"]["group"], crd["spec"]["names"]["plural"])


def resource_types(crd: JsonObject) -> list[ResourceType]:
    """One type for each version that the definition serves."""
    versions = [version for version in crd["spec"]["versions"] if version.get("served", True)]
    return [_resource_type(crd["spec"], version) for version in versions]


def fill_names(crd: JsonObject) -> None:
    """Fill in the names that may be left out, in place."""
    spec = crd.setdefault("spec", {})
    names = spec.setdefault("names", {})
    names.setdefault("singular", str(names.get("kind", "")).lower())
    names.setdefault("listKind", f"{names.get('kind', '')}List")
    spec.setdefault("conversion", {"strategy": "None"})


def definition_errors(crd: JsonObject, rules: CelRules) -> list[FieldError]:
    """What is wrong with a definition, rules that do not parse included."""
    spec = crd.get("spec") or {}
    names, versions = spec.get("names") or {}, spec.get("versions") or []
    errors = []
    wanted = f"{names.get('plural', '')}.{spec.get('group', '')}"
    if name_of(crd) != wanted:
        errors.append(
            invalid_value("metadata.name", name_of(crd), f'must be spec.names.plural+"."+spec.group: {wanted}')
        )
    if spec.get("scope") not in ("Namespaced", "Cluster"):
        errors.append(unsupported("spec.scope", spec.get("scope", ""), ["Cluster", "Namespaced"]))
    if sum(bool(version.get("storage")) for version in versions) != 1:
        errors.append(
            invalid_value("spec.versions", len(versions), "must have exactly one version marked as storage version")
        )
    for index, version in enumerate(versions):
        errors += _version_errors(version, f"spec.versions[{index}]", rules)
    return errors


def established(crd: JsonObject, now: str) -> JsonObject:
    """The status of a definition whose types are served."""
    status = dict(crd.get("status") or {})
    known = {item["type"]: item for item in status.get("conditions") or []}
    texts = {
        "NamesAccepted": ("NoConflicts", "no conflicts found"),
        "Established": ("InitialNamesAccepted", "the initial names have been accepted"),
    }
    for kind, (reason, message) in texts.items():
        known.setdefault(
            kind,
            {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now},
        )
    stored = [version["name"] for version in crd["spec"]["versions"] if version.get("storage")]
    before = status.get("storedVersions") or []
    return status | {
        "conditions": list(known.values()),
        "acceptedNames": crd["spec"]["names"],
        "storedVersions": before + [name for name in stored if name not in before],
    }


def _resource_type(spec: JsonObject, version: JsonObject) -> ResourceType:
    names, subresources = spec["names"], version.get("subresources") or {}
    schema = (version.get("schema") or {}).get("openAPIV3Schema") or {"type": "object", PRESERVE: True}
    return ResourceType(
        group=spec["group"],
        version=version["name"],
        plural=names["plural"],
        kind=names["kind"],
        namespaced=spec["scope"] == "Namespaced",
        singular=names.get("singular") or names["kind"].lower(),
        list_kind=names.get("listKind") or f"{names['kind']}List",
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
        subresources=frozenset(subresources),
        load_schema=lambda: schema,
        columns=_columns(version),
        scale=_scale(subresources.get("scale")),
        is_custom=True,
        has_generation=True,
        has_rules=uses_rules(schema),
        fields=frozenset(item["jsonPath"].removeprefix(".") for item in version.get("selectableFields") or ()),
    )


def _scale(paths: JsonObject | None) -> ScalePaths | None:
    if not paths:
        return None
    selector = paths.get("labelSelectorPath")
    return ScalePaths(
        split_path(paths["specReplicasPath"]),
        split_path(paths["statusReplicasPath"]),
        split_path(selector) if selector else None,
    )


def _columns(version: JsonObject) -> tuple[Column, ...]:
    defined = version.get("additionalPrinterColumns")
    if not defined:
        return (Column("Age", "date", age_cell()),)
    return tuple(_column(item) for item in defined)


def _column(item: JsonObject) -> Column:
    path, kind = item["jsonPath"], item["type"]

    def cell(obj: JsonObject, now: float) -> Any:
        found = jsonpath.find(path, obj)
        if not found:
            return None
        return age(found[0], now) if kind == "date" else _cell_value(kind, found)

    return Column(
        item["name"], kind, cell, item.get("format", ""), item.get("description", ""), item.get("priority", 0)
    )


def _cell_value(kind: str, found: list[Any]) -> Any:
    if kind in ("integer", "number", "boolean"):
        return found[0] if isinstance(found[0], int | float) else None
    texts = [str(value).lower() if isinstance(value, bool) else str(value) for value in found]
    return ",".join(texts)


def _version_errors(version: JsonObject, path: str, rules: CelRules) -> list[FieldError]:
    schema = (version.get("schema") or {}).get("openAPIV3Schema")
    below = f"{path}.schema.openAPIV3Schema"
    if schema is None:
        return [required(below, "schemas are required")]
    errors = (
        [] if schema.get("type") == "object" else [unsupported(f"{below}.type", schema.get("type", ""), ["object"])]
    )
    for where, rule in all_rules(schema, below):
        try:
            rules.compile(rule["rule"])
        except RuleSyntaxError as error:
            errors.append(invalid_value(f"{where}.rule", rule["rule"], f"compilation failed: {error}"))
    return errors + list(_schema_errors(schema, below, rules))


def _schema_errors(schema: JsonObject, path: str, rules: CelRules) -> Iterator[FieldError]:
    """Where a schema is not structural, or contradicts itself."""
    if not schema.get("type") and not schema.get(INT_OR_STRING) and not schema.get(PRESERVE):
        yield required(f"{path}.type", "must not be empty for specified object fields")
    if schema.get("type") == "array" and not isinstance(schema.get("items"), dict):
        yield required(f"{path}.items", "must be specified")
    yield from _default_errors(schema, f"{path}.default", rules)
    yield from _pattern_errors(schema.get("pattern") or "", f"{path}.pattern")
    yield from _list_key_errors(schema, path)
    for name, below in (schema.get("properties") or {}).items():
        if not _is_type_meta(path, name):
            yield from _schema_errors(below, f"{path}.properties[{name}]", rules)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from _schema_errors(schema[name], f"{path}.{name}", rules)


def _is_type_meta(path: str, name: str) -> bool:
    return path.endswith(".openAPIV3Schema") and name in ("apiVersion", "kind", "metadata")


def _default_errors(schema: JsonObject, path: str, rules: CelRules) -> Iterator[FieldError]:
    """A default must be valid as it stands: nested defaults are filled in later, so rules see it without them."""
    default = schema.get("default")
    if default is None:
        return
    found = validate(schema, default, path)
    for name in unknown_fields(schema, default, path):
        yield invalid_value(name, default, "must not have unknown fields")
    yield from found or rules.check_default(schema, default, path)


def _pattern_errors(pattern: str, path: str) -> Iterator[FieldError]:
    if _NOT_RE2.search(pattern):
        yield invalid_value(path, pattern, "must be a valid regular expression: look-around and references are not")
        return
    try:
        re.compile(pattern)
    except re.error as error:
        yield invalid_value(path, pattern, f"must be a valid regular expression, but isn't: {error}")


def _list_key_errors(schema: JsonObject, path: str) -> Iterator[FieldError]:
    if schema.get(LIST_TYPE) != "map":
        return
    items = schema.get("items") or {}
    if not schema.get(LIST_KEYS):
        yield required(f"{path}.{LIST_KEYS}", "must not be empty if x-kubernetes-list-type is map")
    for key in schema.get(LIST_KEYS) or ():
        below = (items.get("properties") or {}).get(key)
        if below is None:
            yield invalid_value(f"{path}.{LIST_KEYS}", key, "must name a property of the items")
        elif key not in (items.get("required") or ()) and "default" not in below:
            detail = (
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"
            )
            yield required(f"{path}.items.properties[{key}].default", detail)
