"""Every condition, every reason that it can have, and every Event, each with what it means.

`decide` takes its words from here, docs/api.md is made of it, and a test sees to it that no reason is said that does
not stand here. A reason is part of the API: people write alerts by it.
"""

from collections.abc import Mapping
from enum import StrEnum

from flexpert_operator.api.conditions import (
    ABLE_TO_SCALE,
    BUDGET_EXHAUSTED,
    DEGRADED,
    HEAD_PERSISTENT,
    MODEL_LOADED,
    PROGRESSING,
    READY,
    REBALANCING,
    SCALED_BY_POLICY,
    SCALING_ACTIVE,
    SCALING_LIMITED,
)
from flexpert_operator.api.words import Reason as LookReason


class Documented(StrEnum):
    """A word with its meaning."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> "Documented":
        """A member that knows what it means."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        return member


class ReadyReason(Documented):
    """Whether a request that comes now is answered."""

    SERVING = "Serving", "Requests are answered."
    CONTROLLER_UNREACHABLE = (
        "ControllerUnreachable",
        "The pool controller does not answer the operator. Unknown where the model was served before, since engines "
        "and workers go on without it; False before that.",
    )
    IDLE = (
        "Idle",
        "No workers or no engines are asked for: `spec.experts.workers` is 0, or a policy let them go. Requests wait "
        "in the ingress; a policy with `idle` starts the pool for them.",
    )
    WAITING_FOR_PLACEMENT = "WaitingForPlacement", "No expert is placed yet."
    EXPERTS_LOST = "ExpertsLost", "Experts have no live replica; requests wait while they are placed anew."
    WAITING_FOR_ENGINES = "WaitingForEngines", "No engine takes requests."
    WAITING_FOR_INGRESS = "WaitingForIngress", "No ingress pod is ready."


class ProgressingReason(Documented):
    """Whether something is under way to bring about what the spec asks for."""

    SETTLED = "Settled", "Nothing is under way."
    WAITING_FOR_CONTROLLER = "WaitingForController", "The head or its pool controller is not up yet."
    INSPECTING_MODEL = "InspectingModel", "The checkpoint is being looked at."
    FETCHING_MODEL = "FetchingModel", "The nodes fetch the checkpoint; `status.model` says how far they are."
    PROVISIONING = "Provisioning", "Pods of expert workers are waited for."
    PREPARING = "Preparing", "Experts are copied and warmed up where the next routing table will have them."
    COMMITTING = "Committing", "The next routing table is being published."
    RETIRING = "Retiring", "Copies that the routing table names no longer are freed."
    DRAINING = "Draining", "Workers that are to go lose their experts."
    DEPROVISIONING = "Deprovisioning", "Pods that hold nothing any more are taken away."
    WAITING_FOR_ENGINES = "WaitingForEngines", "Fewer or more engines are ready than the spec asks for."
    WAITING_FOR_PLACEMENT = "WaitingForPlacement", "A placement is being computed, or about to be sent."
    WAITING_FOR_INGRESS = "WaitingForIngress", "No ingress pod is ready."
    REPLENISHING = "Replenishing", "Standby workers are being started; serving does not wait for them."
    ROLLING_OUT = "RollingOut", "Pods of an older template are being replaced; the message says how far that is."


