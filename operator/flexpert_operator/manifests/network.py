"""NetworkPolicies of a pool's pods: who may reach the head, the engines, the expert workers and the ingress, and where.

What is not named here nobody reaches. Ray's processes and ours take free ports for what they tell each other by address
(raylets, object stores, engines, expert workers, page owners), so the kernel's range of ports is open within a pool.
"""

from collections.abc import Sequence
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.spec import MoEDeployment
from flexpert_operator.manifests.metadata import child_metadata
from flexpert_operator.settings import PoolNetwork
from flexpert_proto import names as pool_names

GCS_PORT = 6379
RAY_WORKER_PORTS = (10002, 19999)
"""From which a raylet gives its processes theirs, where it is told nothing else."""

FREE_PORTS = (32768, 60999)
"""`net.ipv4.ip_local_port_range` as Linux has it: what a process gets that asks for any port."""

RAY_ROLES = (names.HEAD_ROLE, names.ENGINES_ROLE, names.EXPERTS_ROLE)

Rule = dict[str, Any]


def network_policies(deployment: MoEDeployment, network: PoolNetwork) -> tuple[dict[str, Any], ...]:
    """A policy a role, in which every port that is used stands with who uses it."""
    serving, name = deployment.serving, deployment.name
    control = port(pool_names.POOL_CONTROL_PORT)
    ray, free = [port(*RAY_WORKER_PORTS), port(*FREE_PORTS)], [port(*FREE_PORTS)]
    pool, ingress = roles(name, RAY_ROLES), roles(name, (names.INGRESS_ROLE,))
    rules = {
        names.HEAD_ROLE: [
            rule(pool, [port(GCS_PORT), control, *ray]),
            rule([*ingress, *network.operators], [control]),
            rule(network.monitors, [port(pool_names.METRICS_PORT)]),
        ],
        names.ENGINES_ROLE: [rule(pool, ray), rule(ingress, free)],
        names.EXPERTS_ROLE: [rule(pool, ray)],
        names.INGRESS_ROLE: [
            rule(network.clients, [port(serving.grpc_port), port(serving.http_port)]),
            *([rule(network.monitors, [port(serving.http_port)])] if network.monitors and network.clients else []),
        ],
    }
    return tuple(policy(deployment, role, found) for role, found in rules.items())


def policy(deployment: MoEDeployment, role: str, rules: Sequence[Rule]) -> dict[str, Any]:
    """The policy of a role's pods; where they may go themselves it does not say."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": child_metadata(deployment, names.network_policy(deployment.name, role), role),
        "spec": {
            "podSelector": {"matchLabels": {names.DEPLOYMENT_LABEL: deployment.name, names.ROLE_LABEL: role}},
            "policyTypes": ["Ingress"],
            "ingress": list(rules),
        },
    }


def rule(peers: Sequence[Any], ports: Sequence[Any]) -> Rule:
    """Peers, anybody where none is named, may reach ports."""
    return {**({"from": list(peers)} if peers else {}), "ports": list(ports)}


def roles(name: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """The pods of a pool that play one of some roles, as peers."""
    playing = {"key": names.ROLE_LABEL, "operator": "In", "values": list(wanted)}
    return [{"podSelector": {"matchLabels": {names.DEPLOYMENT_LABEL: name}, "matchExpressions": [playing]}}]


def port(first: int, last: int | None = None) -> dict[str, Any]:
    """A TCP port, or all up to the last."""
    return {"port": first, "protocol": "TCP"} | ({"endPort": last} if last else {})
