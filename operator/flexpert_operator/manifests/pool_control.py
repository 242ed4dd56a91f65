"""The Service by which operator, engines and ingresses find the pool controller."""

from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.spec import MoEDeployment
from flexpert_operator.manifests.metadata import child_metadata
from flexpert_proto import names as pool_names


def pool_control_service(deployment: MoEDeployment) -> dict[str, Any]:
    """The Service in front of the head's `pool-control` port."""
    port = pool_names.POOL_CONTROL_PORT_NAME
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": child_metadata(deployment, names.pool_control_service(deployment.name), names.HEAD_ROLE),
        "spec": {
            "selector": {names.DEPLOYMENT_LABEL: deployment.name, names.ROLE_LABEL: names.HEAD_ROLE},
            "ports": [{"name": port, "port": pool_names.POOL_CONTROL_PORT, "targetPort": port, "protocol": "TCP"}],
        },
    }
