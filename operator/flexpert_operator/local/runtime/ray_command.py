"""The command of a Ray container, composed from `rayStartParams` as KubeRay composes it. Pure.

KubeRay writes a line for a shell: values may carry quotes of their own (`resources` must), and parameters whose value
is `true` or `false` become bare flags or nothing. What a laptop needs differently is laid over it: ephemeral ports,
one short session folder per node, the loopback interface, a small object store.
"""

import shlex
import sys
from collections.abc import Mapping

from flexpert_operator.local.runtime.values import HOST

OBJECT_STORE_BYTES = 80_000_000
_VALUED_BOOLEANS = ("log-color", "include-dashboard", "include-log-monitor")
_RAY = (sys.executable, "-m", "flexpert_operator.local.ray_start", "start")

_ANY_PORT: Mapping[str, str] = {
    "dashboard-agent-listen-port": "0",
    "dashboard-agent-grpc-port": "0",
    "metrics-export-port": "0",
    "runtime-env-agent-port": "0",
    "node-manager-port": "0",
    "object-manager-port": "0",
    "min-worker-port": "0",
    "max-worker-port": "0",
}
_NODE: Mapping[str, str] = {
    **_ANY_PORT,
    "block": "true",
    "node-ip-address": HOST,
    "object-store-memory": str(OBJECT_STORE_BYTES),
    "include-log-monitor": "false",
    "disable-usage-stats": "true",
}
_HEAD: Mapping[str, str] = {"head": "true", "include-dashboard": "false", "no-monitor": "true"}
_UNSERVED = ("dashboard-host", "dashboard-port", "ray-client-server-port", "plasma-directory", "worker-port-list")


def head_command(parameters: Mapping[str, str], cpu_limit: int, session_folder: str, gcs_port: int) -> list[str]:
    """Command of the head.

    Args:
        parameters: `rayStartParams` of the head group.
        cpu_limit: Whole cores of the container's limit: KubeRay's default of `num-cpus`.
        session_folder: `--temp-dir`; short, and this node's alone.
        gcs_port: Where the cluster's other nodes join.
    """
    laptop = {**_NODE, **_HEAD, "temp-dir": session_folder, "port": str(gcs_port)}
    return [*_RAY, *flags({"num-cpus": str(cpu_limit), **_kept(parameters), **laptop})]


def worker_command(parameters: Mapping[str, str], cpu_limit: int, session_folder: str, address: str) -> list[str]:
    """Command of a worker group's node, which joins the head at `address`; see `head_command`."""
    laptop = {**_NODE, "temp-dir": session_folder, "address": address}
    return [*_RAY, *flags({"num-cpus": str(cpu_limit), **_kept(parameters), **laptop})]


def flags(parameters: Mapping[str, str]) -> list[str]:
    """Arguments of `ray start` for `rayStartParams`, after the shell has seen them.

    Raises:
        ValueError: A value's quotes do not close.
    """
    line = []
    for option, value in parameters.items():
        if value.lower() not in ("true", "false") or option in _VALUED_BOOLEANS:
            line.append(f"--{option}={value}")
        elif value.lower() == "true":
            line.append(f"--{option}")
    return shlex.split(" ".join(line))


def _kept(parameters: Mapping[str, str]) -> dict[str, str]:
    return {option: value for option, value in parameters.items() if option not in _UNSERVED}
