"""Placements for SGLang and vLLM: written, and read back by readers written from their documentation."""

import json
from dataclasses import replace

import numpy as np
import pytest

from flexpert_placement.formats import (
    InvalidPlacementFile,
    PhysicalMap,
    even_imbalance,
    physical_map,
    sglang,
    solve_layerwise,
    vllm,
)
from flexpert_placement.solver import imbalance
from flexpert_placement.types import ExpertId, InfeasiblePlacement, PlacementProblem, Weights, WorkerCapacity


def problem(layers: int = 3, experts: int = 12, workers: int = 4, seed: int = 1) -> PlacementProblem:
    loads = np.random.default_rng(seed).pareto(1.2, (layers, experts)) + 0.05
    capacities = tuple(WorkerCapacity(f"w{number}", 10**9) for number in range(workers))
    return PlacementProblem(tuple(map(tuple, loads.tolist())), 100, capacities, time_limit_s=0.3)


def solved(asked: PlacementProblem, slots: int) -> PhysicalMap:
    return physical_map(asked, solve_layerwise(asked, slots).placement, slots)


@pytest.mark.parametrize("slots", [3, 4, 5, 14])
def test_every_slot_is_filled_and_every_expert_is_there(slots: int) -> None:
    asked = problem()
    physical = solved(asked, slots)
    assert physical.experts.shape == (3, 4, slots)
    assert physical.num_redundant == 4 * slots - 12
    copies = physical.copies()
    assert (copies.sum(axis=2) >= 1).all()
    assert (copies.sum(axis=1) == slots).all()
    assert slots > 12 or copies.max() == 1
    names = tuple(worker.id for worker in asked.workers)
    even = imbalance(asked.loads, physical.placement(names), asked.workers)
    assert even == pytest.approx(even_imbalance(np.array(asked.loads), physical))


def test_equal_shares_are_what_is_balanced() -> None:
    asked = problem(layers=2, experts=64, workers=8, seed=4)
    loads = np.array(asked.loads)
    contiguous = PhysicalMap(np.tile(np.arange(64).reshape(8, 8), (2, 1, 1)), 64)
    assert even_imbalance(loads, solved(asked, 9)) < 1.1 < even_imbalance(loads, contiguous)


def test_a_layer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InfeasiblePlacement):
        solve_layerwise(problem(), 2)


def test_other_objectives_keep_the_answers_replicas() -> None:
    asked = replace(problem(), weights=Weights(fan_out=1.0))
    held = {ExpertId(layer, index): {f"w{index % 4}": 1.0} for layer in range(3) for index in range(12)}
    copies = physical_map(asked, held, 4).copies()
    assert all(copies[layer, index, index % 4] for layer in range(3) for index in range(12))


def read_as_sglang(
    text: str, hidden_layers: int, num_logical: int, redundant: int, ep_size: int
) -> list[list[list[int]]]:
    """`compute_initial_expert_location_metadata` and `init_by_mapping`, by their description: experts of each rank."""
    data = json.loads(text)
    (mapping,) = (data.pop("physical_to_logical_map"),)
    assert not data  # the rest would be unknown arguments
    assert len(mapping) == hidden_layers
    num_physical = num_logical + redundant
    assert num_physical % ep_size == 0
    local = num_physical // ep_size
    for row in mapping:
        assert len(row) == num_physical
        assert set(row) == set(range(num_logical))
    return [[row[rank * local : (rank + 1) * local] for rank in range(ep_size)] for row in mapping]


def test_sglang_reads_what_is_written() -> None:
    physical = solved(problem(), 4)
    ranks = read_as_sglang(sglang.dumps(physical, {0, 2}), 5, 12, 4, 4)
    assert [ranks[layer] for layer in (1, 3, 4)] == physical.experts.tolist()
    again = sglang.loads(sglang.dumps(physical, {0, 2}), 4, {0, 2})
    assert np.array_equal(again.experts, physical.experts)


def read_as_vllm_ascend(text: str, layer: int) -> list[list[int]]:
    """`expert_file_to_tensor` of vllm_ascend/eplb, by its description: the experts of each device."""
    data = json.loads(text)
    assert layer < data["moe_layer_count"]
    devices = data["layer_list"][layer]["device_list"]
    assert len({len(device["device_expert"]) for device in devices}) == 1  # it becomes a tensor
    return [device["device_expert"] for device in devices]


def test_vllm_reads_what_is_written() -> None:
    physical = solved(problem(), 4)
    text = vllm.dumps(physical)
    assert [read_as_vllm_ascend(text, layer) for layer in range(3)] == physical.experts.tolist()
    assert np.array_equal(vllm.loads(text).experts, physical.experts)


def test_vllms_tensors_agree_with_each_other() -> None:
    data = json.loads(vllm.dumps(solved(problem(), 4)))
    physical = np.array(data["physical_to_logical_map"])
    logical = np.array(data["logical_to_physical_map"])
    assert logical.shape == (3, 12, 5)
    assert ((logical >= 0).sum(axis=2) == np.array(data["logical_replica_count"])).all()
    for layer, expert, column in np.argwhere(logical >= 0):
        assert physical[layer, logical[layer, expert, column]] == expert


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"logical_count": []}', "holds logical_count"),
        ('{"physical_to_logical_map": [[0, 1, 0]]}', "3 physical experts cannot be dealt to 2"),
        ('{"physical_to_logical_map": [[0, 2]]}', "expert 1 of layer 0 is in no slot"),
        ('{"physical_to_logical_map": [[0, 1], [0]]}', "different numbers of slots"),
        ('{"physical_to_logical_map": [0, 1]}', "not \\[layers, physical experts\\]"),
    ],
)
def test_what_sglang_could_not_read_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidPlacementFile, match=says):
        sglang.loads(text, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "lacks `moe_layer_count`"),
        ('{"moe_layer_count": 2, "layer_list": []}', "is 2, `layer_list` has 0"),
        (
            '{"moe_layer_count": 1, "layer_list": '
            '[{"device_list": [{"device_expert": [0]}, {"device_expert": [1, 2]}]}]}',
            "different numbers of experts",
        ),
    ],
)
def test_what_vllm_could_not_read_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidPlacementFile, match=says):
        vllm.loads(text)
