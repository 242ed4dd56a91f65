"""Can the spec be carried out at all? What the schema cannot know: the checkpoint, and whether its experts fit."""

import math
from dataclasses import replace

from flexpert_operator.api.reasons import DegradedReason
from flexpert_operator.api.spec import Experts, Model, MoEDeployment
from flexpert_operator.decide.observation import Inspection, ModelFacts, Observation, Pool, Problem

FETCH_REASONS = {
    "AccessDenied": DegradedReason.MODEL_ACCESS_DENIED,
    "CacheUnusable": DegradedReason.MODEL_CACHE_UNUSABLE,
    "CheckpointNotFound": DegradedReason.MODEL_NOT_FOUND,
    "CorruptCheckpoint": DegradedReason.MODEL_DAMAGED,
    "SourceUnreachable": DegradedReason.MODEL_UNREACHABLE,
}
"""Reasons of what a fetch reports, by the class of its error."""


def change_problem(model: Model, served: Model | None) -> Problem | None:
    """Why a running pool cannot change to another model, or None."""
    if served is None or served == model:
        return None
    return Problem(
        "ModelChangeUnsupported",
        f"spec.model of a running MoEDeployment cannot be changed in this version: {served.source} "
        f"(revision {served.revision}, dtype {served.dtype}) goes on being served; set it back, or make another "
        f"MoEDeployment",
    )


def inspection_problem(inspection: Inspection | None) -> Problem | None:
    """Why the checkpoint was refused, or None."""
    if inspection is None or inspection.pending or inspection.facts is not None:
        return None
    return Problem(inspection.reason, inspection.message)


def fetch_problem(pool: Pool | None) -> Problem | None:
    """Why a node cannot fetch the model, or None; the others serve on."""
    if pool is None or pool.files.phase != "Failed":
        return None
    reason = FETCH_REASONS.get(pool.files.error, DegradedReason.MODEL_FETCH_FAILED)
    return Problem(reason, pool.files.message)


def model_problem(deployment: MoEDeployment, observed: Observation) -> Problem | None:
    """Why `spec.model` cannot be served, or None."""
    return change_problem(deployment.model, observed.bound_model) or inspection_problem(observed.inspection)


def facts_of(observed: Observation) -> ModelFacts | None:
    """What is known of the model that is served or going to be."""
    if observed.inspection is not None and observed.inspection.facts is not None:
        return observed.inspection.facts
    return observed.pool.model if observed.pool is not None and observed.bound_model is not None else None


def fit_problem(experts: Experts, min_replicas: int, facts: ModelFacts | None) -> Problem | None:
    """Why the experts do not fit into the workers asked for, or None.

    A worker keeps room for one expert more than it holds, so that a copy can come before another goes.
    """
    if facts is None or experts.workers == 0:
        return None
    slots = experts.memory_per_worker_bytes // facts.expert_bytes - 1
    needed = facts.num_experts * min_replicas
    if slots * experts.workers >= needed:
        return None
    per_worker = math.ceil(needed / experts.workers) + 1
    mebibytes = math.ceil(per_worker * facts.expert_bytes / 2**20)
    workers = math.ceil(needed / slots) if slots > 0 else None
    instead = f", or spec.experts.workers to at least {round_up(workers, experts.workers_per_pod)}" if workers else ""
    return Problem(
        "ExpertsDoNotFit",
        f"{needed} expert replicas of {facts.expert_bytes} bytes do not fit into {experts.workers} workers, which have "
        f"room for {max(slots, 0)} each beside the free one they keep: raise spec.experts.memoryPerWorker to at least "
        f"{mebibytes}Mi{instead}",
    )


def round_up(number: int, step: int) -> int:
    """The next multiple of `step`."""
    return math.ceil(number / step) * step


def model_to_serve(deployment: MoEDeployment, observed: Observation) -> Model | None:
    """The model whose experts are placed, or the one of the spec once it was found good; None before.

    As long as the spec names the same model, the spec says how pods get at it.
    """
    bound = observed.bound_model
    if bound is not None:
        return replace(bound, access=deployment.model.access) if bound == deployment.model else bound
    facts = observed.inspection.facts if observed.inspection is not None else None
    if facts is None:
        return None
    return replace(deployment.model, resolved=facts.resolved if deployment.model.remote else "")
