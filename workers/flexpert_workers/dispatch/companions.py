"""Which replicas few rows use: those on workers that a row's other experts are on anyway, so that fewer are asked.

`Routes` asks it where a dispatch has few pairs with a choice, as in generating tokens; a loop over them is then as
quick as array arithmetic. Every expert keeps an account of what each of its replicas is owed: a pair adds the shares,
and whoever computes it gives 1 back. So long as no account falls below -`CREDIT`, a replica on a worker that the row
needs is taken; else the one that is owed most (smooth weighted round robin). So the pairs that a replica has had never
differ from its share by more than `CREDIT` times the number of the expert's other replicas, however many there were.
"""

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

CREDIT = 4.0
"""Pairs that a replica may have had beyond its share."""

MOST_PAIRS = 96
"""Pairs with a choice, above which array arithmetic is quicker."""

_OPEN = -2
"""Stands for the worker of a pair that has a choice."""


class Account:
    """What the replicas of one expert are owed.

    Attributes:
        workers: Position of each replica's worker.
    """

    def __init__(self, workers: tuple[int, ...], shares: tuple[float, ...]) -> None:
        self.workers = workers
        self._shares = shares
        self._owed = [0.0] * len(workers)

    def add_pair(self) -> None:
        """Somebody has to compute one more pair."""
        for column, share in enumerate(self._shares):
            self._owed[column] += share

    def take(self, needed: Collection[int]) -> int | None:
        """The worker in `needed` that is owed most gives 1 back, if any may; None otherwise."""
        best, most = None, 1.0 - CREDIT
        for column, worker in enumerate(self.workers):
            if worker in needed and self._owed[column] >= most:
                best, most = column, self._owed[column]
        return None if best is None else self._give_back(best)

    def take_most_wanted(self, wanted: Mapping[int, int]) -> int:
        """The most wanted worker of those that may gives 1 back, of several the one that is owed most."""
        best, most, owed = 0, -1, 0.0
        for column, worker in enumerate(self.workers):
            mine, wants = self._owed[column], wanted[worker]
            if mine >= 1.0 - CREDIT and (wants > most or (wants == most and mine > owed)):
                best, most, owed = column, wants, mine
        return self._give_back(best)

    def take_most_owed(self) -> int:
        """The worker that is owed most gives 1 back."""
        return self._give_back(self._owed.index(max(self._owed)))

    def _give_back(self, column: int) -> int:
        self._owed[column] -= 1.0
        return self.workers[column]


class Companions:
    """The choices of one layer.

    Args:
        owners: [experts, replicas] position of each replica's worker.
        shares: [experts, replicas] of the expert's pairs; 0 where there is no such replica, or it is a spare one.
    """

    def __init__(self, owners: IntArray, shares: npt.NDArray[np.float64]) -> None:
        used = shares > 1e-9
        self._only = owners[np.arange(len(owners)), used.argmax(axis=1)]
        self._only[used.sum(axis=1) > 1] = _OPEN
        self._accounts = {
            int(expert): Account(
                tuple(owners[expert, used[expert]].tolist()), tuple(shares[expert, used[expert]].tolist())
            )
            for expert in np.flatnonzero(self._only == _OPEN)
        }

    def assign(self, experts: IntArray, rows: IntArray) -> IntArray | None:
        """Position of the worker for each pair; None where there are more than `MOST_PAIRS` with a choice.

        Args:
            experts: [pairs] expert of each.
            rows: [pairs] row of each, ascending.
        """
        owners: IntArray = self._only[experts]
        chosen = np.flatnonzero(owners == _OPEN)
        if len(chosen) > MOST_PAIRS:
            return None
        known = owners.tolist()
        for pairs, first, end in _by_row(chosen, rows):
            self._choose(known, [(pair, int(experts[pair])) for pair in pairs], first, end)
        return np.array(known, dtype=np.int64)

    def _choose(self, known: list[int], pairs: list[tuple[int, int]], first: int, end: int) -> None:
        """Enter workers for `pairs` (position, expert) of the row that stands from `first` to `end` in `known`."""
        needed, rest = set(known[first:end]), list[tuple[int, Account]]()
        for pair, expert in pairs:
            account = self._accounts[expert]
            account.add_pair()
            worker = account.take(needed)
            if worker is None:
                rest.append((pair, account))
            else:
                known[pair] = worker
        if len(rest) == 1:
            known[rest[0][0]] = rest[0][1].take_most_owed()
        elif rest:
            _choose_together(known, rest)


def _choose_together(known: list[int], rest: list[tuple[int, Account]]) -> None:
    """One after the other takes the worker that the row has come to need, else the one that most of them could use."""
    common: dict[int, int] = {}
    for _, account in rest:
        for worker in account.workers:
            common[worker] = common.get(worker, 0) + 1
    for pair, account in rest:
        worker = account.take_most_wanted(common)
        common[worker] += len(rest)
        known[pair] = worker


def _by_row(chosen: IntArray, rows: IntArray) -> Iterator[tuple[list[int], int, int]]:
    """(its pairs among `chosen`, where the row begins, where it ends) of every row that has any."""
    theirs = rows[chosen]
    firsts = np.flatnonzero(np.diff(theirs, prepend=-1))
    begins = np.searchsorted(rows, theirs[firsts]).tolist()
    ends = np.searchsorted(rows, theirs[firsts], side="right").tolist()
    pairs, bounds = chosen.tolist(), [*firsts.tolist(), len(chosen)]
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        yield pairs[bounds[number] : bounds[number + 1]], begin, end
