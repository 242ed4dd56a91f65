"""What has no answer is refused with the constraint that makes it so and the smallest change that helps."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from flexpert_placement.instance import Bools, Instance, instance_of
from flexpert_placement.solver import solve
from flexpert_placement.types import (
    Budget,
    ExpertId,
    InfeasiblePlacement,
    PlacementProblem,
    WorkerCapacity,
)

RandomProblem = Callable[..., PlacementProblem]
AllAnswers = Callable[[Instance], Iterator[Bools]]


def workers(*slots: int) -> tuple[WorkerCapacity, ...]:
    return tuple(
        WorkerCapacity(f"w{index}", count * 100, failure_domain=f"d{index % 2}") for index, count in enumerate(slots)
    )


EIGHT = PlacementProblem(((1.0,) * 8,), 100, workers(4, 4))
THERE = {ExpertId(0, index): {"w0": 1.0} for index in range(6)}


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (replace(EIGHT, workers=()), "at least 1"),
        (replace(EIGHT, workers=workers(4, 3)), "short by 100 bytes"),
        (replace(EIGHT, min_replicas=3), "need as many workers and there are 2"),
        (replace(EIGHT, min_replicas=2), "short by 800 bytes"),
        (replace(EIGHT, min_failure_domains=3, workers=workers(8, 8, 8)), "in 1 more"),
        (replace(EIGHT, pinned={ExpertId(0, 1): frozenset({"gone"})}), "pinned to gone"),
        (
            replace(EIGHT, pinned={ExpertId(0, index): frozenset({"w0"}) for index in range(5)}),
            "take 1 pins away or give it 100 bytes more",
        ),
        (
            replace(EIGHT, max_replicas=1, pinned={ExpertId(0, 1): frozenset({"w0", "w1"})}),
            "needs 2 replicas .* may have 1",
        ),
        (
            replace(EIGHT, replica_bounds={ExpertId(0, 3): (3, 3)}, workers=workers(8, 8, 0)),
            "on different workers.* 100 bytes more",
        ),
        (replace(EIGHT, workers=workers(8, 8), current=THERE, budget=Budget(moves=1)), "2 replicas .* budget is 1"),
        (replace(EIGHT, workers=workers(8, 8), current=THERE, budget=Budget(bytes=150)), "raise it by 50 bytes"),
        (replace(EIGHT, workers=workers(8, 8), current=THERE, budget=Budget(moves_per_layer=1)), "layer 0 needs 2"),
    ],
)
def test_refusals(problem: PlacementProblem, message: str) -> None:
    with pytest.raises(InfeasiblePlacement, match=message):
        solve(problem)


@pytest.mark.parametrize("seed", range(60))
def test_what_is_refused_has_no_answer_and_what_has_one_is_placed(
    seed: int, random_problem: RandomProblem, all_answers: AllAnswers
) -> None:
    problem = random_problem(seed, layers=1, experts=4, workers=3)
    has_answer = next(all_answers(instance_of(problem)), None) is not None
    if has_answer:
        solve(problem)
    else:
        with pytest.raises(InfeasiblePlacement):
            solve(problem)
