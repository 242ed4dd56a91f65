"""Pods of pools meet the Pod Security Standard *restricted*."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pool_pods import templates, violations, with_kuberays_container

from flexpert_operator.api import Model, MoEDeployment, Resources
from flexpert_operator.api.model import ModelAccess, ModelCache

Object = dict[str, Any]


def on_gpus(deployment: MoEDeployment) -> MoEDeployment:
    """A pool whose engines and experts have GPUs."""
    resources = Resources(limits={"nvidia.com/gpu": 1})
    return replace(
        deployment,
        engines=replace(deployment.engines, resources=resources),
        experts=replace(deployment.experts, resources=resources),
    )


def from_a_claim(deployment: MoEDeployment) -> MoEDeployment:
    """A pool whose checkpoint is on a claim."""
    return replace(deployment, model=Model("pvc://models/tiny"))


def cached(deployment: MoEDeployment, cache: ModelCache) -> MoEDeployment:
    """A pool whose checkpoint is fetched into a cache."""
    return replace(deployment, model=Model("hf://a/b", access=ModelAccess(cache=cache)))


POOLS: dict[str, Callable[[MoEDeployment], MoEDeployment]] = {
    "plain": lambda deployment: deployment,
    "GPUs": on_gpus,
    "a claim": from_a_claim,
    "a cache in the pod": lambda deployment: cached(deployment, ModelCache()),
    "a cache on a claim": lambda deployment: cached(deployment, ModelCache(claim="models")),
}


@pytest.mark.parametrize("pool", POOLS)
def test_every_pod_meets_the_restricted_standard(deployment: MoEDeployment, pool: str) -> None:
    for role, template in templates(POOLS[pool](deployment)):
        assert violations(template) == [], role
        assert violations(with_kuberays_container(template)) == [], role


def test_a_cache_on_the_node_is_all_that_does_not(deployment: MoEDeployment) -> None:
    for role, template in templates(cached(deployment, ModelCache(host_path="/var/lib/models"))):
        assert violations(template) == ["volume model-cache"], role


def test_the_kubelet_can_tell_that_the_user_is_not_root(deployment: MoEDeployment) -> None:
    """By a number: of a user that is a name in an image it cannot, and refuses to start the container."""
    for role, template in templates(deployment):
        context = template["spec"]["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (65532,) * 3, role


def test_no_pod_is_given_a_token_of_the_api_server(deployment: MoEDeployment) -> None:
    assert [template["spec"]["automountServiceAccountToken"] for _, template in templates(deployment)] == [False] * 4


LOOSER: dict[str, tuple[Object, str]] = {
    "nothing said": ({"containers": [{"name": "c"}]}, "c: runAsNonRoot"),
    "the host's network": ({"hostNetwork": True}, "hostNetwork"),
    "a folder of the host": ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "volume v"),
    "root": ({"securityContext": {"runAsUser": 0}}, "pod: runAsUser"),
    "no seccomp": ({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, "pod: seccompProfile"),
    "a sysctl": ({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}, "sysctl kernel.msgmax"),
    "privileged": ({"containers": [{"name": "c", "securityContext": {"privileged": True}}]}, "c: privileged"),
    "a capability": (
        {"containers": [{"name": "c", "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}}]},
        "c: capabilities",
    ),
    "the host's port": ({"containers": [{"name": "c", "ports": [{"hostPort": 80}]}]}, "c: hostPort"),
}


@pytest.mark.parametrize("case", LOOSER)
def test_the_check_above_can_fail(case: str) -> None:
    spec, says = LOOSER[case]
    assert says in violations({"spec": spec})
