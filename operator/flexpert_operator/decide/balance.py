"""How a placement spreads loads over workers, and how sure that is. Pure arithmetic; `rebalancing` and `status` ask."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flexpert_operator.decide.loads import SmoothedLoads
from flexpert_placement.types import Placement, WorkerCapacity


@dataclass(frozen=True, eq=False)
class Spread:
    """A placement as arrays, one entry a replica; `worker` is a position in the list of workers it was made for."""

    layer: NDArray[np.intp]
    expert: NDArray[np.intp]
    worker: NDArray[np.intp]
    share: NDArray[np.float64]
    speeds: NDArray[np.float64]

    @classmethod
    def of(cls, placement: Placement, workers: Sequence[WorkerCapacity]) -> "Spread":
        """Of a placement on these workers; replicas elsewhere count for nothing."""
        position = {worker.id: index for index, worker in enumerate(workers)}
        rows = [
            (expert.layer, expert[1], position[worker], share)
            for expert, row in placement.items()
            for worker, share in row.items()
            if worker in position
        ]
        layer, expert, worker, share = zip(*rows, strict=True) if rows else ((), (), (), ())
        return cls(
            np.asarray(layer, dtype=np.intp),
            np.asarray(expert, dtype=np.intp),
            np.asarray(worker, dtype=np.intp),
            np.asarray(share, dtype=np.float64),
            np.asarray([worker.speed for worker in workers]),
        )

    def times(self, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """[layers, workers] time that each worker needs for its part of `loads` [layers, experts], per second."""
        found = np.zeros((loads.shape[0], len(self.speeds)))
        np.add.at(found, (self.layer, self.worker), self.share * loads[self.layer, self.expert])
        times: NDArray[np.float64] = found / self.speeds
        return times

    def part_of(self, busiest: NDArray[np.intp], shape: tuple[int, ...]) -> NDArray[np.float64]:
        """[layers, experts] the time that a token for each expert costs the layer's worker `busiest` [layers]."""
        found = np.zeros(shape)
        there = busiest[self.layer] == self.worker
        costs = self.share[there] / self.speeds[self.worker[there]]
        np.add.at(found, (self.layer[there], self.expert[there]), costs)
        return found


@dataclass(frozen=True)
class Comparison:
    """What a placement would gain over the present one, as fractions of the present makespan.

    Attributes:
        imbalance: Mean over layers of the busiest worker's time over the average, now; 1.0 is balanced.
        imbalance_then: The same under the other placement.
        gain: Reduction of the makespan, summed over the layers.
        error: Standard error of `gain`, from that of the loads.
        drift: How much of the makespan the other placement could lose in a second, as loads have drifted lately.
    """

    imbalance: float
    imbalance_then: float
    gain: float
    error: float
    drift: float


def compare(known: SmoothedLoads, now: Placement, then: Placement, workers: Sequence[WorkerCapacity]) -> Comparison:
    """What `then` would gain over `now` on `workers` under what is known of the loads.

    Drift is what the workers' times under `then` have shifted between the loads of the slow window and those of the
    fast one, busiest first, over the time that lies between the two.
    """
    loads, present, other = known.loads, Spread.of(now, workers), Spread.of(then, workers)
    before, after = present.times(loads), other.times(loads)
    total = float(before.max(axis=1).sum())
    if total <= 0:
        return Comparison(1.0, 1.0, 0.0, 0.0, 0.0)
    parts = present.part_of(before.argmax(axis=1), loads.shape) - other.part_of(after.argmax(axis=1), loads.shape)
    shift = float(np.abs(after - other.times(known.earlier)).max(axis=1).sum())
    return Comparison(
        imbalance=ratio(before, present.speeds),
        imbalance_then=ratio(after, other.speeds),
        gain=(total - float(after.max(axis=1).sum())) / total,
        error=float(np.sqrt(((parts * known.error) ** 2).sum())) / total,
        drift=shift / total / known.lag_s if known.lag_s > 0 else 0.0,
    )


def ratio(times: NDArray[np.float64], speeds: NDArray[np.float64]) -> float:
    """Mean over the layers that are loaded of the busiest worker's time over the average one; 1.0 without load."""
    average = (times * speeds).sum(axis=1) / speeds.sum() if speeds.size else np.zeros(times.shape[0])
    loaded = average > 0
    return float((times.max(axis=1)[loaded] / average[loaded]).mean()) if loaded.any() else 1.0


def imbalance_of(loads: NDArray[np.float64], placement: Placement, workers: Sequence[WorkerCapacity]) -> float:
    """Mean over layers of the busiest worker's time over the average one under `loads` [layers, experts]."""
    spread = Spread.of(placement, workers)
    return ratio(spread.times(loads), spread.speeds)
