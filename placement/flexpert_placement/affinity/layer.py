"""The experts of one layer on their workers, with what every move and swap would change in the fan-out, exactly.

The search in `search` asks for the changes of all moves and swaps at once, applies one, and asks again; what a change
touches is updated, nothing is computed anew. An expert is *single* when one replica serves all its load, else *split*:
single ones move and swap here, split ones are laid out by `split`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flexpert_placement.affinity.measure import group_shares
from flexpert_placement.instance import Floats, Ints

Singles = NDArray[np.float32]
SPLIT = -1
"""The worker of an expert that is split between several."""


@dataclass(frozen=True, eq=False)
class Level:
    """Groups of workers whose number per token is minimised: the workers themselves, nodes or zones.

    Attributes:
        weight: Of a group per token.
        groups: [workers] number of each worker's group.
    """

    weight: float
    groups: Ints


class LayerState:
    """A layer's placement and the changes that each move and each swap would bring.

    Attributes:
        home: [experts] worker of each single expert, or `SPLIT`.
        shares: [experts, workers] of every expert's load.
    """

    def __init__(self, rows: Ints, shares: Floats, levels: tuple[Level, ...]) -> None:
        """Set up for tokens `rows` [tokens, k] and a placement `shares` [experts, workers] without NaN."""
        self.shares = shares.copy()
        self.home = home_of(shares)
        self.mask = np.zeros((len(rows), len(shares)), dtype=np.float32)
        np.put_along_axis(self.mask, rows, 1.0, axis=1)
        self._tokens = [np.flatnonzero(column) for column in self.mask.T]
        self._levels = [_LevelState(self, level) for level in levels]

    @property
    def num_tokens(self) -> int:
        """Tokens of the sample."""
        return len(self.mask)

    def cost(self) -> float:
        """Groups per token, by weight."""
        return sum(level.cost() for level in self._levels) / max(self.num_tokens, 1)

    def prices(self) -> Floats:
        """[experts, workers] what a single expert would add on each worker, less what it adds where it is."""
        return np.asarray(sum(level.prices() for level in self._levels) / max(self.num_tokens, 1))

    def swaps(self) -> Floats:
        """[experts, experts] change when two single experts change places; meaningless for split ones."""
        return np.asarray(sum(level.swaps() for level in self._levels) / max(self.num_tokens, 1))

    def split_prices(self, expert: int) -> Floats:
        """[workers] what an expert would add on each worker if all of it were there, whatever it is now."""
        return np.asarray(sum(level.split_prices(expert) for level in self._levels) / max(self.num_tokens, 1))

    def move(self, changes: tuple[tuple[int, int], ...]) -> None:
        """Put single experts on other workers, all at once: (expert, worker) each."""
        touched = np.unique(np.concatenate([self._tokens[expert] for expert, _ in changes]))
        before = self.home.copy()
        for expert, worker in changes:
            self.home[expert] = worker
            self.shares[expert] = 0.0
            self.shares[expert, worker] = 1.0
        for level in self._levels:
            level.update(touched, changes, before)

    def lay_out(self, expert: int, shares: Floats) -> None:
        """Give an expert new shares [workers]."""
        self.shares[expert] = shares
        self.home = home_of(self.shares)
        for level in self._levels:
            level.rebuild()


class _LevelState:
    """One level of a layer: see `LayerState`.

    With n[t, g] the single experts of token t on group g, p[t, g] the probability that its split experts spare g:
    `open` = [n = 0] p; `alone`[t, e] = p where e is the token's only single expert on its group.
    """

    def __init__(self, layer: LayerState, level: Level) -> None:
        self._layer, self._weight, self._groups = layer, level.weight, level.groups
        self._num_groups = int(level.groups.max()) + 1
        self.rebuild()

    def rebuild(self) -> None:
        layer = self._layer
        single = layer.home != SPLIT
        self._group = np.where(single, self._groups[layer.home], 0)
        here = np.zeros((len(layer.home), self._num_groups), dtype=np.float32)
        here[np.flatnonzero(single), self._group[single]] = 1.0
        self._count = layer.mask @ here
        self._spared = np.ones_like(self._count)
        split = group_shares(layer.shares, self._groups).astype(np.float32)
        for expert in np.flatnonzero(~single):
            self._spared *= 1.0 - layer.mask[:, expert, None] * split[expert]
        self._single = single.astype(np.float32)
        self._open = (self._count == 0) * self._spared
        self._alone = self._alone_of(slice(None))
        self._leave = self._alone.sum(axis=0)
        self._enter = layer.mask.T @ self._open
        self._both = self._alone.T @ layer.mask

    def _alone_of(self, rows: Ints | slice) -> Singles:
        alone = (self._count[rows] == 1) * self._spared[rows]
        return np.asarray(self._layer.mask[rows] * alone[:, self._group] * self._single)

    def cost(self) -> float:
        return self._weight * float(self._open.size - self._open.sum(dtype=np.float64))

    def prices(self) -> Floats:
        change = self._enter[:, self._groups] - self._leave[:, None]
        change[self._group[:, None] == self._groups[None, :]] = 0.0
        return np.asarray(self._weight * change, dtype=np.float64)

    def swaps(self) -> Floats:
        one_way = self._enter[:, self._group] - self._leave[:, None] + self._both
        change = one_way + one_way.T
        change[self._group[:, None] == self._group[None, :]] = 0.0
        return np.asarray(self._weight * change, dtype=np.float64)

    def split_prices(self, expert: int) -> Floats:
        layer = self._layer
        rows = layer._tokens[expert]
        count = self._count[rows]
        if layer.home[expert] != SPLIT:
            count = count.copy()
            count[:, self._group[expert]] -= 1
            unused = (count == 0) * self._spared[rows]
        else:
            unused = (count == 0) * self._spared_without(expert, rows)
        return np.asarray(self._weight * unused.sum(axis=0)[self._groups], dtype=np.float64)

    def _spared_without(self, expert: int, rows: Ints) -> Singles:
        layer = self._layer
        shares = group_shares(layer.shares, self._groups).astype(np.float32)
        spared = np.ones((len(rows), self._num_groups), dtype=np.float32)
        for other in np.flatnonzero(layer.home == SPLIT):
            if other != expert:
                spared *= 1.0 - layer.mask[rows, other][:, None] * shares[other]
        return spared

    def update(self, rows: Ints, changes: tuple[tuple[int, int], ...], before: Ints) -> None:
        """Bring up to date what the tokens `rows`, which have an expert of `changes` (expert, worker), count for."""
        mask = self._layer.mask[rows]
        left = self._groups[before[[expert for expert, _ in changes]]]
        come = self._groups[[worker for _, worker in changes]]
        near = np.unique(np.concatenate([left, come]))
        count = self._count[rows[:, None], near]
        for (expert, _), old, new in zip(changes, left, come, strict=True):
            count[:, near == old] -= mask[:, expert, None]
            count[:, near == new] += mask[:, expert, None]
            self._group[expert] = new
        spared = self._spared[rows[:, None], near]
        unused = (count == 0) * spared
        opened = unused - self._open[rows[:, None], near]
        self._count[rows[:, None], near], self._open[rows[:, None], near] = count, unused
        self._enter[:, near] += mask.T @ opened
        members = np.flatnonzero(np.isin(self._group, near) & (self._single > 0))
        lonely = ((count == 1) * spared)[:, np.searchsorted(near, self._group[members])]
        alone = mask[:, members] * lonely
        change = alone - self._alone[rows[:, None], members]
        self._alone[rows[:, None], members] = alone
        self._leave[members] += change.sum(axis=0)
        self._both[members] += change.T @ mask


def home_of(shares: Floats) -> Ints:
    """[experts] the worker that serves all of an expert, or `SPLIT`."""
    return np.where((shares > 1.0 - 1e-9).any(axis=1), shares.argmax(axis=1), SPLIT)
