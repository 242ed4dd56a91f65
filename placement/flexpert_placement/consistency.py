"""How predictable routing is: local routing consistency of a trace, and how far loads drift between two.

`flexpert plan` prints both for a trace, and the operator shows them in status for a sample of the live traffic. The
consistency metrics are those of Liang et al., "Not All Models Suit Expert Offloading: On Local Routing Consistency of
Mixture-of-Expert Models", arXiv 2505.16056.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flexpert_placement.trace import Floats, Ints, RoutingTrace


@dataclass(frozen=True)
class Consistency:
    """Local routing consistency at one segment length; means over the layers.

    Attributes:
        segment: Tokens m of a segment.
        srp: Segment routing best performance: the best F1 score of a router that must choose the same experts for a
            whole segment.
        srp_size: Experts that this router activates on average, over those that the real one does (ρ̂).
        sch: Segment cache best hit rate: hits of a cache of `cache_ratio` × k experts that drops those that the next
            m tokens use least (the paper's later versions).
        sch_segment: The same for a cache that may change between segments only, and then holds what the segment uses
            most (the paper's first version; much cheaper to compute).
        cache_ratio: Size ρ of the cache, in units of the experts a token chooses.
    """

    segment: int
    srp: float
    srp_size: float
    sch: float
    sch_segment: float
    cache_ratio: float


@dataclass(frozen=True, eq=False)
class Drift:
    """How different the loads of two traces are.

    Attributes:
        distance: [layers] share of the load that is on other experts (total variation), 0 to 1.
        correlation: [layers] of the experts' loads.
    """

    distance: Floats
    correlation: Floats

    @property
    def mean_distance(self) -> float:
        """Mean over the layers."""
        return float(self.distance.mean())

    @property
    def mean_correlation(self) -> float:
        """Mean over the layers."""
        return float(self.correlation.mean())


def consistency(trace: RoutingTrace, segment: int = 16, cache_ratio: float = 2.0) -> Consistency:
    """SRP and SCH of each layer's experts as a group, averaged over the layers.

    Every position at which a segment of m tokens fits into its sequence counts. With f the tokens of a segment that
    activate an expert, SRP is the maximum over α of 2 Σ_{f ≥ α} f / Σ (m [f ≥ α] + f) (equation 6 of the paper).

    Args:
        trace: The tokens: a few thousand are enough, at some 0.2 ms each.
        segment: m, at least 1.
        cache_ratio: ρ, at least 1.

    Raises:
        ValueError: No sequence is as long as a segment.
    """
    cache = min(round(cache_ratio * trace.top_k), trace.num_experts)
    parts = []
    for layer in range(trace.num_layers):
        histogram, cached = _segment_counts(trace, layer, segment, cache)
        parts.append((*_best_f1(histogram, segment), cached / (histogram @ np.arange(segment + 1))))
    srp, size, kept = np.mean(np.array(parts), axis=0)
    hits = sum(_hits(trace.experts[part], trace.num_experts, segment, cache) for part in trace.sequences())
    return Consistency(segment, float(srp), float(size), float(hits / trace.experts.size), float(kept), cache_ratio)


def drift(before: Floats, after: Floats) -> Drift:
    """Compare two loads [layers, experts] of the same model."""
    shares = [loads / np.maximum(loads.sum(axis=1, keepdims=True), 1e-300) for loads in (before, after)]
    distance = 0.5 * np.abs(shares[0] - shares[1]).sum(axis=1)
    return Drift(distance, _correlation(*shares))


def _segment_counts(trace: RoutingTrace, layer: int, segment: int, cache: int) -> tuple[Ints, float]:
    """([segment + 1] segments and experts by activations, activations that the caches have), all sequences together."""
    mask = trace.chosen(layer)
    histogram = np.zeros(segment + 1, dtype=np.int64)
    cached = 0.0
    for part in trace.sequences():
        sums = np.cumsum(mask[part], axis=0)
        if len(sums) < segment:
            continue
        counts = sums[segment - 1 :].copy()
        counts[1:] -= sums[:-segment]
        histogram += np.bincount(counts.astype(np.int64).ravel(), minlength=segment + 1)
        cached += float(-np.partition(-counts, cache - 1, axis=1)[:, :cache].sum(dtype=np.float64))
    if not histogram.any():
        raise ValueError(f"no sequence of the trace has {segment} tokens: choose a shorter segment")
    return histogram, cached


def _hits(experts: Ints, num_experts: int, segment: int, cache: int) -> int:
    """Activations of one sequence [tokens, layers, k] that an oracle cache of `cache` experts a layer has.

    A token loads the experts that the cache lacks, in place of as many that it does not need itself: those that the
    next `segment` tokens use least, and of these the ones used longest ago. A cache with room left counts as loaded
    with what is needed, as in the paper's program.
    """
    tokens, layers, _ = experts.shape
    used = np.zeros((tokens, layers, num_experts), dtype=bool)
    np.put_along_axis(used, experts, True, axis=2)
    totals = np.concatenate([np.zeros((1, layers, num_experts), dtype=np.int64), np.cumsum(used, axis=0)])
    cached = np.zeros((layers, num_experts), dtype=bool)
    last = np.zeros((layers, num_experts), dtype=np.int64)
    hits = 0
    for token, need in enumerate(used):
        room = cache - cached.sum(axis=1)
        lacking = (need & ~cached).sum(axis=1)
        hits += int(need.sum() - np.maximum(lacking - room, 0).sum())
        last[need] = token + 1
        cached |= need
        future = totals[min(token + 1 + segment, tokens)] - totals[token + 1]
        worth = np.where(cached & ~need, future * (tokens + 1) + last, np.iinfo(np.int64).max)
        order = np.argsort(worth, axis=1, kind="stable")
        drop = np.arange(num_experts)[None, :] < np.maximum(lacking - room, 0)[:, None]
        np.put_along_axis(cached, order, np.take_along_axis(cached, order, axis=1) & ~drop, axis=1)
    return hits


def _best_f1(histogram: Ints, segment: int) -> tuple[float, float]:
    """(SRP, activated experts over those of the real router) from [segment + 1] counts by activations."""
    activations = histogram * np.arange(segment + 1)
    matches = np.cumsum(activations[::-1])[::-1]
    predicted = np.cumsum(histogram[::-1])[::-1] * segment
    scores = 2 * matches / (predicted + matches[0])
    best = int(np.argmax(scores))
    return float(scores[best]), float(predicted[best] / matches[0])


def _correlation(one: Floats, other: Floats) -> NDArray[np.float64]:
    centred = [shares - shares.mean(axis=1, keepdims=True) for shares in (one, other)]
    norms = [np.sqrt((row**2).sum(axis=1)) for row in centred]
    product = (centred[0] * centred[1]).sum(axis=1)
    scale = norms[0] * norms[1]
    return np.where(scale > 0, product / np.where(scale > 0, scale, 1.0), 1.0)
