"""The smaller deciders: models, terms, drains, events, differences, quantities."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from flexpert_operator.api import Experts, InvalidObject, Model, MoEDeployment, parse_deployment
from flexpert_operator.api import names as k8s_names
from flexpert_operator.api.conditions import Condition, ConditionStatus
from flexpert_operator.api.quantities import to_bytes, to_cores
from flexpert_operator.decide.difference import covers, merge_patch
from flexpert_operator.decide.drains import Drains, decide_drains
from flexpert_operator.decide.model import fit_problem, model_problem, model_to_serve
from flexpert_operator.decide.observation import (
    Cause,
    Engine,
    Epoch,
    Event,
    Group,
    Inspection,
    MemberState,
    ModelFacts,
    Observation,
    Operation,
    Phase,
    Pod,
    Pool,
    Worker,
)
from flexpert_operator.decide.progress import condition_events, operation_events, worker_events
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_operator.decide.terms import Grant, annotations_of, decide_grant

MakePool = Callable[..., Pool]
Observe = Callable[..., Observation]
MakeWorker = Callable[..., Worker]


# ---- models


def unserved(observed: Observation, inspection: Inspection | None) -> Observation:
    assert observed.cluster is not None
    return replace(observed, cluster=replace(observed.cluster, served_model=None), inspection=inspection)


def test_a_checkpoint_that_was_refused(deployment: MoEDeployment, pool: MakePool, observed: Observe) -> None:
    seen = unserved(observed(pool()), Inspection(reason="ModelNotFound", message="no folder /models/tiny"))
    problem = model_problem(deployment, seen)
    assert problem is not None
    assert (problem.reason, problem.message) == ("ModelNotFound", "no folder /models/tiny")
    assert model_to_serve(deployment, seen) is None


def test_a_good_checkpoint(deployment: MoEDeployment, pool: MakePool, observed: Observe, facts: ModelFacts) -> None:
    seen = unserved(observed(pool()), Inspection(facts=facts))
    assert model_problem(deployment, seen) is None
    assert model_to_serve(deployment, seen) == deployment.model


def test_a_checkpoint_that_is_being_looked_at(deployment: MoEDeployment, pool: MakePool, observed: Observe) -> None:
    seen = unserved(observed(pool()), Inspection(pending=True))
    assert model_problem(deployment, seen) is None
    assert model_to_serve(deployment, seen) is None


def test_a_model_can_be_changed_until_its_experts_are_placed(
    deployment: MoEDeployment, pool: MakePool, observed: Observe
) -> None:
    asked = replace(deployment, model=Model("file:///models/other"))
    fresh = observed(pool(placement={}), sizing=Sizing(settled=0))
    assert model_problem(asked, fresh) is None
    assert model_to_serve(asked, fresh) == asked.model
    found_nothing_yet = observed(pool(placement={}), sizing=Sizing(settled=2))
    assert model_problem(asked, found_nothing_yet) is not None, "a new controller that still looks for its workers"
    blind = observed(None)
    assert model_problem(asked, blind) is not None, "while nobody can be asked, it counts as placed"


def test_another_model_leaves_the_one_that_is_served(
    deployment: MoEDeployment, pool: MakePool, observed: Observe
) -> None:
    asked = replace(deployment, model=Model("file:///models/other"))
    problem = model_problem(asked, observed(pool()))
    assert problem is not None
    assert problem.reason == "ModelChangeUnsupported"
    assert "file:///models/tiny" in problem.message
    assert model_to_serve(asked, observed(pool())) == Model("file:///models/tiny")


@pytest.mark.parametrize(
    ("workers", "memory", "min_replicas", "says"),
    [
        (2, 5000, 1, None),
        (2, 4999, 1, "at least 1Mi"),
        (2, 4999, 1, "workers to at least 3"),
        (1, 5000, 1, "workers to at least 2"),
        (2, 5000, 2, "workers to at least 4"),
        (2, 1000, 1, "room for 0 each"),
        (0, 1, 1, None),
    ],
)
def test_whether_the_experts_fit(
    facts: ModelFacts, workers: int, memory: int, min_replicas: int, says: str | None
) -> None:
    problem = fit_problem(Experts(workers=workers, memory_per_worker_bytes=memory), min_replicas, facts)
    assert (problem is None) == (says is None)
    if problem is not None and says is not None:
        assert says in problem.message


def test_workers_are_suggested_in_whole_pods(facts: ModelFacts) -> None:
    problem = fit_problem(Experts(workers=2, workers_per_pod=2, memory_per_worker_bytes=4000), 1, facts)
    assert problem is not None
    assert "workers to at least 4" in problem.message
    assert fit_problem(Experts(workers=1), 1, None) is None, "nothing is known before the checkpoint was read"


# ---- terms


def marked(term: int, incarnation: str) -> dict[str, str]:
    return annotations_of(Grant(term, taken=True), incarnation)


@pytest.mark.parametrize(
    ("annotations", "pool_term", "epoch", "expected"),
    [
        ({}, 0, Epoch(0, 0), Grant(1, taken=False)),
        (marked(3, "one"), 3, Epoch(3, 5), Grant(3, taken=True)),
        (marked(3, "one"), 0, Epoch(2, 5), Grant(3, taken=True)),
        (marked(3, "earlier"), 0, Epoch(3, 5), Grant(4, taken=False)),
        ({}, 0, Epoch(7, 2), Grant(8, taken=False)),
        (marked(3, "one"), 0, Epoch(3, 5), Grant(4, taken=False)),
    ],
    ids=[
        "first",
        "granted",
        "taken but not told",
        "new incarnation",
        "annotations were lost",
        "a table of that term exists",
    ],
)
def test_terms(pool: MakePool, annotations: dict[str, str], pool_term: int, epoch: Epoch, expected: Grant) -> None:
    assert decide_grant(annotations, pool(term=pool_term, epoch=epoch)) == expected


# ---- drains


def test_drains(pool: MakePool, worker: MakeWorker) -> None:
    workers = (
        worker("a"),
        worker("b", MemberState.DRAINING),
        worker("c"),
        worker("d", MemberState.DRAINING),
        worker("e", MemberState.LOST),
    )
    present = tuple(Pod(name) for name in "abcde")
    decided = decide_drains(pool("a", workers=workers), ("c", "d", "e"), present)
    assert decided == Drains(drain=("w-c",), undo=("w-b",))


def test_a_pod_that_goes_does_not_take_its_worker_back(pool: MakePool, worker: MakeWorker) -> None:
    """It is off the list of those to be deleted once it is deleted, while the pool may still have its worker."""
    workers = (worker("a"), worker("b", MemberState.DRAINING), worker("c", MemberState.DRAINING))
    group = Group(replicas=1, pods=(Pod("a"), Pod("b", terminating=True)))
    assert decide_drains(pool("a", workers=workers), (), group.present) == Drains()


# ---- events


def operation(phase: Phase, **changes: Any) -> Operation:
    return replace(Operation("scale-1.0", Cause.SCALE, phase, Epoch(1, 1)), **changes)


@pytest.mark.parametrize(
    ("told", "phase", "reasons"),
    [
        ((None, None), Phase.PENDING, []),
        ((None, None), Phase.PREPARE, ["Prepare"]),
        (("scale-1.0", "Prepare"), Phase.PREPARE, []),
        (("scale-1.0", "Prepare"), Phase.SUCCEEDED, ["Commit", "Retire", "Succeeded"]),
        (("another", "Succeeded"), Phase.SUCCEEDED, ["Prepare", "Commit", "Retire", "Succeeded"]),
        (("scale-1.0", "Succeeded"), Phase.SUCCEEDED, []),
        (("scale-1.0", "Prepare"), Phase.ROLLED_BACK, ["RolledBack"]),
        ((None, None), Phase.FAILED, ["Failed"]),
    ],
)
def test_each_step_is_told_once(told: tuple[str | None, str | None], phase: Phase, reasons: list[str]) -> None:
    events = operation_events(*told, operation(phase))
    assert [event.reason for event in events] == [f"Reconfiguration{reason}" for reason in reasons]


def test_what_a_step_says() -> None:
    done = operation(
        Phase.SUCCEEDED,
        moved_experts=4,
        moved_bytes=4000,
        started_at=10.0,
        finished_at=10.5,
        phase_seconds={"prepare": 0.25},
    )
    prepare, commit, _, succeeded = operation_events(None, None, done)
    assert prepare.message == "Scale scale-1.0: prepare took 0.250 s"
    assert commit.message == "Scale scale-1.0: commit has begun"
    assert succeeded.message == "Scale scale-1.0: 4 experts, 4000 bytes moved in 0.500 s"
    (undone,) = operation_events(None, None, operation(Phase.ROLLED_BACK, message="worker w-c died"))
    message = "Scale scale-1.0: worker w-c died"
    assert undone == Event("ReconfigurationRolledBack", message, warning=True, operation="scale-1.0")
    assert operation_events(None, None, None) == ()


def test_lost_workers_are_told_once(pool: MakePool, worker: MakeWorker) -> None:
    before, after = pool("ab"), pool("ab", workers=(worker("a"), worker("b", MemberState.LOST)))
    assert [event.reason for event in worker_events(before, after)] == ["WorkerLost"]
    assert worker_events(after, after) == ()
    assert worker_events(None, after) == ()
    drained = pool("ab", workers=(worker("a"), worker("b", MemberState.DRAINING)))
    assert worker_events(drained, pool("ab", workers=(worker("a"),))) == (), "a drained worker goes without a word"


def test_conditions_are_told_when_they_change() -> None:
    ready = Condition("Ready", ConditionStatus.TRUE, "Serving", "")
    degraded = Condition("Degraded", ConditionStatus.TRUE, "ExpertsDoNotFit", "raise memoryPerWorker")
    events = condition_events([], [ready, degraded])
    assert [(event.reason, event.warning) for event in events] == [("Ready", False), ("ExpertsDoNotFit", True)]
    told = [{"type": "Ready", "status": "True", "reason": "Serving"}]
    assert [event.reason for event in condition_events(told, [ready, degraded])] == ["ExpertsDoNotFit"]


def test_the_operators_own_steps_are_told() -> None:
    def told(then: str, now: str, degraded: ConditionStatus = ConditionStatus.FALSE) -> list[str]:
        progressing = ConditionStatus.FALSE if now == "Settled" else ConditionStatus.TRUE
        conditions = [Condition("Progressing", progressing, now, ""), Condition("Degraded", degraded, "X", "")]
        old = [{"type": "Progressing", "status": "True", "reason": then}]
        old += [{"type": "Degraded", "status": str(degraded), "reason": "X"}]
        return [event.reason for event in condition_events(old, conditions)]

    assert told("Settled", "Provisioning") == ["Provisioning"]
    assert told("Provisioning", "Preparing") == ["Provisioned"]
    assert told("Provisioning", "Provisioning") == []
    assert told("Provisioning", "Settled", ConditionStatus.TRUE) == []
    assert told("Retiring", "Deprovisioning") == ["Deprovisioning"]
    assert told("Deprovisioning", "Replenishing") == ["Deprovisioned", "Replenishing"]
    assert told("Replenishing", "Preparing") == []
    assert told("Replenishing", "Settled") == ["Replenished"]


# ---- differences


@pytest.mark.parametrize(
    ("live", "wanted", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": [{"x": 1, "default": 0}]}, {"a": [{"x": 1}]}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({}, {"a": {}}, False),
        (None, {"a": 1}, False),
    ],
)
def test_covers(live: Any, wanted: Any, expected: bool) -> None:
    assert covers(live, wanted) == expected


@pytest.mark.parametrize(
    ("old", "new", "patch"),
    [
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1}, {"b": 2}, {"a": None, "b": 2}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "y": 3}}, {"a": {"y": 3}}),
        ({"a": {"x": 1}}, {"a": {"x": 1}}, {}),
        ({"a": [1]}, {"a": [2]}, {"a": [2]}),
        ({}, {"a": {}}, {"a": {}}),
    ],
)
def test_merge_patch(old: dict[str, Any], new: dict[str, Any], patch: dict[str, Any]) -> None:
    assert merge_patch(old, new) == patch


# ---- parsing


def test_quantities() -> None:
    assert to_bytes("64Mi") == 64 * 2**20
    assert to_bytes("1.5Gi") == 3 * 2**29
    assert to_bytes(1000) == 1000
    assert to_cores("500m") == 0.5
    assert to_cores(2) == 2.0


def test_parsing_an_object() -> None:
    body = {
        "metadata": {"name": "x", "namespace": "n", "uid": "u", "generation": 3, "resourceVersion": "9"},
        "spec": {
            "model": {"source": "file:///m", "revision": "main", "dtype": "Auto"},
            "engines": {"replicas": 2, "kvCacheMemory": "1Gi", "resources": {"limits": {"cpu": 2}}},
            "experts": {"workers": 4, "workersPerPod": 2, "memoryPerWorker": "1Gi"},
            "placement": {"rebalance": {"enabled": False}},
            "serving": {"grpcPort": 1},
        },
    }
    parsed = parse_deployment(body)
    assert parsed.experts.pods == 2
    assert parsed.engines.kv_cache_bytes == 2**30
    assert parsed.engines.resources.limits == {"cpu": 2}
    assert not parsed.placement.rebalance.enabled
    assert parsed.serving.grpc_port == 1
    assert parsed.generation == 3


def test_an_object_of_another_version_is_named() -> None:
    with pytest.raises(InvalidObject, match="cannot read x"):
        parse_deployment({"metadata": {"name": "x"}, "spec": {}})


def test_names_stay_below_63_characters() -> None:
    name = "a" * 40
    for made in (k8s_names.pool_control_service(name), k8s_names.ingress(name), k8s_names.ray_cluster(name)):
        assert len(made) <= 63


def test_requests_of_a_lost_engine_are_not_waited_for() -> None:
    serving = Engine("e-1", "pod", MemberState.READY, running=2, waiting=1)
    lost = Engine("e-2", "pod", MemberState.LOST, running=5)

    assert Pool("c-1", engines=(serving, lost)).requests_in_flight == 3
    assert Pool("c-1", engines=(lost,)).requests_in_flight == 0
