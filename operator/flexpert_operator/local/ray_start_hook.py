"""Keeps a laptop's Ray node on the loopback interface. `ray start` calls it where `RAY_START_HOOK` names it.

`ray start --node-ip-address=127.0.0.1` puts the host's outward address in its place, and every server of the node
then listens on all interfaces. With the loopback address they listen there alone, and a laptop that changes networks
keeps its pool. The Ray Client server, which nothing here uses, is left out.
"""

from typing import Any


def keep_to_loopback(parameters: Any, head: bool) -> None:
    """Adjust the parameters of the node about to start (Ray's `RayParams`), head or not."""
    parameters.node_ip_address = "127.0.0.1"
    if head:
        parameters.ray_client_server_port = None
