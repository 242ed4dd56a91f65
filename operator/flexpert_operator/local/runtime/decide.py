"""Puts the runtime's pure decisions together: what is observed in, actions out. `loop` calls it."""

import random
from collections.abc import Iterator

from flexpert_operator.local.runtime import deployments, kubelet, kuberay, scheduler, volumes
from flexpert_operator.local.runtime.entries import Entries
from flexpert_operator.local.runtime.objects import key_of, label_of, uid_of
from flexpert_operator.local.runtime.values import (
    CLUSTER_LABEL,
    WORKER_CONTAINER,
    Action,
    CreatePod,
    Observed,
    StartContainer,
)


def decide(observed: Observed, rng: random.Random) -> list[Action]:
    """Every action that is due now; deciding again on what they brought about gives none."""
    return [*_scheduled(observed, _controllers(observed, rng)), *_kubelet(observed)]


def _scheduled(observed: Observed, actions: Iterator[Action]) -> Iterator[Action]:
    """The same with new pods on nodes; those that no node takes are not made yet."""
    pods = list(observed.pods)
    for action in actions:
        if not isinstance(action, CreatePod):
            yield action
            continue
        manifest = scheduler.place(action.manifest, observed.nodes, pods)
        if manifest is not None:
            pods.append(manifest)
            yield CreatePod(manifest)


def _controllers(observed: Observed, rng: random.Random) -> Iterator[Action]:
    for cluster in observed.clusters:
        yield from kuberay.decide_cluster(cluster, observed.pods, observed.now, rng)
    for deployment in observed.deployments:
        if deployments.is_ours(deployment):
            yield from deployments.decide_deployment(deployment, observed.pods, observed.now, rng)


def _kubelet(observed: Observed) -> Iterator[Action]:
    up = kubelet.heads_up(observed.pods, observed.local)
    here = scheduler.node_names(observed.nodes)
    entries = Entries.of(observed.secrets, observed.config_maps)
    room = observed.max_starting - kubelet.num_starting(observed.local)
    for pod in observed.pods:
        cluster = label_of(pod, CLUSTER_LABEL)
        may_join = not cluster or (room > 0 and (key_of(pod)[0], cluster) in up)
        local = observed.local.get(uid_of(pod))
        if local is not None:
            yield from volumes.decide_mounts(pod, local, entries)
        held = volumes.held(pod, local, entries) if local is not None else {}
        for action in kubelet.decide_pod(pod, local, may_join, observed.now, here, held):
            room -= isinstance(action, StartContainer) and action.container == WORKER_CONTAINER
            yield action
    known = {uid_of(pod) for pod in observed.pods}
    for uid, local in observed.local.items():
        if uid not in known:
            yield from kubelet.decide_orphan(local, observed.now)
