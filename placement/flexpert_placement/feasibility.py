"""Refuses a problem without an answer: says which constraint makes it so, and the smallest change that would help.

`solver` calls `check` before anything else. Words are those of the MoEDeployment where it has one.
"""

import numpy as np

from flexpert_placement.instance import Instance, Ints
from flexpert_placement.types import ExpertId, InfeasiblePlacement, PlacementProblem


def check_workers(problem: PlacementProblem) -> None:
    """Refuse what cannot even be written down: no workers, or pins to workers that are not there."""
    if not problem.workers:
        raise InfeasiblePlacement("there is no worker to hold the experts: set spec.experts.workers to at least 1")
    known = {worker.id for worker in problem.workers}
    for expert, pins in sorted(problem.pinned.items()):
        absent = sorted(pins - known)
        if absent:
            raise InfeasiblePlacement(
                f"expert {_name(expert)} is pinned to {', '.join(absent)}, which is not among the workers: "
                f"take the pin away or bring the worker back"
            )


def check(instance: Instance) -> None:
    """Refuse a problem that has no answer.

    Raises:
        InfeasiblePlacement: With the constraint and what to change.
    """
    _check_replicas(instance)
    _check_domains(instance)
    _check_pins(instance)
    _check_layer_slots(instance)
    _check_memory(instance)
    _check_distinct(instance)
    _check_budget(instance)


def required(instance: Instance) -> Ints:
    """[layers, experts] replicas without which an expert's constraints cannot hold."""
    fewest = np.maximum(np.maximum(instance.fewest, 1), instance.problem.min_failure_domains)
    return np.asarray(np.maximum(fewest, instance.pinned.sum(axis=2)))


def forced_moves(instance: Instance) -> Ints:
    """[layers] replicas that have to be copied whatever the answer: those that are missing or pinned elsewhere."""
    missing = np.maximum(required(instance) - instance.current.sum(axis=2), 0)
    pinned = (instance.pinned & ~instance.current).sum(axis=2)
    return np.asarray(np.maximum(missing, pinned).sum(axis=1))


def _check_replicas(instance: Instance) -> None:
    num_workers = instance.shape[2]
    highest = int(instance.fewest.max(initial=1))
    if highest > num_workers:
        raise InfeasiblePlacement(
            f"{highest} replicas of an expert need as many workers and there are {num_workers}: "
            f"raise spec.experts.workers or lower spec.placement.minReplicasPerExpert"
        )
    wrong = np.argwhere(required(instance) > instance.most)
    if len(wrong):
        layer, index = (int(value) for value in wrong[0])
        raise InfeasiblePlacement(
            f"expert {_name((layer, index))} needs {int(required(instance)[layer, index])} replicas (fewest, failure "
            f"domains or pins) and may have {int(instance.most[layer, index])}: raise the most replicas it may have"
        )


def _check_domains(instance: Instance) -> None:
    wanted, there = instance.problem.min_failure_domains, len(np.unique(instance.domains))
    if wanted > there:
        raise InfeasiblePlacement(
            f"replicas have to lie in {wanted} failure domains and the workers lie in {there}: add workers in "
            f"{wanted - there} more, or ask for {there}"
        )


def _check_pins(instance: Instance) -> None:
    pins = instance.pinned.sum(axis=(0, 1))
    over = np.flatnonzero(pins > instance.slots)
    if len(over):
        worker = int(over[0])
        short = int(pins[worker] - instance.slots[worker])
        raise InfeasiblePlacement(
            f"{int(pins[worker])} experts are pinned to worker {instance.problem.workers[worker].id}, which has room "
            f"for {int(instance.slots[worker])}: take {short} pins away or give it "
            f"{_bytes_short(instance, worker, int(pins[worker]))} bytes more"
        )


