"""PodDisruptionBudgets of the engines, the expert workers and the ingress."""

from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.spec import MoEDeployment
from flexpert_operator.decide.sizing import Size
from flexpert_operator.manifests.metadata import child_metadata


def disruption_budgets(deployment: MoEDeployment, size: Size, ingress_replicas: int) -> tuple[dict[str, Any], ...]:
    """A budget a role.

    They say how many pods must be left, not how many may be missing: of pods that a RayCluster owns Kubernetes does not
    know how many there should be, since a RayCluster has no scale subresource.
    """
    engines, experts, ingress = deployment.engines, deployment.experts, deployment.ingress
    settled = min(size.pods, size.sizing.settled or size.pods) + experts.standby_pods
    return (
        budget(deployment, names.ENGINES_ROLE, engines.replicas - engines.disruption_budget.max_unavailable),
        budget(deployment, names.EXPERTS_ROLE, settled - experts.disruption_budget.max_unavailable),
        budget(deployment, names.INGRESS_ROLE, ingress_replicas - ingress.disruption_budget.max_unavailable),
    )


def budget(deployment: MoEDeployment, role: str, min_available: int) -> dict[str, Any]:
    """The budget of a role; pods that are not ready anyway may go whatever it says."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": child_metadata(deployment, names.disruption_budget(deployment.name, role), role),
        "spec": {
            "minAvailable": max(min_available, 0),
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": {names.DEPLOYMENT_LABEL: deployment.name, names.ROLE_LABEL: role}},
        },
    }
