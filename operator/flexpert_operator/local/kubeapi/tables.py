"""Lists and objects in the forms that clients ask for: Table, PartialObjectMetadata, or as they are.

`server` and `watch` call it with what the Accept header asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flexpert_operator.local.kubeapi.errors import NotAcceptable
from flexpert_operator.local.kubeapi.objects import JsonObject, name_of
from flexpert_operator.local.kubeapi.resources import ResourceType

Form = Literal["", "Table", "PartialObjectMetadata", "PartialObjectMetadataList", "APIGroupDiscoveryList"]

_META = "meta.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class View:
    """The form of the answer; `include` is what a Table's rows carry: None, Metadata or Object."""

    form: Form = ""
    include: str = "Metadata"
    now_s: float = 0.0

    def one(self, resource: ResourceType, obj: JsonObject, *, header: bool = True) -> JsonObject:
        """An object in this form."""
        if self.form == "Table":
            meta = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
            return self._table(resource, [obj], meta, header=header)
        return partial(obj) if self.form.startswith("Partial") else obj

    def many(self, resource: ResourceType, items: Sequence[JsonObject], metadata: JsonObject) -> JsonObject:
        """A list in this form."""
        if self.form == "Table":
            return self._table(resource, items, metadata, header=True)
        if self.form.startswith("Partial"):
            parts = [partial(item) for item in items]
            return {"kind": "PartialObjectMetadataList", "apiVersion": _META, "metadata": metadata, "items": parts}
        kind = resource.list_kind or f"{resource.kind}List"
        return {"kind": kind, "apiVersion": resource.api_version, "metadata": metadata, "items": list(items)}

    def _table(
        self, resource: ResourceType, items: Sequence[JsonObject], metadata: JsonObject, *, header: bool
    ) -> JsonObject:
        return {
            "kind": "Table",
            "apiVersion": _META,
            "metadata": metadata,
            "columnDefinitions": column_definitions(resource) if header else None,
            "rows": [self._row(resource, item) for item in items],
        }

    def _row(self, resource: ResourceType, obj: JsonObject) -> JsonObject:
        row: JsonObject = {"cells": [name_of(obj), *(column.cell(obj, self.now_s) for column in resource.columns)]}
        if self.include == "Object":
            row["object"] = obj
        elif self.include != "None":
            row["object"] = partial(obj)
        return row


def partial(obj: JsonObject) -> JsonObject:
    """Only the object's metadata, as a PartialObjectMetadata."""
    return {"kind": "PartialObjectMetadata", "apiVersion": _META, "metadata": obj["metadata"]}


def column_definitions(resource: ResourceType) -> list[JsonObject]:
    """Headers of the resource's table; the name comes first."""
    name = {
        "name": "Name",
        "type": "string",
        "format": "name",
        "description": "Name must be unique within a namespace.",
        "priority": 0,
    }
    return [name] + [
        {
            "name": column.name,
            "type": column.type,
            "format": column.format,
            "description": column.description,
            "priority": column.priority,
        }
        for column in resource.columns
    ]


def negotiate(accept: str, *, include: str = "Metadata", now_s: float = 0.0) -> View:
    """The first form in an Accept header that is served.

    Raises:
        NotAcceptable: none is; only JSON is spoken.
    """
    if not accept.strip():
        return View(include=include, now_s=now_s)
    for choice in accept.split(","):
        media, *rest = (part.strip() for part in choice.split(";"))
        parameters = dict(part.split("=", 1) for part in rest if "=" in part)
        form = parameters.get("as", "")
        if media not in ("application/json", "*/*", "application/*") or parameters.get("v") in ("v1beta1", "v2beta1"):
            continue
        if form in ("", "Table", "PartialObjectMetadata", "PartialObjectMetadataList", "APIGroupDiscoveryList"):
            return View(form=form, include=include, now_s=now_s)  # type: ignore[arg-type]
    raise NotAcceptable("only the following media types are accepted: application/json")
