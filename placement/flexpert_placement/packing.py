"""A quick placement of a layer: replicas for the hottest experts, then each replica where there is least to do.

This is what DeepSeek's EPLB does (github.com/deepseek-ai/EPLB), so that with the exact shares of `shares` no answer
that starts from here is worse than EPLB's. Where every worker has one slot, the numbers of replicas alone decide, and
these are the best. Called by `construction`.
"""

import heapq

import numpy as np

from flexpert_placement.instance import Bools, Ints
from flexpert_placement.layer import Layer


def copies_of(layer: Layer, replicas: int) -> Ints:
    """[E] replicas of each expert by which the largest load of a replica is least, `replicas` of them at most.

    One each; then, one by one, for the expert whose replicas have most to do. No numbers are better: whoever gave an
    expert fewer would leave its replicas with more than the largest load here had before its last step.
    """
    copies = np.ones(layer.num_experts, dtype=np.int64)
    most = np.minimum(layer.most, layer.num_workers)
    hottest = [(-float(load), expert) for expert, load in enumerate(layer.loads)]
    heapq.heapify(hottest)
    left = replicas - layer.num_experts
    while left > 0 and hottest:
        expert = hottest[0][1]
        if copies[expert] >= most[expert]:
            heapq.heappop(hottest)
            continue
        copies[expert] += 1
        left -= 1
        heapq.heapreplace(hottest, (-float(layer.loads[expert] / copies[expert]), expert))
    return copies


def packed(layer: Layer) -> Bools | None:
    """[E, W] replicas for the hottest experts, the heaviest first to the worker that is then soonest done.

    Args:
        layer: One in which nothing but slots says where replicas may be.

    Returns:
        None where there are fewer slots than experts.
    """
    slots = layer.slots.copy()
    if int(slots.sum()) < layer.num_experts:
        return None
    copies = copies_of(layer, int(slots.sum()))
    held = np.zeros((layer.num_experts, layer.num_workers), dtype=bool)
    load = np.where(slots > 0, 0.0, np.inf)
    each = layer.loads / copies
    for expert in np.repeat(np.arange(len(copies)), copies)[np.argsort(-np.repeat(each, copies), kind="stable")]:
        times = (load + each[expert]) / layer.speeds
        worker = int(np.argmin(times))
        if held[expert, worker]:
            elsewhere = np.where(held[expert], np.inf, times)
            worker = int(np.argmin(elsewhere))
            if not np.isfinite(elsewhere[worker]):
                continue
        held[expert, worker] = True
        load[worker] += each[expert]
        slots[worker] -= 1
        if slots[worker] == 0:
            load[worker] = np.inf
    return held
