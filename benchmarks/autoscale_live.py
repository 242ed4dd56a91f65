"""The simulator beside a live pool of processes: the same arrivals and decisions; attainment and device-seconds.

`make bench-autoscale-live` starts a pool with one worker, measures its device profile with one worker and with two as
`flexpert simulate --profile-from` does, plays a short trace with a rush in the middle while `autoscale.decide` sizes
the workers, and runs the simulator on the requests that came; five times. Writes `build/bench/autoscale_live.json`.

How load and objectives are chosen: the calm is 0.3 times what one worker can do at most, and the rush 1.4 times it.
The objectives are two and a half times what requests get in the calm, which is over three standard deviations of single
answers away, while in the rush the requests under way, and with them both times, grow every second until a second
worker has come. So what is attained says when the pool had grown and the rush was over, not where a few milliseconds
lie; and the calm afterwards is long enough for the second worker to go.
"""

import argparse
import asyncio
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from common import Aim, aim_of, write_report
from elastic_model import EXPERT_BYTES, NUM_LAYERS, VOCABULARY
from elastic_pool import HOST, SHARED_POD, Pool, ingress_process

from flexpert_operator.autoscale import Policy, PoolCount, Sizes, State, decide
from flexpert_operator.autoscale.fit import Profile
from flexpert_operator.autoscale.policy import Behavior, Bounds, Direction, Objectives
from flexpert_operator.cli.profile import profile_from
from flexpert_operator.decide.measured import Look, observation_of
from flexpert_operator.pool_client import pool_of
from flexpert_operator.simulate import Arrivals, Device, simulate
from flexpert_operator.simulate.arrivals import Lengths, varying
from flexpert_operator.simulate.scalers import Ours
from flexpert_proto import names
from flexpert_proto import pool_pb2 as pb
from flexpert_proto.client import AsyncGenerationClient, GenerationError
from flexpert_proto.pool_pb2_grpc import PoolControlStub
from flexpert_workers import threads
from flexpert_workers.pool.state import Slot

HERE = Path(__file__).parent
EXPERTS, MOST_WORKERS, SEQUENCES = 16, 2, 256
LENGTHS = Lengths(prompt=24.0, answer=24.0, sigma=0.3)
WARM_UP_S, PROFILE_S = 4.0, 60.0
CALM_S, RUSH_S, AFTER_S = 40.0, 10.0, 60.0
CALM, RUSH = 0.3, 1.4
"""Requests, over those that one worker can serve at most."""
TIMES_CALM = 2.5
"""What requests should get, over what they get in the calm."""
FIRST_TOKEN = 4.0
"""What a first token may take, over a further one."""
LOOK_S, DOWN_S, PATIENCE_S = 3.0, 20.0, 30.0
BASE = Device(prefill_tokens=512, sequences=SEQUENCES, layers=NUM_LAYERS, experts=EXPERTS, expert_bytes=EXPERT_BYTES)


@dataclass
class Played:
    """What a live run gave; times in seconds since it began."""

    came: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    device_s: float = 0.0
    changes: int = 0


class Devices:
    """Device-seconds of the engine and of workers, from when they are ordered until they have gone."""

    def __init__(self, workers: int, ends: float) -> None:
        self.workers = workers
        self._ends = ends
        self._since = time.monotonic()
        self.seconds = 0.0

    def note(self, workers: int) -> None:
        """So many workers hold devices from now on."""
        now = min(time.monotonic(), self._ends)
        self.seconds += max(now - self._since, 0.0) * (1 + self.workers)
        self._since, self.workers = now, workers


