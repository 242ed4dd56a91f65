"""The simulator against arithmetic, and scalers in it."""

import math
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np
import pytest

from flexpert_operator.autoscale import Observation, Policy, Sizes
from flexpert_operator.autoscale.cost import GrowthCost
from flexpert_operator.autoscale.fit import ServiceFit
from flexpert_operator.autoscale.policy import Behavior, Bounds, Direction, Objectives
from flexpert_operator.autoscale.queueing import Demand, expected, need
from flexpert_operator.simulate import Arrivals, Device, simulate
from flexpert_operator.simulate.arrivals import InvalidArrivals, Lengths, bursty, diurnal, poisson, read_csv, write_csv
from flexpert_operator.simulate.pools import LEAVING_S, Pool
from flexpert_operator.simulate.scalers import ColdRestart, Fixed, Hpa, Oracle, Ours
from flexpert_operator.simulate.serving import Serving

EVEN = Device(skew=0.0)
LENGTHS = Lengths(400.0, 100.0)
POLICY = Policy(
    "simulated",
    engines=Bounds(1, 16),
    experts=Bounds(1, 40),
    objectives=Objectives(ttft_s=0.5, tpot_s=0.05),
    engines_behavior=Behavior(down=Direction(stabilisation_s=300.0)),
    experts_behavior=Behavior(down=Direction(stabilisation_s=300.0)),
)


def requests(*rows: tuple[float, int, int]) -> Arrivals:
    at, prompt, answer = (np.array(column) for column in zip(*rows, strict=True))
    return Arrivals(at.astype(np.float64), prompt, answer, 60.0)


def test_one_request_alone_takes_what_the_profile_says():
    serving = Serving(requests((1.0, 300, 101)), EVEN)
    for step in range(600):
        serving.advance(step * 0.01, 0.01, 1, 1, 1.0)
    device = EVEN
    empty_s, token_s = device.engine_step_s + device.expert_step_s, device.engine_token_s + device.worker_token_s
    assert serving.first_at[0] - 1.0 == pytest.approx(empty_s + 300 * device.prefill_price * token_s), "no step to wait"
    assert serving.ended_at[0] - serving.first_at[0] == pytest.approx(100 * (empty_s + token_s), rel=0.03)
    assert serving.is_over
    assert serving.counters.finished_tokens == 101


def test_who_comes_while_a_step_is_made_waits_half_of_it_on_average():
    decoding = [(0.0, 1, 100_000)] * 40
    serving = Serving(requests(*decoding, (5.03, 300, 2)), EVEN)
    for step in range(60):
        serving.advance(step * 0.1, 0.1, 1, 1, 1.0)
    token_s = EVEN.engine_token_s + EVEN.worker_token_s
    step_s = EVEN.engine_step_s + EVEN.expert_step_s + 40 * token_s
    read_s = step_s + 300 * EVEN.prefill_price * token_s
    assert serving.first_at[40] - 5.03 == pytest.approx(0.5 * step_s + read_s)
    assert serving.tpot_s[40] == pytest.approx(step_s, rel=0.05), "from its first token on, whatever the grid"


@pytest.mark.parametrize("grid_s", [0.1, 0.004])
def test_what_prompts_cost_the_others_does_not_depend_on_the_grid(grid_s):
    rows = [(0.0, 1, 1000), *((0.5 + 0.25 * number, 1000, 1) for number in range(40))]
    serving = Serving(requests(*rows), EVEN)
    for step in range(round(40 / grid_s)):
        serving.advance(step * grid_s, grid_s, 1, 1, 1.0)
    token_s = EVEN.engine_token_s + EVEN.worker_token_s
    step_s = EVEN.engine_step_s + EVEN.expert_step_s + token_s
    read_s = 40 * 1000 * EVEN.prefill_price * token_s
    assert serving.ended_at[0] - serving.first_at[0] == pytest.approx(999 * step_s + read_s, rel=0.02)


