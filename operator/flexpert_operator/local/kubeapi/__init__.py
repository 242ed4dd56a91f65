"""The embedded Kubernetes API of the laptop: a small API server that kubectl, kopf and the Python client can use.

`flexpert local up` runs it as a process (`python -m flexpert_operator.local.kubeapi`), tests start it with
`KubeApiServer`. It stores, validates and watches objects; it runs no controllers but garbage collection.
"""

from flexpert_operator.local.kubeapi.embedded import KubeApiServer, ServerConfig, serve
from flexpert_operator.local.kubeapi.kubeconfig import kubeconfig, write_kubeconfig

__all__ = ["KubeApiServer", "ServerConfig", "kubeconfig", "serve", "write_kubeconfig"]