class Live:
    """The pool, its ingress, and what is asked of them.

    Attributes:
        starts_s: What each new worker took, from its order until it served.
    """

    def __init__(self, pool: Pool, address: str) -> None:
        self._pool, self._address = pool, address
        self._workers = ["slot-0"]
        self._slots = 0
        self.starts_s: list[float] = []

    @property
    def start_s(self) -> float:
        """What a new worker takes."""
        return statistics.median(self.starts_s) if self.starts_s else BASE.worker_start_s

    async def measure(self, arrivals: Arrivals) -> Device:
        """The device profile under these arrivals; in the second half of the time with a second worker."""
        profiling = asyncio.create_task(
            asyncio.to_thread(profile_from, f"{HOST}:{self._pool.port}", arrivals.duration_s, BASE)
        )
        playing = asyncio.create_task(self.play(arrivals, None, BASE.profile()))
        await asyncio.sleep(arrivals.duration_s / 2)
        await self._resize(2, Devices(1, math.inf))
        await playing
        await self._resize(1, Devices(2, math.inf))
        return await profiling

    async def play(self, arrivals: Arrivals, policy: Policy | None, profile: Profile) -> Played:
        """Send requests at their times; with a policy, size the workers by decisions meanwhile."""
        played, began = Played(), time.monotonic()
        async with AsyncGenerationClient(self._address) as client:
            ends = asyncio.create_task(self._size(policy, profile, played, arrivals.duration_s)) if policy else None
            rows = zip(arrivals.at.tolist(), arrivals.prompt.tolist(), arrivals.answer.tolist(), strict=True)
            asked = [asyncio.create_task(self._ask(client, began, *row, played)) for row in rows]
            await asyncio.wait_for(asyncio.gather(*asked), arrivals.duration_s + PATIENCE_S)
            if ends is not None:
                await ends
        return played

    async def _ask(
        self, client: AsyncGenerationClient, began: float, at: float, prompt: int, answer: int, played: Played
    ) -> None:
        await asyncio.sleep(max(began + at - time.monotonic(), 0.0))
        drawn = random.Random(at)
        ids = [drawn.randrange(1, VOCABULARY) for _ in range(prompt)]
        sent, first, tokens = time.monotonic(), math.inf, 0
        try:
            async for piece in client.generate_stream(ids, max_tokens=answer, temperature=0.0, ignore_eos=True):
                first = min(first, time.monotonic()) if piece.tokens else first
                tokens += len(piece.tokens)
        except GenerationError as error:
            raise SystemExit(f"a request failed: {error}") from error
        played.came.append(sent - began)
        played.ttft_s.append(first - sent)
        played.tpot_s.append((time.monotonic() - first) / max(tokens - 1, 1))
        played.prompt.append(prompt)
        played.answer.append(tokens)

    async def _size(self, policy: Policy, profile: Profile, played: Played, seconds: float) -> None:
        """Look, decide and carry out, until the arrivals end."""
        state, before = State.initial(profile), None
        began = time.monotonic()
        devices, wanted = Devices(len(self._workers), began + seconds), len(self._workers)
        resizing = asyncio.create_task(self._resize(wanted, devices))
        async with grpc.aio.insecure_channel(f"{HOST}:{self._pool.port}") as channel:
            stub = PoolControlStub(channel)
            while (now := time.monotonic()) - began < seconds:
                look = Look(time.time(), pool_of(await stub.GetPool(pb.GetPoolRequest(with_figures=True))))
                workers = PoolCount(len(self._workers), devices.workers)
                seen = observation_of(
                    look.at, look, before, PoolCount(1, 1), workers, None, self.start_s, policy.objectives
                )
                decision, state = decide(seen, state, policy)
                before = look
                played.changes += decision.sizes.experts != wanted
                wanted = decision.sizes.experts
                if resizing.done():
                    await resizing
                    resizing = asyncio.create_task(self._resize(wanted, devices))
                await asyncio.sleep(max(now + LOOK_S - time.monotonic(), 0.0))
        await resizing
        devices.note(0)
        played.device_s = devices.seconds

    async def _resize(self, workers: int, devices: Devices) -> None:
        while len(self._workers) < workers:
            self._slots += 1
            name = f"more-{self._slots}"
            devices.note(len(self._workers) + 1)
            change = await self._pool.grow(len(self._workers) + 1, Slot(name, SHARED_POD), peers=True)
            self._workers.append(name)
            self.starts_s.append(change.finished - change.begun)
        while len(self._workers) > workers:
            await self._pool.shrink(self._workers[-1])
            self._workers.pop()
            devices.note(len(self._workers))