class DegradedReason(Documented):
    """Whether the spec cannot be carried out, or the pool is less than it says; what runs goes on."""

    AS_EXPECTED = "AsExpected", "Nothing is wrong."
    MODEL_NOT_FOUND = "ModelNotFound", "There is no checkpoint where `spec.model.source` says, or no such revision."
    MODEL_ACCESS_DENIED = (
        "ModelAccessDenied",
        "The source wants a token or key that it was not given, or one with more rights: see `tokenSecretRef` and "
        "`credentialsSecretRef`.",
    )
    MODEL_UNREACHABLE = "ModelUnreachable", "The source does not answer, or asks for patience; it is tried again."
    MODEL_CACHE_UNUSABLE = (
        "ModelCacheUnusable",
        "The cache of a node is full or cannot be written, or lacks the checkpoint while `offline` is true.",
    )
    MODEL_DAMAGED = "ModelDamaged", "A file came truncated or with another checksum, twice."
    MODEL_FETCH_FAILED = "ModelFetchFailed", "A node could not fetch the checkpoint; the message says why."
    MODEL_REFUSED = "ModelRefused", "The checkpoint cannot be served; the message says why."
    MODEL_CHANGE_UNSUPPORTED = (
        "ModelChangeUnsupported",
        "`spec.model` was changed while the model is served. The old one goes on being served: set it back, or make "
        "another MoEDeployment.",
    )
    EXPERTS_DO_NOT_FIT = (
        "ExpertsDoNotFit",
        "The experts do not fit into the workers' memory; the message says which size would do.",
    )
    PROVISION_FAILED = (
        "ProvisionFailed",
        "Pods did not come within the deadline. The old size is restored, and it is tried again later.",
    )
    PLAN_REFUSED = "PlanRefused", "The pool controller cannot carry the placement out; the message says why."
    RECONFIGURATION_FAILED = "ReconfigurationFailed", "The last reconfiguration came to nothing and is tried again."
    POOL_DEGRADED = "PoolDegraded", "The pool controller says that something is wrong; the message has its words."
    ROLLOUT_STUCK = (
        "RolloutStuck",
        "New pods of a changed template do not come up; the message has what the kubelet says. The older pods go on "
        "serving: mend what was changed, or set it back.",
    )
    ROLLOUT_BLOCKED = (
        "RolloutBlocked",
        "No node takes a pod of a changed template, or the policy's budget has no devices for it, and no older pod can "
        "go before it is there; or the budget has none for the second RayCluster that another head needs. The message "
        "says what to do.",
    )
    REQUESTS_EXCEED_LIMITS = (
        "RequestsExceedLimits",
        "A container requests more of a resource than its limit; the message names the field. What runs is left.",
    )
    CHILD_REFUSED = (
        "ChildRefused",
        "The API server refused an object that the spec asks for (a RayCluster, a Deployment, a budget); the message "
        "names the field. What runs is left as it is.",
    )
    CHILD_NAME_TAKEN = (
        "ChildNameTaken",
        "An object that is to be made cannot be: another one, which is not this MoEDeployment's, has its name. It is "
        "neither changed nor deleted; the message names it.",
    )
    KUBERAY_NOT_INSTALLED = (
        "KubeRayNotInstalled",
        "The API server does not know RayClusters, so there is no pool. It is tried again until KubeRay is installed.",
    )
    KUBERAY_TOO_OLD = (
        "KubeRayTooOld",
        "KubeRay's definition of RayClusters lacks fields that are written, so the API server drops them; the message "
        "names them. Without `authOptions` the pods of a pool do not find each other.",
    )


class LoadedReason(Documented):
    """Whether the model of the spec is in the engines and the expert workers."""

    LOADED = "Loaded", "Every expert has a live replica and an engine is ready."
    CONTROLLER_UNREACHABLE = "ControllerUnreachable", "The pool controller does not answer, so nobody knows."
    INSPECTING_MODEL = "InspectingModel", "The checkpoint is being looked at."
    IDLE = "Idle", "No workers or no engines are asked for, so there is nobody to load it."
    FETCHING_MODEL = "FetchingModel", "The nodes fetch the checkpoint; `status.model` says how far they are."
    SOURCE_CHANGED = (
        "SourceChanged",
        "It is loaded, and its source names something else by now (`status.model.newerRevision`). Nothing is touched; "
        "make another MoEDeployment to serve that.",
    )
    LOADING_EXPERTS = "LoadingExperts", "Expert workers are filled; the message says how far they are."
    EXPERTS_LOST = "ExpertsLost", "Experts lost their last replica and are loaded again."
    LOADING_ENGINES = "LoadingEngines", "Engines load the dense weights."


class RebalancingReason(Documented):
    """Whether experts are moved for balance, round by round."""

    NOT_LOOKED_YET = "NotLookedYet", "No look was taken at the loads yet."


class PersistentReason(Documented):
    """Whether a head that is lost comes back with Ray's tables."""

    GCS_IN_MEMORY = "GcsInMemory", "They are in the head's memory: a lost head is a lost pool."
    GCS_IN_REDIS = "GcsInRedis", "They are in Redis."
    GCS_ON_VOLUME = "GcsOnVolume", "They are on a volume of the head."


