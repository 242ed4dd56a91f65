"""From two placements to the plan that leads from one to the other; the operator sends it to the pool controller."""

from collections.abc import Collection

from flexpert_placement.types import Move, Placement, Plan


def make_plan(current: Placement, target: Placement, alive: Collection[str] | None = None) -> Plan:
    """The moves that bring `target` about, by layer, and the replicas that are free to go afterwards.

    Args:
        current: The placement as it stands.
        target: The placement that is wanted, complete.
        alive: Workers that can be copied from; None is every worker of `current`.

    Returns:
        A plan whose sources are the expert's live replicas, those that stay first: they are there to the end.
    """
    moves = []
    for expert, row in sorted(target.items()):
        holders = [worker for worker in current.get(expert, {}) if alive is None or worker in alive]
        sources = tuple(sorted(holders, key=lambda worker: (worker not in row, worker)))
        moves += [Move(expert, worker, sources) for worker in sorted(row) if worker not in current.get(expert, {})]
    drops = tuple(
        (expert, worker)
        for expert, row in sorted(current.items())
        for worker in sorted(row)
        if worker not in target.get(expert, {})
    )
    return Plan(moves=tuple(moves), target=target, drops=drops)
