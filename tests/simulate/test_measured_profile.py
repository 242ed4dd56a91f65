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
from flexpert_operator.simulate.arrivals import Lengths, diurnal, poisson
from flexpert_operator.simulate.measure import NothingMeasured, fitted, prefill_price
from flexpert_proto import pool_pb2 as pb
from flexpert_proto import pool_pb2_grpc

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
