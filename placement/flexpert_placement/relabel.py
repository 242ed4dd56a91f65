"""Which worker takes which part of a layer, so that as little as can be has to be copied.

A placement made from nothing does not say which of several like workers is which. `construction` asks here.
"""

import numpy as np

from flexpert_placement.instance import Bools, Floats, Ints

LARGE = 24
"""More workers than this are assigned by SciPy, which takes a moment to import."""


def nearest_places(held: Bools, current: Bools, speeds: Floats) -> Ints:
    """[workers] which column of `held` [experts, workers] each worker takes to keep most of what it holds.

    Only workers of one speed change places.
    """
    kept = current.astype(np.float64).T @ held
    forbidden = speeds[:, None] != speeds[None, :]
    return assign(np.where(forbidden, float(kept.max() + 1) * len(speeds), -kept))


def assign(costs: Floats) -> Ints:
    """[n] the column of each row of `costs` [n, n] with which the sum is least (Kuhn, Munkres)."""
    if len(costs) > LARGE:
        from scipy.optimize import linear_sum_assignment

        return np.asarray(linear_sum_assignment(costs)[1])
    return _assign_small(costs)


def _assign_small(costs: Floats) -> Ints:
    """Shortest augmenting paths by reduced costs, a row at a time; column n stands for the row that looks for one."""
    size = len(costs)
    row_price, column_price = np.zeros(size), np.zeros(size + 1)
    row_of = np.full(size + 1, -1)
    for row in range(size):
        row_of[size] = row
        column = size
        least = np.full(size, np.inf)
        before = np.full(size, size)
        seen = np.zeros(size + 1, dtype=bool)
        while row_of[column] >= 0:
            seen[column] = True
            at = row_of[column]
            reduced = costs[at] - row_price[at] - column_price[:size]
            better = ~seen[:size] & (reduced < least)
            least[better] = reduced[better]
            before[better] = column
            column = int(np.argmin(np.where(seen[:size], np.inf, least)))
            step = least[column]
            row_price[row_of[seen]] += step
            column_price[seen] -= step
            least[~seen[:size]] -= step
        while column != size:
            row_of[column] = row_of[before[column]]
            column = int(before[column])
    result = np.empty(size, dtype=np.int64)
    result[row_of[:size]] = np.arange(size)
    return result
