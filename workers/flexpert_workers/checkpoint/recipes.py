"""How an expert's parameter is made of stored weights, as plain values that can be kept in a file.

`conversion` writes recipes from transformers' mapping; `Checkpoint` runs `assemble` for one expert's part whenever a
page is filled. Nothing here needs transformers or reads a byte: operations run on `Assembly` values.
"""

import msgspec

from flexpert_workers.checkpoint.boxes import Assembly, concatenate
from flexpert_workers.checkpoint.weights import Weights
from flexpert_workers.errors import CorruptCheckpoint, UnsupportedArchitecture


class Merge(msgspec.Struct, frozen=True, tag=True):
    """Stack the experts' own tensors along a new first dimension."""


class Concatenate(msgspec.Struct, frozen=True, tag=True):
    """Put the parts one behind the other along `dim`."""

    dim: int


class Transpose(msgspec.Struct, frozen=True, tag=True):
    """Swap two dimensions."""

    first: int
    second: int


class Deinterleave(msgspec.Struct, frozen=True, tag=True):
    """[a0, b0, a1, b1, …] along `dim` → [a0, a1, …, b0, b1, …]."""

    dim: int


class Unserved(msgspec.Struct, frozen=True, tag=True):
    """An operation that is more than slicing, merging and concatenating, as transformers describes it."""

    description: str


Operation = Merge | Concatenate | Transpose | Deinterleave | Unserved


class Recipe(msgspec.Struct, frozen=True):
    """How one parameter is made.

    Attributes:
        target: The parameter's full name in the model, e.g. "model.layers.1.mlp.experts.gate_up_proj".
        sources: Source pattern → the stored weights that match it, in the loader's order. A parameter that is stored
            as it is has one source, under its own stored name.
        operations: In order; empty for a parameter that is stored as it is. Dimensions count the experts' own.
    """

    target: str
    sources: dict[str, tuple[str, ...]]
    operations: tuple[Operation, ...]


def assemble(recipe: Recipe, index: int, num_experts: int, weights: Weights) -> Assembly:
    """The part of a parameter `[experts, …]` that belongs to expert `index`, without the leading dimension.

    Raises:
        CorruptCheckpoint: Tensors of some experts are missing, or shapes do not fit together.
        UnsupportedArchitecture: The parameter needs more than slicing, merging and concatenating.
    """
    merges = bool(recipe.operations) and isinstance(recipe.operations[0], Merge)
    take = _own_weight if merges else _own_slice
    parts = {
        pattern: take(recipe, names, index, num_experts, weights) for pattern, names in _checked_sources(recipe).items()
    }
    for operation in recipe.operations:
        parts = _apply(operation, parts, recipe)
    if len(parts) != 1:
        raise UnsupportedArchitecture(f"{recipe.target} is made of {sorted(parts)} in a way that is not served")
    return next(iter(parts.values())).without_leading()


def _checked_sources(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    if not recipe.operations and len(recipe.sources) > 1:
        raise CorruptCheckpoint(f"{recipe.target} is stored more than once: {sorted(recipe.sources)}")
    return recipe.sources


def _own_weight(recipe: Recipe, names: tuple[str, ...], index: int, num_experts: int, weights: Weights) -> Assembly:
    """The expert's own stored weight, of a parameter that is stored expert by expert."""
    if len(names) != num_experts:
        missing = _missing_expert(names, num_experts)
        raise CorruptCheckpoint(
            f"{weights.files.path}: {recipe.target} needs {num_experts} experts but {len(names)} are stored; {missing}"
        )
    return weights.by_name[names[index]].assembly()


def _own_slice(recipe: Recipe, names: tuple[str, ...], index: int, num_experts: int, weights: Weights) -> Assembly:
    """The expert's slice `[1, …]` of a parameter that is stored for all experts together."""
    weight = weights.by_name[names[0]]
    if len(names) > 1 or not weight.shape or weight.shape[0] != num_experts:
        raise CorruptCheckpoint(
            f"{weights.path(weight)}: tensor {weight.tensor.name!r} has shape {list(weight.tensor.shape)}, "
            f"but {recipe.target} needs {num_experts} experts"
        )
    return weight.assembly().slice(0, index, index + 1)


def _missing_expert(names: tuple[str, ...], num_experts: int) -> str:
    """Name the first tensor that is missing, by the one number in which its neighbours' names differ."""
    first, last = names[0].split("."), names[-1].split(".")
    differing = [position for position, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]]
    for index in range(num_experts if len(differing) == 1 else 0):
        name = ".".join([*first[: differing[0]], str(index), *first[differing[0] + 1 :]])
        if name not in names:
            return f"{name!r} is missing"
    return f"the stored ones begin with {names[0]!r}"


def _apply(operation: Operation, parts: dict[str, Assembly], recipe: Recipe) -> dict[str, Assembly]:
    """One operation on the parts of a single expert, whose leading dimension is 1."""
    match operation:
        case Merge():
            return {pattern: part.with_leading() for pattern, part in parts.items()}
        case Concatenate(dim):
            return {recipe.target: concatenate(_matching(list(parts.values()), dim, recipe), dim)}
        case Transpose(first, second):
            return {pattern: part.transpose(first, second) for pattern, part in parts.items()}
        case Deinterleave(dim):
            return {pattern: _deinterleave(part, dim) for pattern, part in parts.items()}
        case Unserved(description):
            raise UnsupportedArchitecture(
                f"{recipe.target} needs the conversion {description}, which is more than slicing, merging and "
                f"concatenating"
            )


def _matching(parts: list[Assembly], dim: int, recipe: Recipe) -> list[Assembly]:
    shapes = {part.shape[:dim] + part.shape[dim + 1 :] for part in parts}
    if len(shapes) > 1:
        raise CorruptCheckpoint(f"{recipe.target}: the shapes of its parts differ: {[part.shape for part in parts]}")
    return parts


def _deinterleave(part: Assembly, dim: int) -> Assembly:
    size = part.shape[dim]
    return concatenate([part.slice(dim, 0, size, 2), part.slice(dim, 1, size, 2)], dim)
