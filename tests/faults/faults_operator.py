"""The operator as a process of the host: the real one, which looks more often than it would in a cluster."""

from pathlib import Path

import kopf

from flexpert_operator.handlers import Scope, assemble
from flexpert_operator.kube import api_client
from flexpert_operator.settings import Settings

SETTINGS = Settings(resync_s=0.5, busy_s=0.1, provision_deadline_s=180, retry_s=1.0, inspect_retry_s=0.5)


def main(arguments: list[str]) -> int:
    """Run until killed: `KUBECONFIG NAMESPACE`."""
    kubeconfig, namespace = Path(arguments[0]), arguments[1]
    registry = assemble(api_client(kubeconfig), SETTINGS, Scope((namespace,)))
    kopf.run(registry=registry, standalone=True, namespaces=[namespace])
    return 0
