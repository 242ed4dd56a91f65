"""The Service by which operator, engines and ingresses find the pool controller."""

from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.spec import MoEDeployment
from flexpert_operator.manifests.metadata import child_metadata
from flexpert_proto import names as pool_names


def pool_control_service(deployment: MoEDeployment, cluster: str) -> dict[str, Any]:
    """The Service in front of the `pool-control` port of the head of the RayCluster that serves."""
    return control_service(deployment, names.pool_control_service(deployment.name), cluster)


def cluster_control_service(deployment: MoEDeployment, cluster: str) -> dict[str, Any]:
    """The Service in front of the same port of one RayCluster: its engines and the operator use it."""
    return control_service(deployment, names.cluster_control_service(cluster), cluster)


def control_service(deployment: MoEDeployment, name: str, cluster: str) -> dict[str, Any]:
    """A Service in front of the head of `cluster`."""
    ports = {
        pool_names.POOL_CONTROL_PORT_NAME: pool_names.POOL_CONTROL_PORT,
        pool_names.UI_PORT_NAME: pool_names.UI_PORT,
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": child_metadata(deployment, name, names.HEAD_ROLE),
        "spec": {
            "selector": {
                names.DEPLOYMENT_LABEL: deployment.name,
                names.ROLE_LABEL: names.HEAD_ROLE,
                names.RAY_CLUSTER_LABEL: cluster,
            },
            "ports": [
                {"name": name, "port": number, "targetPort": name, "protocol": "TCP"} for name, number in ports.items()
            ],
        },
    }