def calibration(seed: int, seconds: float) -> Arrivals:
    """Loads that differ, each with long prompts and with short ones, so that a line can be fitted to each."""

    def of(at: np.typing.NDArray[np.float64]) -> np.typing.NDArray[np.float64]:
        return np.choose((at % 15 // 5).astype(int), [1.0, 5.0, 11.0])

    drawn = varying(of, 11.0, seconds, LENGTHS, seed)
    prompt = np.where(drawn.at % 6 > 3, 2 * drawn.prompt, np.maximum(drawn.prompt // 2, 1))
    return replace(drawn, prompt=prompt)


def trace(service: Device, seed: int) -> tuple[Arrivals, Objectives]:
    """A calm, a rush that one worker is too few for, and a calm; and what requests should get."""
    step_s = service.engine_step_s + service.expert_step_s
    tokens = LENGTHS.answer + service.prefill_price * LENGTHS.prompt
    most = 1.0 / ((service.engine_token_s + service.worker_token_s) * tokens)

    def of(at: np.typing.NDArray[np.float64]) -> np.typing.NDArray[np.float64]:
        return most * np.where((at > CALM_S) & (at < CALM_S + RUSH_S), RUSH, CALM)

    tpot_s = TIMES_CALM * step_s / (1.0 - CALM)
    arrivals = varying(of, most * RUSH, CALM_S + RUSH_S + AFTER_S, LENGTHS, seed)
    return arrivals, Objectives(FIRST_TOKEN * tpot_s, tpot_s, percentile=0.9, worker_utilisation=None)


async def measure(checkpoint: Path, seed: int) -> dict[str, Any]:
    """Live, then simulated; a row with both."""
    with ExitStack() as stack:
        pool = Pool(f"file://{checkpoint}", int(NUM_LAYERS * EXPERTS * EXPERT_BYTES * 1.5), stack)
        try:
            _, address = ingress_process(pool.port, stack)
            await pool.start(1)
            live = Live(pool, address)
            await live.play(calibration(seed + 1, WARM_UP_S), None, BASE.profile())
            device = await live.measure(calibration(seed + 1, PROFILE_S))
            arrivals, objectives = trace(device, seed)
            now = Behavior(down=Direction(stabilisation_s=DOWN_S))
            policy = Policy("live", Bounds(1, 1), Bounds(1, MOST_WORKERS), objectives=objectives, experts_behavior=now)
            played = await live.play(arrivals, policy, device.profile())
        finally:
            await pool.stop()
    device = replace(device, worker_start_s=live.start_s, engine_start_s=live.start_s, copy_bytes_s=1e18)
    return {**compared(device, policy, arrivals.duration_s, played), "starts_s": live.starts_s}


def compared(device: Device, policy: Policy, seconds: float, played: Played) -> dict[str, Any]:
    """The simulator on the requests that came, beside what came of them."""
    order = np.argsort(played.came)
    came = Arrivals(
        np.array(played.came)[order], np.array(played.prompt)[order], np.array(played.answer)[order], seconds
    )
    scaler = Ours(Sizes(1, 1), policy, device.profile())
    outcome = simulate(came, device, scaler, policy, look_s=LOOK_S)
    ttft, tpot = np.array(played.ttft_s), np.array(played.tpot_s)
    good = (ttft <= (policy.objectives.ttft_s or math.inf)) & (tpot <= (policy.objectives.tpot_s or math.inf))
    return {
        "requests": len(came),
        "device": {name: getattr(device, name) for name in device.__dataclass_fields__},
        "live": {
            "attainment": float(good.mean()),
            "device_s": played.device_s,
            "ttft_p50_s": float(np.median(ttft)),
            "tpot_p50_s": float(np.median(tpot)),
            "tpot_p90_s": float(np.quantile(tpot, 0.9)),
            "changes": played.changes,
        },
        "simulated": {
            "attainment": outcome.attainment,
            "device_s": outcome.device_hours * 3600,
            "ttft_p50_s": float(np.median(outcome.ttft_s)),
            "tpot_p50_s": float(np.median(outcome.tpot_s)),
            "tpot_p90_s": float(np.quantile(outcome.tpot_s, 0.9)),
            "changes": outcome.transitions,
        },
    }


def said(row: dict[str, Any]) -> str:
    """A row for people."""
    lines = [f"{row['requests']} requests"]
    for which in ("live", "simulated"):
        one = row[which]
        lines.append(
            f"  {which:9} attained {100 * one['attainment']:5.1f} %  device-seconds {one['device_s']:5.0f}  "
            f"TTFT p50 {1000 * one['ttft_p50_s']:4.0f} ms  TPOT p50 {1000 * one['tpot_p50_s']:3.0f} ms  "
            f"p90 {1000 * one['tpot_p90_s']:3.0f} ms  changes {one['changes']}"
        )
    return "\n".join(lines)


def aims_of(rows: list[dict[str, Any]]) -> list[Aim]:
    """How far the simulator is off."""

    def off(name: str) -> list[float]:
        return [abs(row["simulated"][name] / max(row["live"][name], 1e-9) - 1) for row in rows]

    return [
        aim_of("attainment_off", off("attainment"), 0.15, "lower", "part"),
        aim_of("device_seconds_off", off("device_s"), 0.15, "lower", "part"),
    ]


def main() -> None:
    """Write the checkpoint, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ.update(threads.environment(1))
    rows = []
    with tempfile.TemporaryDirectory(prefix="fx-live") as scratch:
        os.environ[names.ENV_CHECKPOINT_CACHE] = str(Path(scratch) / "cache")
        checkpoint = Path(scratch) / "model"
        command = [sys.executable, str(HERE / "elastic_model.py"), str(checkpoint), "--experts", str(EXPERTS)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for repeat in range(options.repeats):
            rows.append(asyncio.run(measure(checkpoint, repeat)))
            print(said(rows[-1]), flush=True)
    write_report("autoscale_live", aims_of(rows), rows, "cpu", ["torch", "transformers", "numpy"])


if __name__ == "__main__":
    main()
