"""When experts have to be placed anew, what the solver is asked, and what its answer becomes.

`placement_request` is asked at every reconciliation; `reconciler` runs the solver on its answer, since that takes
time, and hands the result to `reconfiguration`.
"""

import hashlib
import json
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flexpert_operator.api.spec import MoEDeployment, PlacementSpec
from flexpert_operator.decide.balance import imbalance_of
from flexpert_operator.decide.loads import SmoothedLoads, counter_of, observe_loads
from flexpert_operator.decide.observation import (
    UNDONE_PHASES,
    Cause,
    Epoch,
    MemberState,
    ModelFacts,
    Observation,
    Operation,
    Pool,
    Worker,
)
from flexpert_placement.plan import make_plan
from flexpert_placement.types import (
    Budget,
    Placement,
    PlacementProblem,
    PlacementResult,
    Plan,
    Traffic,
    WorkerCapacity,
)

FIRST_RETRY_S = 2.0
LONGEST_RETRY_S = 60.0


@dataclass(frozen=True)
class PlacementRequest:
    """A question to the solver, and why it is asked."""

    cause: Cause
    problem: PlacementProblem
    base_epoch: Epoch


@dataclass(frozen=True)
class Reconfiguration:
    """A plan to be sent to the pool controller; repeating it with the same id is harmless."""

    operation_id: str
    base_epoch: Epoch
    cause: Cause
    plan: Plan


@dataclass(frozen=True)
class Solution:
    """The solver's answer in whole numbers, for the status.

    Attributes:
        objective: Sum over the layers of the makespan and the price of moving, 10000 being perfect balance for nothing.
        bound: Proven lower bound, in the same unit.
        gap_percent: (objective - bound) / objective.
    """

    objective: int
    bound: int
    gap_percent: int


def placement_cause(
    deployment: MoEDeployment,
    observed: Observation,
    pods: int,
    settled: int,
    victims: tuple[str, ...],
    rolled: tuple[str, ...] = (),
    rolling: bool = False,
) -> Cause | None:
    """Why experts have to be placed anew, or None when they need not, or cannot yet.

    Args:
        deployment: What is asked for.
        observed: What is there.
        pods: Expert pods to aim for.
        settled: Expert pods that the pool last ran with.
        victims: Pods that are to lose their experts because fewer are wanted. Those of `observed` that leave lose
            theirs too, and do not wait for what comes in their place where the others have room.
        rolled: Those of the victims whose template is an older one; they wait for what comes in their place, if
            anything does.
        rolling: Whether pods of an older template are being replaced.
    """
    pool = observed.pool
    if pool is None or pool.model is None or pool.term == 0:
        return None
    leaving = observed.leaving_pods
    wanted = pods * deployment.experts.workers_per_pod
    targets = target_workers(pool, victims + leaving, wanted)
    if not targets:
        return None
    evacuating = any(worker.pod in leaving and worker.id in pool.holders for worker in pool.workers)
    if evacuating:
        enough = len(targets) == wanted or has_room(pool.model, targets, deployment.placement.min_replicas)
        return Cause.DRAIN if enough else None
    if any(worker.pod in rolled and worker.id in pool.holders for worker in pool.workers) and len(targets) < wanted:
        room = not is_coming(pool, victims) and has_room(pool.model, targets, deployment.placement.min_replicas)
        return Cause.UPGRADE if room else None
    if len(targets) < wanted:
        return None
    same_size = not victims and len(targets) == settled * deployment.experts.workers_per_pod
    cause = why(pool, targets, deployment.placement, same_size)
    return Cause.UPGRADE if rolling and cause in (Cause.SCALE, Cause.FAILURE) and not pool.lost else cause


def is_coming(pool: Pool, victims: tuple[str, ...]) -> bool:
    """Whether a worker that is to stay starts, or stands by to be promoted."""
    return any(
        worker.state in (MemberState.STARTING, MemberState.STANDBY) and worker.pod not in victims
        for worker in pool.workers
    )


