"""Metadata that every child of a MoEDeployment carries; used by all builders beside it."""

from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.spec import MoEDeployment


def child_metadata(deployment: MoEDeployment, name: str, role: str) -> dict[str, Any]:
    """Name, labels and the owner reference by which a child goes when its MoEDeployment does."""
    return {
        "name": name,
        "namespace": deployment.namespace,
        "labels": names.labels(deployment.name, role),
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": deployment.name,
                "uid": deployment.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
