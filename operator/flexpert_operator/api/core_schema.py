"""Schemas of Kubernetes' own types as a CustomResourceDefinition carries them; `generate` hands them to `crd`.

They come from the models of the Kubernetes Python client, without the descriptions: those would make the definition
larger than `kubectl apply` can carry, and `kubectl explain pod.spec` has them.
"""

import copy
from collections.abc import Callable, Iterable

from flexpert_operator.api.pods import OWN_PATHS, OWN_VARIABLES, OWN_VOLUMES, one_of
from flexpert_operator.api.schema import QUANTITY_PATTERN, Schema, int_or_string
from flexpert_operator.local.kubeapi.builtin_models import structural

DROPPED = ("description", "x-kubernetes-patch-merge-key", "x-kubernetes-patch-strategy")
LIST_KEYS = "x-kubernetes-list-map-keys"
TEMPLATE_METADATA = ("labels", "annotations")
LONG = ("tolerationSeconds", "expirationSeconds")
"""Integers of 64 bits; all others that pods have in these places have 32."""

NEWER_IN_VOLUMES = (
    "configMap.defaultUser",
    "configMap.items.user",
    "downwardAPI.defaultUser",
    "downwardAPI.items.user",
    "emptyDir.mode",
    "projected.defaultUser",
    "projected.sources.clusterTrustBundle.user",
    "projected.sources.configMap.items.user",
    "projected.sources.downwardAPI.items.user",
    "projected.sources.podCertificate.user",
    "projected.sources.secret.items.user",
    "projected.sources.serviceAccountToken.user",
    "secret.defaultUser",
    "secret.items.user",
)
NEWER_IN_MOUNTS = ("bindMountOptions",)
"""Fields of newer Kubernetes versions than KubeRay's definitions know: a RayCluster would lose them without a word."""


def core_schema(model: str) -> Schema:
    """Structural schema of a Kubernetes model, such as `V1Toleration`, with what it is refused for."""
    schema = plain(copy.deepcopy(structural(model)))
    if model in FINISH:
        FINISH[model](schema)
    return schema


def plain(schema: Schema) -> Schema:
    """A schema as definitions may have it: list keys are required, and nothing stands there that they do not know."""
    found = {key: value for key, value in schema.items() if key not in DROPPED and value is not None}
    if found.get("x-kubernetes-int-or-string"):
        return int_or_string(QUANTITY_PATTERN)
    properties = found.get("properties", {})
    if "ownerReferences" in properties:
        properties = {name: properties[name] for name in TEMPLATE_METADATA}
    if properties:
        found["properties"] = {name: sized(name, plain(below)) for name, below in properties.items()}
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            found[key] = plain(found[key])
    if LIST_KEYS in found:
        require(found["items"], *found[LIST_KEYS])
    return found


def sized(name: str, schema: Schema) -> Schema:
    """A field's schema with the size of its integer."""
    if schema.get("type") != "integer":
        return schema
    return {"type": "integer", "format": "int64" if name in LONG else "int32"} | schema


def drop(schema: Schema, paths: Iterable[str]) -> None:
    """Take fields away; a path goes through lists."""
    for path in paths:
        *above, last = path.split(".")
        below = schema
        for name in above:
            below = below["properties"][name]
            below = below.get("items", below)
        del below["properties"][last]


def require(schema: Schema, *names: str) -> None:
    """Have fields be there."""
    schema["required"] = sorted({*schema.get("required", ()), *names})


def refuse(schema: Schema, names: tuple[str, ...], message: str) -> None:
    """Refuse values of a text."""
    schema["x-kubernetes-validations"] = [{"rule": f"!(self in {one_of(names)})", "message": message}]


def variable(schema: Schema) -> None:
    """An environment variable: its name is one, and not one that a pool's processes find each other by."""
    name = schema["properties"]["name"]
    name |= {"minLength": 1, "maxLength": 256, "pattern": "^[-._a-zA-Z][-._a-zA-Z0-9]*$"}
    refuse(name, OWN_VARIABLES, "the operator sets this variable")


def variables_from(schema: Schema) -> None:
    """A source of variables: their prefix has an end."""
    schema["properties"]["prefix"] |= {"maxLength": 256}


def volume(schema: Schema) -> None:
    """A volume: its name is a label of DNS, and not one of the operator's own."""
    drop(schema, NEWER_IN_VOLUMES)
    name = schema["properties"]["name"]
    name |= {"minLength": 1, "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
    refuse(name, OWN_VOLUMES, "the operator has a volume of this name")


def mount(schema: Schema) -> None:
    """A mount: below the root, and not where the operator has one."""
    drop(schema, NEWER_IN_MOUNTS)
    schema["properties"]["name"] |= {"minLength": 1, "maxLength": 63}
    path = schema["properties"]["mountPath"]
    path |= {"minLength": 1, "maxLength": 1024, "pattern": "^/[^:]*$"}
    refuse(path, OWN_PATHS, "the operator mounts a volume there")


def toleration(schema: Schema) -> None:
    """A toleration: its words are those that Kubernetes knows."""
    schema["properties"]["operator"] |= {"enum": ["Exists", "Equal", "Lt", "Gt"]}
    schema["properties"]["effect"] |= {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]}


def constraint(schema: Schema) -> None:
    """A spread constraint: its words and its number are those that Kubernetes takes."""
    schema["properties"]["maxSkew"] |= {"minimum": 1}
    schema["properties"]["topologyKey"] |= {"minLength": 1, "maxLength": 316}
    schema["properties"]["whenUnsatisfiable"] |= {"enum": ["DoNotSchedule", "ScheduleAnyway"]}


def reference(schema: Schema) -> None:
    """A reference to a Secret: it has a name."""
    require(schema, "name")
    schema["properties"]["name"] |= {"minLength": 1, "maxLength": 253}


FINISH: dict[str, Callable[[Schema], None]] = {
    "V1EnvVar": variable,
    "V1EnvFromSource": variables_from,
    "V1LocalObjectReference": reference,
    "V1Toleration": toleration,
    "V1TopologySpreadConstraint": constraint,
    "V1Volume": volume,
    "V1VolumeMount": mount,
}