def test_a_spread_scatters_times_as_the_log_normal_formula_says():
    rows = [(2.0 * number, 10, 21) for number in range(2000)]
    arrivals = replace(requests(*rows), duration_s=4000.0)
    even, again, other, scattered = (
        simulate(arrivals, replace(EVEN, spread=sigma), Fixed(Sizes(1, 1)), POLICY, seed=seed)
        for sigma, seed in ((0.0, 0), (0.3, 1), (0.3, 2), (0.3, 1))
    )
    assert np.ptp(even.tpot_s) < 0.02 * even.tpot_s.mean()
    assert (scattered.tpot_s == again.tpot_s).all()
    assert (scattered.ttft_s == again.ttft_s).all()
    assert (scattered.tpot_s != other.tpot_s).any()
    assert scattered.tpot_s.mean() == pytest.approx(even.tpot_s.mean(), rel=0.02)
    assert scattered.device_hours == even.device_hours
    for limit in (0.8, 1.0, 1.3):
        objectives = Objectives(ttft_s=None, tpot_s=limit * float(np.median(even.tpot_s)))
        judged = simulate(
            arrivals, replace(EVEN, spread=0.3), Fixed(Sizes(1, 1)), replace(POLICY, objectives=objectives)
        )
        assert judged.attainment == pytest.approx(NormalDist().cdf((math.log(limit) + 0.3**2 / 2) / 0.3), abs=0.03)


def test_requests_queue_without_members_and_beyond_the_sequences_of_an_engine():
    serving = Serving(requests((0.0, 10, 50), (0.0, 10, 50), (0.0, 10, 50)), replace(EVEN, sequences=2))
    serving.advance(0.0, 0.1, 0, 4, 1.0)
    assert (serving.queued, serving.running, serving.queued_tokens) == (3, 0, 30)
    serving.advance(0.1, 0.1, 1, 4, 1.0)
    assert (serving.queued, serving.running) == (1, 2)
    for step in range(2, 60):
        serving.advance(0.1 * step, 0.1, 1, 4, 1.0)
    assert serving.is_over
    assert serving.ended_at[2] > serving.ended_at[0] + 0.5


@pytest.mark.parametrize(("engines", "workers"), [(1, 4), (2, 6), (3, 12)])
def test_steps_take_as_long_as_the_queueing_model_expects(engines, workers):
    arrivals = poisson(20.0, 900.0, LENGTHS)
    outcome = simulate(arrivals, EVEN, Fixed(Sizes(engines, workers)), POLICY)
    seconds = arrivals.duration_s
    demand = Demand(arrivals.prompt.sum() / seconds, arrivals.answer.sum() / seconds, len(arrivals) / seconds)
    service = EVEN.service()
    at_half, at_most = (
        expected(service, demand, part, 1.0, np.array([float(engines)]), np.array([float(workers)]))
        for part in (0.5, 0.99)
    )
    assert np.median(outcome.tpot_s) == pytest.approx(at_half.tpot_s[0], rel=0.1)
    assert np.quantile(outcome.tpot_s, 0.99) == pytest.approx(at_most.tpot_s[0], rel=0.2)


def test_each_request_may_stand_for_several():
    many = simulate(poisson(40.0, 600.0, LENGTHS), EVEN, Fixed(Sizes(2, 9)), POLICY)
    few = simulate(poisson(10.0, 600.0, LENGTHS), EVEN, Fixed(Sizes(2, 9)), POLICY, weight=4.0)
    assert np.median(few.tpot_s) == pytest.approx(np.median(many.tpot_s), rel=0.1)
    assert few.device_hours == many.device_hours == pytest.approx(11 * 600 / 3600)


def test_the_warm_up_counts_for_nothing():
    arrivals = poisson(10.0, 400.0, LENGTHS)
    outcome = simulate(arrivals, EVEN, Fixed(Sizes(1, 4)), POLICY, warm_up_s=100.0)
    assert len(outcome.attained) == int((arrivals.at >= 100.0).sum()) == len(outcome.ttft_s)
    assert outcome.device_hours == pytest.approx(5 * 300 / 3600, rel=0.01)


def test_members_come_late_and_hold_their_devices_while_they_go():
    pool = Pool(2)
    pool.set_size(4, 10.0, 8.0)
    assert (pool.count().ready, pool.count().existing) == (2, 4)
    pool.set_size(3, 12.0, 8.0)
    pool.advance(17.9)
    assert pool.count().ready == 2
    pool.advance(18.0)
    assert (pool.count().ready, pool.count().existing) == (3, 3)
    pool.set_size(1, 20.0, 8.0)
    assert (pool.count().ready, pool.count().existing) == (1, 3)
    pool.advance(20.0 + LEAVING_S)
    assert pool.count().existing == 1
    assert not pool.is_changing


@dataclass
class Grows(Fixed):
    """Grows after 300 s, and learns what that cost."""

    cost: GrowthCost = field(default_factory=GrowthCost)
    sizes: Sizes = field(default_factory=lambda: Sizes(2, 8))

    def decide(self, observation: Observation) -> tuple[Sizes, str]:
        self.cost = self.cost.updated(observation, self.sizes, ServiceFit.of(EVEN.profile()), POLICY)
        self.sizes = replace(self.sizes, experts=12 if observation.at > 300 else 8)
        return self.sizes, ""


