"""Who reaches what in a pool by its NetworkPolicies: they are judged here as Kubernetes judges them."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from flexpert_operator import manifests
from flexpert_operator.__main__ import parser, settings_of
from flexpert_operator.api import MoEDeployment, names
from flexpert_operator.decide.sizing import GroupSize, Size
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_operator.settings import PoolNetwork
from flexpert_proto import names as pool_names

Object = dict[str, Any]
OPERATOR = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "flexpert-system"}},
    "podSelector": {"matchLabels": {"app.kubernetes.io/component": "operator"}},
}
CLIENTS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apps"}}}
NETWORK = PoolNetwork((OPERATOR,), (CLIENTS,))
EPHEMERAL = 45_000
FORWARDED = pool_names.UI_PORT
"""Looked at through `kubectl port-forward`, which no policy stops."""

FROM_OPERATOR = ("flexpert-system", {"app.kubernetes.io/component": "operator"})
FROM_CLIENT = ("apps", {"app": "chat"})
FROM_STRANGER = ("default", {"app": "stranger"})


def pod(role: str, pool: str = "tiny", namespace: str = "default") -> tuple[str, dict[str, str]]:
    return namespace, names.labels(pool, role)


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        one["operator"] == "In" and labels.get(one["key"]) in one["values"]
        for one in selector.get("matchExpressions", ())
    )


def comes_from(peer: Mapping[str, Any], home: str, source: tuple[str, Mapping[str, str]]) -> bool:
    namespace, labels = source
    there = {"kubernetes.io/metadata.name": namespace}
    right = selects(peer["namespaceSelector"], there) if "namespaceSelector" in peer else namespace == home
    return right and selects(peer.get("podSelector", {}), labels)


def reaches(policies: Iterable[Object], source: tuple[str, Mapping[str, str]], role: str, port: int) -> bool:
    """Whether a pod may open a connection to a port of a pod of the pool."""
    return any(
        one["port"] <= port <= one.get("endPort", one["port"])
        for policy in policies
        if selects(policy["spec"]["podSelector"], pod(role)[1])
        for rule in policy["spec"]["ingress"]
        if "from" not in rule or any(comes_from(peer, "default", source) for peer in rule["from"])
        for one in rule["ports"]
    )


@pytest.fixture
def policies(deployment: MoEDeployment) -> tuple[Object, ...]:
    assert (deployment.name, deployment.namespace) == ("tiny", "default")
    return manifests.network_policies(deployment, NETWORK)


def test_every_role_has_a_policy_that_shuts_out_strangers(policies: tuple[Object, ...]) -> None:
    roles = (names.HEAD_ROLE, names.ENGINES_ROLE, names.EXPERTS_ROLE, names.INGRESS_ROLE)
    assert [one["spec"]["podSelector"]["matchLabels"][names.ROLE_LABEL] for one in policies] == list(roles)
    for role in roles:
        for port in (6379, 7000, 8000, 8265, 9000, 10_050, EPHEMERAL):
            assert not reaches(policies, FROM_STRANGER, role, port)
            assert not reaches(policies, pod(names.EXPERTS_ROLE, "another"), role, port), "nor another pool"
            assert not reaches(policies, pod(names.ENGINES_ROLE, namespace="elsewhere"), role, port)
            clients = role == names.INGRESS_ROLE and port in (8000, 9000)
            assert reaches(policies, FROM_CLIENT, role, port) == clients
            assert reaches(policies, FROM_OPERATOR, role, port) == ((role, port) == (names.HEAD_ROLE, 7000))


def test_a_pool_reaches_itself_where_it_has_to(policies: tuple[Object, ...]) -> None:
    head, engines, experts, ingress = (pod(one) for one in ("head", "engines", "experts", "ingress"))
    for source in (head, engines, experts):
        assert reaches(policies, source, "head", 6379), "Ray's tables"
        assert reaches(policies, source, "head", 7000), "leases, and the preStop hook"
        for role in ("head", "engines", "experts"):
            assert reaches(policies, source, role, 10_050), "Ray's workers"
            assert reaches(policies, source, role, EPHEMERAL), "raylets, dispatch, copies of pages"
    assert reaches(policies, ingress, "head", 7000)
    assert reaches(policies, ingress, "engines", EPHEMERAL)
    assert not reaches(policies, ingress, "head", 6379)
    assert not reaches(policies, ingress, "experts", EPHEMERAL)
    assert not reaches(policies, engines, "ingress", 9000)


def test_every_port_of_a_container_is_in_a_policy(deployment: MoEDeployment, policies: tuple[Object, ...]) -> None:
    size = Size(GroupSize(1), GroupSize(1), 1, Sizing())
    cluster = manifests.ray_cluster(deployment, "i:1", size.engines, size.experts, size.sizing, deployment.model)
    templates = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    pods = [one["template"] for one in templates]
    pods.append(manifests.ingress_deployment(deployment, "i:1", 2)["spec"]["template"])
    for template in pods:
        role = template["metadata"]["labels"][names.ROLE_LABEL]
        ports = [one["containerPort"] for c in template["spec"]["containers"] for one in c.get("ports", ())]
        sources = (FROM_CLIENT, *(pod(one) for one in ("head", "engines", "experts", "ingress")))
        for port in set(ports) - {FORWARDED}:
            assert any(reaches(policies, source, role, port) for source in sources), (role, port)


def test_without_clients_anybody_may_send_requests(deployment: MoEDeployment) -> None:
    policies = manifests.network_policies(deployment, PoolNetwork((OPERATOR,)))
    assert reaches(policies, FROM_STRANGER, names.INGRESS_ROLE, deployment.serving.grpc_port)
    assert not reaches(policies, FROM_STRANGER, names.HEAD_ROLE, 7000)


def test_the_option_says_who() -> None:
    def asked(*options: str) -> PoolNetwork | None:
        return settings_of(parser().parse_args(options)).network

    assert asked() is None
    assert asked("--pool-network", '{"operators": [{"podSelector": {}}]}') == PoolNetwork(({"podSelector": {}},))
    for wrong in ("{", "[]", "{}", '{"operators": []}', '{"operators": [1]}', '{"operators": [{}], "others": []}'):
        with pytest.raises(SystemExit):
            asked("--pool-network", wrong)
