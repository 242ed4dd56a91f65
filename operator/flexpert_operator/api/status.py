"""Fields of `status`, for the schema and for docs/api.md; `decide.status` builds what stands there.

Everything but the conditions may be absent: what was never observed is not said.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from flexpert_operator.api.conditions import ConditionStatus
from flexpert_operator.api.fields import Field
from flexpert_operator.api.words import Action, Cause, Phase, Reason

CONDITION_TYPE = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
)


@dataclass(frozen=True)
class ConditionFields:
    """A condition, as Kubernetes' conventions have it."""

    type: Annotated[str, Field("Its name.", max_length=316, pattern=CONDITION_TYPE)]
    status: Annotated[ConditionStatus, Field("Whether it holds.")]
    reason: Annotated[
        str,
        Field(
            "Why, in one CamelCase word.",
            min_length=1,
            max_length=1024,
            pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        ),
    ]
    message: Annotated[str, Field("Why, in a sentence, and what to change where something is wrong.", max_length=32768)]
    last_transition_time: Annotated[datetime, Field("When status last changed.")]
    observed_generation: Annotated[
        int | None, Field("Generation of the spec that it is about.", bits=64, minimum=0)
    ] = None


@dataclass(frozen=True)
class Endpoints:
    """Where clients reach the ingress."""

    grpc: Annotated[str | None, Field("gRPC address in the cluster.")] = None
    http: Annotated[str | None, Field("HTTP address in the cluster.")] = None
    local_grpc: Annotated[str | None, Field("gRPC address on this host, under the laptop runtime.")] = None
    local_http: Annotated[str | None, Field("HTTP address on this host, under the laptop runtime.")] = None


@dataclass(frozen=True)
class ModelStatus:
    """The checkpoint that is served, and how far its files are on the nodes."""

    source: Annotated[str | None, Field("Where it comes from.")] = None
    revision: Annotated[str | None, Field("Revision that was asked for, of an hf:// source.")] = None
    resolved_revision: Annotated[
        str | None,
        Field(
            "What names the state of the files that is served, whatever the source becomes: the commit of a hub, else "
            "a digest of what the folder or store lists."
        ),
    ] = None
    newer_revision: Annotated[
        str | None, Field("What the source names now, where that is not what is served any more.")
    ] = None
    architecture: Annotated[str | None, Field("Name of its model class.")] = None
    digest: Annotated[str | None, Field("Identity of what is served: configuration, dtype and weights.")] = None
    phase: Annotated[
        str | None,
        Field(
            "How far the node that is furthest behind is: Resolving, Waiting, Downloading, Verifying, Ready, Failed."
        ),
    ] = None
    bytes_done: Annotated[int | None, Field("Bytes that the nodes have fetched.", bits=64)] = None
    bytes_total: Annotated[int | None, Field("Bytes that all nodes fetch together.", bits=64)] = None
    nodes_ready: Annotated[int | None, Field("Ray nodes that have all files.")] = None
    nodes: Annotated[int | None, Field("Ray nodes that open the checkpoint.")] = None


@dataclass(frozen=True)
class EnginesStatus:
    """The engines."""

    desired: Annotated[int | None, Field("Engines asked for.")] = None
    ready: Annotated[int | None, Field("Engines that take requests.")] = None


@dataclass(frozen=True)
class ExpertsStatus:
    """The expert workers and their experts."""

    desired: Annotated[int | None, Field("Workers asked for.")] = None
    workers: Annotated[int | None, Field("Workers that exist, ready or not, without those that stand by.")] = None
    ready: Annotated[int | None, Field("Workers that serve or could.")] = None
    standby: Annotated[int | None, Field("Workers that stand by, ready and without experts.")] = None
    epoch: Annotated[str | None, Field("Number of the published routing table, term and sequence.")] = None
    imbalance_percent: Annotated[
        int | None, Field("Load of the busiest worker above the average, in percent, averaged over the layers.")
    ] = None
    load_drift_percent: Annotated[
        int | None,
        Field(
            "Part of the tokens that go to other experts than in the four half-lives before, averaged over the layers."
        ),
    ] = None
    replicas: Annotated[int | None, Field("Live copies of experts.")] = None
    resident_bytes: Annotated[int | None, Field("Bytes of experts that workers hold.", bits=64)] = None


@dataclass(frozen=True)
class DecisionStatus:
    """A look at whether moving experts for balance pays."""

    time: Annotated[datetime | None, Field("When it was.")] = None
    action: Annotated[Action | None, Field("What was decided.")] = None
    reason: Annotated[
        Reason | None, Field("Why. GainExceedsCost leads to a rebalancing, any other reason is one for not acting.")
    ] = None
    message: Annotated[str | None, Field("The same in a sentence, with the numbers.")] = None
    asked: Annotated[bool | None, Field("Somebody asked for this look; it was not taken of itself.")] = None
    imbalance_percent: Annotated[int | None, Field("Load of the busiest worker above the average then.")] = None
    gain_percent: Annotated[int | None, Field("Predicted reduction of the makespan.")] = None
    hold_seconds: Annotated[int | None, Field("Time for which the gain was expected to last.", bits=64)] = None
    benefit_milliseconds: Annotated[int | None, Field("Serving time that would be gained in it.", bits=64)] = None
    cost_milliseconds: Annotated[int | None, Field("Serving time that the moves would cost.", bits=64)] = None
    cost_bytes: Annotated[int | None, Field("Bytes that would be copied.", bits=64)] = None
    moves: Annotated[int | None, Field("Copies that would be made.")] = None