@pytest.mark.parametrize("slows", [0.0, 0.25])
def test_copying_makes_steps_longer_and_that_is_what_growing_costs(slows):
    device = replace(EVEN, copy_slows=slows, worker_start_s=0.0)
    device = replace(device, copy_bytes_s=device.copy_bytes_s * device.fill_s(12) / 60)
    scaler = Grows(Sizes(2, 8))
    outcome = simulate(poisson(20.0, 600.0, LENGTHS), device, scaler, POLICY)
    while_copying = np.median(outcome.tpot_s[(outcome.at > 315) & (outcome.at < 355)])
    before = np.median(outcome.tpot_s[(outcome.at > 200) & (outcome.at < 300)])
    lost_s = 60 * (2 + 8) * (1 - 1 / (1 + slows))
    assert scaler.cost.device_s == pytest.approx(lost_s / 4, rel=0.25, abs=3.0)
    assert while_copying / before == pytest.approx(1 + slows, abs=0.15)


@pytest.mark.parametrize("kind", [poisson, bursty, diurnal])
def test_our_policy_keeps_the_objectives_within_the_budget(kind):
    arrivals = kind(12.0, 3600.0, LENGTHS, **({"season_s": 3600.0} if kind is diurnal else {}))
    policy = replace(POLICY, devices=20)
    outcome = simulate(arrivals, Device(), Ours(Sizes(3, 8), policy, Device().profile(1.3)), policy)
    assert outcome.attainment > 0.95
    assert outcome.most_devices <= 20
    assert np.isfinite(outcome.tpot_s).all()
    assert outcome.transitions < 60


def test_the_oracle_needs_fewer_devices_than_a_pool_for_the_peak():
    arrivals = diurnal(12.0, 3600.0, LENGTHS, season_s=3600.0)
    oracle = simulate(arrivals, EVEN, Oracle(Sizes(1, 2), POLICY, arrivals, EVEN, 60.0), POLICY)
    fixed = simulate(arrivals, EVEN, Fixed(Sizes(2, 6)), POLICY)
    assert oracle.attainment > 0.98
    assert oracle.device_hours < fixed.device_hours


def test_hpa_comes_to_its_target_and_a_cold_restart_stops_service():
    arrivals = poisson(15.0, 1800.0, LENGTHS)
    hpa = simulate(arrivals, EVEN, Hpa(Sizes(2, 8), POLICY, 0.3), POLICY)
    assert hpa.attainment > 0.98
    assert hpa.experts[-1] < 8
    restart = ColdRestart(Ours(Sizes(3, 20), POLICY, EVEN.profile()), 120.0, 240.0)
    stopped = simulate(arrivals, EVEN, restart, POLICY)
    assert stopped.transitions >= 1
    assert np.max(stopped.ttft_s) > 100.0


def test_a_queueing_model_that_cannot_keep_up_says_so():
    policy = replace(POLICY, devices=4)
    found = need(EVEN.service(), Demand(1e6, 1e6, 1e3), policy, 1.0, (16, 40))
    assert not found.is_enough
    assert found.engines + found.experts == 4
    never = expected(EVEN.service(), Demand(1e6, 1e6, 1e3), 0.99, 1.0, np.array([1.0]), np.array([1.0]))
    assert math.isinf(never.ttft_s[0])


def test_scaling_arrivals_scales_their_number():
    arrivals = poisson(5.0, 400.0, LENGTHS)
    assert len(arrivals.scaled(1.3)) == pytest.approx(1.3 * len(arrivals), abs=1)
    assert (np.diff(arrivals.scaled(2.5).at) >= 0).all()


def test_arrivals_come_back_from_a_file_and_azure_timestamps_are_read(tmp_path):
    arrivals = poisson(5.0, 100.0, LENGTHS)
    write_csv(tmp_path / "a.csv", arrivals)
    back = read_csv(tmp_path / "a.csv")
    assert np.allclose(back.at, arrivals.at - arrivals.at[0])
    assert (back.prompt == arrivals.prompt).all()
    (tmp_path / "b.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:04.0799600,4808,10\n2023-11-16 18:17:03.9799600,3180,8\n"
    )
    azure = read_csv(tmp_path / "b.csv")
    assert azure.at.tolist() == pytest.approx([0.0, 0.1], abs=1e-5)
    assert azure.answer.tolist() == [8, 10]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,2\n", ""])
def test_files_without_arrivals_are_refused(tmp_path, text):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(InvalidArrivals):
        read_csv(tmp_path / "bad.csv")
