"""Pure builders of what the operator keeps in Kubernetes for a MoEDeployment."""

from flexpert_operator.manifests.disruption import disruption_budgets
from flexpert_operator.manifests.ingress import ingress_deployment, ingress_service
from flexpert_operator.manifests.pool_control import pool_control_service
from flexpert_operator.manifests.ray_cluster import ray_cluster, template_revisions

__all__ = [
    "disruption_budgets",
    "ingress_deployment",
    "ingress_service",
    "pool_control_service",
    "ray_cluster",
    "template_revisions",
]
