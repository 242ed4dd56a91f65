"""The exact models agree with trying everything, by both solvers; and a solver that does not end is killed."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pulp
import pytest

from flexpert_placement.bounds import Bounds
from flexpert_placement.evaluate import objective_of
from flexpert_placement.instance import Bools, Instance, instance_of
from flexpert_placement.models import improve_by_programs, run, solve_exactly
from flexpert_placement.models.program import Neighbourhood, build
from flexpert_placement.models.runner import Found
from flexpert_placement.solver import dense_shares, keeps_rules, solve
from flexpert_placement.types import PlacementProblem, SolverName, SolveStatus, Weights, WorkerCapacity

RandomProblem = Callable[..., PlacementProblem]
AllAnswers = Callable[[Instance], Iterator[Bools]]


def value(instance: Instance, held: Bools) -> float:
    return objective_of(instance, dense_shares(instance, list(held)))


@pytest.mark.parametrize("solver", list(SolverName))
@pytest.mark.parametrize("seed", range(6))
def test_the_whole_model_finds_the_best_of_all(
    seed: int, solver: SolverName, random_problem: RandomProblem, all_answers: AllAnswers
) -> None:
    problem = replace(
        random_problem(seed, layers=1, experts=4, workers=3), solver=solver, weights=Weights(move=0.02), seed=seed
    )
    instance = instance_of(problem)
    answers = [value(instance, held) for held in all_answers(instance)]
    empty = Neighbourhood(np.zeros(instance.shape, dtype=bool), np.ones(instance.shape, dtype=bool))
    held, outcome = solve_exactly(instance, empty, instance.even, 60.0, 0.0, lambda: False)
    if not answers:
        assert outcome.found is Found.INFEASIBLE
        return
    assert outcome.found is Found.OPTIMAL
    assert held is not None
    assert keeps_rules(instance, list(held))
    assert outcome.objective == pytest.approx(min(answers), rel=1e-5)
    assert value(instance, held) == pytest.approx(min(answers), rel=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_solved_is_the_best_of_all_or_says_how_far_from_it(
    seed: int, random_problem: RandomProblem, all_answers: AllAnswers
) -> None:
    problem = replace(random_problem(seed + 50, layers=1, experts=4, workers=3), weights=Weights(move=0.02))
    instance = instance_of(problem)
    answers = [value(instance, held) for held in all_answers(instance)]
    if answers:
        result = solve(problem)
        assert result.bound <= min(answers) * (1 + 1e-6)
        assert result.objective >= min(answers) * (1 - 1e-6)
        if result.status is SolveStatus.OPTIMAL:
            assert result.objective <= min(answers) * 1.002


def small(loads: tuple[float, ...], slots: int) -> Instance:
    workers = tuple(WorkerCapacity(f"w{index}", slots * 100) for index in range(3))
    return instance_of(PlacementProblem((loads,), 100, workers))


def test_programs_improve_a_poor_placement_and_prove_it() -> None:
    instance = small((5.0, 4.0, 3.0, 3.0, 2.0, 1.0), 2)
    held = np.zeros((6, 3), dtype=bool)
    held[[0, 1], 0] = held[[2, 3], 1] = held[[4, 5], 2] = True
    layers, proven = improve_by_programs(instance, Bounds(instance), [held], lambda: 240.0, lambda: False)
    assert value(instance, np.stack(layers)) == pytest.approx(6.0)
    assert Bounds(instance).objectives[0] <= proven[0] <= 6.0 + 1e-9


def test_constraints_are_named_as_the_docstring_says() -> None:
    instance = small((5.0, 4.0, 3.0), 2)
    free = Neighbourhood(np.zeros(instance.shape, dtype=bool), np.ones(instance.shape, dtype=bool))
    program, _ = build(instance, free, instance.even)
    kinds = {name.split("_")[0] for name in program.constraints}
    assert kinds == {"serve", "held", "busy", "memory", "fewest", "most", "alike"}
    assert build.__doc__ is not None
    assert all(f"{kind}_" in build.__doc__ for kind in kinds)


@pytest.mark.parametrize("solver", list(SolverName))
def test_a_solver_is_stopped(solver: SolverName) -> None:
    generator = np.random.default_rng(0)
    program = pulp.LpProblem("hard", pulp.LpMinimize)
    x = [pulp.LpVariable(f"x_{n}", cat=pulp.LpBinary) for n in range(60)]
    slack = [pulp.LpVariable(f"s_{row}_{sign}", 0) for row in range(6) for sign in range(2)]
    program += pulp.lpSum(slack)
    for row in range(6):
        weights = [int(weight) for weight in generator.integers(0, 100, len(x))]
        terms = pulp.lpSum(w * one for w, one in zip(weights, x, strict=True))
        program += terms + slack[2 * row] - slack[2 * row + 1] == sum(weights) // 2, f"split_{row}"
    assert run(program, solver, 600.0, stop=lambda: True).found is Found.NOTHING
    short = run(program, solver, 1.0)
    assert short.found in (Found.NOTHING, Found.FEASIBLE)
    assert short.bound is None or short.objective is None or short.bound <= short.objective + 1e-6
