"""Which workers are to be drained, and which drains are to be undone."""

from dataclasses import dataclass

from flexpert_operator.decide.observation import MemberState, Pool


@dataclass(frozen=True)
class Drains:
    """Ids of the workers to drain, and of those to take back."""

    drain: tuple[str, ...] = ()
    undo: tuple[str, ...] = ()


def decide_drains(pool: Pool, victims: tuple[str, ...]) -> Drains:
    """Drain every worker of the `victims` (pod names, also of those about to be deleted), and no other."""
    on_victims = [worker for worker in pool.alive if worker.pod in victims]
    elsewhere = [worker for worker in pool.alive if worker.pod not in victims]
    return Drains(
        drain=tuple(worker.id for worker in on_victims if worker.state is not MemberState.DRAINING),
        undo=tuple(worker.id for worker in elsewhere if worker.state is MemberState.DRAINING),
    )
