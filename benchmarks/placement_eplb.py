"""EPLB, DeepSeek's expert load balancer, written afresh from its published description (github.com/deepseek-ai/EPLB).

Replicate, then pack: spare slots go one by one to the expert whose replicas are busiest, and the replicas, busiest
first, each to the least busy worker with a slot left. The hierarchical variant first packs groups of experts onto nodes
and does both within each node; the global one ignores groups and nodes. Every worker has equally many slots, and the
replicas of an expert share its load evenly.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def balanced_packing(weights: Floats, packs: int) -> Ints:
    """[items] pack of each, equally many in every one: the heaviest first, each into the lightest pack with room."""
    size, rest = divmod(len(weights), packs)
    if rest:
        raise ValueError(f"{len(weights)} items cannot be dealt evenly into {packs} packs")
    if size == 1:
        return np.arange(packs)
    pack_of, total, count = np.zeros(len(weights), dtype=np.int64), np.zeros(packs), np.zeros(packs, dtype=np.int64)
    for item in np.argsort(-weights, kind="stable"):
        pack = int(np.where(count < size, total, np.inf).argmin())
        pack_of[item] = pack
        total[pack] += weights[item]
        count[pack] += 1
    return pack_of


def replicated(weights: Floats, slots: int) -> Ints:
    """[slots] expert of each replica: one each, then one more for the expert whose replicas are busiest."""
    counts = np.ones(len(weights), dtype=np.int64)
    replicas = list(range(len(weights)))
    while len(replicas) < slots:
        busiest = int((weights / counts).argmax())
        counts[busiest] += 1
        replicas.append(busiest)
    return np.array(replicas, dtype=np.int64)


def eplb_layer(loads: Floats, slots: int, workers: int, nodes: int = 1, groups: int = 1) -> Ints:
    """[slots] expert in each slot of one layer, worker after worker.

    Args:
        loads: [experts].
        slots: Of all workers together; a multiple of `workers`.
        workers: A multiple of `nodes`.
        nodes: Of equally many workers.
        groups: Of equally many neighbouring experts; a multiple of `nodes`.
    """
    of_group = len(loads) // groups
    node_of = balanced_packing(loads.reshape(groups, of_group).sum(axis=1), nodes)
    table: list[Ints] = []
    for node in range(nodes):
        experts = np.flatnonzero(np.repeat(node_of == node, of_group))
        replicas = replicated(loads[experts], slots // nodes)
        counts = np.bincount(replicas, minlength=len(experts))
        worker_of = balanced_packing((loads[experts] / counts)[replicas], workers // nodes)
        table.extend(experts[replicas[worker_of == worker]] for worker in range(workers // nodes))
    return np.concatenate(table)


def eplb(loads: Floats, slots: int, workers: int, nodes: int = 1, groups: int = 1) -> Floats:
    """[layers, experts, workers] shares, NaN where an expert is not held; arguments as for `eplb_layer`."""
    return np.stack([shares_of(eplb_layer(row, slots, workers, nodes, groups), len(row), workers) for row in loads])


def keep_slots(shares: Floats, current: NDArray[np.bool_]) -> Floats:
    """The same placement with the workers' names changed, layer by layer, so that they hold most of it already."""
    kept = np.empty_like(shares)
    for layer, row in enumerate(shares):
        common = (~np.isnan(row)).T.astype(np.int64) @ current[layer].astype(np.int64)
        old, new = linear_sum_assignment(common, maximize=True)
        kept[layer][:, new] = row[:, old]
    return kept


def shares_of(table: Ints, experts: int, workers: int) -> Floats:
    """[experts, workers] from [slots] of one layer, worker after worker."""
    counts = np.zeros((experts, workers))
    np.add.at(counts, (table, np.repeat(np.arange(workers), len(table) // workers)), 1.0)
    return np.where(counts > 0, counts / counts.sum(axis=1, keepdims=True), np.nan)
