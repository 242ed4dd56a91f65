"""A device profile from what a live pool measured, and drawn requests that stand for many."""

import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import grpc
import numpy as np
import pytest

from flexpert_operator.autoscale import Observation, PoolCount
from flexpert_operator.cli.main import main
from flexpert_operator.simulate import Device
from flexpert_operator.simulate.arrivals import Lengths, diurnal, poisson, varying
from flexpert_operator.simulate.measure import NothingMeasured, fitted, prefill_price
from flexpert_operator.simulate.serving import Measured, Serving
from flexpert_proto import pool_pb2 as pb
from flexpert_proto import pool_pb2_grpc
from flexpert_proto.measuring import Buckets, Histogram
from flexpert_proto.metrics import SECONDS

TRUE = Device(0.005, 0.0002, 0.004, 0.0011, prefill_price=0.3, skew=0.0)


def seen(sequences: float, prompt: float, workers: int = 3) -> Observation:
    """What a pool of these times measures under so many sequences and prompt tokens in a step."""
    tokens = sequences + TRUE.prefill_price * prompt
    return Observation(
        at=0.0,
        engines=PoolCount(1, 1),
        experts=PoolCount(workers, workers),
        step_sequences=sequences,
        prefill_tokens=prompt,
        engine_step_s=TRUE.engine_step_s + TRUE.engine_token_s * tokens,
        expert_step_s=TRUE.expert_step_s + TRUE.worker_token_s * tokens / workers,
    )


def test_the_profile_of_a_pool_is_found_from_its_steps():
    drawn = np.random.default_rng(0)
    looks = [seen(float(drawn.uniform(1, 80)), float(drawn.uniform(0, 40))) for _ in range(60)]
    found = fitted(looks, Device())
    for name in ("engine_step_s", "engine_token_s", "expert_step_s", "worker_token_s", "prefill_price"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.1), name
    kept = ("layers", "sequences", "worker_start_s")
    assert [getattr(found, name) for name in kept] == [getattr(Device(), name) for name in kept]


def test_what_cannot_be_told_is_as_before():
    steady = [seen(20.0, 5.0) for _ in range(20)]
    assert prefill_price(steady, 0.17) == 0.17
    assert prefill_price(steady[:3], 0.17) == 0.17
    idle = replace(seen(1.0, 0.0), engine_step_s=math.nan)
    with pytest.raises(NothingMeasured, match="send requests"):
        fitted([idle], Device())


def looked_at(device: Device, seconds: float = 240.0, look_s: float = 2.0) -> tuple[list[Observation], list[Histogram]]:
    """A simulated pool under loads that differ, as looks at a live one see it: times in buckets only."""
    arrivals = varying(lambda at: np.where(at % 40 > 20, 12.0, 3.0), 12.0, seconds, Lengths(100.0, 60.0), seed=3)
    serving, looks, answers = Serving(arrivals, device, seed=4), [], []
    for number in range(1, round(seconds / look_s) + 1):
        for step in range(round(look_s / 0.1)):
            serving.advance(look_s * (number - 1) + 0.1 * step, 0.1, 1, 3, 1.0)
        sums, serving.measured = serving.measured, Measured()
        counted = Buckets(SECONDS)
        for time_s in sums.tpot_s:
            counted.observe(time_s)
        answers.append(counted.read())
        steps = sums.steps or math.nan
        looks.append(
            Observation(
                at=look_s * number,
                counters=serving.counters,
                engines=PoolCount(1, 1),
                experts=PoolCount(3, 3),
                step_sequences=sums.sequences / steps,
                prefill_tokens=sums.prefill / steps,
                engine_step_s=sums.engine_s / steps,
                expert_step_s=sums.expert_s / steps,
            )
        )
    return looks, answers


@pytest.mark.parametrize("sigma", [0.0, 0.2, 0.35, 0.6])
def test_the_spread_of_answers_is_found_from_the_buckets_of_their_times(sigma):
    looks, answers = looked_at(replace(TRUE, spread=sigma))
    found = fitted(looks, Device(prefill_price=TRUE.prefill_price), answers)
    assert found.spread == pytest.approx(sigma, abs=0.12 if sigma == 0 else 0.04), "changes within a look count"


