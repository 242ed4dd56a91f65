"""Puts the runtime's pure decisions together: what is observed in, actions out. `loop` calls it."""

import random
from collections.abc import Iterator

from flexpert_operator.local.runtime import deployments, kubelet, kuberay
from flexpert_operator.local.runtime.objects import key_of, label_of, uid_of
from flexpert_operator.local.runtime.values import (
    CLUSTER_LABEL,
    WORKER_CONTAINER,
    Action,
    Observed,
    StartContainer,
)


def decide(observed: Observed, rng: random.Random) -> list[Action]:
    """Every action that is due now; deciding again on what they brought about gives none."""
    return [*_controllers(observed, rng), *_kubelet(observed)]


def _controllers(observed: Observed, rng: random.Random) -> Iterator[Action]:
    for cluster in observed.clusters:
        yield from kuberay.decide_cluster(cluster, observed.pods, observed.now, rng)
    for deployment in observed.deployments:
        if deployments.is_ours(deployment):
            yield from deployments.decide_deployment(deployment, observed.pods, observed.now, rng)


def _kubelet(observed: Observed) -> Iterator[Action]:
    up = kubelet.heads_up(observed.pods, observed.local)
    room = observed.max_starting - kubelet.num_starting(observed.local)
    for pod in observed.pods:
        cluster = label_of(pod, CLUSTER_LABEL)
        may_join = not cluster or (room > 0 and (key_of(pod)[0], cluster) in up)
        for action in kubelet.decide_pod(pod, observed.local.get(uid_of(pod)), may_join, observed.now):
            room -= isinstance(action, StartContainer) and action.container == WORKER_CONTAINER
            yield action
    known = {uid_of(pod) for pod in observed.pods}
    for uid, local in observed.local.items():
        if uid not in known:
            yield from kubelet.decide_orphan(local, observed.now)