class ScaledReason(Documented):
    """Whether something else than the spec says how large the pools are: what is written there does not count.

    Absent where the spec counts.
    """

    SCALED_BY_POLICY = (
        "ScaledByPolicy",
        "A MoEAutoscalingPolicy decides; what kubectl scale, an autoscaler or Git writes to spec.experts.workers and "
        "spec.engines.replicas is ignored. The message has both.",
    )
    SCALED_BY_SCALER = (
        "ScaledByScaler",
        "A MoEScaler decides; what is written to the spec instead is ignored. The message has both.",
    )


class ActiveReason(Documented):
    """Whether decisions are made from what is measured, and carried out."""

    DECIDING = "Deciding", "They are."
    IDLE = "Idle", "Nothing came for idle.afterSeconds, and pools are at 0; one request wakes them."
    PAUSED = "Paused", "`spec.pause` is true: sizes stay as they are."
    DRY_RUN = "DryRun", "`spec.dryRun` is true: `status.wouldBe` says what would be; the spec of the target counts."
    STALE_METRICS = "StaleMetrics", "There are no fresh metrics: sizes are held, at the safe floor at least."
    NOT_SERVING = "TargetNotServing", "The target does not serve its model yet: sizes are as its spec or minima say."
    UNABLE = "UnableToScale", "AbleToScale says why nothing is decided."


class AbleReason(Documented):
    """Whether this object may decide about its target."""

    READY = "ReadyForNewScale", "It may."
    TARGET_NOT_FOUND = "TargetNotFound", "There is no such MoEDeployment in this namespace."
    TARGET_TAKEN = (
        "TargetTaken",
        "An older object of this kind has the same target: two would contradict each other. Delete one of the two.",
    )
    INVALID_POLICY = (
        "InvalidPolicy",
        "It contradicts itself or its target; the message begins with the field. Sizes stay as they are.",
    )
    SCALED_BY_POLICY = "ScaledByPolicy", "A MoEAutoscalingPolicy has the same target, and decides."
    BEING_DELETED = "BeingDeleted", "It or its target is being deleted."


class LimitedReason(Documented):
    """Whether something keeps the sizes from those that the objectives ask for."""

    WITHIN_RANGE = "DesiredWithinRange", "Nothing does."
    NOTHING_DECIDED = "NothingDecided", "Nothing is decided at the moment."
    BOUNDS = "Bounds", "min or max of a pool does, or what the experts need to fit."
    BUDGET = "BudgetExhausted", "The budget of devices does."
    RATE = "RateLimited", "The policies of behavior do."
    STABILISED = "Stabilised", "The stabilisation windows of behavior do, or their tolerance."
    STALE = "StaleMetrics", "There are no fresh metrics."
    PAUSED = "Paused", "`spec.pause` is true."


class BudgetReason(Documented):
    """Whether the objectives ask for more devices than the budget has."""

    WITHIN_BUDGET = "WithinBudget", "They do not."
    NOTHING_DECIDED = "NothingDecided", "Nothing is decided at the moment."
    NO_BUDGET = "NoBudget", "There is no budget."
    EXHAUSTED = "BudgetExhausted", "They do, or devices of members that still go are waited for; see the numbers."


LOOK_REASONS: Mapping[str, str] = {
    LookReason.GAIN_EXCEEDS_COST: "What is gained by moving experts exceeds what the moves cost.",
    LookReason.DISABLED: "`spec.placement.rebalance.enabled` is false.",
    LookReason.NO_TRAFFIC: "No tokens came since the last look.",
    LookReason.WATCHING: "The loads have not been watched for a half-life yet.",
    LookReason.COOLING_DOWN: "Experts were moved less than `cooldownSeconds` ago.",
    LookReason.BALANCED: "Perfect balance would not gain enough.",
    LookReason.GAIN_TOO_SMALL: "The best placement found gains less than `minGainPercent` (or `stopGainPercent`).",
    LookReason.UNCERTAIN: "The gain is smaller than the error of the loads.",
    LookReason.COST_EXCEEDS_GAIN: "The moves cost more serving time than they gain.",
    LookReason.OVER_BUDGET: "The plan needs more than `maxMoves` or `maxBytes`.",
    LookReason.REFUSED: "The pool controller cannot carry the plan out.",
    LookReason.INFEASIBLE: "No placement satisfies the spec.",
}
"""Reasons of a look at the loads, which are those of Rebalancing and of `status.placement.lastDecision`."""


