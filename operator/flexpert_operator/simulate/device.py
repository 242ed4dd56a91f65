"""What a simulated engine and worker can do, and how long they take to come. Measured from a live pool, or given."""

import json
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flexpert_operator.autoscale.fit import Profile, Service
from flexpert_placement.solver import solve
from flexpert_placement.types import PlacementProblem, WorkerCapacity

Floats = NDArray[np.float64]


class InvalidDevice(ValueError):
    """A file does not describe a device; the message says what is wrong with it."""


@dataclass(frozen=True)
class Device:
    """A device profile. Times in seconds, sizes in bytes.

    Attributes:
        engine_step_s: Of an engine's step without a token (α).
        engine_token_s: Of each token in it (β).
        expert_step_s: Waiting for workers in a step without a token (α').
        worker_token_s: Of each token, were there one worker (γ).
        prefill_price: What a prompt token weighs, a generated one being 1 (φ).
        prefill_tokens: Prompt tokens in one engine's step at most.
        sequences: That one engine generates for at once, at most.
        engine_start_s: From a decision to an engine that serves.
        worker_start_s: From a decision to a worker that can be filled.
        restart_s: Of an engine group that changes its size by starting anew.
        layers: MoE layers of the model.
        experts: Of a layer.
        expert_bytes: Of one expert.
        copy_bytes_s: Into one worker.
        copy_slows: Part by which everybody's steps are longer while experts are copied to workers that come.
        least_workers: That hold all experts once.
        spare: Slots of a worker beyond those that it needs when there are `least_workers`, as a fraction.
        skew: Exponent of the experts' loads by rank.
        spread: How unlike each other answers are under the same load: the standard deviation of the logarithm of an
            answer's time per token over what its load makes expected.
    """

    engine_step_s: float = 0.008
    engine_token_s: float = 0.00007
    expert_step_s: float = 0.006
    worker_token_s: float = 0.0004
    prefill_price: float = 0.1
    prefill_tokens: int = 2048
    sequences: int = 256
    engine_start_s: float = 15.0
    worker_start_s: float = 8.0
    restart_s: float = 120.0
    layers: int = 4
    experts: int = 64
    expert_bytes: int = 17 << 20
    copy_bytes_s: float = 2e9
    copy_slows: float = 0.1
    least_workers: int = 1
    spare: float = 0.25
    skew: float = 0.5
    spread: float = 0.0

    def service(self) -> Service:
        """As the queueing model has it."""
        return Service(
            self.engine_step_s + self.expert_step_s,
            self.engine_token_s,
            self.worker_token_s,
            self.prefill_price,
            self.prefill_tokens,
            self.sequences,
        )

    def profile(self, error: float = 1.0) -> Profile:
        """What an operator expects beforehand: times `error` times the true ones."""
        return Profile(
            self.engine_step_s * error,
            self.engine_token_s * error,
            self.expert_step_s * error,
            self.worker_token_s * error,
            self.prefill_price,
            self.prefill_tokens,
            self.sequences,
        )

    def imbalance(self, workers: int) -> float:
        """The busiest worker's load over the average one, under the placement that the planner makes for so many."""
        return _planned(self, max(min(workers, MOST_PLANNED, self.experts), 1))

    def scatter(self, requests: int, seed: int) -> Floats:
        """[requests] what each one's times are over the expected ones: log-normal of σ `spread`, with mean 1.

        The mean is 1 and not the median, since the times of steps that a profile holds are means.
        """
        drawn = np.random.default_rng([seed, 1]).standard_normal(requests)
        return np.asarray(np.exp(self.spread * drawn - self.spread**2 / 2))

    def fill_s(self, workers: int) -> float:
        """Copying to a new worker all that it will hold among so many."""
        replicas = self.layers * self.experts * (1 + self.spare) / max(workers, 1)
        return replicas * self.expert_bytes / self.copy_bytes_s


MOST_PLANNED = 32
"""Workers for which placements are made; with more, or with more than experts, the imbalance is that of so many."""


@lru_cache(maxsize=4096)
def _planned(device: Device, number: int) -> float:
    if number < 2:
        return 1.0
    loads = np.arange(1, device.experts + 1, dtype=np.float64) ** -device.skew
    slots = int(np.ceil(device.experts * (1 + device.spare) / number))
    problem = PlacementProblem(
        loads=(tuple(loads.tolist()),),
        expert_bytes=1,
        workers=tuple(WorkerCapacity(f"w{position}", slots) for position in range(number)),
        time_limit_s=0.5,
    )
    return max(solve(problem).imbalance, 1.0)


def read_device(path: Path | str) -> Device:
    """A device profile from JSON, whose keys are `Device`'s attributes; those that are left out are the default's.

    Raises:
        InvalidDevice: It cannot be read, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InvalidDevice(f"cannot read {path}: {error}") from error
    known = {field.name for field in fields(Device)}
    if not isinstance(content, dict) or not content.keys() <= known:
        raise InvalidDevice(f"{path} has to be an object with keys out of {', '.join(sorted(known))}")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in content.values()):
        raise InvalidDevice(f"{path}: every value has to be a number")
    if any(value < 0 for value in content.values()):
        raise InvalidDevice(f"{path}: no value may be below 0")
    return replace(Device(), **content)


def to_json(device: Device) -> str:
    """What `read_device` reads."""
    return json.dumps(asdict(device), indent=2)
