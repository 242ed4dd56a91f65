"""Which pods of an older template are replaced next. Pure; `sizing` asks, for the expert workers and for the engines.

A changed template applies to new pods only, so a rollout is: ask for one pod more (`surge`), wait until it is up, empty
one of the older ones, take it away, and again. Nothing is remembered of a rollout but the pods' revision labels: a new
pod that does not come up stops it, with the older pods serving on, and a template that is set back makes the new pods
the older ones. Where no node or no budget has room for one pod more, an older one makes place for it first, if the
other workers have room for its experts.
"""

from dataclasses import dataclass

from flexpert_operator.api.reasons import DegradedReason
from flexpert_operator.api.spec import MoEDeployment
from flexpert_operator.decide.budget import Budget, is_going
from flexpert_operator.decide.observation import Group, MemberState, Observation, Pod, Pool, Problem, Worker
from flexpert_operator.decide.placing import has_room


@dataclass(frozen=True)
class Rules:
    """How pods are replaced.

    Attributes:
        engines: Revision of the engine pods' template; empty: whatever there is.
        experts: The same of the expert pods.
        max_surge: Pods of a group that are replaced at a time.
        headroom_wait_s: Time that a new pod has to find a node, before an older one makes place for it.
        provision_deadline_s: Time that a new pod has to come up, before it is said that it does not.
        budget: What pods may hold at once; None: anything.
    """

    engines: str = ""
    experts: str = ""
    max_surge: int = 1
    headroom_wait_s: float = 120.0
    provision_deadline_s: float = 600.0
    budget: Budget | None = None


@dataclass(frozen=True)
class Step:
    """What a rollout asks for now.

    Attributes:
        old: Pods of another template that are not on their way out yet.
        rolled: Those of the victims that go because of their template.
        surge: Pods to have beside the wanted ones.
        chosen: Of `old`, those to be emptied from now on.
        most: Replicas that the budget lets the group have; None: any number.
    """

    old: tuple[str, ...] = ()
    rolled: tuple[str, ...] = ()
    surge: int = 0
    chosen: tuple[str, ...] = ()
    most: int | None = None

    @property
    def goes_on(self) -> bool:
        """Whether there is anything left to replace."""
        return bool(self.old or self.rolled)


def outdated(group: Group, revision: str) -> tuple[Pod, ...]:
    """Pods of another template that are there to stay."""
    named = set(group.workers_to_delete)
    return tuple(
        pod
        for pod in group.present
        if revision and pod.revision != revision and not pod.leaving and pod.name not in named
    )


def decide_experts(
    deployment: MoEDeployment, observed: Observation, rules: Rules, victims: tuple[str, ...], wanted: int
) -> Step:
    """The next step for the expert pods.

    Args:
        deployment: What is asked for.
        observed: What is there.
        rules: The template that pods should have.
        victims: Pods that are being emptied already.
        wanted: Pods that there are to be in the end.
    """
    if observed.cluster is None:
        return Step()
    group, pool = observed.cluster.experts, observed.pool
    most = rules.budget.most_experts(group, observed.cluster.engines) if rules.budget is not None else None
    stale = outdated(group, rules.experts)
    rolled = tuple(pod.name for pod in stale if pod.name in victims)
    old = tuple(pod for pod in stale if pod.name not in victims)
    free = max(rules.max_surge - len(rolled), 0)
    names, there = tuple(pod.name for pod in old), max(group.replicas - len(victims) - wanted, 0)
    room = free if most is None else min(free, max(most - wanted - len(victims), 0))
    if pool is None or not free:
        return Step(names, rolled, min(len(old), free, there), most=most)
    per_pod = deployment.experts.workers_per_pod
    staying = [pod for pod in group.present if pod.name not in victims and not pod.leaving]
    up = [pod.name for pod in staying if is_up(pool, pod.name, per_pod)]
    surge = min(len(old), room, free if len(up) >= wanted else there)
    broken = [name for name in names if name not in up and not holds_any(pool, name)][:free]
    ready = sorted((name for name in names if name in up), key=lambda name: held_bytes(pool, name))
    spare = max(min(len(up) - wanted, free - len(broken)), 0)
    chosen = (*broken, *ready[:spare])
    cramped = not room and not is_going(group, observed.cluster.engines)
    lacks_place = cramped or lacks_a_node(staying, rules, observed.now)
    if not chosen and not rolled and ready and len(up) >= wanted and lacks_place:
        others = serving(pool, (*victims, ready[0]))
        chosen = (ready[0],) if roomy(pool, others, deployment.placement.min_replicas) else ()
    return Step(names, rolled, surge, tuple(chosen), most)