def test_a_spread_is_not_told_by_a_few_answers():
    times = Buckets(SECONDS)
    for time_s in (0.01, 0.02, 0.05):
        times.observe(time_s)
    assert fitted([seen(20.0, 5.0)], Device(spread=0.25), [times.read()]).spread == 0.25
    assert fitted([seen(20.0, 5.0)], Device()).spread == 0.0


class _Told(pool_pb2_grpc.PoolControlServicer):
    """A pool controller whose engines make a hundred steps between any two looks."""

    def __init__(self, serves: bool) -> None:
        self._serves, self._looks, self._lock = serves, count(1), threading.Lock()
        self._total = pb.Figures(incarnation="x")

    def GetPool(self, request: pb.GetPoolRequest, context: grpc.ServicerContext) -> pb.Pool:  # noqa: N802
        assert request.with_figures
        with self._lock:
            if self._serves:
                self._step(next(self._looks))
            pool = pb.Pool(figures=self._total)
        pool.engines.add(id="e", state=pb.Engine.READY)
        pool.workers.add(id="w", state=pb.Worker.READY)
        pool.model.CopyFrom(pb.ModelInfo(layers=2, experts=8, expert_bytes=1000))
        return pool

    def _step(self, number: int) -> None:
        sequences = 1 + number * 7 % 30
        told = self._total
        for name, seconds in (("engine_step_seconds", 0.01 + 0.001 * sequences), ("engine_dispatch_seconds", 0.004)):
            told.histograms[name].bounds[:] = [1.0]
            told.histograms[name].counts[:] = [100 * number, 0]
            told.histograms[name].total += 100 * seconds
        answers = told.histograms["ingress_tpot_seconds"]
        answers.bounds[:] = [0.01, 0.02, 0.04]
        answers.counts[:] = [0, 20 * number, 20 * number, 0]
        told.histograms["engine_step_tokens"].bounds[:] = [1000.0]
        told.histograms["engine_step_tokens"].counts[:] = [100 * number, 0]
        told.histograms["engine_step_tokens"].total += 100 * sequences


@pytest.fixture(params=[True, False], ids=["serving", "idle"])
def controller(request: pytest.FixtureRequest) -> Iterator[tuple[str, bool]]:
    server = grpc.server(ThreadPoolExecutor(2))
    pool_pb2_grpc.add_PoolControlServicer_to_server(_Told(request.param), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", request.param
    server.stop(None).wait()


def test_simulate_measures_a_profile_on_a_pool_and_saves_it(controller, tmp_path, capsys):
    address, serves = controller
    saved = tmp_path / "device.json"
    options = ["--profile-from", address, "--profile-seconds", "0.001", "--save-profile", str(saved)]
    code = main(["simulate", "--duration", "60", "--rate", "2", "--arrivals", "poisson", "--scalers", "none", *options])
    assert code == (0 if serves else 1)
    if serves:
        profile = json.loads(saved.read_text())
        assert (profile["layers"], profile["experts"], profile["expert_bytes"]) == (2, 8, 1000)
        assert profile["engine_token_s"] > 0
        assert 0.1 < profile["spread"] < 0.6
    else:
        assert "send requests" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [poisson, diurnal])
def test_drawn_requests_that_stand_for_many_are_as_smooth_as_all_of_them(kind):
    weight = 40.0
    few = kind(400.0, 3600.0, Lengths(), 1, weight, **({"season_s": 3600.0} if kind is diurnal else {}))
    assert len(few) * weight == pytest.approx(400.0 * 3600.0, rel=0.02)
    counts = np.histogram(poisson(400.0, 3600.0, Lengths(), 2, weight).at, bins=60, range=(0, 3600))[0] * weight
    assert counts.std() / counts.mean() < 0.02
    assert few.answer.mean() == pytest.approx(Lengths().answer, rel=0.02)
    assert (np.diff(few.at) >= 0).all()
