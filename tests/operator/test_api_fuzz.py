"""Specs drawn from the schema: each is accepted, or refused with a field's path; accepted ones never trip the operator.

`FLEXPERT_FUZZ=10000` draws so many, other ones at each run, for as long as it takes.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from admission import CRD, SPECS, admit
from hypothesis import HealthCheck, Phase, given, settings

from flexpert_operator import manifests
from flexpert_operator.api import Model, MoEDeployment, parse_deployment
from flexpert_operator.decide.difference import covers, merge_patch
from flexpert_operator.decide.observation import (
    Cluster,
    Engine,
    Group,
    Inspection,
    MemberState,
    ModelFacts,
    Observation,
    Pod,
    Pool,
    Worker,
)
from flexpert_operator.decide.requests import requests_problem
from flexpert_operator.decide.sizing import GroupSize, Size, decide_size
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_operator.decide.status import Outcome, build_status
from flexpert_operator.local.kubeapi.structural import unknown_fields
from flexpert_operator.local.kubeapi.validation import validate
from flexpert_placement.types import ExpertId

Object = dict[str, Any]
ASKED = int(os.environ.get("FLEXPERT_FUZZ", "0"))
FACTS = ModelFacts("MixtralForCausalLM", "digest", layers=1, experts=4, expert_bytes=1000)
MANY = 48
"""Workers beyond which the course of a growth is not played: it takes long and is no other."""

STEPS = 60

fuzz = settings(
    max_examples=ASKED or 150,
    derandomize=not ASKED,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@fuzz
@given(SPECS, SPECS)
def drawn(check: Callable[[Object], None], seen: Counter[str], spec: Any, other: Any) -> None:
    stored, paths = admit(spec)
    if stored is None:
        seen["refused"] += 1
        assert paths
        assert all(path.startswith("spec") or path == "<nil>" for path in paths), paths
        assert any(path.startswith("spec") for path in paths), paths
        return
    seen["accepted"] += 1
    stored["metadata"] |= {"resourceVersion": "1"}
    check(stored)
    changed, _ = admit(other, stored)
    if changed is not None:
        seen["updated"] += 1
        assert changed["spec"]["experts"]["workersPerPod"] == stored["spec"]["experts"]["workersPerPod"]


@pytest.mark.timeout(0 if ASKED else 300)
def test_every_spec_is_refused_by_path_or_carried_out(
    kuberay_schema: Object, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: Counter[str] = Counter()

    def check(stored: Object) -> None:
        deployment = parse_deployment(stored)
        seen["requests above limits"] += requests_problem(deployment) is not None
        size = settle(deployment)
        seen["played"] += size is not None
        check_manifests(deployment, size or Size(GroupSize(1), GroupSize(1), 1, Sizing()), kuberay_schema)
        check_status(deployment)

    drawn(check, seen)
    with capsys.disabled():
        if ASKED:
            print(f"\n{ASKED} specs: {dict(seen)}")
    assert min(seen["accepted"], seen["refused"]) > 0


def check_manifests(deployment: MoEDeployment, size: Size, kuberay_schema: Object) -> None:
    """Every manifest is what KubeRay's schema takes, is the same each time, and covers itself."""

    def make() -> list[Object]:
        cluster = manifests.ray_cluster(deployment, "i:1", size.engines, size.experts, size.sizing, deployment.model)
        ingress = manifests.ingress_deployment(deployment, "i:1", deployment.ingress.replicas or 2)
        return [cluster, ingress, *manifests.disruption_budgets(deployment, size, 2)]

    made = make()
    assert made == make()
    assert covers(json.loads(json.dumps(made)), made)
    spec, schema = made[0]["spec"], kuberay_schema["properties"]["spec"]
    assert unknown_fields(schema, spec) == []
    assert validate(schema, spec) == []


def check_status(deployment: MoEDeployment) -> None:
    """Written once, the status of an object at which nothing happens is not written again."""
    size = decide_size(deployment, Observation(0.0), 600, 300)
    outcome = Outcome(size, requests_problem(deployment))
    first = build_status(deployment, Observation(1000.0, pool_error="no answer"), outcome)
    again = build_status(replace(deployment, status=first), Observation(2000.0, pool_error="no answer"), outcome)
    assert merge_patch(first, again) == {}
    schema = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert unknown_fields(schema, first) == []
    assert validate(schema, first) == []


def settle(deployment: MoEDeployment) -> Size | None:
    """The size at which a cluster comes to rest that gives what it is asked for; None where that was not played."""
    if deployment.experts.workers + deployment.experts.standby_workers > MANY or deployment.engines.replicas > MANY:
        return None
    size = decide_size(deployment, Observation(0.0), 600, 300)
    engines, experts, born = (), (), 0
    for step in range(STEPS):
        engines, born = grown(engines, size.engines, born, "e")
        experts, born = grown(experts, size.experts, born, "x")
        seen = observation(deployment, size, engines, experts, float(step))
        after = decide_size(deployment, seen, 600, 300)
        if replace(after.sizing, since=0.0) == replace(size.sizing, since=0.0) and groups(after) == groups(size):
            return after
        size = after
    pytest.fail(f"no rest after {STEPS} steps: {size}")


def groups(size: Size) -> tuple[GroupSize, GroupSize, int]:
    return size.engines, size.experts, size.pods


def grown(pods: tuple[str, ...], size: GroupSize, born: int, letter: str) -> tuple[tuple[str, ...], int]:
    """Pods after KubeRay has done what a group says."""
    left = [pod for pod in pods if pod not in size.workers_to_delete]
    missing = max(size.replicas - len(left), 0)
    return tuple([*left, *(f"{letter}{born + number}" for number in range(missing))][: size.replicas]), born + missing


def observation(
    deployment: MoEDeployment, size: Size, engines: tuple[str, ...], experts: tuple[str, ...], now: float
) -> Observation:
    """What is seen when every pod runs and the pool does at once what it is told."""
    per_pod, wanted = deployment.experts.workers_per_pod, size.pods * deployment.experts.workers_per_pod
    workers: list[Worker] = []
    for pod in experts:
        for number in range(per_pod):
            serving = sum(worker.state is MemberState.READY for worker in workers)
            going = pod in size.sizing.victims
            state = MemberState.DRAINING if going else MemberState.READY if serving < wanted else MemberState.STANDBY
            workers.append(Worker(f"{pod}-{number}", pod, state, 10_000))
    ready = [worker.id for worker in workers if worker.state is MemberState.READY]
    pool = Pool(
        "one",
        term=1,
        workers=tuple(workers),
        engines=tuple(Engine(pod, pod, MemberState.READY) for pod in engines[: deployment.engines.replicas]),
        placement={ExpertId(0, index): {worker: 1.0} for index, worker in enumerate(ready)},
        model=FACTS,
        generation=deployment.generation,
    )
    cluster = Cluster(
        "1",
        Group(size.engines.replicas, size.engines.workers_to_delete, tuple(Pod(name) for name in engines)),
        Group(size.experts.replicas, size.experts.workers_to_delete, tuple(Pod(name) for name in experts)),
        size.sizing,
        Model(deployment.model.source, deployment.model.revision, deployment.model.dtype),
    )
    return Observation(now, cluster, pool, inspection=Inspection(facts=FACTS), ingress_ready=1)
