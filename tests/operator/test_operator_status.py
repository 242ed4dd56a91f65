from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from flexpert_operator.api import MoEDeployment
from flexpert_operator.decide.loads import SmoothedLoads
from flexpert_operator.decide.observation import (
    NO_EPOCH,
    Cause,
    Engine,
    Epoch,
    MemberState,
    Observation,
    Operation,
    Phase,
    Pod,
    Pool,
    Prediction,
    Problem,
    Worker,
)
from flexpert_operator.decide.placing import Solution
from flexpert_operator.decide.rebalancing import Action, Decision, Reason
from flexpert_operator.decide.sizing import GroupSize, Size
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_operator.decide.status import Outcome, build_status, decide_conditions, from_rfc3339, rfc3339
from flexpert_placement.types import ExpertId

MakePool = Callable[..., Pool]
Observe = Callable[..., Observation]
Known = Callable[..., SmoothedLoads]

ENGINE = Engine("engine-1", "engine", MemberState.READY)
SETTLED = Outcome(Size(GroupSize(1), GroupSize(2), 2, Sizing(settled=2)), problem=None)
PREDICTED = Prediction(moved_bytes=3000, seconds=0.2, peak_bytes=5000)
OPERATION = Operation("scale-1.0", Cause.SCALE, Phase.SUCCEEDED, Epoch(1, 1), 3, 3000, "", 990.0, 990.25)


def conditions(deployment: MoEDeployment, observed: Observation, outcome: Outcome = SETTLED) -> dict[str, Any]:
    return {one.type: (str(one.status), one.reason) for one in decide_conditions(deployment, observed, outcome)}


def test_all_is_well(deployment: MoEDeployment, pool: MakePool, observed: Observe, known: Known) -> None:
    seen = observed(pool(engines=(ENGINE,), operation=OPERATION), loads=known((1,) * 8))
    status = build_status(deployment, seen, SETTLED)
    assert {one["type"]: one["status"] for one in status["conditions"]} == {
        "Ready": "True",
        "Progressing": "False",
        "Degraded": "False",
        "ModelLoaded": "True",
        "Rebalancing": "False",
    }
    assert status["experts"] == {
        "desired": 2,
        "workers": 2,
        "ready": 2,
        "standby": 0,
        "epoch": "1.1",
        "replicas": 8,
        "residentBytes": 8000,
        "imbalancePercent": 0,
        "loadDriftPercent": 0,
    }
    assert status["engines"] == {"desired": 1, "ready": 1}
    assert status["selector"] == "flexpert.io/moedeployment=tiny,flexpert.io/role=experts"
    assert status["endpoints"] == {"grpc": "tiny-ingress.default.svc:9000", "http": "tiny-ingress.default.svc:8000"}
    assert status["lastReconfiguration"] == {
        "id": "scale-1.0",
        "cause": "Scale",
        "phase": "Succeeded",
        "movedExperts": 3,
        "movedBytes": 3000,
        "attachedExperts": 0,
        "stepMilliseconds": {},
        "durationMilliseconds": 250,
    }
    assert "placement" not in status


def test_the_solution_and_local_endpoints(deployment: MoEDeployment, pool: MakePool, observed: Observe) -> None:
    outcome = replace(SETTLED, solution=Solution(10100, 10000, 1), local_endpoints={"grpc": "127.0.0.1:4711"})
    status = build_status(deployment, observed(pool()), outcome)
    assert status["placement"] == {
        "objective": 10100,
        "bound": 10000,
        "gapPercent": 1,
        "solvedAt": "1970-01-01T00:16:40Z",
    }
    assert status["endpoints"]["localGrpc"] == "127.0.0.1:4711"
    assert "localHttp" not in status["endpoints"]


def test_what_cannot_be_seen_stays_as_it_was(deployment: MoEDeployment, pool: MakePool, observed: Observe) -> None:
    before = build_status(deployment, observed(pool(engines=(ENGINE,), operation=OPERATION)), SETTLED)
    blind = observed(None, pool_error="no answer")
    after = build_status(replace(deployment, status=before), blind, SETTLED)
    for key in ("experts", "engines", "lastReconfiguration"):
        assert after[key] == before[key]
    ready = after["conditions"][0]
    assert (ready["status"], ready["reason"]) == ("Unknown", "ControllerUnreachable")


def test_a_condition_keeps_its_time_while_its_status_stays(
    deployment: MoEDeployment, pool: MakePool, observed: Observe
) -> None:
    first = build_status(deployment, observed(pool(engines=(ENGINE,))), SETTLED)
    later = replace(observed(pool(engines=(ENGINE,))), now=2000.0)
    second = build_status(replace(deployment, status=first, generation=2), later, SETTLED)
    assert second["conditions"][0]["lastTransitionTime"] == first["conditions"][0]["lastTransitionTime"]
    assert second["conditions"][0]["observedGeneration"] == 2
    third = build_status(replace(deployment, status=second), replace(later, ingress_ready=0), SETTLED)
    assert third["conditions"][0]["lastTransitionTime"] == rfc3339(2000.0)