@dataclass(frozen=True)
class PlacementStatus:
    """The last answer of the solver, and the last look at the loads."""

    objective: Annotated[
        int | None,
        Field(
            "Time of the busiest workers over all layers, and the price of moving; 10000 is perfect balance for "
            "nothing.",
            bits=64,
        ),
    ] = None
    bound: Annotated[int | None, Field("Proven lower bound of the objective, in the same unit.", bits=64)] = None
    gap_percent: Annotated[int | None, Field("Distance between the two, in percent of the objective.")] = None
    solved_at: Annotated[datetime | None, Field("When the solver last answered.")] = None
    rebalanced_at: Annotated[datetime | None, Field("When experts were last moved for balance.")] = None
    look_asked: Annotated[
        str | None,
        Field("The annotation `flexpert.io/rebalance-requested-at` as it was when a look last answered it."),
    ] = None
    last_decision: Annotated[
        DecisionStatus | None,
        Field("The last look at whether moving experts for balance pays, and what it led to."),
    ] = None


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of each step of a reconfiguration."""

    start: Annotated[int | None, Field("A worker was waited for. Nothing where one stood by.", bits=64)] = None
    copy: Annotated[int | None, Field("Experts were copied from other workers, or read.", bits=64)] = None
    map: Annotated[int | None, Field("Pages were mapped.", bits=64)] = None
    verify: Annotated[int | None, Field("Checksums were compared.", bits=64)] = None
    populate: Annotated[int | None, Field("The bytes of mapped pages were made reachable.", bits=64)] = None
    warm_up: Annotated[int | None, Field("A row went through each new expert.", bits=64)] = None
    commit: Annotated[int | None, Field("The routing table was stored on workers and given to engines.", bits=64)] = (
        None
    )


@dataclass(frozen=True)
class PredictionStatus:
    """What the pool controller expected of a reconfiguration."""

    moved_bytes: Annotated[int | None, Field("Bytes to be copied.", bits=64)] = None
    duration_milliseconds: Annotated[int | None, Field("Time from its start to its end.", bits=64)] = None
    peak_bytes: Annotated[int | None, Field("Most bytes of experts on a worker.", bits=64)] = None
    waves: Annotated[int | None, Field("Commits that it takes, because not everything fits at once.")] = None


@dataclass(frozen=True)
class ReconfigurationStatus:
    """A reconfiguration."""

    id: Annotated[str | None, Field("Its operation id.")] = None
    cause: Annotated[Cause | None, Field("Why it was done.")] = None
    phase: Annotated[Phase | None, Field("How far it is.")] = None
    moved_experts: Annotated[int | None, Field("Copies that were made.")] = None
    moved_bytes: Annotated[int | None, Field("Bytes that were copied.", bits=64)] = None
    duration_milliseconds: Annotated[
        int | None, Field("Time from its start to its end, or to the last observation.", bits=64)
    ] = None
    attached_experts: Annotated[
        int | None,
        Field("Copies that cost no byte, because the page was in the worker's memory domain already."),
    ] = None
    peak_bytes: Annotated[int | None, Field("Most bytes of experts that a worker held on the way.", bits=64)] = None
    step_milliseconds: Annotated[
        StepTimes | None, Field("Time of each step, on the worker that took longest for it.")
    ] = None
    predicted: Annotated[PredictionStatus | None, Field("What the pool controller expected of it beforehand.")] = None
    message: Annotated[str | None, Field("Why it came to nothing, or what else there is to say.")] = None


@dataclass(frozen=True)
class Status:
    """`status` of a MoEDeployment."""

    observed_generation: Annotated[int | None, Field("Generation of the spec that this status is about.", bits=64)] = (
        None
    )
    conditions: Annotated[
        tuple[ConditionFields, ...] | None,
        Field(
            "What is to be said about it: Ready, Progressing, Degraded, ModelLoaded, Rebalancing, HeadPersistent, "
            "ScaledByPolicy.",
            keys=("type",),
        ),
    ] = None
    selector: Annotated[str | None, Field("Label selector of the expert workers' pods.")] = None
    endpoints: Annotated[Endpoints | None, Field("Where clients reach the ingress.")] = None
    model: Annotated[ModelStatus | None, Field("The checkpoint, and how far its files are on the nodes.")] = None
    engines: Annotated[EnginesStatus | None, Field("The engines.")] = None
    experts: Annotated[ExpertsStatus | None, Field("The expert workers and their experts.")] = None
    placement: Annotated[PlacementStatus | None, Field("The last answer of the solver.")] = None
    last_reconfiguration: Annotated[
        ReconfigurationStatus | None, Field("The running reconfiguration, or the last one.")
    ] = None
