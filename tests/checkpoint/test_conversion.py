"""The parts of an expert that `assemble` names are those that transformers' own operations give it."""

import pytest
import torch
from safetensors.torch import save_file
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    Interleave,
    MergeModulelist,
    PermuteForRope,
    Transpose,
    WeightConverter,
)

from flexpert_workers.checkpoint.conversion import plain_operations
from flexpert_workers.checkpoint.dtypes import SERVED
from flexpert_workers.checkpoint.files import SINGLE_FILE, open_files
from flexpert_workers.checkpoint.layout import make_layout
from flexpert_workers.checkpoint.pages import fill_segment
from flexpert_workers.checkpoint.recipes import Recipe, assemble
from flexpert_workers.checkpoint.weights import find_weights
from flexpert_workers.errors import CorruptCheckpoint, UnsupportedArchitecture

EXPERTS = 3


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def per_expert(name, *shape):
    return {f"e.{index}.{name}": draw(*shape) + index for index in range(EXPERTS)}


CASES = {
    "merge": ({"e.*.w2": per_expert("w2", 4, 6)}, [MergeModulelist(dim=0)]),
    "merge and concatenate": (
        {"e.*.w1": per_expert("w1", 4, 6), "e.*.w3": per_expert("w3", 4, 6)},
        [MergeModulelist(dim=0), Concatenate(dim=1)],
    ),
    "merge, concatenate columns": (
        {"e.*.w1": per_expert("w1", 4, 6), "e.*.w3": per_expert("w3", 4, 2)},
        [MergeModulelist(dim=0), Concatenate(dim=2)],
    ),
    "concatenate fused": ({"gate": {"gate": draw(EXPERTS, 4, 6)}, "up": {"up": draw(EXPERTS, 4, 6)}}, [Concatenate(1)]),
    "interleave": ({"w13": {"w13": draw(EXPERTS, 8, 6)}}, [Interleave(dim=1)]),
    "transpose": ({"w2": {"w2": draw(EXPERTS, 4, 6)}}, [Transpose(1, 2)]),
    "merge and transpose": ({"e.*.w2": per_expert("w2", 4, 6)}, [MergeModulelist(dim=0), Transpose(1, 2)]),
}


def converted(parts, operations):
    """What transformers' own operations make of the whole parameter."""
    converter = WeightConverter(list(parts), "target", operations)
    values = {pattern: list(tensors.values()) for pattern, tensors in parts.items()}
    for operation in converter.operations:
        values = operation.convert(values, source_patterns=list(parts), target_patterns=["target"])
    return values["target"]


def save(folder, parts):
    save_file({name: tensor for tensors in parts.values() for name, tensor in tensors.items()}, folder / SINGLE_FILE)
    return find_weights(open_files(folder), None)


def recipe_of(parts, operations):
    sources = {pattern: tuple(tensors) for pattern, tensors in parts.items()}
    return Recipe("target", sources, plain_operations(operations))


@pytest.mark.parametrize("dtype", ["Float32", "BFloat16"])
@pytest.mark.parametrize("case", CASES)
def test_parts_equal_the_converted_parameter(tmp_path, case, dtype):
    parts, operations = CASES[case]
    expected = converted(parts, operations)
    weights = save(tmp_path, parts)
    layout = make_layout([("target", tuple(expected.shape[1:]))], dtype)
    for index in range(EXPERTS):
        page = bytearray(layout.page_bytes)
        source = assemble(recipe_of(parts, operations), index, EXPERTS, weights)
        fill_segment(weights, layout.segments[0], source, memoryview(page))
        assert torch.equal(layout.views(page)["target"], expected[index].to(SERVED[dtype]))


@pytest.mark.parametrize(
    "operations",
    [
        [PermuteForRope()],
        [Chunk(dim=1)],
        [Concatenate(dim=0)],
        [Transpose(0, 1)],
        [Interleave(dim=1, inverse=True)],
        [Transpose(1, 2, check_dims=True)],
    ],
    ids=repr,
)
def test_other_operations_are_refused_by_name(tmp_path, operations):
    parts = {"w": {"w": draw(EXPERTS, 4, 6)}}
    weights = save(tmp_path, parts)
    with pytest.raises(UnsupportedArchitecture, match=f"target needs the conversion {type(operations[0]).__name__}"):
        assemble(recipe_of(parts, operations), 0, EXPERTS, weights)


def test_parts_of_different_shapes_are_refused(tmp_path):
    parts = {"e.*.w1": per_expert("w1", 4, 6), "e.*.w3": per_expert("w3", 4, 5)}
    operations = [MergeModulelist(dim=0), Concatenate(dim=1)]
    with pytest.raises(CorruptCheckpoint, match="target: the shapes of its parts differ"):
        assemble(recipe_of(parts, operations), 0, EXPERTS, save(tmp_path, parts))


def test_a_fused_tensor_of_another_number_of_experts_is_refused(tmp_path):
    parts = {"w": {"w": draw(EXPERTS + 1, 4, 6)}}
    with pytest.raises(CorruptCheckpoint, match=r"model\.safetensors: tensor 'w' has shape \[4, 4, 6\]"):
        assemble(recipe_of(parts, []), 0, EXPERTS, save(tmp_path, parts))
