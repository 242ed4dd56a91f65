"""From the options of `flexpert plan` to a problem for the solver; no output, no calls over a network."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flexpert_operator.api import quantities
from flexpert_operator.cli.errors import CliError
from flexpert_operator.decide.observation import MemberState, Pool
from flexpert_operator.decide.placing import loads_by_layer
from flexpert_placement.formats import InvalidPlacementFile, PhysicalMap, sglang, vllm
from flexpert_placement.trace import InvalidTrace, RoutingTrace, load_trace
from flexpert_placement.types import (
    Budget,
    ExpertId,
    Placement,
    PlacementProblem,
    SolverName,
    Traffic,
    Weights,
    WorkerCapacity,
)

OBJECTIVES = {
    "makespan": (Weights(), 0.0),
    "fan-out": (Weights(fan_out=1.0), 0.05),
    "cross-node": (Weights(fan_out=0.5, cross_node=1.0), 0.05),
    "transitions": (Weights(transitions=1.0), 0.05),
}
"""Weights, and how much of the makespan may be given up for them."""

UNKNOWN_BYTES = 1
"""Bytes of an expert nothing is known of: memory then counts slots."""


@dataclass(frozen=True)
class Question:
    """What is asked, and what the answer is compared with.

    Attributes:
        before: The placement as it is, or the contiguous one.
        before_name: What `before` is.
        trace: Tokens to judge by, where there are any.
        slots: Replicas of a layer that fit into each worker, where they are the same for all; None otherwise.
        knows_bytes: Whether the size of an expert is known.
    """

    problem: PlacementProblem
    before: Placement
    before_name: str
    trace: RoutingTrace | None
    slots: int | None
    knows_bytes: bool


def question_of(options: argparse.Namespace, trace: RoutingTrace | None, pool: Pool | None) -> Question:
    """The question that the options put.

    Raises:
        CliError: They contradict each other, or lack something.
    """
    loads = _loads(options, trace, pool)
    expert_bytes = _expert_bytes(options, pool)
    workers = _workers(options, (len(loads), len(loads[0])), expert_bytes, pool)
    current = _current(options, workers, pool)
    workers = _named_as(workers, current, options)
    weights, slack = OBJECTIVES[options.objective]
    if options.objective != "makespan" and trace is None:
        raise CliError(
            f"--objective {options.objective} needs to know which experts a token chooses: give --trace FILE"
        )
    if options.objective == "cross-node" and len({worker.node for worker in workers}) < 2:
        raise CliError(
            "--objective cross-node needs workers on several nodes: give --nodes N, or nodes in --workers FILE"
        )
    problem = PlacementProblem(
        loads=loads,
        expert_bytes=expert_bytes or UNKNOWN_BYTES,
        workers=workers,
        current=current,
        min_replicas=options.min_replicas or 1,
        traffic=_traffic(options, trace),
        caution=options.caution,
        weights=weights,
        makespan_slack=slack if options.slack is None else options.slack / 100,
        budget=Budget(moves=options.budget_moves, bytes=options.budget_bytes),
        solver=SolverName(options.solver),
        time_limit_s=options.time_limit,
        seed=options.seed,
    )
    contiguous = contiguous_placement(problem)
    name = "now" if pool is not None else Path(options.from_placement).name if options.from_placement else "contiguous"
    return Question(problem, current or contiguous, name, trace, _slots(problem), expert_bytes is not None)


def read_trace(path: str | None, num_experts: int | None) -> RoutingTrace | None:
    """The trace of `--trace`.

    Raises:
        CliError: It cannot be read.
    """
    if path is None:
        return None
    try:
        return load_trace(path, num_experts)
    except InvalidTrace as error:
        raise CliError(str(error)) from error


def _traffic(options: argparse.Namespace, trace: RoutingTrace | None) -> Traffic:
    if options.caution < 0 or (options.caution and trace is None):
        raise CliError("--caution K needs to know how loads vary: give --trace FILE, and K at least 0")
    if trace is None or options.objective == "makespan":
        return Traffic(deviation=trace.deviation()) if trace is not None and options.caution else Traffic()
    return trace.traffic()


def contiguous_placement(problem: PlacementProblem) -> Placement:
    """Every layer's experts in order, as many on each worker."""
    ids = [worker.id for worker in problem.workers]
    return {
        ExpertId(layer, index): {ids[index * len(ids) // len(row)]: 1.0}
        for layer, row in enumerate(problem.loads)
        for index in range(len(row))
    }


def read_placement(path: str, num_workers: int, dense_layers: Sequence[int]) -> Placement:
    """A placement from a file of `flexpert plan`, `flexpert status --placement -o json`, SGLang or vLLM.

    Raises:
        CliError: It is none of these.
    """
    try:
        text = Path(path).read_text()
        content = sglang.parsed(text)
        if sglang.KEY in content and "layer_list" not in content:
            return _of_physical(sglang.loads(text, num_workers, dense_layers))
        if "layer_list" in content:
            return _of_physical(vllm.loads(text))
        return _of_ours(content)
    except OSError as error:
        raise CliError(f"--from-placement {path}: {error.strerror}") from error
    except (InvalidPlacementFile, UnicodeDecodeError) as error:
        raise CliError(f"--from-placement {path}: {error}") from error


def _of_physical(physical: PhysicalMap) -> Placement:
    return physical.placement(tuple(f"worker-{number}" for number in range(physical.experts.shape[1])))


def _of_ours(content: dict[str, Any]) -> Placement:
    placement: dict[ExpertId, dict[str, float]] = {}
    try:
        for replica in content.get("placement", ()):
            row = placement.setdefault(ExpertId(int(replica["layer"]), int(replica["expert"])), {})
            row[str(replica["worker"])] = float(replica["share"])
        for worker in content.get("workers", ()) if not placement else ():
            for layer, experts in worker["layers"].items():
                for written in experts:
                    index, _, share = str(written).removesuffix("%)").partition("(")
                    row = placement.setdefault(ExpertId(int(layer), int(index)), {})
                    row[str(worker["id"])] = float(share or 100) / 100
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidPlacementFile(f"its placement cannot be read ({error!r})") from None
    if not placement:
        raise InvalidPlacementFile(
            "it holds no placement: give what `flexpert plan --format json|sglang|vllm` or "
            "`flexpert status NAME --placement -o json` writes"
        )
    return placement


def _loads(options: argparse.Namespace, trace: RoutingTrace | None, pool: Pool | None) -> tuple[tuple[float, ...], ...]:
    if pool is not None and pool.model is None:
        raise CliError(f"{options.live} knows no model yet: {pool.message or 'wait until it is Ready'}")
    if trace is not None:
        model = pool.model if pool is not None else None
        if model is not None and (trace.num_layers, trace.num_experts) != (model.layers, model.experts):
            raise CliError(
                f"the trace has {trace.num_layers} layers of {trace.num_experts} experts, {options.live} serves "
                f"{model.layers} of {model.experts}: give a trace of the same model"
            )
        return tuple(tuple(row) for row in trace.loads().tolist())
    assert pool is not None
    assert pool.model is not None
    return loads_by_layer(pool, pool.model)


def _expert_bytes(options: argparse.Namespace, pool: Pool | None) -> int | None:
    if options.expert_bytes is not None:
        return int(options.expert_bytes)
    return pool.model.expert_bytes if pool is not None and pool.model is not None else None


def _workers(
    options: argparse.Namespace, shape: tuple[int, int], expert_bytes: int | None, pool: Pool | None
) -> tuple[WorkerCapacity, ...]:
    if options.workers is not None and not options.workers.isdecimal():
        return _workers_of_file(options.workers, shape, expert_bytes)
    memory = _memory(options, shape, expert_bytes)
    if pool is not None:
        return _workers_of_pool(options, pool, memory, expert_bytes or UNKNOWN_BYTES)
    if options.workers is None:
        raise CliError("say on how many workers to place: --workers N, or a JSON file of workers")
    number = int(options.workers)
    if memory is None:
        memory = -(-shape[1] // max(number, 1)) * shape[0] * (expert_bytes or UNKNOWN_BYTES)
    plain = tuple(WorkerCapacity(f"worker-{index}", memory) for index in range(number))
    return _spread(plain, options.nodes, options.zones)


def _memory(options: argparse.Namespace, shape: tuple[int, int], expert_bytes: int | None) -> int | None:
    """Bytes of a worker, where an option says so."""
    if options.slots is not None and options.memory_per_worker is not None:
        raise CliError("--slots and --memory-per-worker say the same: give one of them")
    if options.memory_per_worker is not None and expert_bytes is None:
        raise CliError("--memory-per-worker needs the size of an expert: give --expert-bytes, or --slots instead")
    if options.slots is not None:
        return int(options.slots) * shape[0] * (expert_bytes or UNKNOWN_BYTES)
    return options.memory_per_worker if options.memory_per_worker is None else int(options.memory_per_worker)


def _workers_of_pool(
    options: argparse.Namespace, pool: Pool, memory: int | None, expert_bytes: int
) -> tuple[WorkerCapacity, ...]:
    """The pool's workers with one expert's bytes kept free, as the operator has it; more of the same, or fewer."""
    ready = sorted((one for one in pool.workers if one.state is MemberState.READY), key=lambda one: one.id)
    if not ready:
        raise CliError(f"{options.live} has no worker that is ready: see `flexpert status {options.live}`")
    known = tuple(
        WorkerCapacity(
            worker.id,
            memory if memory is not None else max(worker.memory_bytes - expert_bytes, 0),
            failure_domain=worker.failure_domain,
            node=worker.node,
        )
        for worker in ready
    )
    number = len(known) if options.workers is None else int(options.workers)
    added = (replace(known[0], id=f"new-{index}", failure_domain="", node="") for index in range(number - len(known)))
    return _spread((*known[:number], *added), options.nodes, options.zones)


def _workers_of_file(path: str, shape: tuple[int, int], expert_bytes: int | None) -> tuple[WorkerCapacity, ...]:
    try:
        rows = json.loads(Path(path).read_text())
        return tuple(_worker_of(row, number, shape, expert_bytes) for number, row in enumerate(rows))
    except OSError as error:
        raise CliError(f"--workers {path}: {error.strerror}; give a number, or a JSON file of workers") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CliError(
            f'--workers {path}: {error}; it has to be a list of {{"slots": 9}} or {{"memory": "20Gi"}}, each also with '
            f"id, speed, node, zone and failureDomain if you like"
        ) from error


def _worker_of(row: dict[str, Any], number: int, shape: tuple[int, int], expert_bytes: int | None) -> WorkerCapacity:
    unknown = row.keys() - {"id", "memory", "slots", "speed", "node", "zone", "failureDomain"}
    if unknown or ("memory" in row) == ("slots" in row):
        raise ValueError(
            f"worker {number} has unknown {sorted(unknown)}" if unknown else f"worker {number} needs either"
        )
    if "memory" in row and expert_bytes is None:
        raise CliError("memory in --workers FILE needs the size of an expert: give --expert-bytes, or slots instead")
    memory = (
        quantities.to_bytes(row["memory"])
        if "memory" in row
        else int(row["slots"]) * shape[0] * (expert_bytes or UNKNOWN_BYTES)
    )
    return WorkerCapacity(
        id=str(row.get("id", f"worker-{number}")),
        memory_bytes=memory,
        speed=float(row.get("speed", 1.0)),
        failure_domain=str(row.get("failureDomain", "")),
        node=str(row.get("node", "")),
        zone=str(row.get("zone", "")),
    )


def _spread(workers: tuple[WorkerCapacity, ...], nodes: int | None, zones: int | None) -> tuple[WorkerCapacity, ...]:
    """Deal workers to so many nodes and zones, neighbours together."""
    total = len(workers)
    return tuple(
        replace(
            worker,
            node=worker.node if nodes is None else f"node-{number * nodes // total}",
            zone=worker.zone if zones is None else f"zone-{number * zones // total}",
        )
        for number, worker in enumerate(workers)
    )


def _current(options: argparse.Namespace, workers: tuple[WorkerCapacity, ...], pool: Pool | None) -> Placement:
    if options.from_placement is not None:
        return read_placement(options.from_placement, len(workers), options.dense_layers)
    return pool.placement if pool is not None else {}


def _named_as(
    workers: tuple[WorkerCapacity, ...], current: Placement, options: argparse.Namespace
) -> tuple[WorkerCapacity, ...]:
    """Workers that only a number stands for are named as those of the placement to start from."""
    names = sorted({worker for row in current.values() for worker in row}, key=lambda name: (len(name), name))
    if options.from_placement is None or not options.workers or not options.workers.isdecimal():
        return workers
    return tuple(
        replace(worker, id=names[number] if number < len(names) else f"new-{number}")
        for number, worker in enumerate(workers)
    )


def _slots(problem: PlacementProblem) -> int | None:
    memories = {worker.memory_bytes for worker in problem.workers}
    return memories.pop() // problem.expert_bytes // len(problem.loads) if len(memories) == 1 else None