def roomy(pool: Pool, workers: tuple[Worker, ...], min_replicas: int) -> bool:
    """Whether all experts fit into these workers."""
    return bool(workers) and (pool.model is None or has_room(pool.model, workers, min_replicas))


def serving(pool: Pool, away: tuple[str, ...]) -> tuple[Worker, ...]:
    """Ready workers that are not on the pods `away`."""
    return tuple(worker for worker in pool.workers if worker.state is MemberState.READY and worker.pod not in away)


def is_up(pool: Pool, pod: str, per_pod: int) -> bool:
    """Whether all workers of a pod serve or stand by."""
    states = [worker.state for worker in pool.alive if worker.pod == pod]
    return len(states) == per_pod and all(state in (MemberState.READY, MemberState.STANDBY) for state in states)


def holds_any(pool: Pool, pod: str) -> bool:
    """Whether a worker of the pod has experts, or is to have."""
    own = [worker for worker in pool.alive if worker.pod == pod]
    return any(worker.num_experts > 0 or worker.id in pool.holders for worker in own)


def held_bytes(pool: Pool, pod: str) -> int:
    """Bytes of experts on a pod."""
    return sum(worker.resident_bytes for worker in pool.alive if worker.pod == pod)


def lacks_a_node(pods: list[Pod], rules: Rules, now: float) -> bool:
    """Whether one of the pods found no node for so long that there will be none."""
    return any(pod.unschedulable and now - pod.created_at >= rules.headroom_wait_s for pod in pods)


def decide_engines(replicas: int, group: Group, experts: Group, pool: Pool | None, rules: Rules, now: float) -> Step:
    """The next step for the engine pods, beside the expert pods there are: `chosen` are to be deleted.

    Ray moves an engine off a node that ends (Serve starts another one first, where a node has room for it), and the
    ingress hands what it still had to do to the others.
    """
    old = outdated(group, rules.engines)
    names = tuple(pod.name for pod in old)
    most = rules.budget.most_engines(group, experts) if rules.budget is not None else None
    busy = any(pod.name in group.workers_to_delete for pod in group.pods)
    if not old or busy:
        return Step(names, most=most)
    surge = int(most is None or most > replicas)
    broken = tuple(pod.name for pod in old if not pod.ready)[:1]
    engines = {engine.pod: engine for engine in pool.engines} if pool is not None else {}
    serve = sum(engine.state is MemberState.READY for engine in engines.values()) >= replicas
    loads = {name: engines[name].running + engines[name].waiting for name in names if name in engines}
    idlest = sorted(names, key=lambda name: loads.get(name, -1))[:1]
    spare = sum(pod.ready for pod in group.present) > replicas
    cramped = not surge and not is_going(group, experts)
    place = replicas > 1 and (cramped or lacks_a_node(list(group.present), rules, now))
    chosen = broken or (tuple(idlest) if pool is not None and serve and (spare or place) else ())
    return Step(names, surge=surge, chosen=chosen, most=most)


