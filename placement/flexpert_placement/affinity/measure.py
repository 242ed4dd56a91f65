"""What a placement makes tokens travel: workers, nodes and zones per token and layer.

Exactly, on a sample of tokens, or estimated by `moments` where only the co-activation of experts is known.
"""

import numpy as np

from flexpert_placement.affinity.moments import expected_groups, experts_per_token
from flexpert_placement.instance import Dense, Floats, Instance, Ints
from flexpert_placement.types import Traffic


def fan_out(instance: Instance, dense: Dense) -> float:
    """Mean over layers of the distinct workers that a token's experts are computed on; 0.0 where nothing is known.

    Where an expert has replicas, this is what is expected when one is drawn for every token, by the shares, for every
    expert on its own: worker w is spared by a token with probability Π (1 - share[e, w]) over its experts e, and the
    sum over workers of the rest counts. An engine with few rows does better (`flexpert_workers.dispatch.companions`).
    """
    return (
        float(spread(instance, dense, np.arange(len(instance.speeds))).mean())
        if knows_tokens(instance.traffic)
        else 0.0
    )


def cross_node(instance: Instance, dense: Dense) -> float:
    """Mean over layers of the distinct nodes per token beyond the first; 0.0 where nothing is known."""
    return float(spread(instance, dense, instance.nodes).mean() - 1.0) if knows_tokens(instance.traffic) else 0.0


def cross_zone(instance: Instance, dense: Dense) -> float:
    """Mean over layers of the distinct zones per token beyond the first; 0.0 where nothing is known."""
    return float(spread(instance, dense, instance.zones).mean() - 1.0) if knows_tokens(instance.traffic) else 0.0


def spread(instance: Instance, dense: Dense, groups: Ints) -> Floats:
    """[layers] expected distinct groups of workers per token.

    Args:
        instance: Its traffic has a sample, or the co-activation.
        dense: The placement, whose shares add up to 1 for every expert.
        groups: [workers] number of each worker's group.
    """
    shares = group_shares(np.nan_to_num(dense.shares), groups)
    return np.array([groups_per_token(instance.traffic, layer, here) for layer, here in enumerate(shares)])


def groups_per_token(traffic: Traffic, layer: int, shares: Floats) -> float:
    """Expected distinct groups per token of one layer, under shares [experts, groups]."""
    if traffic.sample is not None and len(traffic.sample):
        return float((1.0 - spared(shares, traffic.sample[:, layer])).sum(axis=1).mean())
    assert traffic.coactivation is not None
    return expected_groups(traffic.coactivation[layer], shares)


def knows_tokens(traffic: Traffic) -> bool:
    """Whether anything is known of which experts tokens choose together."""
    return (traffic.sample is not None and len(traffic.sample) > 0) or traffic.coactivation is not None


def chosen_per_token(traffic: Traffic) -> float:
    """Experts that a token chooses in a layer; `knows_tokens` holds."""
    if traffic.sample is not None and len(traffic.sample):
        return float(traffic.sample.shape[2])
    assert traffic.coactivation is not None
    return experts_per_token(traffic.coactivation)


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