def test_small_changes_of_the_imbalance_are_not_written(
    deployment: MoEDeployment, pool: MakePool, observed: Observe, known: Known
) -> None:
    loads = known((101, 100, 101, 100, 100, 101, 100, 101))

    def imbalance(old: int) -> int:
        told = replace(deployment, status={"experts": {"imbalancePercent": old}})
        found: int = build_status(told, observed(pool(), loads=loads), SETTLED)["experts"]["imbalancePercent"]
        return found

    assert imbalance(1) == 1
    assert imbalance(7) == 0


READY_CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, str]]] = {
    "no placement": ({"placement": {}, "epoch": NO_EPOCH}, {}, ("False", "WaitingForPlacement")),
    "lost experts": ({"lost": (ExpertId(0, 0),)}, {}, ("False", "ExpertsLost")),
    "no engine": ({"engines": ()}, {}, ("False", "WaitingForEngines")),
    "no ingress": ({}, {"ingress_ready": 0}, ("False", "WaitingForIngress")),
    "serving": ({}, {}, ("True", "Serving")),
}


@pytest.mark.parametrize("case", READY_CASES)
def test_ready(deployment: MoEDeployment, pool: MakePool, observed: Observe, case: str) -> None:
    of_pool, of_rest, expected = READY_CASES[case]
    seen = observed(pool(**({"engines": (ENGINE,)} | of_pool)), **of_rest)
    assert conditions(deployment, seen)["Ready"] == expected


def test_before_the_controller_answers(deployment: MoEDeployment, observed: Observe) -> None:
    found = conditions(deployment, observed(None, pool_error="refused"))
    assert found["Ready"] == ("False", "ControllerUnreachable")
    assert found["Progressing"] == ("True", "WaitingForController")
    assert found["Degraded"] == ("False", "AsExpected")


def test_idle(with_workers: Callable[..., MoEDeployment], pool: MakePool, observed: Observe) -> None:
    """The controller still has the last table, and says that its experts are lost: that is what idle means."""
    placed = pool().placement
    idle = pool((), placement=placed, lost=tuple(placed), engines=(ENGINE,), message="8 experts have no replica")
    outcome = replace(SETTLED, size=Size(GroupSize(1), GroupSize(0), 0, Sizing(settled=0)))
    found = conditions(with_workers(0), observed(idle, ()), outcome)
    assert found == {
        "Ready": ("False", "Idle"),
        "Progressing": ("False", "Settled"),
        "Degraded": ("False", "AsExpected"),
        "ModelLoaded": ("False", "Idle"),
        "Rebalancing": ("False", "NotLookedYet"),
    }


def test_progress(
    with_workers: Callable[..., MoEDeployment], deployment: MoEDeployment, pool: MakePool, observed: Observe
) -> None:
    served = pool(engines=(ENGINE,))
    running = replace(served, operation=replace(OPERATION, phase=Phase.PREPARE, finished_at=None))
    assert conditions(deployment, observed(running))["Progressing"] == ("True", "Preparing")
    growing = replace(SETTLED, size=replace(SETTLED.size, pods=4))
    assert conditions(with_workers(4), observed(served), growing)["Progressing"] == ("True", "Provisioning")
    draining = replace(SETTLED, size=replace(SETTLED.size, sizing=Sizing(2, victims=("b",))))
    assert conditions(deployment, observed(served), draining)["Progressing"] == ("True", "Draining")
    shrinking = replace(SETTLED, size=replace(SETTLED.size, pods=1))
    assert conditions(with_workers(1), observed(served), shrinking)["Progressing"] == ("True", "Deprovisioning")
    more = replace(deployment, engines=replace(deployment.engines, replicas=2))
    assert conditions(more, observed(served))["Progressing"] == ("True", "WaitingForEngines")


def test_degraded(deployment: MoEDeployment, pool: MakePool, observed: Observe) -> None:
    problem = replace(SETTLED, problem=Problem("ExpertsDoNotFit", "raise memoryPerWorker"))
    assert conditions(deployment, observed(pool()), problem)["Degraded"] == ("True", "ExpertsDoNotFit")
    undone = replace(OPERATION, phase=Phase.ROLLED_BACK, message="a worker died")
    found = conditions(deployment, observed(pool(operation=undone)))
    assert found["Degraded"] == ("True", "ReconfigurationFailed")
    broken = pool(message="engines cannot be started")
    assert conditions(deployment, observed(broken))["Degraded"] == ("True", "PoolDegraded")


