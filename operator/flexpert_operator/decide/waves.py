"""Splits what does not fit at once: while experts move, a worker holds what it had and what it is getting.

A placement that no worker's memory can reach in one step is reached in several, each a reconfiguration of its own with
its own commit. `placing` asks for the next step; the reconciliation after it asks again.
"""

from collections.abc import Mapping

from flexpert_placement.types import ExpertId, Placement


def next_wave(current: Placement, target: Placement, slots: Mapping[str, int]) -> Placement:
    """The placement nearest to `target` that can be reached from `current` in one reconfiguration.

    Experts that nobody holds come first, and always; then those whose copies find room, in order; the others stay.

    Args:
        current: Live replicas as they are.
        target: Where to go; names every expert.
        slots: Replicas that fit into each worker, whatever it holds.

    Returns:
        A complete placement; `target` itself when it fits, or when not a single step does.
    """
    free = dict(slots)
    for row in current.values():
        for worker in row:
            if worker in free:
                free[worker] -= 1
    wave: dict[ExpertId, Mapping[str, float]] = {}
    for expert in sorted(target, key=lambda one: (bool(current.get(one)), one)):
        row, held = target[expert], current.get(expert, {})
        coming = [worker for worker in row if worker not in held]
        if held and any(free.get(worker, 0) <= 0 for worker in coming):
            wave[expert] = held
            continue
        wave[expert] = row
        for worker in coming:
            free[worker] = free.get(worker, 0) - 1
    return wave if any(dict(wave[expert]) != dict(current.get(expert, {})) for expert in wave) else target
