"""How evenly tokens were spread over the workers, measured from the pool's own counters and placement. All pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Pair = tuple[int, int]
"""Layer and index of an expert."""


@dataclass(frozen=True)
class Look:
    """The pool at one moment.

    Attributes:
        tokens: Expert → tokens computed since the pool began.
        placement: Expert → worker → share of its tokens.
    """

    time: float
    tokens: Mapping[Pair, int]
    placement: Mapping[Pair, Mapping[str, float]]


@dataclass
class Balance:
    """Looks in the order of time."""

    looks: list[Look] = field(default_factory=list)

    def between(self, start: float, end: float) -> float | None:
        """Busiest worker's tokens over the average of what came in [start, end], mean over layers; 1.0 is balanced.

        By the placement in force at the start. None when fewer than two looks, or no token, lie in between.
        """
        looks = [look for look in self.looks if start <= look.time <= end]
        if len(looks) < 2:
            return None
        first, last = looks[0].tokens, looks[-1].tokens
        came = {pair: count - first.get(pair, 0) for pair, count in last.items()}
        return imbalance(came, looks[0].placement)


def imbalance(tokens: Mapping[Pair, int], placement: Mapping[Pair, Mapping[str, float]]) -> float | None:
    """Busiest worker's tokens over the average, mean over the layers that computed any; None when none did."""
    workers = {worker for row in placement.values() for worker in row}
    ratios = []
    for layer in {layer for layer, _ in tokens}:
        carried = dict.fromkeys(workers, 0.0)
        for pair, count in tokens.items():
            if pair[0] == layer:
                for worker, share in placement.get(pair, {}).items():
                    carried[worker] += count * share
        ratios += ratio(list(carried.values()))
    return sum(ratios) / len(ratios) if ratios else None


def ratio(carried: Sequence[float]) -> list[float]:
    """Most over average, or nothing where nothing was carried."""
    total = sum(carried)
    return [max(carried) * len(carried) / total] if total > 0 else []
