"""The peer of `bench_operator`: a minimal kopf operator that only patches the status of MoEDeployments.

python benchmarks/operator_kopf.py KUBECONFIG
"""

import sys
from pathlib import Path
from typing import Any

import kopf

from flexpert_operator.handlers import connection_info
from flexpert_operator.kube import api_client

RESOURCE = ("flexpert.io", "v1alpha1", "moedeployments")


def registry(kubeconfig: Path) -> kopf.OperatorRegistry:
    """Its handlers, with kopf's own settings except for what it would ask beside the objects."""
    made = kopf.OperatorRegistry()

    @kopf.on.startup(registry=made)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.peering.standalone = True
        settings.posting.enabled = False

    @kopf.on.login(registry=made)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection_info(api_client(kubeconfig).configuration)

    @kopf.on.resume(*RESOURCE, registry=made)
    @kopf.on.create(*RESOURCE, registry=made)
    @kopf.on.update(*RESOURCE, registry=made)
    async def tell(body: kopf.Body, patch: kopf.Patch, **_: Any) -> None:
        patch.status["observedGeneration"] = body["metadata"]["generation"]

    return made


if __name__ == "__main__":
    kopf.configure(log_format=kopf.LogFormat.PLAIN)
    kopf.run(registry=registry(Path(sys.argv[1])), standalone=True, clusterwide=True)
