"""Specs of MoEDeployments drawn from the schema, and what the embedded API makes of one, without a server."""

from typing import Any

from schema_strategies import nearly

from flexpert_operator.api.core_schema import core_schema
from flexpert_operator.api.crd import moe_deployment
from flexpert_operator.local.kubeapi.cel import CelRules
from flexpert_operator.local.kubeapi.crds import resource_types
from flexpert_operator.local.kubeapi.errors import Invalid
from flexpert_operator.local.kubeapi.strategy import decode, for_create, for_update

Object = dict[str, Any]
NOW = "2026-01-01T00:00:00Z"
CRD = moe_deployment(core_schema)
(RESOURCE,) = resource_types(CRD)
RULES = CelRules()
SPECS = nearly(CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"])


def admit(spec: Any, old: Object | None = None) -> tuple[Object | None, list[str]]:
    """What the API server stores, or the fields that it names in its refusal; `fieldValidation=Strict`."""
    body = {"apiVersion": "flexpert.io/v1alpha1", "kind": "MoEDeployment", "metadata": {"name": "x"}, "spec": spec}
    decoded = decode(RESOURCE, body)
    if decoded.unknown:
        return None, list(decoded.unknown)
    try:
        if old is None:
            return for_create(RESOURCE, decoded.object, "default", NOW, RULES), []
        return for_update(RESOURCE, decoded.object, old, "", RULES), []
    except Invalid as refusal:
        return None, [cause["field"] for cause in refusal.status()["details"]["causes"]]