def _check_memory(instance: Instance) -> None:
    layers, experts, workers = instance.shape
    needed = int(required(instance).sum())
    room = np.minimum(instance.slots, layers * experts)
    if int(room.sum()) >= needed:
        return
    size = instance.problem.expert_bytes
    short = (needed - int(room.sum())) * size
    each = -(-needed // workers) * size
    raise InfeasiblePlacement(
        f"{needed} replicas of {size} bytes do not fit into {workers} workers, which have room for {int(room.sum())}: "
        f"memory is short by {short} bytes; raise spec.experts.memoryPerWorker to at least {each / 2**30:.3g}Gi "
        f"({each} bytes for experts each), or spec.experts.workers"
    )


def _check_layer_slots(instance: Instance) -> None:
    """Where every layer has its own slots, each worker has memory for them, and they are enough for the layer."""
    slots, size = instance.problem.slots_per_layer, instance.problem.expert_bytes
    if slots is None:
        return
    layers = instance.shape[0]
    for worker in instance.problem.workers:
        if worker.memory_bytes < slots * layers * size:
            raise InfeasiblePlacement(
                f"{slots} slots in each of {layers} layers take {slots * layers * size} bytes and worker {worker.id} "
                f"has {worker.memory_bytes}: give it {slots * layers * size - worker.memory_bytes} bytes more or take "
                f"{worker.memory_bytes // (layers * size)} slots a layer"
            )
    needed, room = required(instance).sum(axis=1), int(instance.layer_slots.sum())
    if int(needed.max(initial=0)) > room:
        layer = int(np.argmax(needed))
        least = -(-int(needed[layer]) // len(instance.slots))
        raise InfeasiblePlacement(
            f"layer {layer} needs {int(needed[layer])} replicas and {slots} slots a layer on {len(instance.slots)} "
            f"workers hold {room}: give at least {least} slots a layer, or more workers"
        )
    pins = instance.pinned.sum(axis=1)
    if (pins > instance.layer_slots).any():
        layer, at = (int(value) for value in np.argwhere(pins > instance.layer_slots)[0])
        raise InfeasiblePlacement(
            f"{int(pins[layer, at])} experts of layer {layer} are pinned to worker {instance.problem.workers[at].id}, "
            f"which has {slots} slots for a layer: take {int(pins[layer, at] - instance.layer_slots[at])} pins away"
        )


def _check_distinct(instance: Instance) -> None:
    """Checks `_check_spread` for all layers together, or for each where it has slots of its own."""
    wanted = required(instance)
    if instance.problem.slots_per_layer is None:
        _check_spread(instance, wanted.ravel(), instance.slots)
        return
    for row in wanted:
        _check_spread(instance, row, instance.layer_slots)


def _check_spread(instance: Instance, needed: Ints, slots: Ints) -> None:
    """Every set of k experts needs its replicas on different workers, and in different failure domains (Gale, Ryser).

    k experts find at most min(slots, k) places on a worker, and Σ min(slots of its workers, k · most of one expert
    there) in a failure domain, where an expert with r replicas in D domains at least has at most r - D + 1 of them.
    """
    wanted = np.sort(needed)[::-1]
    counts = np.arange(1, len(wanted) + 1)
    needs = np.cumsum(wanted)
    places = np.minimum(slots[None, :], counts[:, None]).sum(axis=1)
    domains = np.unique(instance.domains)
    apart = instance.problem.min_failure_domains
    together = np.maximum(wanted - apart + 1, 1)
    of_domain = np.array([slots[instance.domains == domain].sum() for domain in domains])
    domain_places = np.minimum(of_domain[None, :], np.cumsum(together)[:, None]).sum(axis=1)
    for available, what in ((places, "workers"), (domain_places, "failure domains")):
        short = np.flatnonzero(available < needs)
        if len(short) and (what == "workers" or apart > 1):
            k = int(short[np.argmax((needs - available)[short])])
            missing = int(needs[k] - available[k])
            raise InfeasiblePlacement(
                f"{int(needs[k])} replicas have to be on different {what}, which have room for {int(available[k])} of "
                f"them: give the {what} with the least memory {missing * instance.problem.expert_bytes} bytes more, "
                f"or lower spec.placement.minReplicasPerExpert"
            )


def _check_budget(instance: Instance) -> None:
    forced = forced_moves(instance)
    budget, size = instance.problem.budget, instance.problem.expert_bytes
    total = int(forced.sum())
    if not instance.current.any():
        return
    if budget.moves is not None and total > budget.moves:
        raise InfeasiblePlacement(f"{total} replicas have to be copied and the budget is {budget.moves} moves")
    if budget.bytes is not None and total * size > budget.bytes:
        raise InfeasiblePlacement(
            f"{total} replicas have to be copied, {total * size} bytes, and the budget is {budget.bytes} bytes: "
            f"raise it by {total * size - budget.bytes} bytes"
        )
    if budget.moves_per_layer is not None and int(forced.max(initial=0)) > budget.moves_per_layer:
        layer, worst = int(np.argmax(forced)), int(forced.max())
        raise InfeasiblePlacement(
            f"layer {layer} needs {worst} copies and the budget is {budget.moves_per_layer} moves a layer: raise it"
        )


def _bytes_short(instance: Instance, worker: int, needed: int) -> int:
    return needed * instance.problem.expert_bytes - instance.problem.workers[worker].memory_bytes


def _name(expert: tuple[int, int]) -> str:
    layer, index = ExpertId(*expert)
    return f"{index} of layer {layer}"
