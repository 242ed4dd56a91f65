"""Pure builders of what the operator keeps in Kubernetes for a MoEDeployment."""

from flexpert_operator.manifests.disruption import disruption_budgets
from flexpert_operator.manifests.ingress import ingress_deployment, ingress_service
from flexpert_operator.manifests.network import network_policies
from flexpert_operator.manifests.pool_control import cluster_control_service, pool_control_service
from flexpert_operator.manifests.ray_cluster import (
    as_it_is,
    has_other_head,
    head_revision,
    ray_cluster,
    template_revisions,
)

__all__ = [
    "as_it_is",
    "cluster_control_service",
    "disruption_budgets",
    "has_other_head",
    "head_revision",
    "ingress_deployment",
    "ingress_service",
    "network_policies",
    "pool_control_service",
    "ray_cluster",
    "template_revisions",
]