class EventReason(Documented):
    """Events about a MoEDeployment; a reason of Degraded is told as a Warning too."""

    CREATED = "Created", "The RayCluster was made."
    SCALING = "Scaling", "A group of pods gets another size."
    PROVISIONING = "Provisioning", "Pods of expert workers are waited for."
    PROVISIONED = "Provisioned", "They came."
    PROVISION_FAILED = "ProvisionFailed", "They did not come in time."
    DEPROVISIONING = "Deprovisioning", "Pods are taken away."
    DEPROVISIONED = "Deprovisioned", "They are gone."
    REPLENISHING = "Replenishing", "Standby workers are being started."
    REPLENISHED = "Replenished", "They stand by."
    ROLLING_OUT = "RollingOut", "Pods of an older template are being replaced."
    ROLLED_OUT = "RolledOut", "They are replaced."
    POD_UNSCHEDULABLE = "PodUnschedulable", "No node takes a pod; the message is the scheduler's."
    POD_FAILING = "PodFailing", "A container of a pod cannot be started, or ends again and again."
    RAY_CLUSTER_SWITCHED = "RayClusterSwitched", "A second RayCluster, with another head, serves from now on."
    RAY_CLUSTER_DELETED = "RayClusterDeleted", "A RayCluster that does not serve is deleted; the message says why."
    RAY_CLUSTER_RESTORED = "RayClusterRestored", "Somebody else changed the RayCluster; it is put right."
    READY = "Ready", "Requests are answered."
    MODEL_SOURCE_CHANGED = "ModelSourceChanged", "The source of the model names something else than what is served."
    REBALANCING = "Rebalancing", "A rebalancing begins."
    PREPARE = "ReconfigurationPrepare", "A reconfiguration copies experts."
    COMMIT = "ReconfigurationCommit", "It publishes the next routing table."
    RETIRE = "ReconfigurationRetire", "It frees the old copies."
    SUCCEEDED = "ReconfigurationSucceeded", "It is done; the message says what was moved, and how long it took."
    ROLLED_BACK = "ReconfigurationRolledBack", "It came to nothing; the old placement stands."
    CANCELLED = "ReconfigurationCancelled", "It was cancelled; the old placement stands."
    FAILED = "ReconfigurationFailed", "It failed; the message says why."
    WORKER_LOST = "WorkerLost", "A worker that served is gone; its experts are placed anew."
    WORKER_LEAVING = "WorkerLeaving", "A pod is about to go; its experts are moved off first."


class PolicyEventReason(Documented):
    """Events about a MoEAutoscalingPolicy; the reason of a condition AbleToScale that is False is told as a Warning."""

    RESCALED = "Rescaled", "The sizes desired changed; the message is the decision in one sentence."
    DRY_RUN = "WouldRescale", "They would have, were it not for `spec.dryRun`."


def meanings(words: type[Documented]) -> dict[str, str]:
    """Words and what they mean."""
    return {str(word): word.meaning for word in words}


def plain(words: type[Documented]) -> str:
    """What a condition is about, as a paragraph."""
    return " ".join((words.__doc__ or "").split())


CONDITIONS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    READY: (ReadyReason.__doc__ or "", meanings(ReadyReason)),
    PROGRESSING: (ProgressingReason.__doc__ or "", meanings(ProgressingReason)),
    DEGRADED: (DegradedReason.__doc__ or "", meanings(DegradedReason)),
    MODEL_LOADED: (LoadedReason.__doc__ or "", meanings(LoadedReason)),
    REBALANCING: (RebalancingReason.__doc__ or "", meanings(RebalancingReason) | dict(LOOK_REASONS)),
    HEAD_PERSISTENT: (PersistentReason.__doc__ or "", meanings(PersistentReason)),
    SCALED_BY_POLICY: (plain(ScaledReason), meanings(ScaledReason)),
}
"""What each condition of a MoEDeployment says, and its reasons."""

POLICY_CONDITIONS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    SCALING_ACTIVE: (plain(ActiveReason), meanings(ActiveReason)),
    ABLE_TO_SCALE: (plain(AbleReason), meanings(AbleReason)),
    SCALING_LIMITED: (plain(LimitedReason), meanings(LimitedReason)),
    BUDGET_EXHAUSTED: (plain(BudgetReason), meanings(BudgetReason)),
}
"""The same of a MoEAutoscalingPolicy; a MoEScaler has AbleToScale."""
