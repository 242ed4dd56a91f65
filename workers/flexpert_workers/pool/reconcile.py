"""One worker per slot: which to start, which to stop, which are dead, which serve and which stand by. Pure.

`caretaker` calls `reconcile` on every round, `roles` calls `decide_roles` whenever a worker changes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from flexpert_workers.pool.state import Condition, LaunchedWorker, Slot, Worker

_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 30.0


@dataclass(frozen=True)
class SlotFailures:
    """How often in a row workers of a slot have failed to come up, and when the last one did (controller's clock)."""

    count: int
    at: float

    @property
    def retry_at(self) -> float:
        """When the next worker may be started there: the delay doubles with each failure."""
        return self.at + min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** (self.count - 1))


@dataclass(frozen=True)
class Actions:
    """What to do about workers.

    Attributes:
        start: Slots that need a worker now.
        stop: Drained workers that hold nothing and can end; one that starts holds nothing yet.
        emptied: Workers that were lost while they drained: they count as stopped, and their slots stay empty.
        vanished: Workers whose process is gone, or that have not come up and whose slot is gone.
        forget: Workers whose slot is gone and that matter no more.
    """

    start: tuple[Slot, ...] = ()
    stop: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()


def reconcile(
    slots: Sequence[Slot],
    launched: Sequence[LaunchedWorker],
    workers: Collection[Worker],
    named: Collection[str],
    failures: Mapping[str, SlotFailures],
    now: float,
    lost_kept_s: float,
) -> Actions:
    """Decide from what the launcher lists and what is known of the workers.

    A worker that the table in force names (`named`) is neither stopped nor forgotten; a lost one stays listed
    for `lost_kept_s`. `failures` is by slot; a slot without one, or whose `retry_at` has passed, may be filled.
    """
    there = {slot.id for slot in slots}
    return Actions(
        start=_to_start(slots, launched, workers, failures, now),
        stop=tuple(worker.id for worker in workers if _drained(worker) and worker.id not in named),
        emptied=tuple(worker.id for worker in workers if _emptied(worker) and worker.id not in named),
        vanished=_vanished(launched, workers, there),
        forget=tuple(
            worker.id
            for worker in workers
            if worker.id not in named and not _emptied(worker) and _forgotten(worker, there, now, lost_kept_s)
        ),
    )


def decide_roles(
    workers: Collection[Worker], named: Collection[str], wanted: int | None, domains: Collection[str] = ()
) -> Mapping[str, Condition]:
    """Who is to change between READY and STANDBY so that `wanted` workers serve; the others stand by, empty.

    Those that `named` names (they hold experts, or are about to) serve whatever the number is: a surplus of them ends
    by draining, not here. Of the others the ones that serve already go on; then come standbys, those of `domains`
    first. Workers that drain, start or are lost have no role.

    Args:
        workers: All that are known.
        named: Ids of workers of the table in force and of the running operation.
        wanted: Workers that are to serve; None: all.
        domains: Page owners whose pages nobody serves now; a worker beside them attaches instead of copying.
    """
    able = [worker for worker in workers if worker.condition in (Condition.READY, Condition.STANDBY)]
    spare = sorted(
        (worker for worker in able if worker.id not in named),
        key=lambda one: (one.condition is Condition.STANDBY, one.domain not in domains, one.ready_at or 0.0, one.id),
    )
    vacant = len(spare) if wanted is None else max(0, wanted - (len(able) - len(spare)))
    serving = {worker.id for worker in able if worker.id in named} | {worker.id for worker in spare[:vacant]}
    roles = {worker.id: Condition.READY if worker.id in serving else Condition.STANDBY for worker in able}
    return {worker.id: roles[worker.id] for worker in able if roles[worker.id] is not worker.condition}


def _to_start(
    slots: Sequence[Slot],
    launched: Sequence[LaunchedWorker],
    workers: Collection[Worker],
    failures: Mapping[str, SlotFailures],
    now: float,
) -> tuple[Slot, ...]:
    taken = {one.slot for one in launched}
    keeping = (worker for worker in workers if worker.leaving or worker.condition is not Condition.LOST)
    taken |= {worker.slot.id for worker in keeping if worker.slot}
    return tuple(
        slot
        for slot in slots
        if slot.id not in taken and (slot.id not in failures or failures[slot.id].retry_at <= now)
    )


def _drained(worker: Worker) -> bool:
    starting = worker.begun_here and worker.state is None and not worker.stopped
    return worker.condition is Condition.DRAINING and (worker.live or starting) and not worker.experts


def _emptied(worker: Worker) -> bool:
    return worker.condition is Condition.LOST and worker.leaving


def _vanished(
    launched: Sequence[LaunchedWorker], workers: Collection[Worker], slot_ids: Collection[str]
) -> tuple[str, ...]:
    running = {one.worker for one in launched}
    return tuple(
        worker.id
        for worker in workers
        if worker.condition is not Condition.LOST
        and not worker.stopped
        and (worker.id not in running or _is_stranded(worker, slot_ids))
    )


def _is_stranded(worker: Worker, slot_ids: Collection[str]) -> bool:
    """It was begun in a slot whose pod went meanwhile, and will not come up."""
    return worker.state is None and worker.slot is not None and worker.slot.id not in slot_ids


def _forgotten(worker: Worker, slot_ids: set[str], now: float, lost_kept_s: float) -> bool:
    if worker.lost_at is not None:
        return now - worker.lost_at >= lost_kept_s
    return worker.stopped and (worker.slot is None or worker.slot.id not in slot_ids)
