"""Which workers are to be drained, and which drains are to be undone."""

from dataclasses import dataclass

from flexpert_operator.decide.observation import MemberState, Pod, Pool


@dataclass(frozen=True)
class Drains:
    """Ids of the workers to drain, and of those to take back."""

    drain: tuple[str, ...] = ()
    undo: tuple[str, ...] = ()


def decide_drains(pool: Pool, victims: tuple[str, ...], present: tuple[Pod, ...]) -> Drains:
    """Drain every worker of the `victims` (pod names, also of those about to be deleted), and no other.

    Only a pod that is `present`, there to stay, takes its worker back: in one that is being deleted, or is gone
    already while its Ray node still counts as alive, another would be started for nothing.
    """
    staying = {pod.name for pod in present} - set(victims)
    on_victims = [worker for worker in pool.alive if worker.pod in victims]
    on_staying = [worker for worker in pool.alive if worker.pod in staying]
    return Drains(
        drain=tuple(worker.id for worker in on_victims if worker.state is not MemberState.DRAINING),
        undo=tuple(worker.id for worker in on_staying if worker.state is MemberState.DRAINING),
    )
