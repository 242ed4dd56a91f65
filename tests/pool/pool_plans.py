"""Plans as the operator makes them: from what the pool's controller tells."""

from flexpert_workers.pool.controller import PoolController
from flexpert_workers.pool.state import Cause, Move, Placement, Request


def plan(controller: PoolController, name: str, target: Placement, cause: Cause) -> Request:
    """What leads to `target` from what the workers hold; every expert's last source is the file."""
    held = controller.fleet.held()
    moves = tuple(
        Move(expert, worker, (*sorted(one for one in held if expert in held[one]), ""))
        for expert, shares in target.items()
        for worker in shares
        if expert not in held.get(worker, frozenset())
    )
    return Request(name, cause, controller.keeper.epoch, moves, target)
