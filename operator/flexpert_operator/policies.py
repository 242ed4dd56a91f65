"""One MoEAutoscalingPolicy: look at what its target's pool tells, decide, write the status. `controller` calls it.

It never writes the MoEDeployment: `reconciler` reads `status.desired` when it decides sizes. What is remembered between
two calls may be lost; `decide.policy_status` says what of it stands in the status.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from flexpert_operator.api import names
from flexpert_operator.api.autoscaling import MoEAutoscalingPolicy, parse_policy
from flexpert_operator.api.conditions import ABLE_TO_SCALE
from flexpert_operator.api.reasons import AbleReason, PolicyEventReason
from flexpert_operator.api.spec import MoEDeployment, parse_deployment
from flexpert_operator.autoscale import InvalidPolicy, Observation, Policy, PoolCount, Sizes, State
from flexpert_operator.cached import CachedKube
from flexpert_operator.decide import owning, policy_status, scaling
from flexpert_operator.decide.difference import merge_patch
from flexpert_operator.decide.measured import WAITING, Look, observation_of, waits
from flexpert_operator.decide.observation import Event, MemberState, ModelFacts, Pool
from flexpert_operator.errors import PoolUnavailable
from flexpert_operator.kube import MOE_DEPLOYMENTS, PODS, POLICIES, RAY_CLUSTERS, SERVICES, Object
from flexpert_operator.observe import is_over, role_of
from flexpert_operator.pool_feed import PoolFeed
from flexpert_operator.prometheus import Prometheus, PrometheusFigures, PrometheusUnavailable
from flexpert_operator.reconciler import Tell
from flexpert_operator.scaling_objects import policies_of, scalers_of
from flexpert_proto.measuring import Figures

log = logging.getLogger(__name__)

DEFAULT_SCALE_UP_S = 30.0
"""Until a growth was seen to its end."""
UNABLE_S = 30.0
"""Time to the next look where nothing can be decided; what changes wakes sooner."""
ACTING_S = 15.0
"""For so long a size that was decided counts as held, though no pod of it is seen yet."""

Listen = Callable[[str, float, Callable[[], None]], PoolFeed]
"""(address of a pool controller, seconds between two tellings, what to call at each) → what it tells, with figures."""


@dataclass(frozen=True)
class Growth:
    """A growth that is not at its end: since when, and the sizes it is to come to."""

    since: float
    sizes: Sizes


class PolicyKeeper:
    """Keeps one policy. Called by one thread at a time.

    Args:
        listen: Opens a stream of figures.
        wake: Has `reconcile` called soon.
        tell: Posts Events.
        prometheus: Where figures are read; None: the pool controller tells them.
    """

    def __init__(
        self,
        namespace: str,
        name: str,
        kube: CachedKube,
        listen: Listen,
        wake: Callable[[], None],
        tell: Tell,
        clock: Callable[[], float] = time.time,
        prometheus: Prometheus | None = None,
    ) -> None:
        self._namespace = namespace
        self._name = name
        self._kube = kube
        self._listen = listen
        self._wake = wake
        self._tell = tell
        self._clock = clock
        self._prometheus = prometheus
        self._measured: PrometheusFigures | None = None
        self._state: State | None = None
        self._before: Look | None = None
        self._facts: ModelFacts | None = None
        self._feed: PoolFeed | None = None
        self._listened = ("", 0.0)
        self._heard_last = (0, 0.0)
        self._asleep = False
        self._growth: Growth | None = None
        self._scale_up_s: float | None = None

    def close(self) -> None:
        """Hear nothing more."""
        self._hang_up()

    def reconcile(self) -> float | None:
        """Decide once.

        Returns:
            Seconds until the next decision; None when the policy is gone.

        Raises:
            KubeError: The status could not be written; call again later.
            InvalidObject: The CRD is another version's.
        """
        body = self._kube.find(POLICIES, self._namespace, self._name)
        if body is None or "deletionTimestamp" in body["metadata"]:
            return None
        policy = parse_policy(body)
        outcome = self._decide(policy)
        self._report(body, policy, outcome)
        return UNABLE_S if outcome.decision is None else policy.spec.interval_s

    def _decide(self, policy: MoEAutoscalingPolicy) -> policy_status.Outcome:
        now, target = self._clock(), policy.spec.target_ref.name
        found = self._kube.find(MOE_DEPLOYMENTS, self._namespace, target)
        if found is None:
            self._hang_up()
            why = f"there is no MoEDeployment {target} in namespace {self._namespace}"
            return policy_status.Outcome(now, (AbleReason.TARGET_NOT_FOUND, why))
        deployment = parse_deployment(found)
        unable = self._claim(policy, deployment)
        if unable is not None:
            self._hang_up()
            return policy_status.Outcome(now, unable)
        look = self._look(found, deployment, policy.spec.interval_s, now)
        if look is not None and look.pool.model is not None:
            self._facts = look.pool.model
        try:
            rules = scaling.policy_of(policy.spec, deployment, self._facts)
        except InvalidPolicy as contradiction:
            return policy_status.Outcome(now, (AbleReason.INVALID_POLICY, str(contradiction)))
        return self._decided(policy, rules, deployment, look, now)

    def _claim(self, policy: MoEAutoscalingPolicy, deployment: MoEDeployment) -> tuple[AbleReason, str] | None:
        """Why another one decides, or None."""
        if deployment.deleted_at is not None:
            return AbleReason.BEING_DELETED, f"{deployment.name} is being deleted"
        first = owning.first_of(policies_of(self._kube, self._namespace, deployment.name))
        if first is None or first.name == policy.name:
            return None
        why = f"spec.targetRef.name: {deployment.name} is scaled by MoEAutoscalingPolicy {first.name}, which is older"
        return AbleReason.TARGET_TAKEN, why

    def _decided(
        self, policy: MoEAutoscalingPolicy, rules: Policy, deployment: MoEDeployment, look: Look | None, now: float
    ) -> policy_status.Outcome:
        state = self._remembered(policy, rules, deployment, now)
        observation = self._observe(deployment, look, state, rules, now)
        state = policy_status.begun(state, observation)
        self._measure_growth(observation, now)
        decision, after = scaling.decide_sizes(observation, state, rules, deployment, self._facts)
        if rules.dry_run or rules.pause:
            self._growth = None
        elif state.sizes is not None and grows(state.sizes, decision.sizes):
            self._growth = Growth(now, decision.sizes)
        self._state, self._before = after, look or self._before
        self._asleep = 0 in (decision.sizes.engines, decision.sizes.experts)
        serves = serving(deployment)
        return policy_status.Outcome(now, None, decision, after, rules, observation, self._scale_up_s, serves)

    def _remembered(self, policy: MoEAutoscalingPolicy, rules: Policy, deployment: MoEDeployment, now: float) -> State:
        """The state that the last decision left, or what the status tells of it."""
        if self._state is None:
            self._state = policy_status.restored(policy.status, now)
            told_ms = (policy.status.get("learnt") or {}).get("scaleUpMilliseconds")
            self._scale_up_s = told_ms / 1000 if told_ms else None
        if self._state.sizes is None or owning.desired_sizes(policy) is None:
            said = owning.scaled_sizes(deployment, scalers_of(self._kube, self._namespace, deployment.name))
            first = scaling.first_sizes(said, rules, deployment, self._facts)
            self._state = replace(self._state, sizes=first)
        return self._state

    def _observe(
        self, deployment: MoEDeployment, look: Look | None, state: State, rules: Policy, now: float
    ) -> Observation:
        held = self._held(deployment)
        changed = max((one.at for one in state.changes), default=0.0)
        if state.sizes is not None and 0 <= now - changed < ACTING_S:
            held = Sizes(max(held.engines, state.sizes.engines), max(held.experts, state.sizes.experts))
        ready = ready_of(look.pool) if look is not None else Sizes(0, 0)
        return observation_of(
            now,
            look,
            self._before,
            PoolCount(ready.engines, held.engines),
            PoolCount(ready.experts, held.experts),
            reachable_imbalance(deployment),
            self._scale_up_s or DEFAULT_SCALE_UP_S,
            rules.objectives,
        )

    def _held(self, deployment: MoEDeployment) -> Sizes:
        """Members that hold devices: of pods that are there, also while they go, and of those that are asked for."""
        name, step = deployment.name, deployment.experts.workers_per_pod
        pods = self._kube.list(PODS, self._namespace, names.selector(name))
        roles = [role_of(pod) for pod in pods if not is_over(pod)]
        asked = [self._replicas(name, role) for role in (names.ENGINES_ROLE, names.EXPERTS_ROLE)]
        engines = max(roles.count(names.ENGINES_ROLE), asked[0])
        experts = max(roles.count(names.EXPERTS_ROLE), asked[1]) - deployment.experts.standby_pods
        return Sizes(engines, max(experts, 0) * step)

    def _replicas(self, name: str, role: str) -> int:
        """Pods of a role that are asked for, in all RayClusters of the target."""
        groups = (
            group
            for cluster in self._kube.owned(RAY_CLUSTERS, self._namespace, name)
            for group in cluster["spec"].get("workerGroupSpecs", ())
        )
        return sum(group.get("replicas", 0) for group in groups if group["groupName"] == role)

    def _look(self, body: Object, deployment: MoEDeployment, interval_s: float, now: float) -> Look | None:
        """What the pool tells now, or None where it does not answer."""
        cluster = self._serving_cluster(deployment)
        if not cluster:
            self._hang_up()
            return None
        address = names.control_address_of(body, cluster)
        if self._feed is None or self._listened != (address, interval_s):
            self._hang_up()
            self._feed, self._listened = self._listen(address, interval_s, self._heard), (address, interval_s)
        try:
            heard = self._feed.last()
        except PoolUnavailable:
            return None
        if heard.number != self._heard_last[0]:
            self._heard_last = (heard.number, now)
        if self._prometheus is None:
            return Look(self._heard_last[1], heard.pool)
        if self._measured is None:
            self._measured = PrometheusFigures(self._prometheus, deployment.namespace, deployment.name)
        look = look_at(self._measured, heard.pool, now)
        return with_waiting(look, Look(self._heard_last[1], heard.pool), self._before) if self._asleep else look

    def _serving_cluster(self, deployment: MoEDeployment) -> str:
        """Name of the RayCluster that serves, as the Service in front of it says; empty where there is none yet."""
        service = self._kube.find(SERVICES, self._namespace, names.pool_control_service(deployment.name))
        return str((service["spec"].get("selector") or {}).get(names.RAY_CLUSTER_LABEL, "")) if service else ""

    def _heard(self) -> None:
        """The pool has told something: a request that waits for a pool that sleeps is not left to wait for a look."""
        feed = self._feed
        if not self._asleep or feed is None:
            return
        try:
            heard = feed.last()
        except PoolUnavailable:
            return
        if waits(heard.pool):
            self._wake()

    def _hang_up(self) -> None:
        if self._feed is not None:
            self._feed.close()
        self._feed, self._before, self._heard_last = None, None, (0, 0.0)
        self._measured = None

    def _measure_growth(self, observation: Observation, now: float) -> None:
        """How long a growth took, once all of it is ready."""
        growth = self._growth
        if growth is None or observation.measured_at is None:
            return
        ready = Sizes(observation.engines.ready, observation.experts.ready)
        if ready.engines >= growth.sizes.engines and ready.experts >= growth.sizes.experts:
            took_s = now - growth.since
            self._scale_up_s = took_s if self._scale_up_s is None else (self._scale_up_s + took_s) / 2
            self._growth = None

    def _report(self, body: Object, policy: MoEAutoscalingPolicy, outcome: policy_status.Outcome) -> None:
        """Write the status where it says something new, and tell of it."""
        new = policy_status.build_status(policy, outcome)
        if not policy_status.worth_writing(policy.status, new, outcome.now):
            return
        patch = merge_patch(policy.status, new)
        metadata = {"resourceVersion": policy.resource_version}
        self._kube.patch(
            POLICIES, self._namespace, self._name, {"metadata": metadata, "status": patch}, subresource="status"
        )
        for event in events_of(policy, new, outcome):
            self._tell(body, event)


def look_at(measured: PrometheusFigures, pool: Pool, now: float) -> Look:
    """What a pool tells, with the figures that Prometheus has of it; none where it has none, or cannot be asked."""
    try:
        found = measured.look()
    except PrometheusUnavailable as failure:
        log.warning("a policy decides without figures: %s", failure)
        found = None
    if found is None:
        return Look(now, replace(pool, figures=None, layer_imbalance=()))
    return Look(min(found.at, now), replace(pool, figures=found.figures, layer_imbalance=found.layer_imbalance))


def with_waiting(look: Look, told: Look, before: Look | None) -> Look:
    """A look at a pool that sleeps, with the requests that wait for it as it tells them itself.

    Prometheus sees them a scrape later, or not at all while it is down, and nobody is to wait for that.

    Args:
        look: By Prometheus.
        told: By the pool controller.
        before: The last look, whose figures stand where Prometheus has none now.
    """
    figures = told.pool.figures
    if figures is None or not waits(told.pool):
        return look
    known = look.pool.figures or (before.pool.figures if before is not None else None) or Figures("", told.at, told.at)
    gauges = known.gauges | {name: figures.gauge(name) for name in WAITING}
    return Look(told.at, replace(look.pool, figures=msgspec.structs.replace(known, gauges=gauges)))


def events_of(policy: MoEAutoscalingPolicy, new: Object, outcome: policy_status.Outcome) -> tuple[Event, ...]:
    """What a user wants to be told: a change of the sizes, and why nothing is decided any more."""
    old, decision = policy.status, outcome.decision
    if outcome.unable is not None:
        before = {one["type"]: one["reason"] for one in old.get("conditions", ())}
        reason, message = outcome.unable
        known = before.get(ABLE_TO_SCALE) == reason
        return () if known else (Event(reason, message, warning=True),)
    if decision is not None and new.get("desired") not in (None, old.get("desired")):
        return (Event(PolicyEventReason.RESCALED, decision.reason),)
    if decision is not None and new.get("wouldBe") not in (None, old.get("wouldBe")):
        return (Event(PolicyEventReason.DRY_RUN, decision.reason),)
    return ()


def ready_of(pool: Pool) -> Sizes:
    """Members that serve."""
    engines = sum(one.state is MemberState.READY for one in pool.engines)
    return Sizes(engines, sum(one.state is MemberState.READY for one in pool.workers))


def serving(deployment: MoEDeployment) -> bool:
    """Whether the target's status has engines and workers that serve; it keeps them while nobody answers."""
    return all((deployment.status.get(pool) or {}).get("ready", 0) > 0 for pool in ("engines", "experts"))


def reachable_imbalance(deployment: MoEDeployment) -> float | None:
    """The imbalance that the planner's best placement had at the last look at the loads; None where there was none."""
    look = (deployment.status.get("placement") or {}).get("lastDecision") or {}
    if look.get("imbalancePercent") is None or look.get("gainPercent") is None:
        return None
    imbalance, gain = float(look["imbalancePercent"]) / 100, float(look["gainPercent"]) / 100
    return max((1 + imbalance) * (1 - gain), 1.0)


def grows(before: Sizes, after: Sizes) -> bool:
    """Whether a pool grows."""
    return after.engines > before.engines or after.experts > before.experts
