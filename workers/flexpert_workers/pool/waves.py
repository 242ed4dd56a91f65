"""A reconfiguration in as many waves as the targets' memory asks for, each a transaction with its own commit and epoch.

`split` decides, purely; `predict` uses it for the dry run. `Waves` carries them out, one after the other: `operations`
runs one at a time. While a wave is prepared, only the experts that move in it have pages in both placements.
"""

from collections.abc import Callable
from dataclasses import replace

from flexpert_placement.waves import next_wave
from flexpert_workers.pool.exceptions import Committed
from flexpert_workers.pool.reconfigure import Deadlines, Fleet, Transaction
from flexpert_workers.pool.state import ModelFacts, Operation, Phase, Placement, Prediction, Request, Worker
from flexpert_workers.pool.tables import replicas_gone, without_replicas

_MARK = "#"


def wave_id(operation: str, wave: int) -> str:
    """Id under which workers and tables know a wave that more are to follow; the last has the operation's own."""
    return f"{operation}{_MARK}{wave}"


def live_part(placement: Placement, workers: tuple[Worker, ...]) -> Placement:
    """What of a placement is there: replicas that a live worker holds, shares renormalised."""
    held = {worker.id: worker.experts for worker in workers if worker.live}
    return without_replicas(placement, replicas_gone(placement, held))[0]


def split(request: Request, model: ModelFacts, workers: tuple[Worker, ...], base: Placement) -> tuple[Request, ...]:
    """The waves of a request, in order; just itself when it fits, or when it cannot be made to fit.

    Every wave starts from what the one before leads to, once that has been retired. The base epochs are the request's:
    whoever carries a wave out puts the epoch of the table then in force.

    Args:
        request: What is asked for.
        model: Whose experts are placed.
        workers: As they are.
        base: Placement of the table in force.
    """
    current = live_part(base, workers)
    slots = _slots(model, workers, base)
    moves = {(move.expert, move.target): move for move in request.moves}
    waves: list[Request] = []
    while (target := next_wave(current, request.target, slots)) != request.target:
        coming = [
            moves[expert, worker]
            for expert, shares in sorted(target.items())
            for worker in sorted(shares)
            if worker not in current.get(expert, {}) and (expert, worker) in moves
        ]
        waves.append(replace(request, moves=tuple(coming), target=target))
        current = target
    numbered = [replace(wave, operation=wave_id(request.operation, n)) for n, wave in enumerate(waves, start=1)]
    done = {(move.expert, move.target) for wave in waves for move in wave.moves}
    left = tuple(move for move in request.moves if (move.expert, move.target) not in done) if waves else request.moves
    return (*numbered, replace(request, moves=left))


def _slots(model: ModelFacts, workers: tuple[Worker, ...], base: Placement) -> dict[str, int]:
    """Replicas that fit into each live worker beside copies that no table names."""
    slots: dict[str, int] = {}
    for worker in workers:
        if worker.live and worker.state is not None:
            extra = sum(worker.id not in base.get(expert, {}) for expert in worker.experts)
            slots[worker.id] = worker.state.memory_bytes // max(1, model.expert_bytes) - extra
    return slots


class Waves:
    """A reconfiguration under way.

    Attributes:
        request: As it was asked for.
        operation: How the whole of it stands; `on_change` is called whenever that changes.
        waves: Its parts, in order; `operation.wave` counts them from 1.
        busiest_bytes: Bytes that the busiest worker of each wave has copied, summed.
    """

    def __init__(
        self,
        request: Request,
        waves: tuple[Request, ...],
        fleet: Fleet,
        deadlines: Deadlines,
        on_change: Callable[[Operation], None],
        predicted: Prediction | None,
        clock: Callable[[], float],
    ) -> None:
        self.request = request
        self.busiest_bytes = 0
        self.waves = waves
        self._fleet = fleet
        self._deadlines = deadlines
        self._on_change = on_change
        self._clock = clock
        self._current = self._transaction(waves[0])
        self._before = replace(self._current.operation, id=request.operation, predicted=predicted)
        self.operation = self._before

    async def run(self) -> Operation:
        """Carry it out; returns how it ended."""
        for number, wave in enumerate(self.waves, start=1):
            if number > 1:
                self._current = self._transaction(replace(wave, base_epoch=self._fleet.epoch()))
            await self._current.run()
            self.busiest_bytes += self._current.busiest_bytes
            stopped = self._current.interruption
            if self._current.operation.phase is not Phase.SUCCEEDED or number == len(self.waves):
                break
            if stopped is not None:
                self._end(stopped[0], stopped[1])
                break
            self._before = replace(self.operation, wave=number + 1)
        return self.operation

    def cancel(self, reason: str) -> None:
        """End it before its next commit.

        Raises:
            Committed: The last wave has committed.
        """
        if self._current.committed and self.operation.wave == len(self.waves):
            raise Committed(f"operation {self.request.operation} has committed and rolls forward")
        self._current.interrupt(Phase.CANCELLED, reason)

    def preempt(self, reason: str) -> None:
        """Make way for recovery: what has not committed rolls back, what has is retired by the recovery."""
        self._current.interrupt(Phase.ROLLED_BACK, reason)

    @property
    def current(self) -> Transaction:
        """The wave that runs, or ran last."""
        return self._current

    def workers(self) -> frozenset[str]:
        """Workers that hold something in the end, or are given something on the way."""
        return self.request.workers() | self._current.request.workers()

    def _transaction(self, wave: Request) -> Transaction:
        return Transaction(wave, self._fleet, self._deadlines, self._note, monotonic=self._clock)

    # ---- progress

    def _note(self, wave: Operation) -> None:
        """Add how the present wave stands to what the waves before it came to."""
        before, more = self._before, self._before.wave < len(self.waves)
        phase = Phase.RETIRE if wave.phase is Phase.SUCCEEDED and more else wave.phase
        seconds, steps = dict(before.phase_seconds), dict(before.step_seconds)
        for name, value in wave.phase_seconds.items():
            seconds[name] = seconds.get(name, 0.0) + value
        for name, value in wave.step_seconds.items():
            steps[name] = max(steps.get(name, 0.0), value) if name == "start" else steps.get(name, 0.0) + value
        peaks = {
            name: max(wave.peak_bytes.get(name, 0), before.peak_bytes.get(name, 0))
            for name in wave.peak_bytes.keys() | before.peak_bytes.keys()
        }
        self._change(
            replace(
                before,
                phase=phase,
                epoch=wave.epoch or before.epoch,
                moved_experts=before.moved_experts + wave.moved_experts,
                moved_bytes=before.moved_bytes + wave.moved_bytes,
                attached_experts=before.attached_experts + wave.attached_experts,
                message="; ".join(filter(None, [before.message, self._where(wave), wave.message])),
                finished_at=wave.finished_at if phase.finished else None,
                phase_seconds=seconds,
                step_seconds=steps,
                peak_bytes=peaks,
            )
        )

    def _where(self, wave: Operation) -> str:
        """Which wave came to nothing, where there are several; those before it stand."""
        undone = wave.phase.finished and wave.phase is not Phase.SUCCEEDED
        return f"in wave {self._before.wave} of {len(self.waves)}" if undone and len(self.waves) > 1 else ""

    def _end(self, phase: Phase, reason: str) -> None:
        done = f"after wave {self.operation.wave} of {len(self.waves)}"
        ended = replace(self.operation, phase=phase, message="; ".join(filter(None, [done, reason])))
        self._change(replace(ended, finished_at=self._current.operation.finished_at))

    def _change(self, operation: Operation) -> None:
        self.operation = operation
        self._on_change(operation)