def rollout_problem(deployment: MoEDeployment, observed: Observation, rules: Rules) -> Problem | None:
    """Why a rollout does not go on, or None: new pods do not come up, or there is no room for them."""
    if observed.cluster is None:
        return None
    cluster, found = observed.cluster, []
    for what, group, revision in (
        ("experts", cluster.experts, rules.experts),
        ("engines", cluster.engines, rules.engines),
    ):
        if not outdated(group, revision):
            continue
        new = [pod for pod in group.present if pod.revision == revision and not pod.ready]
        found += [f"{pod.name} {why}" for pod in new if (why := why_stuck(pod, rules, observed.now))]
        why = "no node takes another pod" if lacks_a_node(new, rules, observed.now) else ""
        why = why or why_unaffordable(what, deployment, observed, rules.budget)
        if why and is_blocked(what, deployment, observed):
            return blocked_problem(what, why, new)
    if not found:
        return None
    return Problem(
        DegradedReason.ROLLOUT_STUCK,
        f"new pods do not come up: {'; '.join(sorted(found))}. The pods before them go on serving; set back or mend "
        f"what was changed in spec.experts, spec.engines or the operator's image",
    )


def why_stuck(pod: Pod, rules: Rules, now: float) -> str:
    """Why a new pod will hardly come up; empty when it may still."""
    if pod.failing:
        return f"waits: {pod.message}"
    late = not pod.unschedulable and now - pod.created_at >= rules.provision_deadline_s
    said = pod.message or "no reason is told"
    return f"is not ready after {rules.provision_deadline_s:.0f} s: {said}" if late else ""


def is_blocked(what: str, deployment: MoEDeployment, observed: Observation) -> bool:
    """Whether no older pod may make place for a new one that finds no node."""
    if what == "engines":
        return deployment.engines.replicas == 1
    pool = observed.pool
    if pool is None or pool.model is None:
        return False
    workers = serving(pool, observed.leaving_pods)
    fullest = max((held_bytes(pool, worker.pod), worker.pod) for worker in workers)[1] if workers else ""
    return not roomy(pool, serving(pool, (*observed.leaving_pods, fullest)), deployment.placement.min_replicas)


def why_unaffordable(what: str, deployment: MoEDeployment, observed: Observation, budget: Budget | None) -> str:
    """Why the budget has no devices for one pod more; empty where it has, or while another pod makes place."""
    cluster = observed.cluster
    if cluster is None or budget is None or cluster.sizing.victims or is_going(cluster.experts, cluster.engines):
        return ""
    wanted, most = deployment.engines.replicas, budget.most_engines(cluster.engines, cluster.experts)
    if what == "experts":
        wanted = deployment.experts.pods + deployment.experts.standby_pods
        most = budget.most_experts(cluster.experts, cluster.engines)
    group = cluster.experts if what == "experts" else cluster.engines
    is_full = most is not None and most <= wanted <= len(group.present)
    return f"the policy's budget of {budget.devices} devices has none for another pod" if is_full else ""


def blocked_problem(what: str, why: str, new: list[Pod]) -> Problem:
    """No room for a new pod beside the older ones, and none of these can go before it is there."""
    said = "; ".join(sorted({pod.message for pod in new if pod.unschedulable and pod.message}))
    remedy = "raise spec.experts.memoryPerWorker" if what == "experts" else "set spec.engines.replicas to 2 or more"
    lack = "the other workers have no room for its experts" if what == "experts" else "there is no other engine"
    return Problem(
        DegradedReason.ROLLOUT_BLOCKED,
        f"{why} of {what}{f' ({said})' if said else ''}, and no older one can go first: {lack}. Add a node, raise the "
        f"budget, or {remedy}",
    )


def progress_of(observed: Observation, rules: Rules) -> str:
    """How far a rollout is, for the condition Progressing; empty when there is none."""
    if observed.cluster is None:
        return ""
    parts = []
    for what, group, revision in (
        ("expert", observed.cluster.experts, rules.experts),
        ("engine", observed.cluster.engines, rules.engines),
    ):
        if revision and any(pod.revision != revision for pod in group.pods):
            new = sum(pod.revision == revision for pod in group.present)
            parts.append(f"{new} of {len(group.pods)} {what} pods have the new template")
    return "; ".join(parts)