def has_room(model: ModelFacts, workers: tuple[Worker, ...], min_replicas: int) -> bool:
    """Whether all experts fit into fewer workers than are wanted, so that those that leave can be emptied at once."""
    slots = (min(worker.memory_bytes // model.expert_bytes - 1, model.num_experts) for worker in workers)
    return len(workers) >= min_replicas and sum(slots) >= model.num_experts * min_replicas


def placement_request(
    deployment: MoEDeployment,
    pool: Pool,
    cause: Cause,
    victims: tuple[str, ...],
    known: SmoothedLoads | None = None,
    wanted: int | None = None,
) -> PlacementRequest | None:
    """The question for the solver, or None when the model is not known yet.

    `known`: of the loads; `wanted`: workers that are to have experts at most.
    """
    if pool.model is None:
        return None
    problem = problem_of(deployment, pool, pool.model, target_workers(pool, victims, wanted), known)
    if cause is Cause.REBALANCE:
        spec = deployment.placement.rebalance
        problem = replace(problem, budget=Budget(moves=spec.max_moves, bytes=spec.max_bytes))
    return PlacementRequest(cause, problem, pool.epoch)


def may_start(pool: Pool, now: float) -> bool:
    """Whether a reconfiguration may begin: none runs, and none came to nothing a short time ago."""
    return not (pool.operation is not None and pool.operation.running) and not must_wait(pool, now)


def target_workers(pool: Pool, victims: tuple[str, ...], wanted: int | None = None) -> tuple[Worker, ...]:
    """Ready workers that are to stay; where more than `wanted` of them hold experts, those that hold most.

    The others are emptied and stand by: a worker that has experts serves, however many are wanted.
    """
    ready = [worker for worker in pool.workers if worker.state is MemberState.READY and worker.pod not in victims]
    fullest = sorted(ready, key=lambda worker: (-worker.resident_bytes, worker.id))
    kept = {worker.id for worker in (ready if wanted is None else fullest[:wanted])}
    return tuple(worker for worker in ready if worker.id in kept)


def why(pool: Pool, targets: tuple[Worker, ...], spec: PlacementSpec, same_size: bool) -> Cause | None:
    """Why the placement does not do as it stands, or None when it does.

    `same_size`: the pool ran with as many workers before, so that a new one stands for one that was lost.
    """
    wanted = {worker.id for worker in targets}
    if not pool.placement:
        return Cause.INITIAL
    if pool.lost:
        return Cause.FAILURE
    if pool.holders != wanted:
        return Cause.FAILURE if same_size else Cause.SCALE
    if is_halfway(pool.table_operation):
        return Cause.SCALE
    too_few = any(len(row) < spec.min_replicas for row in pool.placement.values())
    return Cause.SCALE if too_few else None


def is_halfway(table_operation: str) -> bool:
    """Whether the newest table is of a wave that more were to follow, and whoever was to publish them is gone."""
    return "#" in table_operation


def must_wait(pool: Pool, now: float) -> bool:
    """Whether the last reconfiguration came to nothing a short time ago; the wait doubles with every attempt."""
    last = pool.operation
    if last is None or last.phase not in UNDONE_PHASES or last.finished_at is None:
        return False
    delay_s = min(FIRST_RETRY_S * 2.0 ** attempt_of(last.id), LONGEST_RETRY_S)
    return now - last.finished_at < delay_s


def problem_of(
    deployment: MoEDeployment,
    pool: Pool,
    model: ModelFacts,
    targets: tuple[Worker, ...],
    known: SmoothedLoads | None = None,
) -> PlacementProblem:
    """The solver's question; every worker keeps one expert's bytes free, so that copies can come before others go."""
    smoothed = known if known is not None and known.flowing else None
    return PlacementProblem(
        loads=tuples_of(smoothed.loads) if smoothed is not None else loads_by_layer(pool, model),
        traffic=Traffic(deviation=smoothed.deviation) if smoothed is not None else Traffic(),
        expert_bytes=model.expert_bytes,
        workers=tuple(
            WorkerCapacity(
                worker.id,
                max(worker.memory_bytes - model.expert_bytes, 0),
                failure_domain=worker.failure_domain,
                node=worker.node,
            )
            for worker in sorted(targets, key=lambda worker: worker.id)
        ),
        current=pool.placement,
        min_replicas=deployment.placement.min_replicas,
        solver=deployment.placement.solver.name,
        time_limit_s=deployment.placement.solver.time_limit_s,
    )


def tuples_of(loads: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """[layers, experts] loads as the solver takes them."""
    return tuple(tuple(row) for row in loads.tolist())


def loads_by_layer(pool: Pool, model: ModelFacts) -> tuple[tuple[float, ...], ...]:
    """[layers, experts] all tokens that were ever counted, all zero when nothing is known."""
    packed = pool.loads if len(pool.loads) == model.num_experts else (0,) * model.num_experts
    return tuple(
        tuple(float(load) for load in packed[layer * model.experts : (layer + 1) * model.experts])
        for layer in range(model.layers)
    )


def reconfiguration(
    deployment: MoEDeployment, pool: Pool, request: PlacementRequest, result: PlacementResult
) -> Reconfiguration | None:
    """What to send to the pool controller, or None when the placement can stay as it is."""
    alive = frozenset(worker.id for worker in pool.alive)
    current = {
        expert: {worker: share for worker, share in row.items() if worker in alive}
        for expert, row in pool.placement.items()
    }
    plan = make_plan(current, result.placement, alive)
    if not plan.moves and not plan.drops and not pool.lost and not shares_change(request, current, plan.target):
        return None
    identity = operation_id(deployment.uid, deployment.generation, request, result.placement, pool.operation)
    return Reconfiguration(identity, request.base_epoch, request.cause, plan)


def shares_change(request: PlacementRequest, current: Placement, target: Placement) -> bool:
    """Whether a rebalancing shares traffic anew between replicas that are where they are to be."""
    return request.cause is Cause.REBALANCE and any(current.get(expert) != row for expert, row in target.items())


def operation_id(
    uid: str, generation: int, request: PlacementRequest, target: Placement, last: Operation | None
) -> str:
    """The same for the same target from the same table, so that a retry is the same operation.

    An operation that came to nothing is not repeated under its id: the number behind the dot counts the attempts.
    """
    rows = [[*expert, sorted(row.items())] for expert, row in sorted(target.items())]
    text = json.dumps([uid, generation, str(request.base_epoch), rows])
    stem = f"{request.cause.lower()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    undone = last is not None and last.phase in UNDONE_PHASES and last.base_epoch == request.base_epoch
    return f"{stem}.{attempt_of(last.id) + 1 if undone and last is not None else 0}"


def attempt_of(operation: str) -> int:
    """Which attempt an operation's id says it is."""
    _, _, number = operation.rpartition(".")
    return int(number) if number.isdecimal() else 0


def solution_of(request: PlacementRequest, result: PlacementResult) -> Solution:
    """The answer in whole numbers."""
    speeds = sum(worker.speed for worker in request.problem.workers)
    even = sum(sum(row) or len(row) for row in request.problem.loads) / speeds
    return Solution(
        objective=round(10000 * result.objective / even),
        bound=round(10000 * result.bound / even),
        gap_percent=round(100 * result.gap),
    )


def imbalance_now(pool: Pool, known: SmoothedLoads | None) -> float | None:
    """Load of the busiest worker over the average under the loads of now; None when nothing is placed or loaded."""
    if not pool.placement or known is None or not known.flowing:
        return None
    return imbalance_of(known.loads, pool.placement, [WorkerCapacity(worker, 0) for worker in sorted(pool.holders)])


def question_of(request: PlacementRequest | None) -> tuple[object, ...] | None:
    """What makes two questions the same: asked again without need, a question whose answer was to stay is skipped."""
    if request is None or request.cause is Cause.REBALANCE:
        return None
    problem = request.problem
    return (request.base_epoch, problem.workers, problem.min_replicas, problem.expert_bytes)


def note_loads(known: SmoothedLoads | None, pool: Pool, now: float, half_life_s: float) -> SmoothedLoads | None:
    """What is known of the loads after one more look at the pool."""
    if pool.model is None:
        return known
    shape = (pool.model.layers, pool.model.experts)
    counter = counter_of(pool.incarnation, pool.loads_since, pool.loads, shape, now)
    return observe_loads(known, pool.model.digest, counter, half_life_s)