def test_what_the_last_reconfiguration_took(deployment: MoEDeployment, pool: MakePool, observed: Observe) -> None:
    steps = {"start": 0.0, "copy": 0.12, "warm-up": 0.01, "commit": 0.003}
    ended = replace(OPERATION, attached_experts=1, step_seconds=steps, peak_bytes=5500, predicted=PREDICTED)
    status = build_status(deployment, observed(pool(engines=(ENGINE,), operation=ended)), SETTLED)
    assert status["lastReconfiguration"] == {
        "id": "scale-1.0",
        "cause": "Scale",
        "phase": "Succeeded",
        "movedExperts": 3,
        "movedBytes": 3000,
        "attachedExperts": 1,
        "durationMilliseconds": 250,
        "stepMilliseconds": {"start": 0, "copy": 120, "warmUp": 10, "commit": 3},
        "peakBytes": 5500,
        "predicted": {"movedBytes": 3000, "durationMilliseconds": 200, "peakBytes": 5000, "waves": 1},
    }


def test_standbys_are_not_counted_as_workers(
    with_workers: Callable[..., MoEDeployment], pool: MakePool, observed: Observe, worker: Callable[..., Worker]
) -> None:
    asked = with_workers(2)
    asked = replace(asked, experts=replace(asked.experts, standby_workers=1))
    waiting = pool(engines=(ENGINE,))
    waiting = replace(waiting, workers=(*waiting.workers, worker("c", MemberState.STARTING, experts=0)))
    assert conditions(asked, observed(waiting))["Progressing"] == ("True", "Replenishing")
    found = build_status(asked, observed(waiting), SETTLED)["experts"]
    assert (found["workers"], found["ready"], found["standby"]) == (2, 2, 0), "the one that starts will stand by"
    settled = replace(waiting, workers=(*waiting.workers[:2], worker("c", MemberState.STANDBY, experts=0)))
    assert conditions(asked, observed(settled))["Progressing"] == ("False", "Settled")
    assert build_status(asked, observed(settled), SETTLED)["experts"]["standby"] == 1


MOVE = Decision(
    Action.REBALANCE,
    Reason.GAIN_EXCEEDS_COST,
    "it pays",
    active=True,
    imbalance_percent=60,
    gain_percent=37,
    hold_s=120.0,
    benefit_s=44.4,
    cost_s=0.05,
    cost_bytes=4000,
    moves=4,
)


def test_a_look_at_the_balance_is_told_whatever_came_of_it(
    deployment: MoEDeployment, pool: MakePool, observed: Observe
) -> None:
    acted = build_status(deployment, observed(pool(engines=(ENGINE,))), replace(SETTLED, decision=MOVE))
    assert acted["placement"] == {
        "rebalancedAt": "1970-01-01T00:16:40Z",
        "lastDecision": {
            "time": "1970-01-01T00:16:40Z",
            "action": "Rebalance",
            "reason": "GainExceedsCost",
            "message": "it pays",
            "imbalancePercent": 60,
            "gainPercent": 37,
            "holdSeconds": 120,
            "benefitMilliseconds": 44400,
            "costMilliseconds": 50,
            "costBytes": 4000,
            "moves": 4,
        },
    }
    assert acted["conditions"][-1]["type"] == "Rebalancing"
    assert (acted["conditions"][-1]["status"], acted["conditions"][-1]["reason"]) == ("True", "GainExceedsCost")
    told = replace(deployment, status=acted)
    later = observed(pool(engines=(ENGINE,)), now=1060.0)
    between = build_status(told, later, SETTLED)
    assert (between["placement"], between["conditions"][-1]) == (acted["placement"], acted["conditions"][-1])
    rest = Decision(Action.STAY, Reason.BALANCED, "nothing to gain", imbalance_percent=1)
    stayed = build_status(told, later, replace(SETTLED, decision=rest))
    assert stayed["placement"]["rebalancedAt"] == acted["placement"]["rebalancedAt"]
    assert stayed["placement"]["lastDecision"] == {
        "time": "1970-01-01T00:17:40Z",
        "action": "Stay",
        "reason": "Balanced",
        "message": "nothing to gain",
        "imbalancePercent": 1,
    }
    assert (stayed["conditions"][-1]["status"], stayed["conditions"][-1]["reason"]) == ("False", "Balanced")


def test_why_pods_lose_their_experts(deployment: MoEDeployment, pool: MakePool, observed: Observe) -> None:
    seen = observed(pool())
    assert seen.cluster is not None
    pods = (Pod("a"), Pod("b", node="n", leaving="the node is cordoned"))
    cluster = replace(seen.cluster, experts=replace(seen.cluster.experts, pods=pods))
    draining = replace(SETTLED, size=replace(SETTLED.size, sizing=Sizing(2, victims=("b",))))
    told = decide_conditions(deployment, replace(seen, cluster=cluster), draining)
    (found,) = [one for one in told if one.type == "Progressing"]
    assert (found.reason, found.message) == ("Draining", "pods b are losing their experts: the node is cordoned")


def test_times() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert from_rfc3339("1970-01-01T00:00:10Z") == 10.0
    assert from_rfc3339(None) == 0.0
