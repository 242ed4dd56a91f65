"""Random placement problems, and all their answers where they are small."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from flexpert_placement.instance import Bools, Instance
from flexpert_placement.types import ExpertId, PlacementProblem, WorkerCapacity

EXPERT_BYTES = 100


def _random_problem(seed: int, layers: int = 2, experts: int = 6, workers: int = 4) -> PlacementProblem:
    """A problem with uneven workers, a placement that is there, bounds, pins and failure domains, at random."""
    generator = np.random.default_rng(seed)
    slots = generator.integers(layers * experts // workers, layers * experts + 2, workers)
    capacities = tuple(
        WorkerCapacity(
            f"w{index}",
            int(slots[index]) * EXPERT_BYTES + 30,
            speed=float(generator.choice([1.0, 1.0, 2.0])),
            failure_domain=f"d{index % 3}",
        )
        for index in range(workers)
    )
    everyone = [ExpertId(layer, index) for layer in range(layers) for index in range(experts)]
    known = generator.random() < 0.5
    some = [everyone[int(at)] for at in generator.integers(len(everyone), size=2)]
    return PlacementProblem(
        loads=tuple(tuple(map(float, row)) for row in generator.gamma(0.8, size=(layers, experts)) + 0.01),
        expert_bytes=EXPERT_BYTES,
        workers=capacities,
        current={e: {f"w{int(generator.integers(workers + 1))}": 1.0} for e in everyone} if known else {},
        min_replicas=int(generator.choice([1, 1, 2])),
        max_replicas=None if generator.random() < 0.7 else 2,
        replica_bounds={some[0]: (1, 3)} if generator.random() < 0.3 else {},
        min_failure_domains=int(generator.choice([1, 1, 2])),
        pinned={some[1]: frozenset({f"w{int(generator.integers(workers))}"})} if generator.random() < 0.3 else {},
        time_limit_s=600.0,
        seed=seed,
    )


def _all_answers(instance: Instance) -> Iterator[Bools]:
    """Every [1, E, W] placement of a problem of one layer that keeps its rules, budgets aside."""
    _, experts, workers = instance.shape
    sets = [np.array(row, dtype=bool) for row in itertools.product((False, True), repeat=workers) if any(row)]
    options = [
        [
            row
            for row in sets
            if max(1, instance.fewest[0, e]) <= row.sum() <= instance.most[0, e]
            and (row | ~instance.pinned[0, e]).all()
            and len(np.unique(instance.domains[row])) >= instance.problem.min_failure_domains
        ]
        for e in range(experts)
    ]
    for rows in itertools.product(*options):
        held = np.stack(rows)
        if (held.sum(axis=0) <= instance.slots).all():
            yield held[None]


@pytest.fixture
def random_problem() -> Callable[..., PlacementProblem]:
    """(seed, layers, experts, workers) → a problem with uneven workers and all kinds of rules."""
    return _random_problem


@pytest.fixture
def all_answers() -> Callable[[Instance], Iterator[Bools]]:
    """Problem of one layer → every placement that keeps its rules."""
    return _all_answers
