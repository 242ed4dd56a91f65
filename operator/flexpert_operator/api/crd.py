"""CustomResourceDefinitions of the models; `generate` writes them into the chart, `reference` describes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.autoscaling import PolicySpec
from flexpert_operator.api.autoscaling_status import PolicyStatus
from flexpert_operator.api.fields import Rule
from flexpert_operator.api.scaler import ScalerSpec, ScalerStatus
from flexpert_operator.api.schema import CoreSchema, Schema, object_schema, rules_schema
from flexpert_operator.api.spec import Spec
from flexpert_operator.api.status import Status

MAX_NAME = 40

Column = tuple[str, str, str, str]
"""Name, type, path and description of a printer column."""

NAME_RULES = (
    Rule(
        f"size(self.metadata.name) <= {MAX_NAME}",
        f"metadata.name must have at most {MAX_NAME} characters, for the names that are built from it",
    ),
    Rule(
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name must be a label of RFC 1035, since Services are named after it: lower-case letters, digits and "
        "'-', a letter first, a letter or digit last",
    ),
)

COLUMNS = (
    ("Workers", "integer", ".status.experts.workers", "Expert workers that exist"),
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', "Whether text is served"),
    (
        "Imbalance",
        "integer",
        ".status.experts.imbalancePercent",
        "Load of the busiest worker above the average in percent",
    ),
    ("Epoch", "string", ".status.experts.epoch", "Number of the published routing table"),
    ("Age", "date", ".metadata.creationTimestamp", "Time since it was made"),
)


POLICY_COLUMNS = (
    ("Target", "string", ".spec.targetRef.name", "MoEDeployment that is scaled"),
    ("Engines", "integer", ".status.desired.engines", "Engines desired"),
    ("Experts", "integer", ".status.desired.experts", "Expert workers desired"),
    ("Active", "string", '.status.conditions[?(@.type=="ScalingActive")].status', "Whether decisions are carried out"),
    ("Able", "string", '.status.conditions[?(@.type=="AbleToScale")].status', "Whether this policy is the target's"),
    (
        "Limited",
        "string",
        '.status.conditions[?(@.type=="ScalingLimited")].reason',
        "What keeps the sizes from those that the objectives ask for",
    ),
    ("Age", "date", ".metadata.creationTimestamp", "Time since it was made"),
)

SCALER_COLUMNS = (
    ("Target", "string", ".spec.targetRef.name", "MoEDeployment that is scaled"),
    ("Pool", "string", ".spec.pool", "Which pool of it"),
    ("Desired", "integer", ".spec.replicas", "Members asked for"),
    ("Current", "integer", ".status.replicas", "Members that exist"),
    ("Able", "string", '.status.conditions[?(@.type=="AbleToScale")].status', "Whether it decides the size"),
    ("Age", "date", ".metadata.creationTimestamp", "Time since it was made"),
)


@dataclass(frozen=True)
class Kind:
    """A kind of object of our API.

    Attributes:
        about: What it is.
        spec_about: What its spec is.
        scale: Its scale subresource, if it has one.
        rules: About its name.
    """

    name: str
    plural: str
    short_names: tuple[str, ...]
    about: str
    spec: type
    spec_about: str
    status: type
    status_about: str
    columns: tuple[Column, ...]
    categories: tuple[str, ...] = ("flexpert",)
    scale: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()


DEPLOYMENT = Kind(
    name=names.KIND,
    plural=names.PLURAL,
    short_names=("moed",),
    about="MoEDeployment serves a mixture-of-experts model. Engines hold attention and the KV cache; "
    "expert workers hold the experts and can be scaled while text flows.",
    spec=Spec,
    spec_about="What is to be served, and by how many.",
    status=Status,
    status_about="What was last observed. Written by the operator.",
    columns=COLUMNS,
    categories=("all", "flexpert"),
    scale={
        "specReplicasPath": ".spec.experts.workers",
        "statusReplicasPath": ".status.experts.workers",
        "labelSelectorPath": ".status.selector",
    },
    rules=NAME_RULES,
)

POLICY = Kind(
    name=names.POLICY_KIND,
    plural=names.POLICY_PLURAL,
    short_names=("moeap",),
    about="MoEAutoscalingPolicy says what requests to a MoEDeployment should get and what that may cost. The operator "
    "decides by it how many engines and expert workers there are.",
    spec=PolicySpec,
    spec_about="What is wanted, and within which bounds.",
    status=PolicyStatus,
    status_about="What was decided last. Written by the operator.",
    columns=POLICY_COLUMNS,
)

SCALER = Kind(
    name=names.SCALER_KIND,
    plural=names.SCALER_PLURAL,
    short_names=("moesc",),
    about="MoEScaler is a scale subresource for a pool of a MoEDeployment: for HorizontalPodAutoscaler, KEDA and "
    "kubectl scale.",
    spec=ScalerSpec,
    spec_about="Which pool, and its size.",
    status=ScalerStatus,
    status_about="What was last observed. Written by the operator.",
    columns=SCALER_COLUMNS,
    scale={
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    },
)

KINDS = (DEPLOYMENT, POLICY, SCALER)


def moe_deployment(core: CoreSchema) -> dict[str, Any]:
    """The CustomResourceDefinition of MoEDeployment."""
    return definition(DEPLOYMENT, core)


def definition(kind: Kind, core: CoreSchema) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{names.GROUP}", "labels": {"app.kubernetes.io/part-of": "flexpert"}},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": list(kind.short_names),
                "categories": list(kind.categories),
            },
            "versions": [version(kind, core)],
        },
    }


def version(kind: Kind, core: CoreSchema) -> dict[str, Any]:
    """Its one version."""
    return {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}} | ({"scale": dict(kind.scale)} if kind.scale else {}),
        "additionalPrinterColumns": [
            {"name": name, "type": shape, "jsonPath": path, "description": description}
            for name, shape, path, description in kind.columns
        ],
        "schema": {"openAPIV3Schema": root_schema(kind, core)},
    }


def root_schema(kind: Kind, core: CoreSchema) -> Schema:
    """Schema of the whole object."""
    return {
        "description": kind.about,
        "type": "object",
        "required": ["spec"],
        **rules_schema(kind.rules),
        "properties": {
            "apiVersion": {"description": "Version of the schema of this object.", "type": "string"},
            "kind": {"description": "Kind of this object.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": {"description": kind.spec_about} | object_schema(kind.spec, core),
            "status": {"description": kind.status_about} | object_schema(kind.status, core),
        },
    }
