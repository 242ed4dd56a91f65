"""Builds and checks routing tables. Pure; used by `reconfigure`, `controller` and `predict`.

Invariant 1 (DESIGN §6) lives here: `build_table` makes no table in which an expert lacks a live replica.
"""

from collections.abc import Mapping

from flexpert_workers.pool.exceptions import InvalidPlan
from flexpert_workers.pool.state import Expert, ModelFacts, Placement
from flexpert_workers.routing import NO_EPOCH, Epoch, Replica, RoutingTable, WorkerAddress

_SHARE_TOLERANCE = 1e-6


def placement_of(table: RoutingTable | None) -> Placement:
    """The placement that a table gives; empty for no table."""
    return {} if table is None else table.placement


def normalised(shares: Mapping[str, float]) -> dict[str, float]:
    """Shares scaled to add up to 1; equal ones when they add up to nothing."""
    total = sum(shares.values())
    if total <= 0:
        return {worker: 1 / len(shares) for worker in shares}
    return {worker: share / total for worker, share in shares.items()}


def without_replicas(placement: Placement, gone: frozenset[tuple[Expert, str]]) -> tuple[Placement, frozenset[Expert]]:
    """Drop the (expert, worker) replicas in `gone`: what remains, renormalised, and the experts left with none."""
    kept: dict[Expert, Mapping[str, float]] = {}
    lost: set[Expert] = set()
    for expert, shares in placement.items():
        remaining = {worker: share for worker, share in shares.items() if (expert, worker) not in gone}
        if remaining:
            kept[expert] = remaining if len(remaining) == len(shares) else normalised(remaining)
        else:
            lost.add(expert)
    return kept, frozenset(lost)


def replicas_gone(placement: Placement, held: Mapping[str, frozenset[Expert]]) -> frozenset[tuple[Expert, str]]:
    """Replicas that a placement names and that are not there: `held` maps each live worker to what it holds."""
    nothing: frozenset[Expert] = frozenset()
    return frozenset(
        (expert, worker)
        for expert, shares in placement.items()
        for worker in shares
        if expert not in held.get(worker, nothing)
    )


def check_placement(placement: Placement, model: ModelFacts, workers: frozenset[str]) -> None:
    """Check that a placement is complete and names live workers only.

    Raises:
        InvalidPlan: The message names the first expert or worker that is wrong.
    """
    for expert in sorted(model.all_experts() - placement.keys()):
        raise InvalidPlan(f"layer {expert[0]} expert {expert[1]} would have no replica")
    for expert in sorted(placement.keys() - model.all_experts()):
        raise InvalidPlan(f"layer {expert[0]} expert {expert[1]} is not an expert of this model")
    for (layer, index), shares in placement.items():
        if not shares:
            raise InvalidPlan(f"layer {layer} expert {index} would have no replica")
        for worker in sorted(shares.keys() - workers):
            raise InvalidPlan(f"layer {layer} expert {index} is placed on {worker}, which is not a live worker")
        if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > _SHARE_TOLERANCE:
            raise InvalidPlan(f"the shares of layer {layer} expert {index} are {dict(shares)} and do not add up to 1")


def build_table(
    pool: str,
    model: ModelFacts,
    epoch: Epoch,
    operation: str,
    placement: Placement,
    workers: Mapping[str, WorkerAddress],
) -> RoutingTable:
    """The table of a placement; `workers` holds the address of every live worker.

    Raises:
        InvalidPlan: The placement is not complete or names a worker that is not there.
    """
    check_placement(placement, model, frozenset(workers))
    named = sorted({worker for shares in placement.values() for worker in shares})
    position = {worker: number for number, worker in enumerate(named)}
    replicas = tuple(
        tuple(
            tuple(Replica(position[worker], share) for worker, share in sorted(placement[layer, index].items()))
            for index in range(model.experts)
        )
        for layer in range(model.layers)
    )
    addresses = tuple(workers[worker] for worker in named)
    return RoutingTable(pool, model.digest, epoch, operation, addresses, replicas)


def next_epoch(term: int, seen: Epoch) -> Epoch:
    """The epoch after the highest one seen, in `term` (which is not below it)."""
    assert term >= seen.term, f"term {term} is below {seen}"
    return Epoch(term, seen.sequence + 1) if seen != NO_EPOCH else Epoch(term, 1)
