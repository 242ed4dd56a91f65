"""CustomResourceDefinitions: which types one makes, what is wrong with it, and its status.

`operations` calls these when a definition is written, and when a saved state is loaded.
"""

import re
from typing import Any

from flexpert_operator.local.kubeapi import jsonpath
from flexpert_operator.local.kubeapi.builtin_columns import age, age_cell
from flexpert_operator.local.kubeapi.cel import CelRules, RuleSyntaxError, all_rules, uses_rules
from flexpert_operator.local.kubeapi.errors import FieldError, invalid_value, required, unsupported
from flexpert_operator.local.kubeapi.objects import JsonObject, name_of, split_path
from flexpert_operator.local.kubeapi.resources import Column, ResourceType, ScalePaths
from flexpert_operator.local.kubeapi.store import Storage
from flexpert_operator.local.kubeapi.structural import PRESERVE
from flexpert_operator.local.kubeapi.validation import validate

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
    return errors + _schema_errors(schema, below)


def _schema_errors(schema: JsonObject, path: str) -> list[FieldError]:
    """Defaults that break their own schema and patterns that do not compile."""
    errors = []
    if schema.get("default") is not None:
        errors += validate({**schema, "required": []}, schema["default"], f"{path}.default")
    try:
        re.compile(schema.get("pattern") or "")
    except re.error as error:
        errors.append(invalid_value(f"{path}.pattern", schema["pattern"], f"must be a regular expression: {error}"))
    for name, below in (schema.get("properties") or {}).items():
        errors += _schema_errors(below, f"{path}.properties[{name}]")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            errors += _schema_errors(schema[name], f"{path}.{name}")
    return errors
