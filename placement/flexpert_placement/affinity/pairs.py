"""Affinity where only pairs are known: how many tokens choose both of two experts, but not which tokens.

`improve` searches a `PairState` in place of a `layer.LayerState` then. What the search maximises is the pairs that are
together: a worker that has n experts of a token has n (n - 1) / 2 of its pairs, and spares it n - 1 other workers.
"""

import numpy as np

from flexpert_placement.affinity.layer import SPLIT, LayerState, Level, home_of
from flexpert_placement.affinity.measure import group_shares
from flexpert_placement.affinity.moments import experts_per_token, without_diagonal
from flexpert_placement.instance import Floats


class PairState:
    """A layer's placement and the changes that each move and swap would bring, as `layer.LayerState` has them.

    Costs are pairs of a token's experts that are not together, per token and by the levels' weights.

    Attributes:
        home: [experts] worker of each single expert, or `SPLIT`.
        shares: [experts, workers] of every expert's load.
    """

    def __init__(self, pairs: Floats, shares: Floats, levels: tuple[Level, ...]) -> None:
        """Set up for `pairs` [experts, experts] of the layer and a placement `shares` without NaN."""
        self.shares = shares.copy()
        self.home = home_of(shares)
        self._levels = levels
        tokens = np.trace(pairs) / experts_per_token(pairs)
        self._pairs = without_diagonal(pairs) / max(tokens, 1e-300)

    def cost(self) -> float:
        """Pairs that are apart, per token."""
        return 0.5 * sum(
            level.weight
            * float(self._pairs.sum() - (self._near(level) * group_shares(self.shares, level.groups)).sum())
            for level in self._levels
        )

    def prices(self) -> Floats:
        """[experts, workers] what a single expert would add on each worker, less what it adds where it is."""
        there = self._weighted()
        here = np.take_along_axis(there, np.where(self.home == SPLIT, 0, self.home)[:, None], axis=1)
        return np.asarray(here - there)

    def swaps(self) -> Floats:
        """[experts, experts] change when two single experts change places; meaningless for split ones."""
        home = np.where(self.home == SPLIT, 0, self.home)
        one_way = self.prices()[:, home]
        change = one_way + one_way.T
        for level in self._levels:
            apart = level.groups[home][:, None] != level.groups[home][None, :]
            change += 2.0 * level.weight * self._pairs * apart
        return np.asarray(change)

    def split_prices(self, expert: int) -> Floats:
        """[workers] what an expert would add on each worker if all of it were there, but for a constant."""
        return np.asarray(-self._weighted()[expert])

    def move(self, changes: tuple[tuple[int, int], ...]) -> None:
        """Put single experts on other workers, all at once: (expert, worker) each."""
        for expert, worker in changes:
            self.home[expert] = worker
            self.shares[expert] = 0.0
            self.shares[expert, worker] = 1.0

    def lay_out(self, expert: int, shares: Floats) -> None:
        """Give an expert new shares [workers]."""
        self.shares[expert] = shares
        self.home = home_of(self.shares)

    def _together(self, level: Level) -> float:
        return float((self._near(level) * group_shares(self.shares, level.groups)).sum())

    def _near(self, level: Level) -> Floats:
        """[experts, groups] pairs that each expert has there."""
        return np.asarray(self._pairs @ group_shares(self.shares, level.groups))

    def _weighted(self) -> Floats:
        """[experts, workers] pairs that each expert has with what is on each worker, by the levels' weights."""
        return np.asarray(sum(level.weight * self._near(level)[:, level.groups] for level in self._levels))


State = LayerState | PairState
"""What is searched in one layer."""
