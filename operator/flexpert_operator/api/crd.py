"""CustomResourceDefinitions of the models in `spec` and `status`; `generate` writes them into the chart."""

from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.fields import Rule
from flexpert_operator.api.schema import CoreSchema, Schema, object_schema, rules_schema
from flexpert_operator.api.spec import Spec
from flexpert_operator.api.status import Status

MAX_NAME = 40

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


def moe_deployment(core: CoreSchema) -> dict[str, Any]:
    """The CustomResourceDefinition of MoEDeployment."""
    plural = names.PLURAL
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{names.GROUP}", "labels": {"app.kubernetes.io/part-of": "flexpert"}},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": plural,
                "singular": names.KIND.lower(),
                "shortNames": ["moed"],
                "categories": ["all", "flexpert"],
            },
            "versions": [version(core)],
        },
    }


def version(core: CoreSchema) -> dict[str, Any]:
    """Its one version."""
    return {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.experts.workers",
                "statusReplicasPath": ".status.experts.workers",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "description": description}
            for name, kind, path, description in COLUMNS
        ],
        "schema": {"openAPIV3Schema": root_schema(core)},
    }


def root_schema(core: CoreSchema) -> Schema:
    """Schema of the whole object."""
    return {
        "description": "MoEDeployment serves a mixture-of-experts model. Engines hold attention and the KV cache; "
        "expert workers hold the experts and can be scaled while text flows.",
        "type": "object",
        "required": ["spec"],
        **rules_schema(NAME_RULES),
        "properties": {
            "apiVersion": {"description": "Version of the schema of this object.", "type": "string"},
            "kind": {"description": "Kind of this object.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": {"description": "What is to be served, and by how many."} | object_schema(Spec, core),
            "status": {"description": "What was last observed. Written by the operator."} | object_schema(Status, core),
        },
    }
