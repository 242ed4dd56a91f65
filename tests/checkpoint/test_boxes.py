"""Assemblies name exactly the elements that the same operations on tensors give."""

import random

import pytest
import torch

from flexpert_workers.checkpoint.boxes import Assembly, concatenate


def gather(assembly, tensors):
    """What the assembly stands for, read element by element; -1 where no box covers."""
    result = torch.full(assembly.shape, -1)
    for box in assembly.boxes:
        source = tensors[box.tensor].reshape(-1).as_strided(box.shape, box.strides, box.start)
        where = tuple(slice(at, at + size) for at, size in zip(box.at, box.shape, strict=True))
        assert (result[where] == -1).all(), "boxes overlap"
        result[where] = source
    return result


def random_step(rng, tensor, assembly):
    dim = rng.randrange(tensor.dim())
    size = tensor.shape[dim]
    match rng.choice(["slice", "transpose", "cat", "leading"]):
        case "slice":
            start = rng.randrange(size)
            stop = rng.randint(start + 1, size)
            step = rng.randint(1, 3)
            index = (slice(None),) * dim + (slice(start, stop, step),)
            return tensor[index], assembly.slice(dim, start, stop, step)
        case "transpose":
            other = rng.randrange(tensor.dim())
            return tensor.transpose(dim, other), assembly.transpose(dim, other)
        case "cat":
            cut = rng.randrange(size + 1)
            halves = [(cut, size), (0, cut)]
            parts = [assembly.slice(dim, start, stop) for start, stop in halves]
            return tensor.roll(-cut, dim), concatenate(parts, dim)
        case _:
            return tensor[None], assembly.with_leading()


@pytest.mark.parametrize("seed", range(40))
def test_random_operations_agree_with_torch(seed):
    rng = random.Random(seed)
    shape = tuple(rng.randint(1, 5) for _ in range(rng.randint(1, 3)))
    stored = torch.arange(torch.Size(shape).numel()).view(shape)
    tensor, assembly = stored, Assembly.stored("t", shape)
    for _ in range(6):
        tensor, assembly = random_step(rng, tensor, assembly)
    assert assembly.shape == tuple(tensor.shape)
    assert torch.equal(gather(assembly, {"t": stored}), tensor)


def test_contiguous_boxes_are_recognised():
    whole = Assembly.stored("t", (4, 6))
    (rows,) = whole.slice(0, 1, 3).boxes
    (columns,) = whole.slice(1, 1, 3).boxes
    assert rows.is_contiguous
    assert (rows.start, rows.span) == (6, 12)
    assert not columns.is_contiguous
    assert not whole.transpose(0, 1).boxes[0].is_contiguous


def test_without_leading_undoes_with_leading():
    assembly = Assembly.stored("t", (2, 3)).slice(1, 1, 3)
    assert assembly.with_leading().without_leading() == assembly
