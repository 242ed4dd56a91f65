"""Schemas of the built-in kinds, derived from the models of the Kubernetes Python client.

`builtin_kinds` takes the structural schema of each kind from here and `openapi` its components. The client's models
say the names, types and descriptions of all fields and which are required; what they do not say (which lists merge by
a key, which strings are quantities) stands in the tables below, from the Kubernetes API reference.
"""

import datetime as dt
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from kubernetes.client import models as client_models

from flexpert_operator.local.kubeapi.objects import JsonObject
from flexpert_operator.local.kubeapi.patch import PATCH_KEY, PATCH_STRATEGY
from flexpert_operator.local.kubeapi.structural import INT_OR_STRING, LIST_KEYS, LIST_TYPE, MAP_TYPE, PRESERVE

_LIST_MAPS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("V1PodSpec", "containers"): ("name",),
    ("V1PodSpec", "initContainers"): ("name",),
    ("V1PodSpec", "ephemeralContainers"): ("name",),
    ("V1PodSpec", "volumes"): ("name",),
    ("V1PodSpec", "imagePullSecrets"): ("name",),
    ("V1PodSpec", "hostAliases"): ("ip",),
    ("V1PodSpec", "topologySpreadConstraints"): ("topologyKey", "whenUnsatisfiable"),
    ("V1PodStatus", "podIPs"): ("ip",),
    ("V1Container", "env"): ("name",),
    ("V1Container", "ports"): ("containerPort", "protocol"),
    ("V1Container", "volumeMounts"): ("mountPath",),
    ("V1Container", "volumeDevices"): ("devicePath",),
    ("V1ServiceSpec", "ports"): ("port", "protocol"),
    ("V1ServiceAccount", "secrets"): ("name",),
    ("V1NodeStatus", "addresses"): ("type",),
    ("V1ObjectMeta", "ownerReferences"): ("uid",),
}
_SETS = {("V1ObjectMeta", "finalizers"), ("V1NodeSpec", "podCIDRs")}
_ATOMIC_MAPS = {"V1LabelSelector", "V1NodeSelector", "V1SecretKeySelector", "V1ConfigMapKeySelector"}
_QUANTITY_MAPS = {"limits", "requests", "capacity", "allocatable", "overhead", "hard", "used", "default", "min", "max"}
_QUANTITIES = {"sizeLimit", "divisor", "averageValue", "value", "targetAverageValue"}
_QUANTITY_OWNERS = {"V1EmptyDirVolumeSource", "V1ResourceFieldSelector", "V2MetricTarget", "V2MetricValueStatus"}
_PROTOCOL_OWNERS = {"V1ContainerPort", "V1ServicePort"}

Reference = Callable[[type[Any]], JsonObject]


@functools.cache
def structural(model: str) -> JsonObject:
    """Structural schema of a model such as `V1Pod`, everything in it in full."""
    if model == "V1JSONSchemaProps":
        return {"type": "object", PRESERVE: True}
    return _object(getattr(client_models, model), lambda below: structural(below.__name__))


def component(model: str, reference: Reference) -> JsonObject:
    """Schema of a model for OpenAPI; `reference` makes what stands for the models in it."""
    return _object(getattr(client_models, model), reference)


def _object(model: Any, reference: Reference) -> JsonObject:
    properties, required = {}, []
    for name, info in model.model_fields.items():
        spelled = info.serialization_alias or info.alias or name
        schema = _of_type(info.annotation, reference) | ({"description": info.description} if info.description else {})
        properties[spelled] = schema | _extensions(model.__name__, spelled, schema)
        if info.is_required():
            required.append(spelled)
    schema = {"type": "object", "properties": properties}
    if required and not model.__name__.endswith("Status"):
        schema["required"] = required
    if model.__name__ in _ATOMIC_MAPS:
        schema[MAP_TYPE] = "atomic"
    text = (model.__doc__ or "").partition("Attributes:")[0].strip()
    return schema | ({"description": " ".join(text.split())} if text else {})


def _of_type(annotation: Any, reference: Reference) -> JsonObject:
    origin = typing.get_origin(annotation)
    arguments = [item for item in typing.get_args(annotation) if item is not types.NoneType]
    if origin is typing.Annotated:
        return _of_type(arguments[0], reference)
    if origin in (typing.Union, types.UnionType):
        return _of_union(arguments, reference)
    if origin is list:
        return {"type": "array", "items": _of_type(arguments[0], reference)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of_type(arguments[1], reference)}
    scalars: dict[Any, JsonObject] = {
        bool: {"type": "boolean"},
        int: {"type": "integer"},
        float: {"type": "number"},
        str: {"type": "string"},
        bytes: {"type": "string", "format": "byte"},
        dt.datetime: {"type": "string", "format": "date-time"},
    }
    if annotation in scalars:
        return dict(scalars[annotation])
    if hasattr(annotation, "model_fields"):
        return dict(reference(annotation))
    return {PRESERVE: True}


def _of_union(arguments: list[Any], reference: Reference) -> JsonObject:
    if len(arguments) == 1:
        return _of_type(arguments[0], reference)
    kinds = {_of_type(item, reference).get("type") for item in arguments}
    if kinds == {"integer", "string"}:
        return {INT_OR_STRING: True}
    if kinds == {"integer", "number"}:
        return {"type": "number"}
    return {"type": "string"} if kinds == {"string"} else {PRESERVE: True}


def _extensions(model: str, name: str, schema: JsonObject) -> JsonObject:
    owner = "V1Container" if model == "V1EphemeralContainer" else model
    if name == "conditions" and schema.get("type") == "array":
        return _list_map(("type",))
    if (owner, name) in _LIST_MAPS:
        return _list_map(_LIST_MAPS[owner, name])
    if (owner, name) in _SETS:
        return {LIST_TYPE: "set", PATCH_STRATEGY: "merge"}
    if name in _QUANTITY_MAPS and schema.get("additionalProperties") == {"type": "string"}:
        return {"additionalProperties": {INT_OR_STRING: True}}
    if name in _QUANTITIES and model in _QUANTITY_OWNERS:
        return {"type": None, INT_OR_STRING: True}
    if name == "protocol" and model in _PROTOCOL_OWNERS:
        return {"default": "TCP"}
    return {}


def _list_map(keys: tuple[str, ...]) -> JsonObject:
    return {LIST_TYPE: "map", LIST_KEYS: list(keys), PATCH_KEY: keys[0], PATCH_STRATEGY: "merge"}
