"""Events: each step of a reconfiguration, workers that were lost, and changes of conditions. Each is told once."""

from collections.abc import Iterable, Mapping
from typing import Any

from flexpert_operator.api.conditions import DEGRADED, MODEL_LOADED, PROGRESSING, READY, REBALANCING, Condition
from flexpert_operator.api.reasons import EventReason, LoadedReason
from flexpert_operator.decide.observation import Cluster, Event, MemberState, Operation, Phase, Pod, Pool

STEPS = (Phase.PREPARE, Phase.COMMIT, Phase.RETIRE, Phase.SUCCEEDED)
"""The phases that a reconfiguration goes through when all is well; a later one implies the earlier ones."""

OWN_STEPS = {
    "Provisioning": "Provisioned",
    "Deprovisioning": "Deprovisioned",
    "Replenishing": "Replenished",
    "RollingOut": "RolledOut",
}
"""The operator's own steps, as the reasons of the condition Progressing, and the Events that tell of their ends."""


def operation_events(told_id: str | None, told_phase: str | None, operation: Operation | None) -> tuple[Event, ...]:
    """The steps of `operation` that were not told yet.

    Args:
        told_id: Id of the operation in the status.
        told_phase: Its phase there.
        operation: As the pool controller has it.
    """
    if operation is None:
        return ()
    before = Phase(told_phase) if told_id == operation.id and told_phase else Phase.PENDING
    if before is operation.phase:
        return ()
    if operation.phase in STEPS:
        first = STEPS.index(before) + 1 if before in STEPS else 0
        return tuple(step_event(operation, phase) for phase in STEPS[first : STEPS.index(operation.phase) + 1])
    return (undone_event(operation),) if operation.phase is not Phase.PENDING else ()


def step_event(operation: Operation, phase: Phase) -> Event:
    """What to say of a step, with its duration where it is known."""
    durations = {name.lower(): seconds for name, seconds in operation.phase_seconds.items()}
    if phase is Phase.SUCCEEDED:
        moved = f"{operation.moved_experts} experts, {operation.moved_bytes} bytes moved"
        took = f" in {(operation.finished_at or operation.started_at) - operation.started_at:.3f} s"
        return Event(
            "ReconfigurationSucceeded", f"{operation.cause} {operation.id}: {moved}{took}", operation=operation.id
        )
    seconds = durations.get(phase.lower())
    took = f" took {seconds:.3f} s" if seconds is not None else " has begun"
    message = f"{operation.cause} {operation.id}: {phase.lower()}{took}"
    return Event(f"Reconfiguration{phase}", message, operation=operation.id)


def undone_event(operation: Operation) -> Event:
    """What to say of an operation that came to nothing."""
    return Event(
        f"Reconfiguration{operation.phase}",
        f"{operation.cause} {operation.id}: {operation.message or 'the old placement stands'}",
        warning=True,
        operation=operation.id,
    )


def worker_events(before: Pool | None, after: Pool | None) -> tuple[Event, ...]:
    """Workers that served when they were last seen and are lost or gone now."""
    if before is None or after is None:
        return ()
    alive = {worker.id for worker in after.alive}
    return tuple(
        Event(
            "WorkerLost", f"worker {worker.id} on pod {worker.pod} was lost; its experts are placed anew", warning=True
        )
        for worker in before.workers
        if worker.state is MemberState.READY and worker.id not in alive
    )


def leaving_events(before: Cluster | None, after: Cluster | None) -> tuple[Event, ...]:
    """Expert pods that are about to go and were not when they were last seen."""
    known = {pod.name for pod in before.experts.pods if pod.leaving} if before is not None else set()
    pods = after.experts.pods if after is not None else ()
    return tuple(
        Event("WorkerLeaving", f"pod {pod.name} loses its experts before it goes: {pod.leaving}", warning=True)
        for pod in pods
        if pod.leaving and pod.name not in known
    )


def waiting_events(before: Cluster | None, after: Cluster | None) -> tuple[Event, ...]:
    """Pods that found no node or cannot be started, and of which that was not known when they were last seen."""
    known = {pod.name for pod in pods_of(before) if pod.unschedulable or pod.failing}
    return tuple(
        Event(reason, f"pod {pod.name}: {pod.message}", warning=True)
        for pod in pods_of(after)
        for reason, holds in (
            (EventReason.POD_UNSCHEDULABLE, pod.unschedulable),
            (EventReason.POD_FAILING, pod.failing),
        )
        if holds and pod.name not in known
    )


def pods_of(cluster: Cluster | None) -> tuple[Pod, ...]:
    """Pods of both groups that are there to stay."""
    return (*cluster.experts.present, *cluster.engines.present) if cluster is not None else ()


def condition_events(old: Iterable[Mapping[str, Any]], new: Iterable[Condition]) -> tuple[Event, ...]:
    """Changes of Ready, Progressing, Degraded and ModelLoaded that a user wants to be told."""
    before = {condition["type"]: (condition["status"], condition["reason"]) for condition in old}
    events, now = [], tuple(new)
    degraded = any(condition.type == DEGRADED and condition.status == "True" for condition in now)
    for condition in now:
        changed = before.get(condition.type) != (str(condition.status), condition.reason)
        if changed and condition.type == READY and condition.status == "True":
            events.append(Event("Ready", condition.message))
        if changed and condition.type == DEGRADED and condition.status == "True":
            events.append(Event(condition.reason, condition.message, warning=True))
        begins = condition.status == "True" and before.get(REBALANCING, ("", ""))[0] != "True"
        if condition.type == REBALANCING and begins:
            events.append(Event("Rebalancing", condition.message))
        if changed and condition.type == MODEL_LOADED and condition.reason == LoadedReason.SOURCE_CHANGED:
            events.append(Event(EventReason.MODEL_SOURCE_CHANGED, condition.message, warning=True))
        if changed and condition.type == PROGRESSING:
            events += own_step_events(before.get(PROGRESSING, ("", ""))[1], condition, degraded)
    return tuple(events)


def own_step_events(old_reason: str, condition: Condition, degraded: bool) -> list[Event]:
    """The operator's own steps that end and begin when Progressing changes its reason; failures tell of themselves."""
    events = []
    interrupted = old_reason == "Replenishing" and condition.status == "True"
    if old_reason in OWN_STEPS and old_reason != condition.reason and not degraded and not interrupted:
        events.append(Event(OWN_STEPS[old_reason], f"now: {condition.message}"))
    if condition.reason in OWN_STEPS and old_reason != condition.reason:
        events.append(Event(condition.reason, condition.message))
    return events
