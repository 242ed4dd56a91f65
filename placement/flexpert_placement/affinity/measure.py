"""What a placement makes tokens travel, exactly, on a sample of them: workers, nodes and zones per token and layer."""

import numpy as np

from flexpert_placement.instance import Dense, Floats, Instance, Ints


def fan_out(instance: Instance, dense: Dense) -> float:
    """Mean over layers of the distinct workers that a token's experts are computed on; 0.0 without a sample.

    Where an expert has replicas, this is what is expected when one is drawn for every token, by the shares, for every
    expert on its own: worker w is spared by a token with probability Π (1 - share[e, w]) over its experts e, and the
    sum over workers of the rest counts. An engine with few rows does better (`flexpert_workers.dispatch.companions`).
    """
    return float(spread(instance, dense, np.arange(len(instance.speeds))).mean()) if _has_sample(instance) else 0.0


def cross_node(instance: Instance, dense: Dense) -> float:
    """Mean over layers of the distinct nodes per token beyond the first; 0.0 without a sample."""
    return float(spread(instance, dense, instance.nodes).mean() - 1.0) if _has_sample(instance) else 0.0


def cross_zone(instance: Instance, dense: Dense) -> float:
    """Mean over layers of the distinct zones per token beyond the first; 0.0 without a sample."""
    return float(spread(instance, dense, instance.zones).mean() - 1.0) if _has_sample(instance) else 0.0


def spread(instance: Instance, dense: Dense, groups: Ints) -> Floats:
    """[layers] expected distinct groups of workers per token of the sample.

    Args:
        instance: Its traffic has a sample.
        dense: The placement, whose shares add up to 1 for every expert.
        groups: [workers] number of each worker's group.
    """
    sample = instance.traffic.sample
    assert sample is not None
    shares = group_shares(np.nan_to_num(dense.shares), groups)
    layers = range(sample.shape[1])
    return np.array([(1.0 - spared(shares[layer], sample[:, layer])).sum(axis=1).mean() for layer in layers])


def group_shares(shares: Floats, groups: Ints) -> Floats:
    """[…, groups] from [… , workers]."""
    member = np.zeros((len(groups), int(groups.max()) + 1))
    member[np.arange(len(groups)), groups] = 1.0
    return np.asarray(np.clip(shares @ member, 0.0, 1.0))


def spared(shares: Floats, rows: Ints) -> Floats:
    """[tokens, groups] probability that a token needs nothing of a group.

    Args:
        shares: [experts, groups].
        rows: [tokens, k] experts of each token.
    """
    unused = 1.0 - shares[rows[:, 0]]
    for column in range(1, rows.shape[1]):
        unused *= 1.0 - shares[rows[:, column]]
    return np.asarray(unused)


def _has_sample(instance: Instance) -> bool:
    sample = instance.traffic.sample
    return sample is not None and len(sample) > 0
