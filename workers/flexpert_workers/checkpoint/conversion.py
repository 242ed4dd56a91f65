"""How each expert parameter of a model comes from stored tensors, by transformers' own conversion mapping.

`checkpoint` asks once for every parameter's `Recipe`, and `assemble` for one expert's part of it whenever a page is
filled. The names are matched by transformers' functions, in the order in which its loader applies them; the
operations are run on `Assembly` values, which read nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from flexpert_workers.checkpoint.boxes import Assembly, concatenate
from flexpert_workers.checkpoint.weights import Weights
from flexpert_workers.errors import CorruptCheckpoint, UnsupportedArchitecture


@dataclass(frozen=True)
class Recipe:
    """How one parameter is made.

    Attributes:
        target: The parameter's full name in the model, e.g. "model.layers.1.mlp.experts.gate_up_proj".
        sources: Source pattern → the stored weights that match it, in the loader's order. A parameter that is stored
            as it is has one source, under its own stored name.
        operations: transformers' operations, in order; empty for a parameter that is stored as it is.
    """

    target: str
    sources: Mapping[str, tuple[str, ...]]
    operations: tuple[Any, ...]


@dataclass(frozen=True)
class Conversion:
    """Every parameter that the files give, by its name in the model."""

    recipes: Mapping[str, Recipe]
    targets: frozenset[str]


def convert_names(model: Any, weights: Weights) -> Conversion:
    """Match the stored weights with the parameters of `model` (on meta), as transformers' loader does.

    Source of the method: `convert_and_load_state_dict_in_model` of transformers' `core_model_loading`.
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [transform for transform in mapping if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in mapping if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = model.state_dict()
    collected: dict[str, dict[str, list[str]]] = {}
    operations: dict[str, WeightConverter | None] = {}
    targets: set[str] = set()
    for stored in sorted(weights.by_name, key=dot_natural_key):
        name, pattern = rename_source_key(stored, renamings, converters, model.base_model_prefix, state)
        if name not in state and stored in state:
            name, pattern = rename_source_key(stored, [], [], model.base_model_prefix, state)
        if name not in state:
            continue
        converter = by_pattern[pattern] if pattern is not None else None
        operations.setdefault(name, converter)
        collected.setdefault(name, {}).setdefault(pattern or stored, []).append(stored)
        targets |= _all_targets(name, converter)
    recipes = {name: _recipe(name, sources, operations[name]) for name, sources in collected.items()}
    return Conversion(recipes, frozenset(targets))


def check_complete(model: Any, conversion: Conversion, weights: Weights) -> None:
    """Every parameter of `model` is stored, or tied to one that is, or one that the class says may be missing.

    Raises:
        CorruptCheckpoint: Naming the first parameter that is not.
    """
    optional = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    for name, _ in model.named_parameters():
        stored = name in conversion.targets or model.all_tied_weights_keys.get(name) in conversion.targets
        if not stored and not any(pattern.search(name) for pattern in optional):
            raise CorruptCheckpoint(f"{weights.files.path}: no stored tensor gives {name}")


def assemble(recipe: Recipe, index: int, num_experts: int, weights: Weights) -> Assembly:
    """The part of a parameter `[experts, …]` that belongs to expert `index`, without the leading dimension.

    Raises:
        CorruptCheckpoint: Tensors of some experts are missing, or shapes do not fit together.
        UnsupportedArchitecture: The parameter needs more than slicing, merging and concatenating.
    """
    merges = bool(recipe.operations) and isinstance(recipe.operations[0], MergeModulelist)
    take = _own_tensor if merges else _own_slice
    parts = {
        pattern: take(recipe, names, index, num_experts, weights) for pattern, names in _ordered_sources(recipe).items()
    }
    for operation in recipe.operations:
        parts = _apply(operation, parts, recipe)
    if len(parts) != 1:
        raise UnsupportedArchitecture(f"{recipe.target} is made of {sorted(parts)} in a way that is not served")
    return next(iter(parts.values())).without_leading()


def _all_targets(name: str, converter: WeightConverter | None) -> set[str]:
    if converter is None:
        return {name}
    first = converter.target_patterns[0]
    return {name.replace(first, other) for other in converter.target_patterns}


def _recipe(name: str, sources: Mapping[str, list[str]], converter: WeightConverter | None) -> Recipe:
    if converter is None:
        return Recipe(name, {pattern: tuple(names) for pattern, names in sources.items()}, ())
    ordered = {pattern: tuple(sources[pattern]) for pattern in converter.source_patterns if pattern in sources}
    return Recipe(name, ordered, tuple(converter.operations))


def _ordered_sources(recipe: Recipe) -> Mapping[str, tuple[str, ...]]:
    if not recipe.operations and len(recipe.sources) > 1:
        raise CorruptCheckpoint(f"{recipe.target} is stored more than once: {sorted(recipe.sources)}")
    return recipe.sources


def _own_tensor(recipe: Recipe, names: tuple[str, ...], index: int, num_experts: int, weights: Weights) -> Assembly:
    """The expert's own stored tensor, of a parameter that is stored expert by expert."""
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


def _apply(operation: Any, parts: dict[str, Assembly], recipe: Recipe) -> dict[str, Assembly]:
    """One of transformers' operations on the parts of a single expert, whose leading dimension is 1."""
    match operation:
        case MergeModulelist(dim=0):
            return {pattern: part.with_leading() for pattern, part in parts.items()}
        case Concatenate(dim=dim) if dim >= 1 and operation.num_shards_attribute is None:
            return {recipe.target: concatenate(_matching(list(parts.values()), dim, recipe), dim)}
        case Transpose(dim0=first, dim1=second) if min(first, second) >= 1 and not operation.check_dims:
            return {pattern: part.transpose(first, second) for pattern, part in parts.items()}
        case Interleave(dim=dim) if dim >= 1 and not operation.inverse:
            return {pattern: _deinterleave(part, dim) for pattern, part in parts.items()}
    raise UnsupportedArchitecture(
        f"{recipe.target} needs the conversion {operation!r}, which is more than slicing, merging and concatenating"
    )


def _matching(parts: list[Assembly], dim: int, recipe: Recipe) -> list[Assembly]:
    shapes = {part.shape[:dim] + part.shape[dim + 1 :] for part in parts}
    if len(shapes) > 1:
        raise CorruptCheckpoint(f"{recipe.target}: the shapes of its parts differ: {[part.shape for part in parts]}")
    return parts


def _deinterleave(part: Assembly, dim: int) -> Assembly:
    """[a0, b0, a1, b1, …] along `dim` → [a0, a1, …, b0, b1, …]."""
    size = part.shape[dim]
    return concatenate([part.slice(dim, 0, size, 2), part.slice(dim, 1, size, 2)], dim)
