"""Names, labels and annotations of what the operator keeps in Kubernetes; each is built here and nowhere else."""

from collections.abc import Mapping
from typing import Any

from flexpert_proto import names as pool_names

GROUP = "flexpert.io"
VERSION = "v1alpha1"
PLURAL = "moedeployments"
KIND = "MoEDeployment"
POLICY_PLURAL = "moeautoscalingpolicies"
POLICY_KIND = "MoEAutoscalingPolicy"
SCALER_PLURAL = "moescalers"
SCALER_KIND = "MoEScaler"
API_VERSION = f"{GROUP}/{VERSION}"
FINALIZER = f"{GROUP}/drain"

RAY_GROUP = "ray.io"
RAY_VERSION = "v1"
RAY_PLURAL = "rayclusters"
RAY_KIND = "RayCluster"

DEPLOYMENT_LABEL = f"{GROUP}/moedeployment"
ROLE_LABEL = f"{GROUP}/role"
RAY_CLUSTER_LABEL = "ray.io/cluster"
"""Label that KubeRay puts on every pod of a RayCluster."""

REVISION_LABEL = f"{GROUP}/revision"
"""Label of a pod: which template of its group it was made from."""

HEAD_ROLE = "head"
ENGINES_ROLE = "engines"
EXPERTS_ROLE = "experts"
INGRESS_ROLE = "ingress"

TERM_ANNOTATION = f"{GROUP}/term"
INCARNATION_ANNOTATION = f"{GROUP}/term-incarnation"
MODEL_ANNOTATION = f"{GROUP}/served-model"
SIZING_ANNOTATION = f"{GROUP}/sizing"
DIGEST_ANNOTATION = f"{GROUP}/digest"
"""Of a child as it was written: what was taken out of a spec does not show otherwise, beside what Kubernetes adds."""

HEAD_ANNOTATION = f"{GROUP}/head-revision"
"""Of a RayCluster: which head it was made with."""

RETIRED_ANNOTATION = f"{GROUP}/retired-at"
"""Of a RayCluster that no longer serves: since when, in seconds since the Unix epoch."""

WRITTEN_ANNOTATION = f"{GROUP}/written-generation"
"""Generation of a RayCluster's spec that the operator wrote; where it is another one, somebody else wrote it."""

RESTORED_ANNOTATION = f"{GROUP}/restored"
"""Digest of a spec that somebody else wrote and the operator put right; it is put right once."""

DRAIN_ANNOTATION = f"{GROUP}/drain-requested-at"
"""Of a pod whose experts somebody wants to be moved off; it goes once it holds nothing, and another one comes."""

REBALANCE_ANNOTATION = f"{GROUP}/rebalance-requested-at"
"""Of a MoEDeployment: somebody wants a look at the loads now. `status.placement.lookAsked` says which was answered."""

RAY_TOKEN_KEY = "auth_token"
"""Key of KubeRay's Secret (named after the RayCluster) that holds the cluster's token."""


def ray_cluster(name: str) -> str:
    """Name of the RayCluster of a MoEDeployment."""
    return name


def pool_control_service(name: str) -> str:
    """Name of the Service in front of the pool controller."""
    return f"{name}-pool-control"


def cluster_control_service(cluster: str) -> str:
    """Name of the Service in front of the pool controller of one RayCluster, whether it serves or not."""
    return f"{cluster}-head-control"


def ingress(name: str) -> str:
    """Name of the ingress Deployment and of its Service."""
    return f"{name}-ingress"


def disruption_budget(name: str, role: str) -> str:
    """Name of the PodDisruptionBudget of the pods of a role."""
    return f"{name}-{role}"


def network_policy(name: str, role: str) -> str:
    """Name of the NetworkPolicy of the pods of a role."""
    return f"{name}-{role}"


def labels(name: str, role: str) -> dict[str, str]:
    """Labels of the pods that play `role` for a MoEDeployment; Services select by them."""
    return {
        DEPLOYMENT_LABEL: name,
        ROLE_LABEL: role,
        "app.kubernetes.io/part-of": "flexpert",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "flexpert-operator",
    }


def selector(name: str, role: str | None = None) -> str:
    """Label selector of the pods of a MoEDeployment, of all of them or of one role."""
    return f"{DEPLOYMENT_LABEL}={name}" + (f",{ROLE_LABEL}={role}" if role else "")


def pool_control_address(name: str, namespace: str) -> str:
    """Where the pool controller answers, as `flexpert_proto.names.resolve` takes it."""
    return f"{pool_control_service(name)}.{namespace}.svc:{pool_names.POOL_CONTROL_PORT}"


def cluster_control_address(cluster: str, namespace: str) -> str:
    """Where the pool controller of one RayCluster answers."""
    return f"{cluster_control_service(cluster)}.{namespace}.svc:{pool_names.POOL_CONTROL_PORT}"


def secures_pool(body: Mapping[str, Any]) -> bool:
    """Whether a MoEDeployment, as the API server has it, wants its pool's members to show certificates."""
    return "pool" in (body["spec"].get("security") or {})


def control_address_of(body: Mapping[str, Any], cluster: str = "") -> str:
    """Where the pool controller of a MoEDeployment answers, and how: `flexpert_proto.channels` dials it.

    `cluster`: that of one RayCluster; empty: of the one that serves.
    """
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    plain = cluster_control_address(cluster, namespace) if cluster else pool_control_address(name, namespace)
    if not secures_pool(body):
        return plain
    return pool_names.secured(plain, pool_names.pool_identity(name, namespace))


def ingress_address(name: str, namespace: str, port: int) -> str:
    """Where clients in the cluster reach a port of the ingress."""
    return f"{ingress(name)}.{namespace}.svc:{port}"
