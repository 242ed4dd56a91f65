"""How many pods each group has, and which of them go: the only place where a size is decided.

Pods whose workers are to hold experts and those whose workers stand by are of one group; which worker is which the pool
controller decides. Growth raises `replicas`. A shrink chooses victims, has them drained, and when they hold nothing
takes them away in one patch that names them; names that are not in the fresh pod list are never sent, for KubeRay would
then delete another pod. Growth that does not come in time is taken back. Pods of an older template are replaced as
`rollout` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.spec import Experts, MoEDeployment
from flexpert_operator.decide import rollout
from flexpert_operator.decide.model import facts_of, fit_problem
from flexpert_operator.decide.observation import (
    Cluster,
    Event,
    Group,
    MemberState,
    Observation,
    Pool,
    Problem,
    Worker,
)
from flexpert_operator.decide.rollout import Rules, Step
from flexpert_operator.decide.sizing_state import FailedGrowth, Sizing


@dataclass(frozen=True)
class GroupSize:
    """What a worker group of the RayCluster shall say."""

    replicas: int
    workers_to_delete: tuple[str, ...] = ()


@dataclass(frozen=True)
class Size:
    """What is decided about sizes.

    Attributes:
        pods: Expert pods whose workers are to hold experts in the end; those of standbys come on top.
        sizing: To be remembered.
        problem: Why `pods` is not what the spec asks for, or why a rollout does not go on.
        rolled: Pods that lose their experts because their template is an older one.
    """

    engines: GroupSize
    experts: GroupSize
    pods: int
    sizing: Sizing
    problem: Problem | None = None
    events: tuple[Event, ...] = ()
    rolled: tuple[str, ...] = ()


def decide_size(
    deployment: MoEDeployment,
    observed: Observation,
    provision_deadline_s: float,
    retry_s: float,
    rules: Rules | None = None,
) -> Size:
    """Sizes of both groups, given what is asked for and what is there; `rules`: the templates that pods should have."""
    if observed.cluster is None:
        return first_size(deployment, observed)
    cluster, spec = observed.cluster, deployment.experts
    sizing, events = note_failure(deployment, observed, cluster.sizing, provision_deadline_s, retry_s)
    pods, problem = effective_pods(deployment, observed, sizing)
    rules = rules if rules is not None and problem is None else Rules()
    total = pods + spec.standby_pods
    rolling = rollout.decide_experts(deployment, observed, rules, sizing.victims, total)
    if sizing.failed is not None and cluster.sizing.failed is None and sizing.settled > 0:
        group, sizing = withdraw(cluster, observed.pool, sizing, spec.standby_pods)
    else:
        group, sizing = step(cluster.experts, sizing, pods, spec, observed, rolling)
    if group.replicas != cluster.experts.replicas or pods != sizing.aim:
        sizing = replace(sizing, since=observed.now)
    settled = is_settled(group, sizing, pods, spec, observed.pool)
    sizing = replace(sizing, aim=pods, rolling=rolling.goes_on or (sizing.rolling and not settled))
    if settled:
        sizing = replace(sizing, settled=pods)
    experts = replace(cluster.experts, replicas=group.replicas)
    engines = engine_size(deployment.engines.replicas, cluster.engines, experts, observed, rules)
    problem = problem or rollout.rollout_problem(deployment, observed, rules)
    rolled = tuple(name for name in sizing.victims if name in (*rolling.rolled, *rolling.chosen))
    return Size(engines, group, pods, sizing, problem, events, rolled)


def first_size(deployment: MoEDeployment, observed: Observation) -> Size:
    """Sizes of a RayCluster that does not exist yet."""
    pods = deployment.experts.pods
    experts = GroupSize(pods + deployment.experts.standby_pods)
    return Size(GroupSize(deployment.engines.replicas), experts, pods, Sizing(aim=pods, since=observed.now))


def note_failure(
    deployment: MoEDeployment, observed: Observation, sizing: Sizing, deadline_s: float, retry_s: float
) -> tuple[Sizing, tuple[Event, ...]]:
    """Forget a failed growth that is to be tried again; note one whose pods did not come in time."""
    failed, cluster, spec = sizing.failed, observed.cluster, deployment.experts
    if failed is not None:
        came = observed.pool is not None and count_ready(observed.pool) >= spec.workers
        other = (failed.pods, failed.generation) != (spec.pods, deployment.generation)
        again = came or other or observed.now - failed.at >= retry_s
        return (replace(sizing, failed=None, since=observed.now), ()) if again else (sizing, ())
    if observed.pool is not None and observed.pool.files.coming:
        # Pods are there and fetch the model, which takes what it takes: the deadline counts from its end, roughly.
        aging = observed.now - sizing.since >= deadline_s / 2
        return (replace(sizing, since=observed.now) if aging else sizing), ()
    growing = cluster is not None and spec.pods > sizing.settled and spec.pods == sizing.aim
    late = observed.now - sizing.since >= deadline_s
    if not (growing and late) or observed.pool is None or count_ready(observed.pool) >= spec.workers:
        return sizing, ()
    event = Event(
        "ProvisionFailed",
        f"{spec.pods} pods of expert workers were not ready within {deadline_s:.0f} s",
        warning=True,
    )
    return replace(sizing, failed=FailedGrowth(spec.pods, deployment.generation, observed.now)), (event,)


def effective_pods(deployment: MoEDeployment, observed: Observation, sizing: Sizing) -> tuple[int, Problem | None]:
    """Expert pods to aim for: what the spec asks for, or what ran before while that cannot be had."""
    spec = deployment.experts
    problem = fit_problem(spec, deployment.placement.min_replicas, facts_of(observed))
    if problem is None and sizing.failed is not None:
        problem = provision_problem(observed, sizing.failed, spec)
    keeps = problem is not None and sizing.settled > 0
    return (sizing.settled if keeps else spec.pods), problem


def provision_problem(observed: Observation, failed: FailedGrowth, spec: Experts) -> Problem:
    """Why the size asked for could not be had, with what the pods say."""
    pods = observed.cluster.experts.pods if observed.cluster else ()
    said = "; ".join(sorted({pod.message for pod in pods if pod.message}))
    return Problem(
        "ProvisionFailed",
        f"the pods for {spec.workers} workers did not come{': ' + said if said else ''}. Free or add nodes, lower "
        f"spec.experts.resources, or set spec.experts.workers back; it is tried again later",
    )


def withdraw(cluster: Cluster, pool: Pool | None, sizing: Sizing, standby: int) -> tuple[GroupSize, Sizing]:
    """Back to the settled size: of the pods that hold nothing, the newest go."""
    group, total = cluster.experts, sizing.settled + standby
    surplus = max(len(group.present) - total, 0)
    empty = [pod for pod in group.present if not holds(pool, pod.name)]
    newest = sorted(empty, key=lambda pod: (pod.created_at, pod.name), reverse=True)
    gone = tuple(pod.name for pod in newest[:surplus])
    return GroupSize(max(total, len(group.present) - len(gone)), gone), replace(sizing, victims=())


def step(
    group: Group, sizing: Sizing, pods: int, spec: Experts, observed: Observation, rolling: Step
) -> tuple[GroupSize, Sizing]:
    """One step of the expert group towards `pods` and the pods of the standbys.

    Pods that leave are victims whatever the size is: others are asked for in their place before they are gone. So are
    those that a rollout replaces, unless the budget has no devices for both.
    """
    present = {pod.name for pod in group.present}
    named = still_there(group)
    leaving = tuple(pod.name for pod in group.present if pod.leaving and pod.name not in named)
    bound = leaving + tuple(name for name in rolling.rolled if name not in leaving)
    victims = bound + tuple(name for name in sizing.victims if name in present and name not in bound)
    staying, total = group.replicas - len(victims), pods + spec.standby_pods + rolling.surge
    if total > staying:
        victims = victims[: max(len(victims) - (total - staying), len(bound))]
        asked, sizing = total + len(victims), replace(sizing, victims=victims)
        if rolling.most is None or asked <= rolling.most:
            return GroupSize(asked, still_there(group)), sizing
        return dismiss(replace(group, replicas=max(rolling.most, group.replicas)), sizing, pods, observed.pool)
    if total < staying and len(present) >= group.replicas and not still_there(group):
        victims += choose_victims(group, observed.pool, victims, staying - total, pods, rolling.old)
    elif total == staying:
        victims += rolling.chosen
    return dismiss(group, replace(sizing, victims=victims), pods, observed.pool)


def choose_victims(
    group: Group, pool: Pool | None, chosen: tuple[str, ...], count: int, pods: int, old: tuple[str, ...]
) -> tuple[str, ...]:
    """`count` more pods to be drained: those of an older template, then those whose workers hold least.

    Among equals the newest name goes first.

    Pods whose workers serve go only in so far as more than `pods` of them are there: standbys stay standbys.
    """
    candidates = sorted((pod.name for pod in group.present if pod.name not in chosen), reverse=True)
    candidates.sort(key=lambda name: (name not in old, resident_bytes(pool, name)))
    serving = [name for name in candidates if serves(pool, name)]
    others = [name for name in candidates if name not in serving]
    surplus = serving[: max(len(serving) - pods, 0)]
    return tuple([*surplus, *others, *serving[len(surplus) :]][:count]) if pods else tuple(candidates[:count])


def dismiss(group: Group, sizing: Sizing, pods: int, pool: Pool | None) -> tuple[GroupSize, Sizing]:
    """Take the drained victims away in one patch; with nobody left to hold an expert, drained is all there is."""
    gone = tuple(name for name in sizing.victims if pool is not None and (pods == 0 or is_drained(pool, name)))
    left = tuple(name for name in sizing.victims if name not in gone)
    return GroupSize(group.replicas - len(gone), still_there(group) + gone), replace(sizing, victims=left)


def still_there(group: Group) -> tuple[str, ...]:
    """Pods named for deletion earlier that KubeRay has not deleted yet; the rest of the list is cleared."""
    names = {pod.name for pod in group.pods}
    return tuple(name for name in group.workers_to_delete if name in names)


def engine_size(replicas: int, group: Group, experts: Group, observed: Observation, rules: Rules) -> GroupSize:
    """Size of the engine group: up at once; down by the pods whose engine is gone, once the pool has let it go.

    While pods of an older template are replaced there is one more, if the budget has devices for it beside the
    `experts`; those that go then need not be idle.
    """
    pending, pool = still_there(group), observed.pool
    rolling = rollout.decide_engines(replicas, group, experts, pool, rules, observed.now)
    replicas += rolling.surge
    if rolling.chosen and replicas == group.replicas:
        return GroupSize(replicas - len(rolling.chosen), pending + rolling.chosen)
    if replicas >= group.replicas:
        most = replicas if rolling.most is None else max(rolling.most, group.replicas)
        return GroupSize(min(replicas, most), pending)
    if pool is None or len(group.present) < group.replicas or pending:
        return GroupSize(group.replicas, pending)
    busy = {engine.pod for engine in pool.engines if engine.state is not MemberState.LOST}
    idle = sorted((pod.name for pod in group.present if pod.name not in busy), reverse=True)
    gone = tuple(idle[: group.replicas - replicas])
    return GroupSize(group.replicas - len(gone), gone)


def is_settled(group: GroupSize, sizing: Sizing, pods: int, spec: Experts, pool: Pool | None) -> bool:
    """Whether the pool runs with the size aimed for: every worker ready and in use, none on its way out."""
    if pool is None or sizing.victims or group.replicas != pods + spec.standby_pods:
        return False
    ready = {worker.id for worker in pool.workers if worker.state is MemberState.READY}
    return pods == 0 or (len(ready) == pods * spec.workers_per_pod and pool.holders == ready)


def count_ready(pool: Pool) -> int:
    """Workers that are ready; standbys are not counted."""
    return sum(worker.state is MemberState.READY for worker in pool.workers)


def count_standby(pool: Pool) -> int:
    """Workers that stand by."""
    return sum(worker.state is MemberState.STANDBY for worker in pool.workers)


def serves(pool: Pool | None, pod: str) -> bool:
    """Whether a worker of the pod is to hold experts."""
    return any(worker.state is MemberState.READY for worker in workers_on(pool, pod))


def workers_on(pool: Pool | None, pod: str) -> tuple[Worker, ...]:
    """Live workers of a pod."""
    return tuple(worker for worker in pool.alive if worker.pod == pod) if pool else ()


def resident_bytes(pool: Pool | None, pod: str) -> int:
    """Bytes of experts that the workers of a pod hold."""
    return sum(worker.resident_bytes for worker in workers_on(pool, pod))


def holds(pool: Pool | None, pod: str) -> bool:
    """Whether the placement names a worker of the pod, or one of them still has experts."""
    if pool is None:
        return True
    return any(worker.num_experts > 0 or worker.id in pool.holders for worker in workers_on(pool, pod))


def is_drained(pool: Pool, pod: str) -> bool:
    """Whether a pod can go: nobody on it holds or is about to get anything."""
    leaving = all(worker.state is MemberState.DRAINING for worker in workers_on(pool, pod))
    operating = pool.operation is not None and pool.operation.running
    return leaving and not holds(pool, pod) and not operating


def resizes(live: Mapping[str, Any] | None, size: Size) -> bool:
    """Whether a group of a RayCluster gets another size, or other pods are named to go: that is decided on fresh lists.

    KubeRay deletes another pod in the place of one that is named and no longer there.
    """
    groups = {group["groupName"]: group for group in (live or {"spec": {}})["spec"].get("workerGroupSpecs", ())}
    return any(
        group.get("replicas") != wanted.replicas
        or tuple((group.get("scaleStrategy") or {}).get("workersToDelete") or ()) != wanted.workers_to_delete
        for role, wanted in ((names.ENGINES_ROLE, size.engines), (names.EXPERTS_ROLE, size.experts))
        if (group := groups.get(role)) is not None
    )
