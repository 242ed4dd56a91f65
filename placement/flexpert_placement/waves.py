"""Splits what does not fit at once: while experts move, a worker holds what it had and what it is getting.

A placement that no worker's memory can reach in one step is reached in several waves, each with its own commit. The
pool controller asks for them, for a plan's dry run and when it carries the plan out.
"""

from collections.abc import Mapping
from typing import TypeVar

Expert = TypeVar("Expert", bound=tuple[int, int])


def next_wave(
    current: Mapping[Expert, Mapping[str, float]],
    target: Mapping[Expert, Mapping[str, float]],
    slots: Mapping[str, int],
) -> dict[Expert, Mapping[str, float]]:
    """The placement nearest to `target` that can be reached from `current` in one step.

    Experts that nobody holds come first, and always; then those whose copies find room, in order; the others stay.

    Args:
        current: Expert (layer, index) → live replicas as they are, with their shares.
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
    wave: dict[Expert, Mapping[str, float]] = {}
    for expert in sorted(target, key=lambda one: (bool(current.get(one)), one)):
        row, held = target[expert], current.get(expert, {})
        coming = [worker for worker in row if worker not in held]
        if held and any(free.get(worker, 0) <= 0 for worker in coming):
            wave[expert] = held
            continue
        wave[expert] = row
        for worker in coming:
            free[worker] = free.get(worker, 0) - 1
    moves = any(wave[expert].keys() != current.get(expert, {}).keys() for expert in wave)
    return wave if moves else dict(target)
