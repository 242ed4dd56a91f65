"""Which worker computes which (row, expert) pair: pure arithmetic over a routing table, vectorised.

The dispatch client asks `Routes` once per layer. Where an expert has several replicas, few pairs are given to workers
that their rows need anyway (`companions`); many are spread by a low-discrepancy sequence (multiples of the golden
ratio, modulo one). Either way every stretch of an expert's pairs honours the shares closely, and the same calls in the
same order are always split in the same way.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flexpert_workers.dispatch.companions import Companions
from flexpert_workers.routing import Replica, RoutingTable

IntArray = npt.NDArray[np.int64]
NOWHERE = -1
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, eq=False)
class LayerRoutes:
    """The replicas of a layer's experts that may be used.

    Attributes:
        owners: [experts, replicas] position of the worker; `NOWHERE` in every column of an expert without replica.
        bounds: [experts, replicas] upper bounds of the replicas' slices of [0, 1), the last one 1.
    """

    owners: IntArray
    bounds: npt.NDArray[np.float64]

    @classmethod
    def of(cls, replicas: Iterable[Iterable[Replica]]) -> "LayerRoutes":
        """Routes over these replicas per expert; shares are scaled to add up to 1."""
        rows = [tuple(row) for row in replicas]
        width = max((len(row) for row in rows), default=1) or 1
        owners = np.full((len(rows), width), NOWHERE, dtype=np.int64)
        bounds = np.ones((len(rows), width))
        for index, row in enumerate(rows):
            if row:
                owners[index] = [*(replica.worker for replica in row), *[row[-1].worker] * (width - len(row))]
                bounds[index, : len(row) - 1] = _slices(row)[:-1]
        return cls(owners, bounds)

    @property
    def has_choices(self) -> bool:
        """Whether any expert has several replicas."""
        return bool(self.owners.shape[1] > 1)

    def companions(self) -> Companions:
        """The same choices, for few rows."""
        return Companions(self.owners, np.diff(self.bounds, axis=1, prepend=0.0))

    def assign(self, experts: IntArray, seen: IntArray) -> IntArray:
        """Position of the worker for each pair, or `NOWHERE`, whatever rows they are of.

        Args:
            experts: [pairs] expert of each pair.
            seen: [experts] pairs of each expert so far; counted up.
        """
        if not self.has_choices:
            owners: IntArray = self.owners[:, 0][experts]
            return owners
        draws = ((seen[experts] + _ranks(experts)) * _GOLDEN) % 1.0
        seen += np.bincount(experts, minlength=len(seen))
        columns = (draws[:, None] >= self.bounds[experts]).sum(axis=1)
        assigned: IntArray = self.owners[experts, columns]
        return assigned


class _Layer(NamedTuple):
    routes: LayerRoutes
    companions: Companions | None

    @classmethod
    def of(cls, routes: LayerRoutes) -> "_Layer":
        return cls(routes, routes.companions() if routes.has_choices else None)


class Routes:
    """The routes of one table."""

    def __init__(self, table: RoutingTable) -> None:
        self.table = table
        self._layers: dict[tuple[int, frozenset[int], frozenset[tuple[int, int]]], _Layer] = {}
        self._seen: dict[int, IntArray] = {}

    def assign(
        self,
        layer: int,
        experts: IntArray,
        rows: IntArray,
        lost: frozenset[int],
        lacking: frozenset[tuple[int, int]],
    ) -> IntArray:
        """Position of the worker for each pair of a layer, or `NOWHERE`.

        Args:
            layer: 0-based among MoE layers.
            experts: [pairs] expert index of each.
            rows: [pairs] row of each, ascending.
            lost: Positions of workers that cannot be used.
            lacking: (position, expert index) of replicas that are not there, whatever the table says.
        """
        key = (layer, lost, lacking)
        known = self._layers.get(key)
        if known is None:
            known = self._layers[key] = _Layer.of(LayerRoutes.of(self._usable(layer, lost, lacking)))
        if known.companions is not None:
            assigned = known.companions.assign(experts, rows)
            if assigned is not None:
                return assigned
        seen = self._seen.setdefault(layer, np.zeros(self.table.num_experts, dtype=np.int64))
        return known.routes.assign(experts, seen)

    def _usable(self, layer: int, lost: frozenset[int], lacking: frozenset[tuple[int, int]]) -> list[list[Replica]]:
        return [
            [each for each in row if each.worker not in lost and (each.worker, index) not in lacking]
            for index, row in enumerate(self.table.replicas[layer])
        ]


def present(assigned: IntArray) -> list[int]:
    """The positions that occur in what `assign` gave, ascending, without `NOWHERE`."""
    positions: list[int] = np.flatnonzero(np.bincount(assigned - NOWHERE)[1:]).tolist()
    return positions


def _slices(row: tuple[Replica, ...]) -> npt.NDArray[np.float64]:
    """Upper bounds of the replicas' slices; even ones when no share is positive."""
    shares = np.array([replica.share for replica in row], dtype=np.float64)
    if not shares.sum() > 0:
        shares = np.ones(len(row))
    bounds: npt.NDArray[np.float64] = np.cumsum(shares) / shares.sum()
    return bounds


def _ranks(experts: IntArray) -> IntArray:
    """[pairs] how many earlier pairs have the same expert."""
    order = np.argsort(experts, kind="stable")
    ordered = experts[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    ranks = np.empty_like(experts)
    ranks[order] = np.arange(len(experts)) - np.repeat(first, np.diff(first, append=len(experts)))
    return ranks
