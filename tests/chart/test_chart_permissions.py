"""The operator under its chart's service account: what it asks of the API, and what the chart lets it, are the same."""

from pathlib import Path

import pytest
from chart_operator import Permission, run_release
from chart_release import NAMESPACE as OPERATOR_NAMESPACE
from chart_release import Chart, Object
from simulated_cluster import NAMESPACE
from simulated_world import World

from flexpert_operator.api import names
from flexpert_operator.kube import (
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    MOE_DEPLOYMENTS,
    PODS,
    RAY_CLUSTERS,
    SERVICES,
    Resource,
)

FAST = {"operator": {"resyncSeconds": 0.5, "provisionDeadlineSeconds": 60, "drainDeadlineSeconds": 20}}
RELEASES = {
    "all namespaces": FAST,
    "one namespace": FAST | {"watchNamespaces": [NAMESPACE]},
}
CHILDREN = (
    (RAY_CLUSTERS, "whole"),
    (DEPLOYMENTS, names.ingress("whole")),
    (SERVICES, names.ingress("whole")),
    (DISRUPTION_BUDGETS, names.disruption_budget("whole", names.EXPERTS_ROLE)),
)


def granted(objects: list[Object]) -> set[Permission]:
    """What all roles of a release allow."""
    roles = [one for one in objects if one["kind"] in ("Role", "ClusterRole")]
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def live_a_whole_life(world: World) -> None:
    """Whatever an operator does for a pool: begin, grow, shrink, repair what others changed, empty a node, end."""
    pool = world.serve("whole")
    world.scale("whole", 3)
    world.until("three workers", lambda: world.is_settled("whole") and len(pool.holders()) == 3)
    world.scale("whole", 2)
    world.until("two workers", lambda: world.is_settled("whole") and len(pool.holders()) == 2)
    world.kube.patch(DEPLOYMENTS, NAMESPACE, "whole-ingress", {"spec": {"replicas": 1}})
    world.kube.patch(SERVICES, NAMESPACE, "whole-ingress", {"spec": {"selector": {"flexpert.io/role": "another"}}})
    world.until("both are as they were", lambda: is_as_wanted(world))
    for resource, name in CHILDREN:
        hidden = {"metadata": {"labels": {names.DEPLOYMENT_LABEL: None}}}
        world.kube.patch(resource, NAMESPACE, name, hidden)
    world.until("all are seen again", lambda: all(is_labelled(world, *child) for child in CHILDREN))
    world.kube.delete(PODS, NAMESPACE, sorted(pool.holders())[0].removeprefix("w-"))
    world.until("it is replaced", lambda: world.is_settled("whole") and len(pool.holders()) == 2)
    world.kube.delete(MOE_DEPLOYMENTS, NAMESPACE, "whole")
    world.until("gone", lambda: world.kube.find(MOE_DEPLOYMENTS, NAMESPACE, "whole") is None)


def is_labelled(world: World, resource: Resource, name: str) -> bool:
    """Whether the operator's watches can see an object: they select by a label."""
    return names.DEPLOYMENT_LABEL in world.kube.get(resource, NAMESPACE, name)["metadata"].get("labels", {})


def is_as_wanted(world: World) -> bool:
    """Whether the ingress is as the operator wants it."""
    selector = world.kube.get(SERVICES, NAMESPACE, "whole-ingress")["spec"]["selector"]
    replicas = world.kube.get(DEPLOYMENTS, NAMESPACE, "whole-ingress")["spec"]["replicas"]
    return bool(selector["flexpert.io/role"] == "ingress" and replicas == 2)


@pytest.mark.parametrize("case", RELEASES)
def test_the_operator_may_do_what_it_does_and_no_more(chart: Chart, tmp_path: Path, case: str) -> None:
    values = RELEASES[case]
    with run_release(chart, values, tmp_path) as (world, recorder):
        live_a_whole_life(world)
    assert recorder.asked == granted(chart.objects(values))
    log = (tmp_path / "fx.log").read_text()
    assert "forbidden" not in log.lower(), log


def test_secrets_are_none_of_its_business(chart: Chart) -> None:
    for values in RELEASES.values():
        assert not [one for one in granted(chart.objects(values)) if one[1].startswith("secrets") or "*" in one]


def test_the_roles_are_the_service_accounts(chart: Chart) -> None:
    account = chart.one("ServiceAccount")["metadata"]["name"]
    bindings = [one for one in chart.objects({"watchNamespaces": ["a"]}) if one["kind"].endswith("Binding")]
    for binding in (*bindings, chart.one("ClusterRoleBinding")):
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": OPERATOR_NAMESPACE}]
